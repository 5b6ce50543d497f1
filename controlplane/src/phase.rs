//! Whether nodes serve or leave, and who has left: the ConfigMap of the phase.
//!
//! `phase` is written by the chart (`serve`) and by the uninstallation (`leave`). Replicas write beside it what nodes
//! told them: `left`, a line for each node with its components that have left, and `waits-for`, what the others wait
//! for. Whoever leads compares that with the pods of the DaemonSet and writes `state`.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ListParams, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Place};
use crate::kubernetes::{Failure, Kubernetes};
use crate::metrics::Metrics;
pub use crate::phase::ledger::Ledger;

/// Components that may speak for a node; each is a container of its DaemonSet's pod.
pub const COMPONENTS: [&str; 2] = ["node-agent", "policy-agent"];
/// Key of the phase.
pub const PHASE: &str = "phase";
/// Key of the state: `leaving` or `left`.
pub const STATE: &str = "state";
/// Key of who has left.
pub const LEFT: &str = "left";
/// Key of what the others wait for.
pub const WAITS_FOR: &str = "waits-for";

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long a list of the DaemonSet's pods is good, unless it would mean the end.
const PODS_GOOD: Duration = Duration::from_secs(30);
/// Pods in one page.
const PAGE: u32 = 500;

/// What a component of a node said about leaving.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// It has left.
    pub left: bool,
    /// What it waits for; empty when it has left, or serves.
    pub waits_for: Vec<String>,
}

