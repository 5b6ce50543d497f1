//! Two nodes with an engine and a machine each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::name::{Family, TableRef};
use nft_wire::snapshot::Snapshot;
use policy_core::engine::Engine;
use policy_core::index::LocalPod;
use policy_core::layout::Settings;
use policy_core::object::{Event, ObjectKey};
use policy_core::parse::{self, Parsed};
use policy_core::plan::{Failure, Step, Target};
use serde_json::Value;
use types::pod::{AttachmentKey, PodKey};

use crate::machine::Machine;
use crate::machine::packet::Path;
use crate::machine::refusal::Refusal;
use crate::model::tamper::Tamper;
use crate::random::events::{self, Happening};
use crate::random::objects::NODES;
use crate::random::probes::{self, Place, Probe};

/// The link between the nodes, and to everything outside.
pub const UPLINK: &str = "eth0";

/// Denied flows that a node remembers here: few, so that the set can be filled.
pub const DENIED: u32 = 16;

/// Most transactions for one round of events; more means that the plan never ends.
const STEPS: usize = 200;

/// The host-side link of a pod, from its name as on a real node.
pub fn link(pod: &PodKey) -> String {
    datapath::names::host_link("cali", pod, "eth0").unwrap_or_default()
}

/// The settings of the engines.
pub fn settings() -> Settings {
    Settings {
        link_name: Some(link),
        denied_size: DENIED,
        ..Settings::default()
    }
}

/// What goes wrong in a cluster apart from verdicts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The kernel would refuse a transaction.
    #[error("{node}: step {number} ({kind}): {refusal}")]
    Refused {
        /// The node.
        node: String,
        /// The step's number.
        number: u64,
        /// The step's kind.
        kind: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// The plan does not come to its end.
    #[error("{node}: more than {STEPS} steps for one round")]
    Endless {
        /// The node.
        node: String,
    },
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The product.
    pub engine: Engine,
    /// Its kernel.
    pub machine: Machine,
    placed: BTreeMap<PodKey, LocalPod>,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// The documents as they are now.
    pub documents: Vec<Value>,
}

/// The tables that the engine keeps on a node.
pub fn table_names() -> [TableRef; 2] {
    let settings = Settings::default();
    [
        TableRef::new(Family::Inet, &settings.table),
        TableRef::new(Family::Netdev, &settings.spoof_table),
    ]
}

impl Cluster {
    /// Nodes with nothing in them, in sync.
    pub fn new() -> Self {
        Self::adopting(&BTreeMap::new())
    }

    /// Nodes whose engines are new and whose machines have these contents.
    pub fn adopting(machines: &BTreeMap<String, Machine>) -> Self {
        let nodes = NODES
            .iter()
            .map(|name| {
                let machine = machines.get(*name).cloned().unwrap_or_default();
                let mut engine = Engine::new(name, settings());
                for target in engine.unknown_targets() {
                    adopt(&mut engine, &machine, &target);
                }
                Node {
                    name: (*name).to_owned(),
                    engine,
                    machine,
                    placed: BTreeMap::new(),
                }
            })
            .collect();
        Self {
            nodes,
            documents: Vec::new(),
        }
    }

