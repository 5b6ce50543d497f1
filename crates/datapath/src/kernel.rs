//! The kernel of one node, as the agent uses it.
//!
//! Changes take turns, in the order in which they were asked for: the kernel holds one lock over
//! them anyway, and so a teardown never meets a set-up that its caller gave up. Giving up a call
//! does not stop it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::{Mutex, Semaphore, watch};
use types::address::MacAddr;

use crate::desired::{
    EniDesired, EniState, HostDesired, PodDesired, PodState, PodTeardown, TornDown, WholeDesired,
};
use crate::error::DatapathError;
use crate::forward::returns;
use crate::names::{self, VethEnd};
use crate::namespace::{Namespace, on_thread};
use crate::netlink::executor::{Executor, StepHook};
use crate::netlink::{observer, request};
use crate::observed::{Link, MAIN_TABLE, Observed};
use crate::op::{Op, Place, RuleSpec};
use crate::plan::{self, Drift, Orphans};
use crate::watch::{Change, Watch};
use crate::{forward, host, moved};

/// Observations that may run beside each other.
const READERS: usize = 2;

/// Names of the steps after which a [`StepHook`] is called: a place to die in tests.
pub const CRASH_POINTS: &[&str] = &[
    "datapath.setup.after_create",
    "datapath.setup.after_pod",
    "datapath.setup.after_node",
    "datapath.teardown.before_delete",
    "datapath.teardown.after_delete",
];

/// The kernel of one node.
#[derive(Debug, Clone)]
pub struct Datapath {
    node: Namespace,
    turn: Arc<Mutex<()>>,
    readers: Arc<Semaphore>,
    pub(crate) steps: Option<StepHook>,
    complaints: Arc<watch::Sender<Vec<String>>>,
}

/// What [`Datapath::repair`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Changes that were made, in words.
    pub done: Vec<String>,
    /// Pods whose namespace is gone: nothing was changed for them. Their DEL may never come.
    pub gone: Vec<types::pod::AttachmentKey>,
    /// ENIs without a link, by hardware address.
    pub missing_enis: Vec<MacAddr>,
    /// What could not be repaired, in words. The rest was done nevertheless.
    pub failed: Vec<String>,
    /// What of ours belongs to no pod. Nothing was removed: see [`Orphans::still`].
    pub orphans: Orphans,
}

impl Datapath {
    /// The kernel of the namespace that this process runs in.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`] without `/proc`.
    pub fn open() -> Result<Self, DatapathError> {
        Ok(Self::of(Namespace::current()?))
    }

    /// The kernel of the node whose namespace is at `path`.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`], [`DatapathError::NotANetns`].
    pub fn open_at(path: &Path) -> Result<Self, DatapathError> {
        Ok(Self::of(Namespace::open(path)?))
    }

    fn of(node: Namespace) -> Self {
        Self {
            node,
            turn: Arc::new(Mutex::new(())),
            readers: Arc::new(Semaphore::new(READERS)),
            steps: None,
            complaints: Arc::default(),
        }
    }

    /// Has `hook` called after each of [`CRASH_POINTS`].
    #[must_use]
    pub fn with_steps(mut self, hook: StepHook) -> Self {
        self.steps = Some(hook);
        self
    }

