//! What network policy *means*, as a slow and plain evaluator that gives its reasons.
//!
//! Written from the texts of the APIs and sharing no code with the part that programs the kernel:
//! own reader of documents, own selectors, own order of tiers. When the two disagree, one of them has
//! misread the API. Nothing here is indexed or cached; a question walks every policy.
//!
//! 1. [`world::World::from_documents`] reads objects as the API server serves them. It never fails:
//!    what cannot be read fails closed and is named in [`world::World::problems`].
//! 2. [`world::World::decide`] answers one [`probe::Probe`] with a [`probe::Decision`]: both
//!    directions apart, each with sentences for a person.
//!
//! The question is always about the *first* packet of a connection; replies to an allowed one are
//! allowed, which is no matter of policy. Addresses are those that policy sees: after translation of a
//! Service's address, before masquerading on the same node.
//!
//! Where the API leaves a choice, this is ours:
//!
//! - Equal priority (cluster tiers) or order (Calico): by name, so that all nodes agree. A
//!   NetworkPolicy stands at Calico's order 1000, before Calico's own policies of the same order.
//! - A v1alpha1 baseline policy comes after all ClusterNetworkPolicies of the baseline tier.
//! - A pod that reaches itself through a Service is exempt from NetworkPolicy and Calico's policies,
//!   and subject to the admin and baseline tiers.
//! - A cluster-tier rule that cannot be read accepts nothing; if it was to deny or to pass, it denies
//!   everything.
#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod block;
mod calico;
mod calico_rule;
mod calico_selector;
mod cluster_policy;
mod document;
mod flow;
mod inventory;
mod label_selector;
mod network_policy;
mod port;
pub mod probe;
pub mod problem;
mod tier;
pub mod world;
