//! Mistakes that a policy engine can make, each planted on what the product is given or on what it emits.
//!
//! Nothing of this is in the product: a mistake in reading is an event that says something else, a mistake in writing
//! is a transaction that was changed on its way to the machine. The harness has to notice each of them; one that it
//! does not notice is a hole in the harness.

pub mod given;
pub mod written;

use nft_wire::change::Change;
use policy_core::object::Event;
use serde_json::Value;

use crate::model::tamper::Tamper;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mistake {
    /// `except` of an `ipBlock` is not looked at.
    ExceptIgnored,
    /// A peer without a namespace selector means all namespaces.
    MissingNamespaceSelectorIsAll,
    /// A named port of an egress rule is looked up at the pod that sends.
    EgressNameAtSubject,
    /// No rules means everything is allowed.
    EmptyRulesAllow,
    /// Pass is taken for Accept.
    PassAccepts,
    /// IPv6 is not judged on arrival at a pod.
    IngressV6Forgotten,
    /// The baseline tier is left out.
    BaselineIgnored,
    /// A port entry with a protocol and no port matches every protocol.
    ProtocolIgnoredWithoutPort,
    /// The last port of a range is left out.
    EndPortOffByOne,
    /// An address that two pods had leaves the sets with the first of them.
    CountOffByOne,
    /// Pods that have finished stay members.
    FinishedKept,
    /// A named port of an egress rule means every number of that name at every pod that has the name.
    NameCrossProduct,
    /// Pods of the host network are peers like others.
    HostNetworkIsPeer,
    /// `except` denies instead of subtracting.
    ExceptDenies,
    /// Established flows are accepted before the mark is looked at.
    EstablishedBeforeMark,
    /// Chains are made and led to in one transaction.
    OneTransaction,
    /// The resets of revoked flows are dropped as well.
    ResetsEaten,
    /// Neighbour discovery is accepted whatever its hop limit.
    DiscoveryWithoutHopLimit,
    /// Noting a denied flow and dropping it are one rule.
    NoteAndDropInOneRule,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::ExceptIgnored,
        Self::MissingNamespaceSelectorIsAll,
        Self::EgressNameAtSubject,
        Self::EmptyRulesAllow,
        Self::PassAccepts,
        Self::IngressV6Forgotten,
        Self::BaselineIgnored,
        Self::ProtocolIgnoredWithoutPort,
        Self::EndPortOffByOne,
        Self::CountOffByOne,
        Self::FinishedKept,
        Self::NameCrossProduct,
        Self::HostNetworkIsPeer,
        Self::ExceptDenies,
        Self::EstablishedBeforeMark,
        Self::OneTransaction,
        Self::ResetsEaten,
        Self::DiscoveryWithoutHopLimit,
        Self::NoteAndDropInOneRule,
    ];
}

/// Makes one mistake, always.
#[derive(Debug, Clone)]
pub struct Mutant {
    mistake: Mistake,
    pods: given::Pods,
}

impl Mutant {
    /// One that makes this mistake.
    pub fn new(mistake: Mistake) -> Self {
        Self {
            mistake,
            pods: given::Pods::default(),
        }
    }
}

impl Tamper for Mutant {
    fn documents(&mut self, documents: &[Value]) -> Vec<Value> {
        let mut out = documents.to_vec();
        if self.mistake == Mistake::EgressNameAtSubject {
            given::name_at_subject(&mut out);
        }
        if self.mistake == Mistake::NameCrossProduct {
            given::cross_product(&mut out);
        }
        out
    }

    fn event(&mut self, event: Event) -> Vec<Event> {
        if self.mistake == Mistake::CountOffByOne {
            return self.pods.off_by_one(event);
        }
        vec![given::event(self.mistake, event)]
    }

    fn changes(&mut self, changes: Vec<Change>) -> Vec<Change> {
        written::changes(self.mistake, changes)
    }

    fn joins(&self) -> bool {
        self.mistake == Mistake::OneTransaction
    }
}
