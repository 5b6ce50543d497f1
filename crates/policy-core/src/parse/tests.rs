//! Documents as they come, and as they should not.

mod additive;
mod calico;
mod cluster;
mod mutation;
mod objects;

use serde_json::{Value, json};

use super::{Parsed, document};
use crate::object::Object;
use crate::policy::{Action, Peers, Policy, Ports, Rule};

/// The policy of a document.
fn policy(value: &Value) -> Policy {
    let parsed = document(value);
    let Parsed::Object(Object::Policy(policy)) = parsed else {
        panic!("{parsed:?}");
    };
    policy
}

/// A NetworkPolicy `shop/p` with this spec.
fn network_policy(spec: &Value) -> Policy {
    policy(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    }))
}

/// The only rule of a list.
fn only(rules: Option<&Vec<Rule>>) -> Rule {
    match rules.map(Vec::as_slice) {
        Some([rule]) => rule.clone(),
        other => panic!("{other:?}"),
    }
}

/// Fields of the problems.
fn fields(policy: &Policy) -> Vec<&str> {
    policy.problems.iter().map(|p| p.field.as_str()).collect()
}

/// Whether a rule denies everything.
fn denies_all(rule: &Rule) -> bool {
    (rule.action, &rule.peers, &rule.ports) == (Action::Deny, &Peers::Anybody, &Ports::Every)
}

/// Whether a rule matches nothing.
fn is_void(rule: &Rule) -> bool {
    rule.peers == Peers::OneOf(Vec::new()) || rule.ports == Ports::OneOf(Vec::new())
}
