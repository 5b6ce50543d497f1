//! A judgement in words.

use std::sync::Arc;

use super::{Judge, Reason, Verdict, far};
use crate::compile::rule_chain_name;
use crate::flow::{Direction, Flow, Protocol};
use crate::index::{PeerKey, Subject};
use crate::layout::rules::peer_set_name;
use crate::policy::{Action, NamespaceScope, PolicyId, Tier};
use crate::profile::Role;
use crate::profile::{Body, Clause, Match};

const fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Admin => "the admin tier",
        Tier::Namespaced => "the tier of network policies",
        Tier::Baseline => "the baseline tier",
    }
}

const fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress to",
        Direction::Egress => "egress of",
    }
}

/// A protocol as people write it.
fn protocol_text(protocol: Protocol) -> String {
    protocol
        .name()
        .map_or_else(|| format!("protocol {}", protocol.0), ToOwned::to_owned)
}

/// Collects the steps of one direction.
struct Teller<'a> {
    judge: Judge<'a>,
    direction: Direction,
    flow: &'a Flow,
    out: Vec<Reason>,
}

impl Teller<'_> {
    fn say(&mut self, tier: Option<Tier>, text: String) {
        self.out.push(Reason {
            direction: self.direction,
            tier,
            policy: None,
            rule: None,
            action: None,
            chain: None,
            text,
        });
    }

    /// The clauses of a body in order; what ended it.
    fn body(&mut self, tier: Tier, body: &Body, place: usize, chain: &str) -> Option<Action> {
        for clause in &body.clauses {
            let who = format!("{} rule {}", body.policy, clause.name);
            let mut reason = Reason {
                direction: self.direction,
                tier: Some(tier),
                policy: Some(body.policy.clone()),
                rule: Some(clause.name.to_string()),
                action: None,
                chain: Some(chain.to_owned()),
                text: String::new(),
            };
            let hit = clause
                .matches
                .iter()
                .any(|m| self.judge.meets(body, place, m, self.flow));
            if !hit {
                let why = self.miss(body, clause);
                reason.text = format!("{who} does not match: {why}");
                self.out.push(reason);
                continue;
            }
            let verb = match clause.action {
                Action::Accept => "accepts",
                Action::Deny => "denies",
                Action::Pass => "leaves the tier",
                Action::Log => "counts, and goes on",
            };
            reason.action = Some(clause.action);
            reason.text = format!("{who} matches: it {verb}");
            self.out.push(reason);
            if clause.action != Action::Log {
                return Some(clause.action);
            }
        }
        None
    }

    /// Why a clause does not match: the closest of its alternatives.
    fn miss(&self, body: &Body, clause: &Clause) -> String {
        let flow = self.flow;
        if clause.matches.is_empty() {
            return "nothing can match it".to_owned();
        }
        let wanted = |m: &&Match| m.ports.contains(flow.protocol, flow.port);
        let Some(one) = clause.matches.iter().find(wanted) else {
            return format!(
                "{} port {} is not in it",
                protocol_text(flow.protocol),
                flow.port
            );
        };
        let address = far(self.direction, flow);
        if one
            .far
            .within
            .as_ref()
            .is_some_and(|b| !b.contains(address))
        {
            return format!("{address} is in none of its networks");
        }
        let role = Role::of(clause.action, false);
        let sets = one.far.inside.iter().chain(&one.tuple);
        for key in sets.filter_map(|at| body.key(*at)) {
            if !self.judge.holds(key, flow, self.direction) {
                let name = peer_set_name(key, address.is_ipv4(), role);
                return format!("set {name} ({}) lacks {address}", key_text(key));
            }
        }
        for key in one
            .far
            .outside
            .iter()
            .chain(&one.no_tuple)
            .filter_map(|at| body.key(*at))
        {
            if self.judge.holds(key, flow, self.direction) {
                return format!("{address} is among {}, which it leaves out", key_text(key));
            }
        }
        "its conditions do not hold together".to_owned()
    }
}

