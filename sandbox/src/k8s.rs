//! A real Kubernetes on one machine, with the nodes as instances of the simulated VPC.
//!
//! [`bed::Bed`] starts and stops it; [`release`] installs the product's chart on it by the real Helm; [`check`] proves
//! that it works; [`run`] is the program's `k8s`.

pub mod args;
pub mod audit;
pub mod bed;
pub mod boot;
pub mod cgroup;
pub mod check;
pub mod control;
pub mod dns;
pub mod door;
pub mod kube;
pub mod machine;
pub mod matrix;
pub mod node;
pub mod node_config;
pub mod peers;
pub mod pki;
pub mod release;
pub mod run;
pub mod starts;
pub mod workload;