/// Node and component.
pub type Who = (String, &'static str);

#[derive(Debug, Default)]
struct State {
    leaving: bool,
    said: BTreeMap<Who, Said>,
}

/// What nodes told this replica, while they are to leave, and what is not written down yet. Clones share it. It is
/// written once: what a component says next it may say to another replica.
#[derive(Debug, Clone, Default)]
pub struct Board {
    state: Arc<Mutex<State>>,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is guarded is plain data: a panic leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what a node says.
    pub fn note(&self, node: &str, component: &'static str, said: Said) {
        let mut state = self.state();
        if state.leaving {
            state.said.insert((node.to_owned(), component), said);
        }
    }

    /// Takes what was said while nodes are to leave.
    fn take(&self, leaving: bool) -> BTreeMap<Who, Said> {
        let mut state = self.state();
        if state.leaving != leaving {
            state.said.clear();
            state.leaving = leaving;
        }
        std::mem::take(&mut state.said)
    }

    /// Gives back what could not be written, unless something else was said since.
    fn give_back(&self, said: BTreeMap<Who, Said>) {
        let mut state = self.state();
        for (who, said) in said {
            state.said.entry(who).or_insert(said);
        }
    }
}

/// Components that run on each node, by the pods of the DaemonSet.
type Members = BTreeMap<String, BTreeSet<&'static str>>;

/// Keeps the ConfigMap of the phase.
#[derive(Debug)]
pub struct Keeper {
    kubernetes: Kubernetes,
    place: Place,
    namespace: String,
    selector: String,
    force: bool,
    board: Board,
    metrics: Metrics,
    members: Option<(Members, Instant)>,
}

impl Keeper {
    /// Keeps it once it runs.
    pub fn new(kubernetes: Kubernetes, config: &Config, board: Board, metrics: Metrics) -> Self {
        Self {
            kubernetes,
            place: config.cluster.phase.clone(),
            namespace: config.cluster.namespace.clone(),
            selector: config.pods_of("node"),
            force: config.uninstall.force,
            board,
            metrics,
            members: None,
        }
    }

    /// Keeps it until `drain` is cancelled.
    pub async fn run(mut self, leads: watch::Receiver<bool>, drain: CancellationToken) {
        loop {
            let we_lead = *leads.borrow();
            if let Err(failure) = Box::pin(self.round(we_lead)).await {
                tracing::debug!(%failure, "phase");
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn round(&mut self, we_lead: bool) -> Result<(), Failure> {
        let api = self.kubernetes.config_maps(&self.place.namespace);
        let name = self.place.name.clone();
        let get = self.kubernetes.ask("read the phase", api.get(&name));
        let map = get.await?;
        let data = map.data.clone().unwrap_or_default();
        let leaving = data.get(PHASE).is_some_and(|phase| phase == "leave");
        self.metrics.leaving.set(i64::from(leaving));
        let said = self.board.take(leaving);
        let outcome = self.write(map, data, (leaving, we_lead), &said).await;
        if !matches!(outcome, Ok(true)) {
            self.board.give_back(said);
        }
        outcome.map(|_written| ())
    }

    /// Writes what has changed. False: another replica was quicker, and the next look sees what it wrote.
    async fn write(
        &mut self,
        map: ConfigMap,
        mut data: BTreeMap<String, String>,
        (leaving, we_lead): (bool, bool),
        said: &BTreeMap<Who, Said>,
    ) -> Result<bool, Failure> {
        let api = self.kubernetes.config_maps(&self.place.namespace);
        let name = self.place.name.clone();
        if leaving {
            let mut ledger = Ledger::read(&data);
            ledger.take(said);
            if we_lead {
                self.judge(&mut ledger, &mut data).await?;
            }
            ledger.write(&mut data);
        } else {
            self.metrics.waiting.set(0);
            self.members = None;
            if we_lead {
                for key in [STATE, LEFT, WAITS_FOR] {
                    data.remove(key);
                }
            }
        }
        if map.data.as_ref() == Some(&data) {
            return Ok(true);
        }
        let changed = ConfigMap {
            data: Some(data),
            ..map
        };
        let params = PostParams::default();
        let replaced = api.replace(&name, &params, &changed);
        match self.kubernetes.ask("write who has left", replaced).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_conflict() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Compares with who is to leave.
    async fn judge(
        &mut self,
        ledger: &mut Ledger,
        data: &mut BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let known = self.members.take();
        let good = known.filter(|(members, at)| {
            // What would mean the end is looked at again.
            at.elapsed() < PODS_GOOD && !ledger.missing(members, self.force).is_empty()
        });
        let (members, at) = match good {
            Some(good) => good,
            None => (self.members().await?, Instant::now()),
        };
        ledger.keep_only(&members);
        let missing = ledger.missing(&members, self.force);
        ledger.wait_for(&missing);
        let nodes: BTreeSet<&str> = missing.iter().map(|(node, _)| node.as_str()).collect();
        self.metrics
            .waiting
            .set(i64::try_from(nodes.len()).unwrap_or(i64::MAX));
        let state = if missing.is_empty() {
            "left"
        } else {
            "leaving"
        };
        if data.get(STATE).is_none_or(|old| old != state) {
            tracing::info!(
                state,
                nodes = members.len(),
                waits_for = nodes.len(),
                "nodes leave"
            );
        }
        data.insert(STATE.to_owned(), state.to_owned());
        self.members = Some((members, at));
        Ok(())
    }

    /// Reads which components run where.
    async fn members(&self) -> Result<Members, Failure> {
        let pods = self.kubernetes.pods(&self.namespace);
        let mut members = Members::new();
        let mut params = ListParams::default().labels(&self.selector).limit(PAGE);
        loop {
            let list = self
                .kubernetes
                .ask("list the nodes' pods", pods.list(&params));
            let list = list.await?;
            for pod in &list.items {
                if let Some((node, components)) = member(pod) {
                    members.entry(node).or_default().extend(components);
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(members),
            }
        }
    }
}

/// The node of a pod of the DaemonSet, and which components it runs there.
fn member(pod: &Pod) -> Option<(String, impl Iterator<Item = &'static str>)> {
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.clone()?;
    let has = |name: &str| spec.containers.iter().any(|one| one.name == name);
    let components = COMPONENTS.into_iter().filter(move |name| has(name));
    Some((node, components))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(left: bool) -> Said {
        Said {
            left,
            waits_for: Vec::new(),
        }
    }

    #[test]
    fn board_takes_down_only_what_is_said_while_nodes_leave() {
        let board = Board::default();
        board.note("a", "node-agent", said(true));

        assert!(board.take(true).is_empty());
        board.note("a", "node-agent", said(true));
        assert_eq!(board.take(true).len(), 1);
        board.note("a", "node-agent", said(true));
        // They serve again, and leave once more.
        assert!(board.take(false).is_empty());
        assert!(board.take(true).is_empty());
    }

    // What one replica once heard must not stand against what another hears later.
    #[test]
    fn board_gives_what_was_said_once_and_again_if_it_was_not_written() {
        let board = Board::default();
        assert!(board.take(true).is_empty());
        board.note("a", "policy-agent", said(false));
        let taken = board.take(true);
        assert!(board.take(true).is_empty());

        board.give_back(taken);
        assert_eq!(board.take(true).len(), 1);
        board.note("a", "policy-agent", said(true));
        board.give_back(BTreeMap::from([(
            ("a".to_owned(), "policy-agent"),
            said(false),
        )]));
        let newest: Vec<_> = board.take(true).into_values().collect();
        assert_eq!(newest, [said(true)]);
    }
}
