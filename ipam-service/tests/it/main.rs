//! Tests of ipam-service against real stores.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod cloud;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod log;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod quorum;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod wholes;
