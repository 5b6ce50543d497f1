//! ADD, DEL, CHECK and GC of pods: the ledger first, then the kernel, then its policy, then the answer.
//!
//! A warm ADD touches nothing but this node. A cold one waits for the pool to be filled, which the ADD asks for by
//! being counted in [`Waiting`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::pods::Pods as Feed;
use datapath::desired::{DEFAULT_MTU, PodDesired, PodState, PodTeardown};
use datapath::error::DatapathError;
use datapath::kernel::Datapath;
use datapath::names;
use datapath::plan::Drift;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;
use types::pod::{AttachmentKey, PodKey};
use types::time::Tick;

use crate::gate::{Gate, GateError};
use crate::ledger::{Ledger, LedgerError};
use crate::pool::{BindRequest, Binding, Empty};
use crate::uplinks::Uplinks;

pub mod whole;

/// Waits of the operations.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the pod's manifest.
    pub manifest: Duration,
    /// For an address.
    pub address: Duration,
}

/// ADDs that wait for an address now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many, of pods that share ENIs.
    pub pods: u32,
    /// How many, of pods that get one for themselves.
    pub wholes: u32,
    /// Trace of the one that came last.
    pub traceparent: String,
}

/// What the runtime asks for.
#[derive(Debug, Clone)]
pub struct AddPod {
    /// Sandbox and interface.
    pub attachment: AttachmentKey,
    /// The pod.
    pub pod: PodKey,
    /// Its UID, as far as the runtime told.
    pub pod_uid: String,
    /// Path of the network namespace.
    pub netns: String,
    /// Prefix of the host-side link; empty for the default.
    pub veth_prefix: String,
    /// MTU in bytes; 0 for the default.
    pub mtu: u32,
}

/// Why an operation on a pod did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Another call for the same attachment is running: try again.
    #[error("another call for {0} is running")]
    Busy(AttachmentKey),
    /// The pod's manifest has not arrived: try again.
    #[error("pod {0} is not known on this node")]
    Unknown(PodKey),
    /// The pod uses the node's network and should not have come here.
    #[error("pod {0} uses the network of its node")]
    HostNetwork(PodKey),
    /// No address came in time: try again.
    #[error("no address became free within {waited:?}")]
    NoAddress {
        /// How long it was waited for.
        waited: Duration,
    },
    /// An argument is malformed.
    #[error("{field}: {why}")]
    Field {
        /// The argument.
        field: &'static str,
        /// The rule.
        why: String,
    },
    /// The attachment has no addresses here.
    #[error("{0} has no addresses on this node")]
    NotBound(AttachmentKey),
    /// The kernel does not hold what it should.
    #[error("{}", .0.join("; "))]
    Drift(Vec<String>),
    /// The kernel refused.
    #[error("kernel state of {attachment}")]
    Kernel {
        /// Whose.
        attachment: AttachmentKey,
        /// Why.
        #[source]
        source: DatapathError,
    },
    /// The pod's policy is not in the kernel: try again.
    #[error("policy of pod {pod} is not in force")]
    Policy {
        /// Whose.
        pod: PodKey,
        /// Why.
        #[source]
        source: GateError,
    },
    /// The agent is going down or its store failed.
    #[error(transparent)]
    Ledger(LedgerError),
}

impl From<LedgerError> for PodError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Empty(Empty) => Self::NoAddress {
                waited: Duration::ZERO,
            },
            LedgerError::Stopped => Self::Ledger(error),
        }
    }
}

/// Name of the host-side link of the pod.
fn host_link(add: &AddPod) -> Result<String, PodError> {
    let prefix = match add.veth_prefix.as_str() {
        "" => names::DEFAULT_VETH_PREFIX,
        prefix => prefix,
    };
    names::host_link(prefix, &add.pod, &add.attachment.ifname).map_err(|e| PodError::Field {
        field: "veth_prefix",
        why: e.to_string(),
    })
}

/// What a pod got.
#[derive(Debug, Clone)]
pub struct Added {
    /// Gateways of its own vSwitch, if the pod has an ENI for itself; others have the node's.
    pub gateways: Option<whole::Gateways>,
    /// Addresses and names.
    pub binding: Binding,
    /// Hardware addresses.
    pub state: PodState,
}

