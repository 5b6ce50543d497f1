//! Random clusters from a seed, as documents: the same input for the product and for the oracle.
//!
//! The documents keep to what an API server could hold, plus, now and then, what a hand-written file or an old
//! object may hold: missing lists, nulls, selectors that cannot be read. All choices come from one number, so a
//! mismatch is repeated by its seed alone.

pub mod cluster;
pub mod dice;
pub mod events;
pub mod objects;
pub mod policies;
pub mod probes;
pub mod shrink;
pub mod spoil;

use serde_json::Value;

use crate::random::dice::Dice;

/// Which address families the pods of a world have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// What may occur in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flavour {
    /// Policies of the whole cluster (ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy).
    pub cluster: bool,
    /// Calico's policies.
    pub calico: bool,
    /// Documents that no API server would accept.
    pub malformed: bool,
}

impl Flavour {
    /// Everything.
    pub const ALL: Self = Self {
        cluster: true,
        calico: true,
        malformed: true,
    };

    /// The policy, or now and then what no API server would keep of it.
    fn maybe_spoilt(self, dice: &mut Dice, policy: Value) -> Value {
        if self.malformed && dice.chance(6) {
            spoil::policy(dice, policy)
        } else {
            policy
        }
    }
}

/// A cluster as documents.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// The number it was made from.
    pub seed: u64,
    /// Nodes, namespaces, pods, then policies.
    pub documents: Vec<Value>,
}

impl World {
    /// The world of this number.
    pub fn generate(seed: u64, flavour: Flavour) -> Self {
        let mut dice = Dice::new(seed);
        let stack = match dice.below(10) {
            0 | 1 => Stack::V4,
            2 | 3 => Stack::V6,
            _ => Stack::Dual,
        };
        let scene = objects::Scene::generate(&mut dice, stack);
        let mut documents = scene.documents();
        for number in 0..dice.between(1, 6) {
            let malformed = flavour.malformed && dice.chance(3);
            let policy = policies::network_policy(&mut dice, &scene, number, malformed);
            documents.push(flavour.maybe_spoilt(&mut dice, policy));
        }
        if flavour.cluster && dice.chance(60) {
            for number in 0..dice.below(4) {
                let malformed = flavour.malformed && dice.chance(4);
                let policy = cluster::policy(&mut dice, &scene, number, malformed);
                documents.push(flavour.maybe_spoilt(&mut dice, policy));
            }
        }
        if flavour.calico && dice.chance(15) {
            for number in 0..dice.between(1, 2) {
                let policy = cluster::calico(&mut dice, &scene, number);
                documents.push(flavour.maybe_spoilt(&mut dice, policy));
            }
        }
        Self { seed, documents }
    }

    /// The documents one below the other, for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for document in &self.documents {
            out.push_str(&document.to_string());
            out.push('\n');
        }
        out
    }
}
