//! ENIs in the kernel: each is found by its hardware address when it appears, configured, and kept so.
//!
//! Level-triggered: whatever happened, the next look compares the ENIs of the ledger with the links of the node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use datapath::desired::{DEFAULT_MTU, EniDesired, EniState, HostDesired};
use datapath::error::DatapathError;
use datapath::kernel::Datapath;
use datapath::names::DEFAULT_VETH_PREFIX;
use mesh::causes;
use tracing::Instrument as _;
use types::cloud::EniId;

use crate::ledger::{EniView, Ledger, LedgerError};
use crate::pool::EniRecord;

/// The node's own addresses: put on every ENI, so that ARP and ICMP have a source.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeAddresses {
    /// IPv4.
    pub v4: Option<std::net::Ipv4Addr>,
    /// IPv6.
    pub v6: Option<std::net::Ipv6Addr>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uplinks {
    datapath: Arc<Datapath>,
    ledger: Ledger,
    node: NodeAddresses,
    states: Arc<Mutex<BTreeMap<EniId, EniState>>>,
}

impl Uplinks {
    /// Nothing is configured yet.
    pub fn new(datapath: Arc<Datapath>, ledger: Ledger, node: NodeAddresses) -> Self {
        Self {
            datapath,
            ledger,
            node,
            states: Arc::default(),
        }
    }

    /// The link of a configured ENI.
    pub fn state(&self, eni: &EniId) -> Option<EniState> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.get(eni).cloned()
    }

    /// What the node needs so that it forwards for pods.
    pub fn host(&self, v6: bool) -> HostDesired {
        let NodeAddresses { v4, v6: own_v6 } = self.node;
        let own_v6 = own_v6.filter(|_| v6);
        HostDesired {
            v6,
            veth_prefixes: vec![DEFAULT_VETH_PREFIX.to_owned()],
            node_addresses: v4
                .map(IpAddr::V4)
                .into_iter()
                .chain(own_v6.map(IpAddr::V6))
                .collect(),
        }
    }

    /// What the kernel should hold for the ENI.
    pub fn desired(&self, record: &EniRecord) -> EniDesired {
        EniDesired {
            mac: record.mac,
            v4_gateway: Some(record.ipv4_gateway),
            v6_gateway: record.ipv6.map(|(_, gateway)| gateway),
            node_v4: self.node.v4,
            node_v6: record.ipv6.and(self.node.v6),
            mtu: DEFAULT_MTU,
        }
    }

    /// Looks at every ENI once: configures those whose link is there, marks those whose link is gone.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger stopped. What the kernel refused is logged and tried at the next look.
    pub async fn look(&self) -> Result<(), LedgerError> {
        let view = self.ledger.view();
        for (id, eni) in &view.enis {
            if eni.record.whole {
                self.look_whole(id, eni).await?;
                continue;
            }
            let span = tracing::debug_span!("agent.eni", eni.id = %id);
            match self
                .datapath
                .ensure_eni(&self.desired(&eni.record))
                .instrument(span)
                .await
            {
                Ok(state) => {
                    mesh::crash_point!("agent.eni.after_kernel");
                    let moved = self.remember(id, &state);
                    if !eni.ready || moved {
                        tracing::info!(eni.id = %id, link = state.ifname, "eni ready");
                        self.ledger.set_ready(id.clone(), true).await?;
                        mesh::crash_point!("agent.eni.after_ready");
                    }
                }
                Err(DatapathError::EniMissing { .. }) => {
                    if eni.ready {
                        tracing::warn!(eni.id = %id, "the link of an eni is gone");
                        self.forget(id);
                        self.ledger.set_ready(id.clone(), false).await?;
                    }
                }
                Err(error) => {
                    tracing::warn!(eni.id = %id, error = %causes::text(&error), "eni not configured");
                }
            }
        }
        Ok(())
    }

    /// An ENI that a pod has, or will have, for itself is not configured on the node: it is ready when its link is there,
    /// or in its pod.
    async fn look_whole(&self, id: &EniId, eni: &EniView) -> Result<(), LedgerError> {
        let ready = if eni.bound.is_empty() {
            match self.datapath.find_link(eni.record.mac).await {
                Ok(found) => found.is_some(),
                Err(error) => {
                    tracing::warn!(eni.id = %id, error = %causes::text(&error), "eni not looked for");
                    return Ok(());
                }
            }
        } else {
            true
        };
        if ready != eni.ready {
            tracing::info!(eni.id = %id, ready, "eni for a pod of its own");
            self.ledger.set_ready(id.clone(), ready).await?;
        }
        Ok(())
    }

    /// Takes the kernel state of an ENI down; its link stays until the cloud takes it.
    ///
    /// # Errors
    /// [`DatapathError`] when the kernel refused; nothing was forgotten.
    pub async fn take_down(&self, record: &EniRecord) -> Result<(), DatapathError> {
        // An ENI whose link never came has nothing in the kernel.
        if let Some(state) = self.state(&record.eni) {
            self.datapath.remove_eni(record.mac, state.table).await?;
        }
        self.forget(&record.eni);
        Ok(())
    }

    fn remember(&self, eni: &EniId, state: &EniState) -> bool {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let old = states.insert(eni.clone(), state.clone());
        old.is_some_and(|old| old != *state)
    }

    fn forget(&self, eni: &EniId) {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(eni);
    }
}

/// Splits addresses by family into strings, for messages.
pub fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}
