//! What the kernel would do with a flow, from the same profiles that its rules are made of.

mod reasons;
mod verdict;

use std::net::IpAddr;
use std::sync::Arc;

pub(crate) use reasons::key_text;
pub use reasons::reasons;
pub use verdict::{Explanation, Reason, Verdict};

use crate::flow::{Direction, Flow};
use crate::index::{Index, PeerKey, SetId};
use crate::policy::{Action, Tier};
use crate::profile::{Body, KeyRef, Match, Profile};

/// The sets of a profile's bodies, looked up once: by body, then by place in [`Body::keys`].
#[derive(Debug, Default)]
pub struct Sets(Vec<Vec<SetId>>);

impl Sets {
    /// Acquires them, so that their numbers stay.
    pub fn acquire(profile: &Profile, index: &mut Index) -> Self {
        let mut of = |body: &Arc<Body>| -> Vec<SetId> {
            body.keys.iter().map(|key| index.acquire(key)).collect()
        };
        Self(profile.bodies().map(&mut of).collect())
    }

    /// Gives them back.
    pub fn release(self, index: &mut Index) {
        for id in self.0.into_iter().flatten() {
            index.release(id);
        }
    }

    fn get(&self, body: usize, at: KeyRef) -> Option<SetId> {
        self.0.get(body)?.get(at.0).copied()
    }
}

/// One direction of one local pod.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// What its policies come to.
    pub profile: &'a Profile,
    /// The sets of that.
    pub sets: &'a Sets,
    /// Who is in them.
    pub index: &'a Index,
    /// Addresses of the pod: traffic between them is traffic with itself.
    pub own: &'a [IpAddr],
}

/// The address of a flow that is far from the pod.
pub const fn far(direction: Direction, flow: &Flow) -> IpAddr {
    match direction {
        Direction::Ingress => flow.source,
        Direction::Egress => flow.destination,
    }
}

impl Judge<'_> {
    /// What becomes of a flow.
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        if self.profile.closed {
            return Verdict::Denied;
        }
        let mut place = 0;
        for tier in [Tier::Admin, Tier::Namespaced, Tier::Baseline] {
            let ends = tier == Tier::Namespaced && self.profile.isolated;
            if ends && self.is_hairpin(flow) {
                return Verdict::Allowed;
            }
            let mut passed = false;
            for part in self.profile.tiers.iter().filter(|t| t.tier == tier) {
                for body in &part.bodies {
                    let action = if passed {
                        None
                    } else {
                        self.action(body, place, flow)
                    };
                    place += 1;
                    match action {
                        Some(Action::Accept) => return Verdict::Allowed,
                        Some(Action::Deny) => return Verdict::Denied,
                        Some(Action::Pass) => passed = true,
                        Some(Action::Log) | None => {}
                    }
                }
            }
            if ends && !passed {
                return Verdict::Denied;
            }
        }
        Verdict::Allowed
    }

    /// Whether the flow is one of the pod with itself.
    pub fn is_hairpin(&self, flow: &Flow) -> bool {
        self.own.contains(&flow.source) && self.own.contains(&flow.destination)
    }

    /// What the first rule does that ends the body.
    fn action(&self, body: &Body, place: usize, flow: &Flow) -> Option<Action> {
        body.clauses
            .iter()
            .filter(|c| c.action != Action::Log)
            .find(|c| c.matches.iter().any(|m| self.meets(body, place, m, flow)))
            .map(|c| c.action)
    }

    /// Whether a flow meets all conditions.
    pub fn meets(&self, body: &Body, place: usize, one: &Match, flow: &Flow) -> bool {
        let far = far(body.direction, flow);
        let port = Some((flow.protocol, flow.port));
        let within = |at: &KeyRef| self.contains(body, place, *at, far, None);
        let named = |at: &KeyRef| self.contains(body, place, *at, far, port);
        one.ports.contains(flow.protocol, flow.port)
            && one
                .far
                .within
                .as_ref()
                .is_none_or(|blocks| blocks.contains(far))
            && one.far.inside.iter().all(within)
            && !one.far.outside.iter().any(within)
            && one.tuple.as_ref().is_none_or(named)
            && !one.no_tuple.iter().any(named)
    }

    fn contains(
        &self,
        body: &Body,
        place: usize,
        at: KeyRef,
        ip: IpAddr,
        port: Option<(crate::flow::Protocol, u16)>,
    ) -> bool {
        match (self.sets.get(place, at), body.key(at)) {
            (Some(id), _) => self.index.contains(id, ip, port),
            (None, Some(key)) => self.index.matches(key, ip, port),
            (None, None) => false,
        }
    }

    /// The set at a place of a body, whether it holds the flow's far end.
    pub(crate) fn holds(&self, key: &PeerKey, flow: &Flow, direction: Direction) -> bool {
        let port = match key {
            PeerKey::Pods(_, Some(_)) => Some((flow.protocol, flow.port)),
            PeerKey::Pods(_, None) | PeerKey::Nodes(_) => None,
        };
        self.index.matches(key, far(direction, flow), port)
    }
}