    pub(crate) async fn change<T, F>(&self, work: F) -> Result<T, DatapathError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Executor) -> Result<T, DatapathError> + Send + 'static,
    {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (node, steps) = (self.node.clone(), self.steps);
        on_thread(turn, move || work(&mut Executor::open(&node, steps)?)).await
    }

    pub(crate) async fn look<T, F>(&self, work: F) -> Result<T, DatapathError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Executor) -> Result<T, DatapathError> + Send + 'static,
    {
        let turn = Arc::clone(&self.readers)
            .acquire_owned()
            .await
            .map_err(|_| DatapathError::WorkerLost)?;
        let node = self.node.clone();
        on_thread(turn, move || work(&mut Executor::open(&node, None)?)).await
    }

    /// Sets what a forwarding node needs: settings, and passage through a FORWARD policy of DROP.
    /// Returns what was changed, in words; nothing when all was well. To be called at start and
    /// periodically.
    ///
    /// # Errors
    /// [`DatapathError::Setting`], [`DatapathError::Command`], [`DatapathError::Socket`].
    pub async fn ensure_host(&self, host: &HostDesired) -> Result<Vec<String>, DatapathError> {
        let host = host.clone();
        let (done, complaints) = self
            .change(move |executor| {
                let mut done = host::ensure_node(&host)?;
                done.extend(returns::ensure(&host)?);
                done.extend(mark_rules(executor, !host.node_addresses.is_empty())?);
                let settled = forward::ensure(&host)?;
                done.extend(settled.done);
                Ok((done, settled.complaints))
            })
            .await?;
        self.complaints.send_if_modified(|now| {
            let changed = *now != complaints;
            if changed {
                for complaint in &complaints {
                    tracing::warn!(complaint, "pods may be cut off");
                }
                *now = complaints;
            }
            changed
        });
        Ok(done)
    }

    /// Chains that may drop pods' traffic and that [`Datapath::ensure_host`] could not change at its last call, each
    /// with the reason and what a person can do.
    pub fn forward_complaints(&self) -> Vec<String> {
        self.complaints.borrow().clone()
    }

    /// Takes back what [`Datapath::ensure_host`] put into other people's chains. Returns what was changed, in words.
    ///
    /// # Errors
    /// [`DatapathError::Socket`].
    pub async fn leave_host(&self) -> Result<Vec<String>, DatapathError> {
        self.change(|executor| {
            let mut done = forward::leave()?.done;
            done.extend(returns::leave()?);
            done.extend(mark_rules(executor, false)?);
            Ok(done)
        })
        .await
    }

    /// Waits until a link with that hardware address is there. Woken by the kernel, not by time.
    ///
    /// # Errors
    /// [`DatapathError::EniMissing`] when `within` has passed.
    pub async fn wait_link_by_mac(
        &self,
        mac: MacAddr,
        within: Duration,
    ) -> Result<Link, DatapathError> {
        match tokio::time::timeout(within, self.link_by_mac(mac)).await {
            Ok(found) => found,
            Err(_) => Err(DatapathError::EniMissing { mac }),
        }
    }

    async fn link_by_mac(&self, mac: MacAddr) -> Result<Link, DatapathError> {
        // Subscribe before looking, so that nothing falls between the two.
        let mut watch = self.open_watch(true).await?;
        loop {
            let links = self
                .look(|kernel| kernel.connection(Place::Node)?.links())
                .await?;
            let seen = Observed {
                links,
                ..Observed::default()
            };
            if let Some(link) = seen.link_by_mac(mac) {
                return Ok(link.clone());
            }
            loop {
                match watch.next().await? {
                    Change::Resync => break,
                    Change::Link { mac: now, .. } if now == Some(mac) => break,
                    Change::Link { .. }
                    | Change::LinkGone { .. }
                    | Change::Address { .. }
                    | Change::AddressGone { .. }
                    | Change::RouteGone { .. }
                    | Change::RuleGone { .. } => {}
                }
            }
        }
    }

    /// Configures an ENI whose link is there: up, MTU, the node's address, its routing table.
    ///
    /// # Errors
    /// [`DatapathError::EniMissing`] when no link has its hardware address: wait for it first.
    pub async fn ensure_eni(&self, eni: &EniDesired) -> Result<EniState, DatapathError> {
        let eni = eni.clone();
        self.change(move |kernel| {
            let links = kernel.connection(Place::Node)?.links()?;
            let (state, _) = ensure_eni(kernel, &eni, links)?;
            Ok(state)
        })
        .await
    }

    /// Removes everything that refers to the ENI with that routing table, whether its link is still
    /// there or not. Twice does no harm.
    ///
    /// # Errors
    /// [`DatapathError::Refused`], [`DatapathError::Socket`].
    pub async fn remove_eni(&self, mac: MacAddr, table: u32) -> Result<(), DatapathError> {
        self.change(move |kernel| {
            let seen = kernel.observe(Place::Node, [])?;
            let ops = plan::eni::removal(table, seen.link_by_mac(mac), &seen);
            kernel.run(&ops)
        })
        .await
    }

    /// Sets up a pod's link, addresses, routes, neighbours and rules. Repeating it completes what
    /// is missing and changes nothing else. A link of that name that belongs to an earlier sandbox
    /// of the pod is replaced.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`], [`DatapathError::NotANetns`], [`DatapathError::InterfaceTaken`],
    /// [`DatapathError::Refused`].
    #[tracing::instrument(name = "datapath.setup", skip_all, fields(link = %pod.host_link), err)]
    pub async fn setup_pod(&self, pod: &PodDesired) -> Result<PodState, DatapathError> {
        let pod = pod.clone();
        self.change(move |kernel| {
            kernel.enter_pod(Namespace::open(&pod.netns)?)?;
            for (key, value) in plan::pod::settings(&pod) {
                kernel.ensure_setting(Place::Pod, &key, value)?;
            }
            match kernel.run(&plan::pod::fresh(&pod)) {
                Ok(()) => Ok(PodState {
                    host_mac: names::veth_mac(&pod.attachment, VethEnd::Host),
                    pod_mac: names::veth_mac(&pod.attachment, VethEnd::Pod),
                }),
                // Something is there already: look, and do what is missing.
                Err(DatapathError::Refused {
                    errno: Errno::EEXIST,
                    ..
                }) => complete_pod(kernel, &pod),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// How the kernel differs from what `pod` should have. Empty when all is well. Changes nothing.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`], [`DatapathError::NotANetns`], [`DatapathError::InterfaceTaken`].
    pub async fn check_pod(&self, pod: &PodDesired) -> Result<Vec<Drift>, DatapathError> {
        let pod = pod.clone();
        self.look(move |kernel| {
            kernel.enter_pod(Namespace::open(&pod.netns)?)?;
            let (node, inside) = observe_pod(kernel, &pod)?;
            Ok(plan::pod::complete(&pod, &node, &inside)?
                .iter()
                .map(Drift::from)
                .collect())
        })
        .await
    }

    /// Removes a pod's link and rules. Needs no namespace, and does no harm twice. A link with that
    /// name that belongs to another attachment is left alone, and so are rules for an address that
    /// another link serves now.
    ///
    /// # Errors
    /// [`DatapathError::Refused`], [`DatapathError::Socket`]: repeat.
    #[tracing::instrument(name = "datapath.teardown", skip_all, fields(link = %pod.host_link), err)]
    pub async fn teardown_pod(&self, pod: &PodTeardown) -> Result<TornDown, DatapathError> {
        let (pod, steps) = (pod.clone(), self.steps);
        self.change(move |kernel| teardown(kernel, &pod, steps))
            .await
    }

    /// What the node's namespace holds.
    ///
    /// # Errors
    /// [`DatapathError::Socket`], [`DatapathError::Garbled`].
    pub async fn observe_host(&self) -> Result<Observed, DatapathError> {
        self.look(|kernel| kernel.observe(Place::Node, [])).await
    }

    /// What the namespace at `path` holds. Read-only; works with any namespace.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`], [`DatapathError::NotANetns`].
    pub async fn observe_namespace(&self, path: &Path) -> Result<Observed, DatapathError> {
        let namespace = Namespace::open(path)?;
        self.look(move |kernel| {
            kernel.enter_pod(namespace)?;
            kernel.observe(Place::Pod, [])
        })
        .await
    }

    /// Compares everything with the kernel and puts right what differs. One failure does not stop the
    /// rest.
    ///
    /// # Errors
    /// [`DatapathError::Socket`], [`DatapathError::Garbled`] when the node can not be observed at all.
    pub async fn repair(
        &self,
        pods: &[PodDesired],
        wholes: &[WholeDesired],
        enis: &[EniDesired],
    ) -> Result<RepairReport, DatapathError> {
        let (pods, wholes, enis) = (pods.to_vec(), wholes.to_vec(), enis.to_vec());
        self.change(move |kernel| repair(kernel, &pods, &wholes, &enis))
            .await
    }

    /// Removes links and rules that belong to no pod. Give it what two observations, some time
    /// apart, agree on ([`Orphans::still`]).
    ///
    /// # Errors
    /// [`DatapathError::Refused`], [`DatapathError::Socket`].
    pub async fn remove_orphans(&self, orphans: &Orphans) -> Result<(), DatapathError> {
        let ops = orphans.removal();
        self.change(move |kernel| kernel.run(&ops)).await
    }

    /// A stream of what changes on the node, our own changes included.
    ///
    /// # Errors
    /// [`DatapathError::Socket`].
    pub async fn watch(&self) -> Result<Watch, DatapathError> {
        self.open_watch(false).await
    }

    async fn open_watch(&self, links_only: bool) -> Result<Watch, DatapathError> {
        let runtime = tokio::runtime::Handle::current();
        self.look(move |_| Watch::open(&runtime, links_only)).await
    }
}

/// Rules that send answers of marked flows by the main table: there, or away. Returns what was changed, in words.
fn mark_rules(kernel: &mut Executor, there: bool) -> Result<Vec<String>, DatapathError> {
    let mut done = Vec::new();
    for v6 in [false, true] {
        let (bit, priority) = (returns::BIT, returns::PRIORITY);
        let request = if there {
            request::add_mark_rule(v6, bit, priority)
        } else {
            request::delete_mark_rule(v6, bit, priority)
        };
        let verb = if there { "add" } else { "remove" };
        let op = format!("node: {verb} rule {priority}: mark {bit:#x} lookup main");
        for answer in kernel.connection(Place::Node)?.call(vec![request])? {
            match answer.result {
                Ok(()) => done.push(op.clone()),
                // A kernel without IPv6 has no such rules.
                Err(Errno::EEXIST | Errno::ENOENT | Errno::EAFNOSUPPORT) => {}
                Err(errno) => {
                    return Err(DatapathError::Refused {
                        op: op.clone(),
                        errno,
                    });
                }
            }
        }
    }
    Ok(done)
}

fn ensure_eni(
    kernel: &mut Executor,
    eni: &EniDesired,
    links: Vec<Link>,
) -> Result<(EniState, Vec<Op>), DatapathError> {
    let missing = || DatapathError::EniMissing { mac: eni.mac };
    let found = Observed {
        links,
        ..Observed::default()
    };
    let link = found.link_by_mac(eni.mac).ok_or_else(missing)?;
    let settings = plan::eni::link_settings(&link.name, eni.v6_gateway.is_some());
    let seen = kernel.observe(Place::Node, settings.into_iter().map(|(key, _)| key))?;
    let link = seen.link_by_mac(eni.mac).ok_or_else(missing)?;
    let ops = plan::eni::setup(eni, link, &seen);
    kernel.run(&ops)?;
    let state = EniState {
        ifname: link.name.clone(),
        ifindex: link.index,
        table: names::eni_table(link.index),
    };
    Ok((state, ops))
}

fn observe_pod(
    kernel: &mut Executor,
    pod: &PodDesired,
) -> Result<(Observed, Observed), DatapathError> {
    let inside = observe_inside(kernel, pod)?;
    let node = kernel.observe(Place::Node, node_keys(pod))?;
    Ok((node, inside))
}

fn observe_inside(kernel: &mut Executor, pod: &PodDesired) -> Result<Observed, DatapathError> {
    let wanted = plan::pod::settings(pod)
        .into_iter()
        .chain(plan::pod::link_settings(pod));
    kernel.observe(Place::Pod, wanted.map(|(key, _)| key))
}

fn node_keys(pod: &PodDesired) -> impl Iterator<Item = String> + use<> {
    link_keys(&pod.host_link, pod.v6.is_some())
}

fn link_keys(host_link: &str, v6: bool) -> impl Iterator<Item = String> + use<> {
    plan::node_link_settings(host_link, v6)
        .into_iter()
        .map(|(key, _)| key)
}

fn complete_pod(kernel: &mut Executor, pod: &PodDesired) -> Result<PodState, DatapathError> {
    let (node, inside) = observe_pod(kernel, pod)?;
    let ops = plan::pod::complete(pod, &node, &inside)?;
    kernel.run(&ops)?;
    let created = ops.iter().any(|op| matches!(op, Op::CreateVeth { .. }));
    let mac = |seen: &Observed, name: &str, end| {
        let old = if created {
            None
        } else {
            seen.link(name).and_then(|l| l.mac)
        };
        old.unwrap_or_else(|| names::veth_mac(&pod.attachment, end))
    };
    Ok(PodState {
        host_mac: mac(&node, &pod.host_link, VethEnd::Host),
        pod_mac: mac(&inside, &pod.attachment.ifname, VethEnd::Pod),
    })
}

pub(crate) fn teardown(
    kernel: &mut Executor,
    pod: &PodTeardown,
    steps: Option<StepHook>,
) -> Result<TornDown, DatapathError> {
    let step = |name| steps.map_or((), |hook| hook(name));
    let mut questions = vec![request::get_link(&pod.host_link)];
    questions.extend(pod.addresses.iter().map(|ip| request::match_route(*ip)));
    let mut answers = kernel.connection(Place::Node)?.call(questions)?.into_iter();
    let link = answers
        .next()
        .and_then(|a| a.message)
        .and_then(|m| observer::link(&m));
    let ours =
        |l: &Link| l.alias.is_none() || l.alias.as_deref() == Some(&names::alias(&pod.attachment));
    let (mine, outcome) = match link {
        None => (None, TornDown::Absent),
        Some(link) if ours(&link) => (Some(link), TornDown::Removed),
        Some(_) => (None, TornDown::Spared),
    };
    let mut ops = Vec::new();
    for (ip, answer) in pod.addresses.iter().zip(answers) {
        let route = answer.message.as_ref().and_then(observer::route);
        let elsewhere = route.is_some_and(|r| {
            r.table == MAIN_TABLE
                && r.dst == plan::host_net(*ip)
                && r.link != mine.as_ref().map(|l| l.index)
        });
        if !elsewhere {
            ops.extend([false, true].map(|from| Op::DelRule {
                rule: RuleSpec {
                    ip: *ip,
                    from,
                    table: None,
                },
            }));
        }
    }
    step("datapath.teardown.before_delete");
    if let Some(link) = mine {
        ops.push(Op::DeleteLink {
            index: link.index,
            name: link.name,
        });
    }
    kernel.run(&ops)?;
    step("datapath.teardown.after_delete");
    Ok(outcome)
}

fn repair(
    kernel: &mut Executor,
    pods: &[PodDesired],
    wholes: &[WholeDesired],
    enis: &[EniDesired],
) -> Result<RepairReport, DatapathError> {
    let mut report = RepairReport::default();
    for eni in enis {
        let links = kernel.connection(Place::Node)?.links()?;
        match ensure_eni(kernel, eni, links) {
            Ok((_, ops)) => report.done.extend(ops.iter().map(Op::to_string)),
            Err(DatapathError::EniMissing { mac }) => report.missing_enis.push(mac),
            Err(e) => report.failed.push(format!("ENI {}: {e}", eni.mac)),
        }
    }
    // Pods do not share objects: what is put right for one leaves the observation true for the next.
    let node = kernel.observe(Place::Node, pods.iter().flat_map(node_keys))?;
    for pod in pods {
        match repair_pod(kernel, pod, &node) {
            Ok(ops) => report.done.extend(ops.iter().map(Op::to_string)),
            Err(DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. }) => {
                report.gone.push(pod.attachment.clone());
            }
            Err(e) => report
                .failed
                .push(format!("pod link {}: {e}", pod.host_link)),
        }
    }
    for pod in wholes {
        match moved::complete(kernel, pod) {
            Ok(done) => report.done.extend(done),
            Err(DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. }) => {
                report.gone.push(pod.attachment.clone());
            }
            Err(e) => report
                .failed
                .push(format!("pod link {}: {e}", pod.host_link)),
        }
    }
    report.orphans = plan::orphans(&kernel.observe(Place::Node, [])?, pods, wholes);
    Ok(report)
}

fn repair_pod(
    kernel: &mut Executor,
    pod: &PodDesired,
    node: &Observed,
) -> Result<Vec<Op>, DatapathError> {
    kernel.enter_pod(Namespace::open(&pod.netns)?)?;
    let inside = observe_inside(kernel, pod)?;
    let ops = plan::pod::complete(pod, node, &inside)?;
    kernel.run(&ops)?;
    Ok(ops)
}
