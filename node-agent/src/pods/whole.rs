//! Pods with an ENI of their own: its link is moved into the pod at ADD, and back at DEL.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use datapath::desired::{PodState, WholeDesired, WholeTeardown, node_side};
use datapath::error::DatapathError;

use super::{PodError, Pods};
use crate::pool::{Binding, EniRecord};

/// How long an ADD waits for the link of its ENI, which was seen a moment ago or is on its way back from another pod.
const LINK_WAIT: Duration = Duration::from_secs(10);

/// Gateways of a vSwitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateways {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, with dual stack.
    pub v6: Option<Ipv6Addr>,
}

impl Pods {
    fn own_eni(&self, binding: &Binding) -> Option<EniRecord> {
        let view = self.ledger.view();
        let eni = view.enis.get(&binding.eni)?;
        (binding.whole && eni.record.whole).then(|| eni.record.clone())
    }

    /// The gateways of a pod with an ENI of its own.
    pub(super) fn own_gateways(&self, binding: &Binding) -> Option<Gateways> {
        let record = self.own_eni(binding)?;
        Some(Gateways {
            v4: record.ipv4_gateway,
            v6: binding.ipv6.and(record.ipv6).map(|(_, gateway)| gateway),
        })
    }

    /// What the kernel should hold for a pod with an ENI of its own; `None` for any other.
    pub fn desired_whole(&self, binding: &Binding) -> Option<WholeDesired> {
        let record = self.own_eni(binding)?;
        let v6 = binding
            .ipv6
            .and_then(|ip| Some((ip, record.ipv6.map(|(_, gateway)| gateway)?)));
        Some(WholeDesired {
            attachment: binding.attachment.clone(),
            host_link: binding.host_link.clone(),
            netns: PathBuf::from(&binding.netns),
            mac: record.mac,
            mtu: binding.mtu,
            v4: (binding.ipv4, record.ipv4_gateway),
            v6,
            through_node: self.through_node.to_vec(),
        })
    }

    /// Moves the ENI into the pod.
    pub(super) async fn make_whole(&self, binding: &Binding) -> Result<PodState, PodError> {
        let desired = self.desired_whole(binding).ok_or(PodError::NoAddress {
            waited: Duration::ZERO,
        })?;
        let mut made = self.datapath.setup_whole(&desired).await;
        if let Err(DatapathError::EniMissing { mac }) = made {
            made = match self.datapath.wait_link_by_mac(mac, LINK_WAIT).await {
                Ok(_) => self.datapath.setup_whole(&desired).await,
                Err(error) => Err(error),
            };
        }
        made.map_err(|source| PodError::Kernel {
            attachment: binding.attachment.clone(),
            source,
        })
    }

    /// Takes the ENI back from the pod, whose namespace may be gone.
    pub(super) async fn unmake_whole(&self, binding: &Binding) -> Result<(), PodError> {
        let Some(record) = self.own_eni(binding) else {
            // An ENI is never forgotten while it is bound; what can be removed is.
            let attachment = node_side(&binding.attachment);
            let addresses = binding.addresses().collect();
            return self
                .tear_down(&attachment, binding.host_link.clone(), addresses)
                .await;
        };
        let teardown = WholeTeardown {
            attachment: binding.attachment.clone(),
            host_link: binding.host_link.clone(),
            netns: PathBuf::from(&binding.netns),
            mac: record.mac,
            addresses: binding.addresses().collect(),
        };
        self.datapath
            .teardown_whole(&teardown)
            .await
            .map(drop)
            .map_err(|source| PodError::Kernel {
                attachment: binding.attachment.clone(),
                source,
            })
    }
}
