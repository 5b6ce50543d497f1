//! The engine worked by hand in this process: no agent, no relay, and transactions in whatever manner a test wants.
//!
//! Two manners are wrong on purpose. They are what §"create first, move later" and "base chains are permanent" are
//! there to prevent, and a harness that does not see them leak sees nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use cluster::documents::{Change, DocumentKey};
use nft_wire::change::Change as Message;
use nft_wire::name::{Family, TableRef};
use nft_wire::snapshot::Snapshot;
use nft_wire::table::Table;
use policy_agent::relay::wire;
use policy_core::engine::Engine;
use policy_core::index::LocalPod;
use policy_core::layout::Settings;
use policy_core::plan::Target;
use serde_json::Value;

use crate::bed::kernel::Kernel;
use crate::bed::topology::{Node, Standing};

/// Transactions for one change, at most; more means that the engine never comes to rest.
const STEPS: usize = 1_000;

/// How the engine's steps reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As they are: each a transaction.
    Ordered,
    /// All of a change in one transaction. Leaks.
    OneTransaction,
    /// The table is removed and made anew in one transaction. Leaks.
    ReplaceTable,
}

/// One engine per node.
#[derive(Debug)]
pub struct Hands {
    manner: Manner,
    nodes: Vec<Hand>,
    known: BTreeMap<DocumentKey, Value>,
}

struct Hand {
    name: String,
    engine: Engine,
    addresses: [IpAddr; 2],
    kernel: Kernel,
    placed: BTreeMap<String, LocalPod>,
    written: bool,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn settings() -> Settings {
    Settings {
        // Others remove the table in the manners that do.
        owner: false,
        persist: false,
        // The drop for links in no map would hide a leak: a packet on its way through a table that was removed finds
        // that table's rules and its maps without elements.
        veth_prefixes: Vec::new(),
        ..Settings::default()
    }
}

impl Hands {
    /// An engine for each node, with sockets in its namespace.
    ///
    /// # Errors
    /// A socket that could not be opened.
    pub async fn start(nodes: &[Node], manner: Manner) -> anyhow::Result<Self> {
        let mut hands = Vec::new();
        for node in nodes {
            let kernel = node.namespace.enter_async(Kernel::open).await??;
            let mut engine = Engine::new(&node.spec.name, settings());
            let addresses = [node.spec.v4.into(), node.spec.v6.into()];
            engine.set_node_addresses(addresses);
            hands.push(Hand {
                name: node.spec.name.clone(),
                engine,
                addresses,
                kernel,
                placed: BTreeMap::new(),
                written: false,
            });
        }
        Ok(Self {
            manner,
            nodes: hands,
            known: BTreeMap::new(),
        })
    }

    /// Makes documents the whole of the cluster; [`Self::settle`] writes it to the kernel.
    pub fn publish(&mut self, documents: &[Value]) {
        let now: BTreeMap<_, _> = documents
            .iter()
            .map(|d| (DocumentKey::of(d), d.clone()))
            .collect();
        let gone = self.known.keys().filter(|key| !now.contains_key(*key));
        let gone = gone.cloned().map(Change::Delete);
        let there = now
            .iter()
            .filter(|(key, d)| self.known.get(*key) != Some(*d));
        let there = there.map(|(_, d)| Change::Upsert(d.clone()));
        let changes: Vec<_> = gone.chain(there).collect();
        for change in &changes {
            for hand in &mut self.nodes {
                if let Some(event) = wire::event(change) {
                    hand.engine.apply(event);
                }
            }
        }
        for hand in &mut self.nodes {
            hand.engine.set_synced();
        }
        self.known = now;
    }

