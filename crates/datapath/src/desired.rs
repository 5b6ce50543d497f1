//! What the kernel should hold for a node, an ENI and a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use types::address::MacAddr;
use types::pod::AttachmentKey;

/// MTU of links when nothing else is said, in bytes.
pub const DEFAULT_MTU: u32 = 1500;

/// The IPv4 gateway that every pod has; it exists as a neighbour entry alone.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The IPv6 gateway that every pod has; it exists as a neighbour entry alone.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Priority of the rule that sends traffic *to* a pod through the main table.
pub const TO_POD_PRIORITY: u32 = 512;

/// Priority of the rule that sends traffic *from* a pod through its ENI's table.
pub const FROM_POD_PRIORITY: u32 = 2048;

/// A pod's attachment as the kernel should hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDesired {
    /// The sandbox and the interface in it. Its `ifname` is the link's name in the pod.
    pub attachment: AttachmentKey,
    /// Name of the host link: [`crate::names::host_link`].
    pub host_link: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// MTU of both ends, in bytes; 68 (1280 with IPv6) … 65535.
    pub mtu: u32,
    /// IPv4 address, installed as /32.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address, installed as /128.
    pub v6: Option<Ipv6Addr>,
    /// Routing table of the ENI that the addresses belong to: [`EniState::table`].
    pub table: u32,
}

impl PodDesired {
    /// The addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4
            .map(IpAddr::V4)
            .into_iter()
            .chain(self.v6.map(IpAddr::V6))
    }
}

/// Name of the link in a pod with an ENI of its own that leads to the node and to Services.
pub const NODE_LINK: &str = "veth1";

/// A pod with an ENI of its own, as the kernel should hold it: the ENI is the pod's interface, and a veth beside it
/// leads to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeDesired {
    /// The sandbox and the interface in it. Its `ifname` is the ENI's name in the pod.
    pub attachment: AttachmentKey,
    /// Name of the host end of the veth: [`crate::names::host_link`].
    pub host_link: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Hardware address of the ENI.
    pub mac: MacAddr,
    /// MTU of all links, in bytes.
    pub mtu: u32,
    /// IPv4 address, installed as /32, and the gateway of its vSwitch.
    pub v4: (Ipv4Addr, Ipv4Addr),
    /// IPv6 address, installed as /128, and the gateway of its vSwitch.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// What the pod reaches by way of the node: the node's addresses and the ranges of Services.
    pub through_node: Vec<IpNet>,
}

impl WholeDesired {
    /// The addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.v6.map(|(ip, _)| IpAddr::V6(ip));
        std::iter::once(IpAddr::V4(self.v4.0)).chain(v6)
    }

    /// The attachment that the veth beside the ENI is; its alias says so.
    pub fn node_side(&self) -> AttachmentKey {
        node_side(&self.attachment)
    }
}

/// The attachment that the veth beside a pod's own ENI is.
pub fn node_side(attachment: &AttachmentKey) -> AttachmentKey {
    AttachmentKey {
        sandbox: attachment.sandbox.clone(),
        ifname: NODE_LINK.to_owned(),
    }
}

/// What must go when an attachment with an ENI of its own ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeTeardown {
    /// The sandbox and the interface in it.
    pub attachment: AttachmentKey,
    /// Name of the host end of the veth.
    pub host_link: String,
    /// Path of the pod's network namespace; it may be gone.
    pub netns: PathBuf,
    /// Hardware address of the ENI, which comes back to the node.
    pub mac: MacAddr,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a running pod's kernel state turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// Hardware address of the host end.
    pub host_mac: MacAddr,
    /// Hardware address of the pod's end.
    pub pod_mac: MacAddr,
}

/// What must go when an attachment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTeardown {
    /// Whose link it is: a link whose alias names somebody else is left alone.
    pub attachment: AttachmentKey,
    /// Name of the host link.
    pub host_link: String,
    /// The addresses whose rules go.
    pub addresses: Vec<IpAddr>,
}

/// What a teardown found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TornDown {
    /// The link was there and is gone.
    Removed,
    /// No link had that name.
    Absent,
    /// A link with that name belongs to another attachment and was left alone.
    Spared,
}

/// An ENI as the kernel should hold it. Found by its hardware address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniDesired {
    /// Hardware address.
    pub mac: MacAddr,
    /// Gateway of the vSwitch's IPv4 range.
    pub v4_gateway: Option<Ipv4Addr>,
    /// Gateway of the vSwitch's IPv6 range.
    pub v6_gateway: Option<Ipv6Addr>,
    /// The node's own IPv4 address: put on the ENI as /32, so that ARP and ICMP have a source.
    pub node_v4: Option<Ipv4Addr>,
    /// The node's own IPv6 address: put on the ENI as /128.
    pub node_v6: Option<Ipv6Addr>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A configured ENI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniState {
    /// Name of the link now.
    pub ifname: String,
    /// Index of the link now. It changes when the ENI is attached again.
    pub ifindex: u32,
    /// Its routing table: 1000 + index.
    pub table: u32,
}

/// What a node needs so that it forwards for pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDesired {
    /// Whether pods have IPv6.
    pub v6: bool,
    /// Prefixes of host links, such as `cali`: traffic of these must pass a FORWARD policy of DROP.
    pub veth_prefixes: Vec<String>,
    /// Addresses of the node's own link: answers to flows that entered by these leave by that link. None: they leave
    /// by the pods' ENIs.
    pub node_addresses: Vec<IpAddr>,
}