/// What a set is about, in words.
pub(crate) fn key_text(key: &PeerKey) -> String {
    match key {
        PeerKey::Nodes(selector) => format!("nodes with {selector:?}"),
        PeerKey::Pods(scope, port) => {
            let place = match &scope.namespaces {
                NamespaceScope::Any => "any namespace".to_owned(),
                NamespaceScope::Own(name) => format!("namespace {name}"),
                NamespaceScope::Matching(selector) => format!("namespaces with {selector:?}"),
            };
            let port = port
                .as_ref()
                .map_or_else(String::new, |port| format!(", their port {}", port.name));
            format!("pods with {:?} of {place}{port}", scope.pods)
        }
    }
}

/// The policies that isolate a pod for a direction.
fn isolating(subject: &Subject, direction: Direction) -> Vec<&PolicyId> {
    let speaks = |policy: &&Arc<crate::policy::Policy>| {
        policy.isolates()
            && match direction {
                Direction::Ingress => policy.ingress.is_some(),
                Direction::Egress => policy.egress.is_some(),
            }
    };
    subject
        .policies
        .iter()
        .filter(speaks)
        .map(|p| &p.id)
        .collect()
}

/// The verdict of one direction and the steps to it.
pub fn reasons(
    judge: Judge<'_>,
    subject: &Subject,
    direction: Direction,
    flow: &Flow,
) -> (Verdict, Vec<Reason>) {
    let mut teller = Teller {
        judge,
        direction,
        flow,
        out: Vec::new(),
    };
    let verdict = tell(&mut teller, subject);
    (verdict, teller.out)
}

fn tell(teller: &mut Teller<'_>, subject: &Subject) -> Verdict {
    let judge = teller.judge;
    let who = format!("{} {}", direction_word(teller.direction), subject.key);
    if judge.profile.closed {
        teller.say(
            None,
            format!("{who}: everything is denied, because the pod's object is not known"),
        );
        return Verdict::Denied;
    }
    if judge.profile.is_open() {
        teller.say(
            None,
            format!("{who}: no policy selects the pod for this direction; everything is allowed"),
        );
        return Verdict::Allowed;
    }
    let mut place = 0;
    for tier in [Tier::Admin, Tier::Namespaced, Tier::Baseline] {
        let ends = tier == Tier::Namespaced && judge.profile.isolated;
        if ends {
            let by: Vec<String> = isolating(subject, teller.direction)
                .iter()
                .map(ToString::to_string)
                .collect();
            teller.say(Some(tier), format!("{who}: isolated by {}", by.join(", ")));
            if judge.is_hairpin(teller.flow) {
                teller.say(
                    Some(tier),
                    "a pod always reaches itself through a Service".to_owned(),
                );
                return Verdict::Allowed;
            }
        }
        let mut passed = false;
        for part in judge.profile.tiers.iter().filter(|t| t.tier == tier) {
            let joined = part.passes().then(|| rule_chain_name(&part.bodies, ends));
            for body in &part.bodies {
                let at = place;
                place += 1;
                if passed {
                    continue;
                }
                let own = || rule_chain_name(std::slice::from_ref(body), false);
                let chain = joined.clone().unwrap_or_else(own);
                match teller.body(tier, body, at, &chain) {
                    Some(Action::Accept) => return Verdict::Allowed,
                    Some(Action::Deny) => return Verdict::Denied,
                    Some(Action::Pass) => passed = true,
                    Some(Action::Log) | None => {}
                }
            }
        }
        if ends && !passed {
            teller.say(
                Some(tier),
                format!("{who}: nothing in {} accepted it; denied", tier_word(tier)),
            );
            return Verdict::Denied;
        }
    }
    teller.say(None, format!("{who}: no tier ended it; allowed"));
    Verdict::Allowed
}
