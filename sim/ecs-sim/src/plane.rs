//! What the simulated API changes in the simulated network.
//!
//! The API's state machine knows nothing of kernels: it tells a [`DataPlane`] what is plugged where and which
//! addresses belong to which ENI, before the API call answers.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::{Ipv4Net, Ipv6Net};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, VSwitchId};

/// One attached ENI as the VPC's data plane sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The ENI.
    pub eni: EniId,
    /// Its hardware address; the link that appears in the instance has it.
    pub mac: MacAddr,
    /// Where it is attached.
    pub instance: InstanceId,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// IPv4 range of the vSwitch.
    pub vswitch_v4: Ipv4Net,
    /// IPv6 range of the vSwitch, if it has one.
    pub vswitch_v6: Option<Ipv6Net>,
    /// All addresses of the ENI, primary first. Nothing else may be sent from it, nothing else is routed to it.
    pub addresses: Vec<IpAddr>,
    /// Whether it is the instance's primary ENI.
    pub primary: bool,
}

/// The data plane did not do as asked. The API call answers `InternalError`.
#[derive(Debug, thiserror::Error)]
#[error("data plane: {what}")]
pub struct PlaneError {
    /// What failed, with the ids.
    pub what: String,
}

/// The network under the API. Every call names the whole wanted state, so repeating one is harmless.
#[async_trait]
pub trait DataPlane: Send + Sync + std::fmt::Debug {
    /// Connects the ENI to its instance. The link in the guest may appear later (hot-plug lag).
    async fn plug(&self, port: &Port) -> Result<(), PlaneError>;

    /// Takes the link away from the instance and stops routing to it.
    async fn unplug(&self, eni: &EniId) -> Result<(), PlaneError>;

    /// Routes exactly `port.addresses` to the ENI and lets it send from exactly these.
    async fn set_addresses(&self, port: &Port) -> Result<(), PlaneError>;
}

/// No network: for people who only want the API.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPlane;

#[async_trait]
impl DataPlane for NoPlane {
    async fn plug(&self, _port: &Port) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn unplug(&self, _eni: &EniId) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn set_addresses(&self, _port: &Port) -> Result<(), PlaneError> {
        Ok(())
    }
}
