//! The ECS and VPC OpenAPI and the metadata service, simulated.

pub mod plane;