/// What [`Pods`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// ENIs in the kernel.
    pub uplinks: Uplinks,
    /// The kernel.
    pub datapath: Arc<Datapath>,
    /// The way to the kernel's policy.
    pub gate: Gate,
    /// Which pods there are.
    pub feed: Feed,
    /// Waits.
    pub patience: Patience,
    /// The present boot.
    pub boot_id: String,
    /// What pods with an ENI of their own reach by way of the node: its addresses, and the ranges of Services.
    pub through_node: Vec<ipnet::IpNet>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {
    ledger: Ledger,
    uplinks: Uplinks,
    datapath: Arc<Datapath>,
    gate: Gate,
    feed: Feed,
    patience: Patience,
    boot_id: String,
    through_node: Arc<[ipnet::IpNet]>,
    busy: Arc<Mutex<BTreeSet<AttachmentKey>>>,
    waiting: Arc<watch::Sender<Waiting>>,
}

/// Holds an attachment for one call at a time.
#[derive(Debug)]
struct Busy {
    attachment: AttachmentKey,
    all: Arc<Mutex<BTreeSet<AttachmentKey>>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.attachment);
    }
}

/// Counts an ADD among those that wait.
#[derive(Debug)]
struct Counted {
    waiting: Arc<watch::Sender<Waiting>>,
    whole: bool,
}

impl Counted {
    fn new(waiting: &Arc<watch::Sender<Waiting>>, whole: bool, traceparent: String) -> Self {
        waiting.send_modify(|w| {
            let count = w.count(whole);
            *count = count.saturating_add(1);
            w.traceparent = traceparent;
        });
        Self {
            waiting: Arc::clone(waiting),
            whole,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.waiting.send_modify(|w| {
            let count = w.count(self.whole);
            *count = count.saturating_sub(1);
        });
    }
}

impl Waiting {
    fn count(&mut self, whole: bool) -> &mut u32 {
        if whole {
            &mut self.wholes
        } else {
            &mut self.pods
        }
    }
}

impl Pods {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let (waiting, _) = watch::channel(Waiting::default());
        Self {
            ledger: parts.ledger,
            uplinks: parts.uplinks,
            datapath: parts.datapath,
            gate: parts.gate,
            feed: parts.feed,
            patience: parts.patience,
            boot_id: parts.boot_id,
            through_node: parts.through_node.into(),
            busy: Arc::default(),
            waiting: Arc::new(waiting),
        }
    }

    /// ADDs that wait for an address.
    pub fn waiting(&self) -> watch::Receiver<Waiting> {
        self.waiting.subscribe()
    }

