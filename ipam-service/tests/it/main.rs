//! Tests of ipam-service against real stores.

mod etcd;
mod log;
mod membership;
