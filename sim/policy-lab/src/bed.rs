//! A small cluster in the kernel: nodes as Terway leaves them, pods, and policy enforced on each node.
//!
//! [`Bed::create`] builds the nodes, [`Bed::show`] brings a world of documents about: its pods stand, and its
//! policies are in force when it returns. [`Bed::probe`] then sends real packets.

pub mod agents;
pub mod enforcer;
pub mod hand;
pub mod kernel;
pub mod program;
pub mod topology;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context;
use serde_json::Value;
use types::pod::PodKey;

use crate::bed::enforcer::{Enforcer, Kind};
use crate::bed::topology::{NodeSpec, PodSpec, Standing, Topology};
use crate::probe::ledger::Ledger;
use crate::probe::station::Station;
use crate::probe::{Probe, Prober, Verdict};

/// What a bed is made from.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes.
    pub nodes: Vec<NodeSpec>,
    /// Addresses of the host that is no node and no pod.
    pub outside: Vec<IpAddr>,
    /// Ports that every station answers on.
    pub ports: Vec<u16>,
    /// Who enforces policy.
    pub enforcer: Kind,
}

/// A standing cluster.
#[derive(Debug)]
pub struct Bed {
    plan: Plan,
    /// Declared before the topology: processes end before their namespaces go.
    enforcer: Enforcer,
    prober: Option<Prober>,
    /// Station of each pod that stands, by name.
    places: BTreeMap<PodKey, Standing>,
    /// The namespaces.
    pub topology: Topology,
}

impl Bed {
    /// Builds nodes without pods, and starts what enforces policy on them.
    ///
    /// # Errors
    /// What the kernel, `ip`, `nft` or an agent refused. Needs root.
    pub async fn create(plan: Plan) -> anyhow::Result<Self> {
        let topology = Topology::create(&plan.nodes, &plan.outside).await?;
        let enforcer = Enforcer::start(&plan.enforcer, &topology.nodes).await?;
        Ok(Self {
            plan,
            enforcer,
            prober: None,
            places: BTreeMap::new(),
            topology,
        })
    }

    /// The plan it was built by.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Who enforces policy.
    pub const fn enforcer(&mut self) -> &mut Enforcer {
        &mut self.enforcer
    }

    /// Makes the documents the whole of the cluster's objects. Returns when the pods that run according to them
    /// stand, each has passed the gate, and every node has the policies in its kernel.
    ///
    /// # Errors
    /// What was refused, or an agent that did not come so far in time.
    pub async fn show(&mut self, documents: &[Value]) -> anyhow::Result<()> {
        let wanted: BTreeSet<PodSpec> = world::pods(documents, &self.plan.nodes)?
            .into_iter()
            .collect();
        let gone: Vec<PodKey> = self
            .places
            .values()
            .filter(|pod| !wanted.contains(&pod.spec))
            .map(|pod| pod.spec.key.clone())
            .collect();
        let moved = !gone.is_empty();
        for key in gone {
            self.stop_pod(&key).await?;
        }
        self.enforcer.publish(documents).await?;
        let fresh: Vec<PodSpec> = wanted
            .into_iter()
            .filter(|pod| !self.places.contains_key(&pod.key))
            .collect();
        let moved = moved || !fresh.is_empty();
        for pod in fresh {
            self.start_pod(&pod).await?;
        }
        self.enforcer.settle().await?;
        if moved {
            self.prober = None;
        }
        Ok(())
    }

    /// Starts a pod as node-agent does: link, addresses, rules, then the gate. Its object need not be known yet.
    ///
    /// # Errors
    /// What was refused.
    pub async fn start_pod(&mut self, spec: &PodSpec) -> anyhow::Result<Standing> {
        let pod = self.topology.sandbox(spec)?;
        self.start_sandbox(pod.clone()).await?;
        Ok(pod)
    }

    /// Starts a pod whose namespace was made by [`Topology::sandbox`].
    ///
    /// # Errors
    /// What was refused.
    pub async fn start_sandbox(&mut self, pod: Standing) -> anyhow::Result<()> {
        self.raise(&pod).await?;
        self.pass_gate(pod).await
    }

