//! From a local pod to the objects that the kernel needs for it.
//!
//! A [`Unit`] is one chain or one set, immutable but for the members of sets that follow pods and nodes, named by its
//! content. Units are shared by everything that needs the same content: a thousand replicas need one profile chain.

mod body_cache;
mod switch;
mod unit;

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use nft_wire::name::Name;
use nft_wire::verdict::Verdict;

use body_cache::BodyCache;
pub use unit::{Content, Rank, Unit};

use crate::flow::Direction;
use crate::hash::{Sip, name};
use crate::index::{PeerKey, Subject};
use crate::layout::Settings;
use crate::layout::frame::{Exprs, SetSpec, block_set};
use crate::layout::rules::{
    Conditions, PortTest, Test, always, denied, hairpin, jump, peer_set_name, port_set, rule,
};
use crate::policy::{Action, PolicyId, Tier};
use crate::profile::{Body, Match, PortSet, Profile, Role, TierPart};

/// A profile with what leads into it.
#[derive(Debug)]
pub struct Compiled {
    /// Hash of the profile.
    pub id: u64,
    /// The profile.
    pub profile: Profile,
    /// The chain that elements lead to; `None`: they carry `verdict` alone.
    pub root: Option<Arc<Unit>>,
    /// What elements of verdict maps say.
    pub verdict: Verdict,
}

/// Makes units of profiles, and keeps those in use to share them.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    bodies: BodyCache,
    units: HashMap<Name, Weak<Unit>>,
    profiles: HashMap<u64, Weak<Compiled>>,
    /// Entries at the last sweep; the next one comes at twice as many.
    swept: usize,
}