    fn hold(&self, attachment: &AttachmentKey) -> Result<Busy, PodError> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(attachment.clone()) {
            return Err(PodError::Busy(attachment.clone()));
        }
        Ok(Busy {
            attachment: attachment.clone(),
            all: Arc::clone(&self.busy),
        })
    }

    /// Whether a call for the attachment is running.
    pub fn is_busy(&self, attachment: &AttachmentKey) -> bool {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(attachment)
    }

    /// Gives the pod its addresses and kernel state. Repeating it gives the same answer.
    ///
    /// # Errors
    /// [`PodError`]; whatever was done is undone, unless the ledger stopped.
    pub async fn add(&self, add: AddPod) -> Result<Added, PodError> {
        let _busy = self.hold(&add.attachment)?;
        let known = self.feed.wait_for(&add.pod, self.patience.manifest).await;
        let manifest = known.ok_or_else(|| PodError::Unknown(add.pod.clone()))?;
        if manifest.host_network {
            return Err(PodError::HostNetwork(add.pod));
        }
        let host_link = host_link(&add)?;
        if manifest.whole_eni {
            // A late DEL would keep the ENI that this sandbox of the same pod shall have.
            self.succeed(&add.attachment, &host_link).await?;
        }
        mesh::crash_point!("agent.add.before_bind");
        let binding = self.bind(&add, host_link, manifest.whole_eni).await?;
        mesh::crash_point!("agent.add.after_persist");
        let made = match self.succeed(&add.attachment, &binding.host_link).await {
            Ok(()) => self.make(&binding).await,
            Err(error) => Err(error),
        };
        mesh::crash_point!("agent.add.after_kernel");
        let made = match made {
            Ok(state) => self.enforce(&binding).await.map(|()| state),
            Err(error) => Err(error),
        };
        match made {
            Ok(state) => Ok(Added {
                gateways: self.own_gateways(&binding),
                binding,
                state,
            }),
            Err(error) => {
                self.undo(&binding).await;
                Err(error)
            }
        }
    }

    /// Brings the kernel to what the binding says.
    async fn make(&self, binding: &Binding) -> Result<PodState, PodError> {
        if binding.whole {
            return self.make_whole(binding).await;
        }
        let desired = self.desired(binding).ok_or(PodError::NoAddress {
            waited: Duration::ZERO,
        })?;
        self.datapath
            .setup_pod(&desired)
            .instrument(tracing::info_span!("datapath.setup"))
            .await
            .map_err(|source| PodError::Kernel {
                attachment: binding.attachment.clone(),
                source,
            })
    }

    /// Ends other sandboxes that have the link: the runtime has made a new one for the pod, and the DEL of
    /// the old one is late. The link is the new one's now; were the old one still bound, both would be repaired in
    /// turn, each at the cost of the other.
    async fn succeed(&self, attachment: &AttachmentKey, host_link: &str) -> Result<(), PodError> {
        let view = self.ledger.view();
        let others = view
            .bindings
            .values()
            .filter(|other| other.host_link == host_link && other.attachment != *attachment);
        for old in others {
            let _busy = self.hold(&old.attachment)?;
            tracing::info!(old = %old.attachment, new = %attachment, "a new sandbox takes the link");
            self.free(&old.attachment, Some(old)).await?;
        }
        Ok(())
    }

    /// Waits until the policy of a binding is in the kernel.
    ///
    /// # Errors
    /// [`PodError::Policy`].
    pub async fn enforce(&self, binding: &Binding) -> Result<(), PodError> {
        self.gate
            .ready(binding)
            .instrument(tracing::info_span!("agent.policy"))
            .await
            .map_err(|source| PodError::Policy {
                pod: binding.pod.clone(),
                source,
            })
    }

    async fn undo(&self, binding: &Binding) {
        if let Err(error) = self.free(&binding.attachment, Some(binding)).await {
            // The binding stays; DEL, GC or the reconciler frees it.
            tracing::warn!(attachment = %binding.attachment, %error, "failed ADD not undone yet");
        }
    }

    async fn bind(
        &self,
        add: &AddPod,
        host_link: String,
        whole: bool,
    ) -> Result<Binding, PodError> {
        let request = BindRequest {
            attachment: add.attachment.clone(),
            pod: add.pod.clone(),
            pod_uid: add.pod_uid.clone(),
            netns: add.netns.clone(),
            host_link,
            mtu: if add.mtu == 0 { DEFAULT_MTU } else { add.mtu },
            boot_id: self.boot_id.clone(),
            whole,
        };
        let start = Instant::now();
        let deadline = start + self.patience.address;
        let mut view = self.ledger.watch();
        let mut counted = None;
        loop {
            view.borrow_and_update();
            let now = Tick(mesh::clock::wall_ms());
            let bound = self
                .ledger
                .bind(request.clone(), now)
                .instrument(tracing::info_span!("agent.persist"))
                .await;
            match bound {
                Ok(binding) => return Ok(binding),
                Err(LedgerError::Stopped) => return Err(LedgerError::Stopped.into()),
                Err(LedgerError::Empty(Empty)) => {}
            }
            if counted.is_none() {
                let traceparent = mesh::telemetry::current_traceparent().unwrap_or_default();
                counted = Some(Counted::new(&self.waiting, whole, traceparent));
            }
            // A resting address wakes the wait as a change of the pool does.
            let rested = view
                .borrow()
                .rests_for(now)
                .unwrap_or(self.patience.address);
            let wake = deadline.min(Instant::now() + rested);
            let gone = match tokio::time::timeout_at(wake, view.changed()).await {
                Ok(changed) => changed.is_err(),
                Err(_) => false,
            };
            if gone {
                return Err(LedgerError::Stopped.into());
            }
            if Instant::now() >= deadline {
                return Err(PodError::NoAddress {
                    waited: start.elapsed(),
                });
            }
        }
    }

    /// What the kernel should hold for a binding on a shared ENI; `None` while that ENI's link is not there.
    pub fn desired(&self, binding: &Binding) -> Option<PodDesired> {
        let table = self.uplinks.state(&binding.eni)?.table;
        Some(PodDesired {
            attachment: binding.attachment.clone(),
            host_link: binding.host_link.clone(),
            netns: PathBuf::from(&binding.netns),
            mtu: binding.mtu,
            v4: Some(binding.ipv4),
            v6: binding.ipv6,
            table,
        })
    }

    /// Frees the attachment. Succeeds for what is unknown, gone, or deleted before.
    ///
    /// # Errors
    /// [`PodError::Busy`] while another call runs; [`PodError::Kernel`] when the kernel refused, with nothing freed.
    pub async fn del(
        &self,
        attachment: &AttachmentKey,
        pod: Option<&PodKey>,
    ) -> Result<(), PodError> {
        let _busy = self.hold(attachment)?;
        let view = self.ledger.view();
        match (view.bindings.get(attachment), pod) {
            (Some(binding), _) => self.free(attachment, Some(binding)).await,
            // Not ours any more, or never: what is left in the kernel under the pod's name goes if the alias agrees.
            (None, Some(pod)) => {
                let Ok(host_link) =
                    names::host_link(names::DEFAULT_VETH_PREFIX, pod, &attachment.ifname)
                else {
                    return Ok(());
                };
                let _leaving = self.gate.release(attachment, &host_link).await;
                self.tear_down(attachment, host_link, Vec::new()).await
            }
            (None, None) => Ok(()),
        }
    }

    async fn free(
        &self,
        attachment: &AttachmentKey,
        binding: Option<&Binding>,
    ) -> Result<(), PodError> {
        let mut leaving = None;
        if let Some(binding) = binding {
            mesh::crash_point!("agent.del.before_kernel");
            // The kernel forgets the pod's policy before another pod can get its addresses; packets of a link that
            // policy does not know are dropped.
            let mut all = Vec::new();
            for (part, host_link) in binding.parts() {
                all.push(self.gate.release(&part, &host_link).await);
            }
            leaving = Some(all);
            if binding.whole {
                self.unmake_whole(binding).await?;
            } else {
                let addresses = binding.addresses().collect();
                self.tear_down(attachment, binding.host_link.clone(), addresses)
                    .await?;
            }
            mesh::crash_point!("agent.del.after_kernel");
        }
        let now = Tick(mesh::clock::wall_ms());
        self.ledger.unbind(attachment.clone(), now).await?;
        drop(leaving);
        mesh::crash_point!("agent.del.after_persist");
        Ok(())
    }

    async fn tear_down(
        &self,
        attachment: &AttachmentKey,
        host_link: String,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<(), PodError> {
        let teardown = PodTeardown {
            attachment: attachment.clone(),
            host_link,
            addresses,
        };
        self.datapath
            .teardown_pod(&teardown)
            .await
            .map(drop)
            .map_err(|source| PodError::Kernel {
                attachment: attachment.clone(),
                source,
            })
    }

    /// Compares the kernel with what the attachment should have, and asks whether its policy is in force.
    ///
    /// # Errors
    /// [`PodError::NotBound`], [`PodError::Drift`] naming everything that differs, or [`PodError::Policy`].
    pub async fn check(
        &self,
        attachment: &AttachmentKey,
        expected: &[std::net::IpAddr],
    ) -> Result<(), PodError> {
        let view = self.ledger.view();
        let binding = view
            .bindings
            .get(attachment)
            .ok_or_else(|| PodError::NotBound(attachment.clone()))?;
        let mut drift: Vec<String> = expected
            .iter()
            .filter(|ip| !binding.addresses().any(|bound| bound == **ip))
            .map(|ip| format!("address {ip} is not bound to this sandbox"))
            .collect();
        let found = self.compare(binding).await?;
        drift.extend(found.into_iter().map(|drift: Drift| drift.what));
        let enforced = self.enforce(binding).await;
        if drift.is_empty() {
            return enforced;
        }
        drift.extend(enforced.err().map(|error| mesh::causes::text(&error)));
        Err(PodError::Drift(drift))
    }

    async fn compare(&self, binding: &Binding) -> Result<Vec<Drift>, PodError> {
        let no_link = || PodError::Drift(vec![format!("eni {} has no link", binding.eni)]);
        let found = if binding.whole {
            let desired = self.desired_whole(binding).ok_or_else(no_link)?;
            self.datapath.check_whole(&desired).await
        } else {
            let desired = self.desired(binding).ok_or_else(no_link)?;
            self.datapath.check_pod(&desired).await
        };
        found.map_err(|source| PodError::Kernel {
            attachment: binding.attachment.clone(),
            source,
        })
    }

    /// Frees every attachment that is not in `valid` and has no call running. Returns how many.
    ///
    /// # Errors
    /// The first [`PodError`]; the others were still tried.
    pub async fn gc(&self, valid: &BTreeSet<AttachmentKey>) -> Result<u32, PodError> {
        let view = self.ledger.view();
        let mut freed = 0_u32;
        let mut first = None;
        for attachment in view.bindings.keys().filter(|a| !valid.contains(*a)) {
            match self.del(attachment, None).await {
                Ok(()) => freed = freed.saturating_add(1),
                Err(PodError::Busy(_)) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(freed), Err)
    }
}