    /// The same for a pod whose object becomes known only when its link stands: with these documents.
    ///
    /// # Errors
    /// What was refused.
    pub async fn start_unknown(
        &mut self,
        pod: Standing,
        documents: &[Value],
    ) -> anyhow::Result<()> {
        self.raise(&pod).await?;
        self.enforcer.publish(documents).await?;
        self.pass_gate(pod).await
    }

    async fn raise(&mut self, pod: &Standing) -> anyhow::Result<()> {
        self.prober = None;
        self.topology.raise(pod.clone()).await
    }

    async fn pass_gate(&mut self, pod: Standing) -> anyhow::Result<()> {
        self.enforcer
            .ready(&pod)
            .await
            .with_context(|| format!("the gate for {}", pod.spec.key))?;
        self.places.insert(pod.spec.key.clone(), pod);
        Ok(())
    }

    /// Stops a pod as node-agent does: its attachment is released before its addresses are free.
    ///
    /// # Errors
    /// What was refused.
    pub async fn stop_pod(&mut self, key: &PodKey) -> anyhow::Result<()> {
        // Its ears hold sockets in a namespace that another pod will get.
        self.prober = None;
        if let Some(pod) = self.places.remove(key) {
            self.enforcer.release(&pod).await?;
            self.topology.fell(key).await?;
        }
        Ok(())
    }

    /// The pods that stand.
    pub const fn pods(&self) -> &BTreeMap<PodKey, Standing> {
        &self.places
    }

    /// The stations in the order of their numbers: pods by name, then nodes, then the host outside.
    pub fn stations(&self) -> Vec<Station> {
        let pods = self.places.values().map(|pod| Station {
            name: pod.spec.key.to_string(),
            namespace: pod.namespace.clone(),
            addresses: pod.spec.addresses().collect(),
        });
        let nodes = self.topology.nodes.iter().map(|node| Station {
            name: format!("node {}", node.spec.name),
            namespace: node.namespace.clone(),
            addresses: vec![node.spec.v4.into(), node.spec.v6.into()],
        });
        let outside = Station {
            name: "outside".to_owned(),
            namespace: self.topology.outside.clone(),
            addresses: self.topology.outside_addresses.clone(),
        };
        pods.chain(nodes).chain([outside]).collect()
    }

    /// Opens the books of all nodes.
    ///
    /// # Errors
    /// What was refused.
    pub async fn ledgers(&self) -> anyhow::Result<Vec<Ledger>> {
        let mut ledgers = Vec::new();
        for node in &self.topology.nodes {
            ledgers.push(Ledger::open(&node.namespace, &self.plan.ports).await?);
        }
        Ok(ledgers)
    }

    /// A prober of its own, for instance with addresses that a test gave to a node. It knows the pods of now.
    ///
    /// # Errors
    /// What was refused.
    pub async fn prober(&self, stations: Vec<Station>) -> anyhow::Result<Prober> {
        let ledgers = self.ledgers().await?;
        Prober::open(stations, ledgers, &self.plan.ports, &self.topology.router)
    }

    /// Sends probes and says what became of them; see [`Prober::run`]. Sender and receiver are told by address.
    ///
    /// # Errors
    /// An address that nobody holds, or sums that do not meet.
    pub async fn probe(&mut self, attempts: &[Attempt]) -> anyhow::Result<Vec<Verdict>> {
        let mut prober = match self.prober.take() {
            Some(prober) => prober,
            None => self.prober(self.stations()).await?,
        };
        let mut packets = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let from = prober.holder(attempt.source);
            let held = prober.holder(attempt.destination).is_some();
            packets.push(Probe {
                from: from
                    .filter(|_| held)
                    .with_context(|| format!("nobody holds an end of {attempt:?}"))?,
                source: attempt.source,
                destination: attempt.destination,
                kind: attempt.kind,
            });
        }
        let (prober, outcome) = tokio::task::spawn_blocking(move || {
            let outcome = prober.run(&packets);
            (prober, outcome)
        })
        .await?;
        self.prober = Some(prober);
        outcome
    }
}

/// A probe by its addresses alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Who sends.
    pub source: IpAddr,
    /// Who is to receive; of the same family.
    pub destination: IpAddr,
    /// What.
    pub kind: crate::probe::Kind,
}