impl Compiler {
    /// A compiler without units.
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            bodies: BodyCache::default(),
            units: HashMap::new(),
            profiles: HashMap::new(),
            swept: 0,
        }
    }

    /// A policy changed or went: its bodies are made anew.
    pub fn forget(&mut self, policy: &PolicyId) {
        self.bodies.forget(policy);
    }

    /// The profile of a pod in one direction.
    pub fn profile(&mut self, subject: &Subject, direction: Direction) -> Profile {
        let Some(pod) = &subject.pod else {
            return Profile::closed(direction);
        };
        let mut profile = Profile {
            direction,
            tiers: Vec::new(),
            isolated: false,
            closed: false,
        };
        for policy in &subject.policies {
            let Some(body) = self.bodies.body(policy, direction, &pod.ports) else {
                continue;
            };
            profile.isolated |= policy.isolates();
            if body.is_mute() {
                continue;
            }
            match profile.tiers.last_mut() {
                Some(part) if part.tier == policy.tier => {
                    // A rule that stands there already never sees a packet the second time.
                    if !part
                        .bodies
                        .iter()
                        .any(|b| b.hash == body.hash && same(b, &body))
                    {
                        part.bodies.push(body);
                    }
                }
                _ => profile.tiers.push(TierPart {
                    tier: policy.tier,
                    bodies: vec![body],
                }),
            }
        }
        profile
    }

    /// The units of a profile; those of an equal profile in use are shared.
    pub fn compile(&mut self, profile: Profile) -> Arc<Compiled> {
        self.sweep();
        let mut sip = Sip::new();
        (profile.direction, profile.isolated, profile.closed).hash(&mut sip);
        for part in &profile.tiers {
            part.tier.hash(&mut sip);
            for body in &part.bodies {
                body.hash.hash(&mut sip);
            }
            u64::MAX.hash(&mut sip);
        }
        // Another profile under the same hash takes the next number: names never depend on luck alone.
        let mut id = sip.finish();
        loop {
            match self.profiles.get(&id).and_then(Weak::upgrade) {
                Some(known) if equal(&known.profile, &profile) => return known,
                Some(_) => id = id.wrapping_add(1),
                None => break,
            }
        }
        let (root, verdict) = self.root(&profile, id);
        let compiled = Arc::new(Compiled {
            id,
            profile,
            root,
            verdict,
        });
        self.profiles.insert(id, Arc::downgrade(&compiled));
        compiled
    }

    fn root(&mut self, profile: &Profile, id: u64) -> (Option<Arc<Unit>>, Verdict) {
        if profile.closed {
            return (None, denied(profile.direction));
        }
        if profile.is_open() {
            return (None, Verdict::Accept);
        }
        let (rules, needs) = self.profile_rules(profile);
        let prefix = match profile.direction {
            Direction::Ingress => "in",
            Direction::Egress => "eg",
        };
        let unit = self.intern(
            Rank::Profile,
            &name(prefix, id),
            Content::rules(rules),
            needs,
        );
        let verdict = Verdict::Goto(Arc::clone(&unit.name));
        (Some(unit), verdict)
    }

    /// The rules of a profile, or of the part of it that the bodies of a subset (by place) make.
    fn structure(
        &mut self,
        profile: &Profile,
        subset: Option<&BTreeSet<usize>>,
    ) -> (Vec<Exprs>, Vec<Arc<Unit>>) {
        let deny = denied(profile.direction);
        let (mut rules, mut needs) = (Vec::new(), Vec::new());
        let mut place = 0;
        for tier in [Tier::Admin, Tier::Namespaced, Tier::Baseline] {
            let ends = tier == Tier::Namespaced && profile.isolated;
            let mut part = TierPart {
                tier,
                bodies: Vec::new(),
            };
            for body in profile
                .tiers
                .iter()
                .filter(|t| t.tier == tier)
                .flat_map(|t| &t.bodies)
            {
                if subset.is_none_or(|s| s.contains(&place)) {
                    part.bodies.push(Arc::clone(body));
                }
                place += 1;
            }
            if ends {
                // E3: a pod reaches itself through a Service whatever policies of its namespace say.
                rules.push(hairpin());
            }
            if part.passes() {
                let tail = ends.then(|| deny.clone());
                let unit = self.rule_chain(&part.bodies, tail);
                rules.push(jump(&unit.name));
                needs.push(unit);
                continue;
            }
            for body in &part.bodies {
                let unit = self.rule_chain(std::slice::from_ref(body), None);
                rules.push(jump(&unit.name));
                needs.push(unit);
            }
            if ends {
                rules.push(always(deny));
                return (rules, needs);
            }
        }
        rules.push(always(Verdict::Accept));
        (rules, needs)
    }

    /// One chain with the rules of these bodies, and a verdict at its end.
    fn rule_chain(&mut self, bodies: &[Arc<Body>], tail: Option<Verdict>) -> Arc<Unit> {
        let chain = rule_chain_name(bodies, tail.is_some());
        if let Some(known) = self.units.get(chain.as_str()).and_then(Weak::upgrade)
            && known.is_of(bodies, tail.is_some())
        {
            return known;
        }
        let (mut rules, mut needs) = (Vec::new(), Vec::new());
        for body in bodies {
            for clause in &body.clauses {
                for one in &clause.matches {
                    for conditions in self.conditions(body, (one, clause.action), &mut needs) {
                        rules.push(rule(body.direction, &conditions, clause.action));
                    }
                }
            }
        }
        let ends = tail.is_some();
        rules.extend(tail.map(always));
        needs.sort_by(|a, b| a.name.cmp(&b.name));
        needs.dedup_by(|a, b| a.name == b.name);
        let content = Content::Rules {
            rules,
            bodies: bodies.to_vec(),
            ends,
        };
        self.intern(Rank::Rules, &chain, content, needs)
    }

    /// The rules that one way to meet a clause comes to: per family where addresses matter, per condition on ports.
    fn conditions(
        &mut self,
        body: &Body,
        (one, action): (&Match, Action),
        needs: &mut Vec<Arc<Unit>>,
    ) -> Vec<Conditions> {
        let ports = self.port_tests(&one.ports, needs);
        let far = &one.far;
        let anybody = far.inside.is_empty()
            && far.outside.is_empty()
            && far.within.is_none()
            && one.tuple.is_none()
            && one.no_tuple.is_empty();
        let families: &[Option<bool>] = if anybody {
            &[None]
        } else {
            &[Some(true), Some(false)]
        };
        let mut out = Vec::new();
        for v4 in families {
            let mut tests = Vec::new();
            if let Some(v4) = *v4 {
                if let Some(blocks) = &far.within {
                    if blocks.family(v4).is_empty() {
                        continue;
                    }
                    if !blocks.is_whole(v4) {
                        let unit = self.fixed(block_set(&self.settings, blocks, v4), Vec::new());
                        tests.push(Test {
                            set: Arc::clone(&unit.name),
                            tuple: false,
                            inverted: false,
                        });
                        needs.push(unit);
                    }
                }
                let refs = [
                    (far.inside.as_slice(), false, false),
                    (far.outside.as_slice(), false, true),
                    (one.tuple.as_slice(), true, false),
                    (one.no_tuple.as_slice(), true, true),
                ];
                for (list, tuple, inverted) in refs {
                    for key in list.iter().filter_map(|at| body.key(*at)) {
                        let unit = self.peers(key, v4, Role::of(action, inverted));
                        tests.push(Test {
                            set: Arc::clone(&unit.name),
                            tuple,
                            inverted,
                        });
                        needs.push(unit);
                    }
                }
            }
            out.extend(ports.iter().map(|port| Conditions {
                v4: *v4,
                tests: tests.clone(),
                port: port.clone(),
            }));
        }
        out
    }

    fn port_tests(&mut self, ports: &PortSet, needs: &mut Vec<Arc<Unit>>) -> Vec<PortTest> {
        if ports.every {
            return vec![PortTest::Every];
        }
        let mut out: Vec<PortTest> = ports
            .protocols
            .iter()
            .map(|p| PortTest::Protocol(*p))
            .collect();
        match ports.ranges.as_slice() {
            [] => {}
            [(protocol, first, last)] => out.push(PortTest::Range(*protocol, *first, *last)),
            _ => {
                let unit = self.fixed(port_set(&self.settings, ports), Vec::new());
                out.push(PortTest::Set(Arc::clone(&unit.name)));
                needs.push(unit);
            }
        }
        out
    }

    fn peers(&mut self, key: &PeerKey, v4: bool, role: Role) -> Arc<Unit> {
        let content = Content::Peers {
            key: key.clone(),
            v4,
            role,
        };
        let wanted = peer_set_name(key, v4, role);
        self.intern(Rank::Set, &wanted, content, Vec::new())
    }

    fn fixed(&mut self, spec: SetSpec, needs: Vec<Arc<Unit>>) -> Arc<Unit> {
        let rank = if needs.is_empty() {
            Rank::Set
        } else {
            Rank::Switch
        };
        let set_name = spec.set.name.to_string();
        self.intern(rank, &set_name, Content::Fixed(spec), needs)
    }

    /// The unit of this name and content. Another content under the same name moves on to the next name.
    fn intern(
        &mut self,
        rank: Rank,
        wanted: &str,
        content: Content,
        needs: Vec<Arc<Unit>>,
    ) -> Arc<Unit> {
        let mut unit_name = Name::from(wanted);
        let mut attempt = 0_u32;
        loop {
            match self.units.get(&unit_name).and_then(Weak::upgrade) {
                Some(known) if known.content.same(&content) => return known,
                Some(_) => {
                    attempt += 1;
                    unit_name = Name::from(format!("{wanted}_{attempt}"));
                }
                None => break,
            }
        }
        let content = content.named(&unit_name);
        let unit = Arc::new(Unit {
            name: Arc::clone(&unit_name),
            rank,
            content,
            needs,
        });
        self.units.insert(unit_name, Arc::downgrade(&unit));
        unit
    }

    /// Forgets what nobody uses, once there is twice as much as after the last time.
    fn sweep(&mut self) {
        let held = self.units.len() + self.profiles.len() + self.bodies.len();
        if held < 64 || held < self.swept * 2 {
            return;
        }
        self.profiles.retain(|_, p| p.strong_count() > 0);
        self.units.retain(|_, u| u.strong_count() > 0);
        self.bodies.sweep();
        self.swept = self.units.len() + self.profiles.len() + self.bodies.len();
    }
}

/// The chain with the rules of these bodies, with or without a verdict at its end; another content may have made it
/// move on to a next name.
pub fn rule_chain_name(bodies: &[Arc<Body>], ends: bool) -> String {
    let mut sip = Sip::new();
    for body in bodies {
        body.hash.hash(&mut sip);
    }
    ends.hash(&mut sip);
    name("r", sip.finish())
}

fn same(a: &Arc<Body>, b: &Arc<Body>) -> bool {
    Arc::ptr_eq(a, b) || a.same_content(b)
}

/// Equal for the kernel: names of policies and rules do not count.
fn equal(a: &Profile, b: &Profile) -> bool {
    (a.direction, a.isolated, a.closed) == (b.direction, b.isolated, b.closed)
        && a.tiers.len() == b.tiers.len()
        && a.tiers.iter().zip(&b.tiers).all(|(a, b)| {
            a.tier == b.tier
                && a.bodies.len() == b.bodies.len()
                && a.bodies.iter().zip(&b.bodies).all(|(a, b)| same(a, b))
        })
}
