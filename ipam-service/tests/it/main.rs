//! Tests of ipam-service against real stores.

#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod log;
#[cfg(test)]
mod membership;
