//! The VPC, simulated in the kernel.
//!
//! Instances are network namespaces, ENIs are veth pairs whose one end appears in the instance, and one
//! further namespace is the router that joins all vSwitches and zones. [`vpc::Fabric`] implements
//! [`ecs_sim::plane::DataPlane`], so what the simulated OpenAPI changes is what packets see.
//!
//! Nothing here touches the namespace it was started in: every link, route and rule lives in namespaces of a
//! run's own prefix, which go away with the run, at the latest when a later run starts.

pub mod error;
pub mod filter;
pub mod namespace;
pub mod port;
mod returns;
pub mod shell;
pub mod vpc;
