//! What stands for things that could not be read.

use std::sync::Arc;

use super::field::Broken;
use crate::policy::{Action, NamespaceScope, Peers, PodScope, Ports, Rule};
use crate::selector::Selector;

/// A rule that matches nothing.
pub(super) fn void(name: Arc<str>, action: Action) -> Rule {
    Rule {
        name,
        action,
        peers: Peers::OneOf(Vec::new()),
        ports: Ports::Every,
    }
}

/// A rule that denies everything.
pub(super) fn deny_all(name: Arc<str>) -> Rule {
    Rule {
        name,
        action: Action::Deny,
        peers: Peers::Anybody,
        ports: Ports::Every,
    }
}

/// What stands for a rule of a kind that can deny.
pub(super) fn stand_in(name: Arc<str>, action: Option<Action>) -> Rule {
    match action {
        Some(action @ (Action::Accept | Action::Log)) => void(name, action),
        Some(Action::Deny | Action::Pass) | None => deny_all(name),
    }
}

/// Leaves rules nothing but to deny, when it is not known whom they were meant for: an Accept matches nothing, a Pass
/// denies.
pub(super) fn mute(rules: &mut [Rule]) {
    for rule in rules {
        match rule.action {
            Action::Accept => {
                rule.peers = Peers::OneOf(Vec::new());
                rule.ports = Ports::Every;
            }
            Action::Pass => rule.action = Action::Deny,
            Action::Deny | Action::Log => {}
        }
    }
}

/// Namespaces and pods of a subject; what cannot be read of it selects everything. The second part says whether all
/// could be read.
pub(super) fn widened(
    namespaces: Result<NamespaceScope, Broken>,
    pods: Result<Selector, Broken>,
    accounts: Result<Selector, Broken>,
) -> (PodScope, bool) {
    let readable = namespaces.is_ok() && pods.is_ok() && accounts.is_ok();
    let or_all =
        |selector: Result<Selector, Broken>| Arc::new(selector.unwrap_or(Selector::Everything));
    let scope = PodScope {
        namespaces: namespaces.unwrap_or(NamespaceScope::Any),
        pods: or_all(pods),
        accounts: or_all(accounts),
    };
    (scope, readable)
}