    /// Writes what is to be written.
    ///
    /// # Errors
    /// The kernel refused, or there is no end to it.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for hand in &mut self.nodes {
            match self.manner {
                Manner::Ordered => hand.write()?,
                Manner::OneTransaction => hand.write_at_once()?,
                Manner::ReplaceTable => hand.replace(self.known.values())?,
            }
        }
        Ok(())
    }

    /// A pod's link stands.
    ///
    /// # Errors
    /// The kernel refused, or there is no such node.
    pub fn ready(&mut self, pod: &Standing) -> anyhow::Result<()> {
        let local = local_pod(pod);
        let hand = self.nodes.get_mut(pod.spec.node).context("no such node")?;
        hand.placed
            .insert(pod.desired.host_link.clone(), local.clone());
        hand.engine.place(local);
        self.settle()
    }

    /// A pod's attachment ends.
    ///
    /// # Errors
    /// The kernel refused, or there is no such node.
    pub fn release(&mut self, pod: &Standing) -> anyhow::Result<()> {
        let hand = self.nodes.get_mut(pod.spec.node).context("no such node")?;
        hand.placed.remove(&pod.desired.host_link);
        hand.engine.unplace(&pod.desired.attachment);
        self.settle()
    }

    /// Differences between a node's kernel and what it should have.
    ///
    /// # Errors
    /// The kernel does not show its tables.
    pub fn diff(&mut self, node: usize) -> anyhow::Result<Vec<String>> {
        let hand = self.nodes.get_mut(node).context("no such node")?;
        let dump = dump(&mut hand.kernel)?;
        Ok(hand.engine.diff(&Target::Host, &dump))
    }
}

impl Hand {
    fn adopt(&mut self) -> anyhow::Result<()> {
        for target in self.engine.unknown_targets() {
            let dump = dump(&mut self.kernel)?;
            self.engine.adopt(&target, &dump);
        }
        Ok(())
    }

    fn write(&mut self) -> anyhow::Result<()> {
        self.adopt()?;
        for _ in 0..STEPS {
            let Some(step) = self.engine.next_step() else {
                return Ok(());
            };
            self.kernel.commit(&step.changes)?;
            self.engine.committed(&step);
        }
        bail!("the engine of {} has steps without end", self.name)
    }

    fn write_at_once(&mut self) -> anyhow::Result<()> {
        if !self.written {
            // The first install is no change under traffic.
            self.written = true;
            return self.write();
        }
        let changes = drain(&mut self.engine)?;
        if !changes.is_empty() {
            self.kernel.commit(&changes)?;
        }
        Ok(())
    }

    fn replace<'a>(&mut self, documents: impl Iterator<Item = &'a Value>) -> anyhow::Result<()> {
        if !self.engine.has_work() {
            return Ok(());
        }
        let mut engine = Engine::new(&self.name, settings());
        for document in documents {
            if let Some(event) = wire::event(&Change::Upsert(document.clone())) {
                engine.apply(event);
            }
        }
        for pod in self.placed.values() {
            engine.place(pod.clone());
        }
        engine.set_node_addresses(self.addresses);
        engine.set_synced();
        for target in engine.unknown_targets() {
            engine.adopt(&target, &[]);
        }
        let mut changes = Vec::new();
        for at in tables() {
            changes.push(Message::AddTable(Table::new(at.clone())));
            changes.push(Message::DeleteTable(at));
        }
        changes.extend(drain(&mut engine)?);
        self.kernel.commit(&changes)?;
        self.engine = engine;
        Ok(())
    }
}

fn tables() -> [TableRef; 2] {
    let settings = settings();
    [
        TableRef::new(Family::Inet, &settings.table),
        TableRef::new(Family::Netdev, &settings.spoof_table),
    ]
}

fn dump(kernel: &mut Kernel) -> anyhow::Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    for at in tables() {
        found.extend(kernel.snapshot(&at)?);
    }
    Ok(found)
}

/// All changes that an engine wants, as though each step had taken effect.
fn drain(engine: &mut Engine) -> anyhow::Result<Vec<Message>> {
    let mut changes = Vec::new();
    for _ in 0..STEPS {
        let Some(step) = engine.next_step() else {
            return Ok(changes);
        };
        changes.extend(step.changes.iter().cloned());
        engine.committed(&step);
    }
    bail!("an engine has steps without end")
}

fn local_pod(pod: &Standing) -> LocalPod {
    LocalPod {
        key: pod.spec.key.clone(),
        uid: pod.spec.uid.as_str().into(),
        attachment: pod.desired.attachment.clone(),
        host_link: Some(pod.desired.host_link.as_str().into()),
        netns: None,
        ips: pod.spec.addresses().collect(),
    }
}