    /// Everything at once, from nothing.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn of(documents: &[Value], tamper: &mut dyn Tamper) -> Result<Self, Box<Trouble>> {
        let mut cluster = Self::new();
        cluster.fill(documents, tamper)?;
        Ok(cluster)
    }

    /// Gives all documents as the first lists do, then lets the engines write.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn fill(
        &mut self,
        documents: &[Value],
        tamper: &mut dyn Tamper,
    ) -> Result<(), Box<Trouble>> {
        self.list(documents, tamper);
        self.settle(tamper)
    }

    /// Gives all documents as the first lists do; nothing is written yet.
    pub fn list(&mut self, documents: &[Value], tamper: &mut dyn Tamper) {
        for document in tamper.documents(documents) {
            self.tell(&Happening::Put(document), tamper);
        }
        self.documents = documents.to_vec();
        self.replace_links();
        for node in &mut self.nodes {
            node.engine.set_synced();
        }
    }

    /// One thing that a watch says; nothing is written yet.
    pub fn happen(&mut self, happening: &Happening, tamper: &mut dyn Tamper) {
        self.tell(happening, tamper);
        events::apply(&mut self.documents, happening);
        self.replace_links();
    }

    fn tell(&mut self, happening: &Happening, tamper: &mut dyn Tamper) {
        let (Happening::Put(document) | Happening::Gone(document)) = happening;
        let Parsed::Object(object) = parse::document(document) else {
            return;
        };
        let event = match happening {
            Happening::Put(_) => Event::Upsert(object),
            Happening::Gone(_) => Event::Delete(key_of(&object)),
        };
        for event in tamper.event(event) {
            for node in &mut self.nodes {
                node.engine.apply(event.clone());
            }
        }
        self.node_addresses();
    }

    fn node_addresses(&mut self) {
        for node in &mut self.nodes {
            let mine: Vec<IpAddr> = probes::places(&self.documents)
                .into_iter()
                .filter(|p| matches!(p, Place::Node { node: name, .. } if *name == node.name))
                .map(|p| p.address())
                .collect();
            node.engine.set_node_addresses(mine);
        }
    }

    /// Links come and go with the pods that run.
    fn replace_links(&mut self) {
        self.node_addresses();
        for node in &mut self.nodes {
            let wanted = placements(&self.documents, &node.name);
            let gone: Vec<PodKey> = node
                .placed
                .iter()
                .filter(|(key, old)| {
                    wanted.get(*key).map(|w| &w.attachment) != Some(&old.attachment)
                })
                .map(|(key, _)| key.clone())
                .collect();
            // A replaced pod's old sandbox is removed after the new one came: the late DEL must do no harm.
            let mut late = Vec::new();
            for key in gone {
                late.extend(node.placed.remove(&key));
            }
            for (key, pod) in wanted {
                if node.placed.get(&key) != Some(&pod) {
                    node.engine.place(pod.clone());
                    node.placed.insert(key, pod);
                }
            }
            for old in late {
                node.engine.unplace(&old.attachment);
            }
        }
    }

    /// Lets every engine write until it has nothing to write.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn settle(&mut self, tamper: &mut dyn Tamper) -> Result<(), Box<Trouble>> {
        self.settle_seen(tamper, &mut |_, _| ())
    }

    /// As [`Self::settle`]; `seen` gets each node with the transaction that its machine takes next.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn settle_seen(
        &mut self,
        tamper: &mut dyn Tamper,
        seen: &mut dyn FnMut(&Node, &[Change]),
    ) -> Result<(), Box<Trouble>> {
        for node in &mut self.nodes {
            node.settle(tamper, seen)?;
        }
        Ok(())
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The ways of a probe: node by node, with the path through it.
    pub fn ways(&self, probe: &Probe) -> Vec<(&Node, Path)> {
        let mut out = Vec::new();
        let (source, destination) = (probe.source.node(), probe.destination.node());
        let same = source.is_some() && source == destination;
        if let Some(node) = source.and_then(|name| self.node(name)) {
            let to = match &probe.destination {
                Place::Pod { .. } if same => place_link(&probe.destination),
                Place::Node { .. } if same => None,
                Place::Pod { .. } | Place::Node { .. } | Place::Outside(_) => {
                    Some(UPLINK.to_owned())
                }
            };
            let from = place_link(&probe.source);
            out.extend(path(from, to).map(|path| (node, path)));
        }
        if !same && let Some(node) = destination.and_then(|name| self.node(name)) {
            let path = path(Some(UPLINK.to_owned()), place_link(&probe.destination));
            out.extend(path.map(|path| (node, path)));
        }
        out
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    fn settle(
        &mut self,
        tamper: &mut dyn Tamper,
        seen: &mut dyn FnMut(&Self, &[Change]),
    ) -> Result<(), Box<Trouble>> {
        for _ in 0..STEPS {
            for target in self.engine.unknown_targets() {
                adopt(&mut self.engine, &self.machine, &target);
            }
            let mut steps: Vec<Step> = Vec::new();
            let mut joined: Vec<Change> = Vec::new();
            while let Some(step) = self.engine.next_step() {
                joined.extend(step.changes.iter().cloned());
                // The joined form answers before it sends: what comes next depends on the answer.
                if tamper.joins() {
                    self.engine.committed(&step);
                }
                steps.push(step);
                if !tamper.joins() {
                    break;
                }
            }
            let Some(step) = steps.last() else {
                return Ok(());
            };
            let changes = tamper.changes(joined);
            seen(self, &changes);
            match self.machine.transact(&changes) {
                Ok(()) if tamper.joins() => {}
                Ok(()) => self.engine.committed(step),
                Err(refusal) => {
                    let trouble = Trouble::Refused {
                        node: self.name.clone(),
                        number: step.number,
                        kind: step.kind.word(),
                        refusal,
                    };
                    if !tamper.joins() {
                        self.engine.failed(step, Failure::Whole { errno: 22 });
                    }
                    return Err(Box::new(trouble));
                }
            }
        }
        Err(Box::new(Trouble::Endless {
            node: self.name.clone(),
        }))
    }

    /// What the node's kernel holds, in an order that does not depend on history: a line for each chain, rule, set and
    /// element. Elements that rules added are left out.
    pub fn content(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self.machine.tables.tables() {
            lines.push(format!("table {} {:?}", table.at, table.flags));
        }
        for (chain, laws) in self.machine.tables.chains() {
            lines.push(format!(
                "chain {} {} {:?}",
                chain.table, chain.name, chain.base
            ));
            for (number, law) in laws.list.iter().enumerate() {
                lines.push(format!(
                    "rule {} {} {number:04} {:?}",
                    chain.table, chain.name, law.rule.exprs
                ));
            }
        }
        for state in self.machine.tables.sets() {
            lines.push(format!("set {:?}", state.set));
            if state.set.flags.dynamic {
                continue;
            }
            for element in state.members.elements() {
                let values = element.key.values(&state.set.key);
                lines.push(format!(
                    "element {} {} {values:?} {:?} {:?} {}",
                    state.set.table,
                    state.set.name,
                    element.end,
                    element.verdict,
                    element.interval_end
                ));
            }
        }
        lines.sort();
        lines
    }
}

/// Gives an engine what the machine holds in its tables.
pub fn adopt(engine: &mut Engine, machine: &Machine, target: &Target) {
    let dump: Vec<Snapshot> = table_names()
        .iter()
        .filter_map(|table| machine.dump(table).ok().flatten())
        .collect();
    engine.adopt(target, &dump);
}

/// The links that a node has for the pods of these documents.
pub fn placements(documents: &[Value], node: &str) -> BTreeMap<PodKey, LocalPod> {
    let mut out: BTreeMap<PodKey, LocalPod> = BTreeMap::new();
    for document in documents.iter().filter(|d| probes::is_kind(d, "Pod")) {
        let Parsed::Object(policy_core::object::Object::Pod(pod)) = parse::document(document)
        else {
            continue;
        };
        if pod.host_network || pod.finished || *pod.node != *node {
            continue;
        }
        let sandbox = format!("s{}", pod.uid);
        let Ok(attachment) = AttachmentKey::new(sandbox, "eth0") else {
            continue;
        };
        out.insert(
            pod.key.clone(),
            LocalPod {
                host_link: Some(Arc::from(link(&pod.key))),
                key: pod.key,
                uid: pod.uid,
                attachment,
                netns: None,
                ips: pod.ips,
            },
        );
    }
    out
}

fn key_of(object: &policy_core::object::Object) -> ObjectKey {
    use policy_core::object::Object;
    match object {
        Object::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
        Object::Namespace(space) => ObjectKey::Namespace(Arc::clone(&space.name)),
        Object::Node(node) => ObjectKey::Node(Arc::clone(&node.name)),
        Object::ServiceAccount(account) => {
            ObjectKey::ServiceAccount(Arc::clone(&account.namespace), Arc::clone(&account.name))
        }
        Object::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
    }
}

fn place_link(place: &Place) -> Option<String> {
    match place {
        Place::Pod {
            namespace, name, ..
        } => Some(link(&PodKey::new(namespace, name))),
        Place::Node { .. } | Place::Outside(_) => None,
    }
}

fn path(from: Option<String>, to: Option<String>) -> Option<Path> {
    match (from, to) {
        (Some(from), Some(to)) => Some(Path::Forward { from, to }),
        (Some(from), None) => Some(Path::Input { from }),
        (None, Some(to)) => Some(Path::Output { to }),
        (None, None) => None,
    }
}
