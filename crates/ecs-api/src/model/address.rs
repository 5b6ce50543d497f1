//! Addresses of an ENI: assign and unassign.

use std::net::{Ipv4Addr, Ipv6Addr};

use types::cloud::EniId;

use crate::action::Action;
use crate::json::{Malformed, Node};
use crate::model::params::Params;
use crate::model::{Pick, Reply, Request};

/// Adds secondary IPv4 addresses. Idempotent by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignPrivateIpAddresses {
    /// Which ENI; `Available` or `InUse`.
    pub eni: EniId,
    /// Listed or counted; never nothing.
    pub ipv4: Pick<Ipv4Addr>,
    /// At most 64 ASCII characters.
    pub client_token: Option<String>,
}

impl Request for AssignPrivateIpAddresses {
    const ACTION: Action = Action::AssignPrivateIpAddresses;
    type Reply = AssignedIpv4;

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with_pick(
                "PrivateIpAddress",
                "SecondaryPrivateIpAddressCount",
                &self.ipv4,
            )
            .with_some("ClientToken", self.client_token.as_ref())
    }
}

/// The addresses that were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedIpv4 {
    /// In the cloud's order.
    pub ipv4: Vec<Ipv4Addr>,
}

impl Reply for AssignedIpv4 {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            ipv4: node
                .child("AssignedPrivateIpAddressesSet")
                .list("PrivateIpSet", "PrivateIpAddress")
                .map(Node::as_parsed)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Takes secondary IPv4 addresses away, all or nothing. No token: a repeat answers that they are not assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnassignPrivateIpAddresses {
    /// Which ENI.
    pub eni: EniId,
    /// Which addresses; never the primary one.
    pub ipv4: Vec<Ipv4Addr>,
}

impl Request for UnassignPrivateIpAddresses {
    const ACTION: Action = Action::UnassignPrivateIpAddresses;
    type Reply = ();

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with_list("PrivateIpAddress", &self.ipv4)
    }
}

/// Adds IPv6 addresses, 1 to 10. Idempotent by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignIpv6Addresses {
    /// Which ENI; `Available` or `InUse`.
    pub eni: EniId,
    /// Listed or counted; never nothing.
    pub ipv6: Pick<Ipv6Addr>,
    /// At most 64 ASCII characters.
    pub client_token: Option<String>,
}

impl Request for AssignIpv6Addresses {
    const ACTION: Action = Action::AssignIpv6Addresses;
    type Reply = AssignedIpv6;

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with_pick("Ipv6Address", "Ipv6AddressCount", &self.ipv6)
            .with_some("ClientToken", self.client_token.as_ref())
    }
}

/// The addresses that were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedIpv6 {
    /// In the cloud's order.
    pub ipv6: Vec<Ipv6Addr>,
}

impl Reply for AssignedIpv6 {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            ipv6: node
                .list("Ipv6Sets", "Ipv6Address")
                .map(Node::as_parsed)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Takes IPv6 addresses away, 1 to 10, all or nothing. No token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnassignIpv6Addresses {
    /// Which ENI.
    pub eni: EniId,
    /// Which addresses.
    pub ipv6: Vec<Ipv6Addr>,
}

impl Request for UnassignIpv6Addresses {
    const ACTION: Action = Action::UnassignIpv6Addresses;
    type Reply = ();

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with_list("Ipv6Address", &self.ipv6)
    }
}
