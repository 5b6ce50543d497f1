//! A cluster on one machine: simulated cloud and VPC, real services, real kernel.
//!
//! [`cluster::Cluster`] starts it; [`kubelet`] makes pods in it as kubelet would; [`reachability`], [`agreement`],
//! [`controls`], [`churn`] and [`trace_tree`] look at it; [`up`] does all of that for the `sandbox` program.

pub mod agreement;
pub mod args;
pub mod audit;
pub mod certificates;
pub mod churn;
pub mod cloud;
pub mod cluster;
pub mod controls;
pub mod doors;
pub mod echo;
pub mod k8s;
pub mod kernel;
pub mod kubelet;
pub mod layout;
pub mod objects;
pub mod options;
pub mod percentile;
pub mod plugin;
pub mod pods;
pub mod policy_kernel;
pub mod policy_proof;
pub mod probe;
pub mod process;
pub mod reachability;
pub mod report;
pub mod run_dir;
pub mod service_config;
pub mod spans;
pub mod trace_tree;
pub mod up;
