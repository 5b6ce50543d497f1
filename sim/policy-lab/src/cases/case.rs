//! A case, its steps, and the probes that each step asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy_oracle::probe::{End, Probe, Protocol};
use policy_oracle::world::World;
use serde_json::Value;

use crate::cases::table::{Table, TableError};
use crate::cases::world;

/// Ports that every pod of every case serves, of each protocol.
pub const PORTS: [u16; 2] = [80, 81];

/// Protocols that every pod of every case serves.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// A cluster and what happens to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Part of the manifest.
    pub family: &'static str,
    /// Unique among all cases; starts with the family.
    pub name: String,
    /// In order; the first brings the cluster itself.
    pub steps: Vec<Step>,
}

/// Changes to a cluster, and what must hold after them.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Objects added, or put in the place of those with their identity.
    pub put: Vec<Value>,
    /// Objects taken away, before `put`.
    pub removed: Vec<Identity>,
    /// Ends beside the pods that take part: nodes and addresses, against every pod, both ways.
    pub others: Vec<String>,
    /// What must hold.
    pub expected: Expected,
}

/// What must hold after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A table typed by hand, which says everything.
    Table(Vec<String>),
    /// What the oracle says; the lines typed by hand must hold as well, for the ends they name.
    Oracle(Vec<String>),
}

/// Which object a document is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// As in the document.
    pub api_version: String,
    /// As in the document.
    pub kind: String,
    /// Empty for objects without one.
    pub namespace: String,
    /// As in the document.
    pub name: String,
}

impl Identity {
    /// Of a document; parts that it lacks are empty.
    pub fn of(document: &Value) -> Self {
        let text = |pointer: &str| {
            let value = document.pointer(pointer).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        Self {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        }
    }
}

impl Case {
    /// All documents of the cluster after each step, sorted by identity.
    pub fn states(&self) -> Vec<Vec<Value>> {
        let mut state: BTreeMap<Identity, Value> = BTreeMap::new();
        let mut states = Vec::new();
        for step in &self.steps {
            for gone in &step.removed {
                state.remove(gone);
            }
            for document in &step.put {
                state.insert(Identity::of(document), document.clone());
            }
            states.push(state.values().cloned().collect());
        }
        states
    }
}

impl Step {
    /// Every connection that is tried after this step, and whether it must open: all pods to all
    /// others, both families, [`PROTOCOLS`] on [`PORTS`], and [`Step::others`] against all pods.
    /// A pod to itself is left out. `world` is the cluster after this step.
    ///
    /// # Errors
    /// The typed table cannot be read, or says nothing about a connection.
    pub fn probes(&self, world: &World) -> Result<Vec<(Probe, bool)>, TableError> {
        let table = match &self.expected {
            Expected::Table(lines) => Some(Table::parse(lines)?),
            Expected::Oracle(_) => None,
        };
        let mut answered = Vec::new();
        for probe in self.questions(world) {
            let open = match &table {
                None => world.decide(&probe).allowed,
                Some(table) => table.say(&probe).ok_or_else(|| TableError::Silent {
                    probe: probe.to_string(),
                })?,
            };
            answered.push((probe, open));
        }
        Ok(answered)
    }

    /// What was typed by hand about connections of this step.
    ///
    /// # Errors
    /// The typed lines cannot be read.
    pub fn typed(&self, world: &World) -> Result<Vec<(Probe, bool)>, TableError> {
        let table = match &self.expected {
            Expected::Table(lines) | Expected::Oracle(lines) => Table::parse(lines)?,
        };
        let probes = self.questions(world).into_iter();
        Ok(probes
            .filter_map(|probe| table.say(&probe).map(|open| (probe, open)))
            .collect())
    }

    fn questions(&self, world: &World) -> Vec<Probe> {
        let pods: Vec<End> = world
            .pods()
            .into_iter()
            .flat_map(|(namespace, name, addresses)| {
                addresses
                    .iter()
                    .map(move |address| End::pod(namespace, name, *address))
            })
            .collect();
        let others: Vec<End> = self
            .others
            .iter()
            .flat_map(|name| world::end(name))
            .collect();
        let pairs = pods
            .iter()
            .flat_map(|from| pods.iter().map(move |to| (from, to)))
            .chain(
                others
                    .iter()
                    .flat_map(|from| pods.iter().map(move |to| (from, to))),
            )
            .chain(
                pods.iter()
                    .flat_map(|from| others.iter().map(move |to| (from, to))),
            );
        let mut probes = Vec::new();
        for (from, to) in pairs {
            let (source, destination) = (from.address(), to.address());
            if same_pod(from, to) || !same_family(source, destination) {
                continue;
            }
            for protocol in PROTOCOLS {
                for port in PORTS {
                    probes.push(Probe::new(from.clone(), to.clone(), protocol, port));
                }
            }
        }
        probes
    }
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

fn same_pod(a: &End, b: &End) -> bool {
    match (a, b) {
        (
            End::Pod {
                namespace: left,
                name: a,
                ..
            },
            End::Pod {
                namespace: right,
                name: b,
                ..
            },
        ) => left == right && a == b,
        (End::Pod { .. } | End::Node { .. } | End::Address(_), _) => false,
    }
}
