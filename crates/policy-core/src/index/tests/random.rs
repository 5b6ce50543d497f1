//! Incremental is the same as from scratch, and nothing is left after everything was deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use types::pod::PodKey;

use super::super::strings::SLACK;
use super::super::{Changes, Index, Member, PeerKey, SetId, Subject};
use super::model::Model;
use super::*;
use crate::object::{Node, ServiceAccount};
use crate::policy::{Order, Policy, PolicyId, PolicyKind, Tier};

#[derive(Debug, Clone)]
enum Step {
    Event(Event),
    Place(LocalPod),
    Unplace(LocalPod),
    Acquire(usize),
    Release(usize),
    Take,
}

/// The sets that are kept and given back.
fn keys() -> Vec<PeerKey> {
    let has = |key: &str| Selector::Has(Arc::from(key));
    let team = || NamespaceScope::Matching(is("team", "x"));
    let mut robots = scope(NamespaceScope::Any, all());
    robots.accounts = Arc::new(has("bot"));
    let either = Selector::In(Arc::from("app"), [Arc::from("db"), Arc::from("web")].into());
    let both = Selector::all([either.clone(), has("app").negated().negated()]);
    let web = |protocol| Some(port_name(protocol, "web"));
    vec![
        pods(own("a"), all()),
        pods(own("a"), is("app", "web")),
        pods(own("b"), Arc::new(has("app").negated())),
        pods(team(), all()),
        pods(team(), is("app", "db")),
        pods(NamespaceScope::Matching(all()), Arc::new(either)),
        pods(
            NamespaceScope::Matching(Arc::new(has("team").negated())),
            Arc::new(both),
        ),
        pods(NamespaceScope::Any, all()),
        pods(NamespaceScope::Any, Arc::new(Selector::Nothing)),
        PeerKey::Pods(robots, None),
        PeerKey::Pods(scope(NamespaceScope::Any, all()), web(None)),
        PeerKey::Pods(scope(team(), is("app", "web")), web(Some(Protocol::TCP))),
        PeerKey::Nodes(all()),
        PeerKey::Nodes(is("app", "web")),
    ]
}

fn some_labels() -> impl Strategy<Value = Labels> {
    let app = select(vec![None, Some("web"), Some("db")]);
    let team = select(vec![None, Some("x"), Some("y")]);
    (app, team).prop_map(|(app, team)| {
        let both = [("app", app), ("team", team)];
        let pairs: Vec<_> = both
            .into_iter()
            .filter_map(|(k, v)| Some((k, v?)))
            .collect();
        labels(&pairs)
    })
}

fn some_ips() -> impl Strategy<Value = Vec<IpAddr>> {
    let pool = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
    prop::collection::btree_set(select(pool.map(ip).to_vec()), 0..3)
        .prop_map(|ips| ips.into_iter().collect())
}

fn some_name() -> impl Strategy<Value = PodKey> {
    (select(vec!["a", "b", "c"]), select(vec!["p", "q"]))
        .prop_map(|(namespace, name)| PodKey::new(namespace, name))
}

fn some_uid() -> impl Strategy<Value = Arc<str>> {
    select(vec!["u1", "u1", "u2", ""]).prop_map(Arc::from)
}

fn some_pod() -> impl Strategy<Value = Pod> {
    let port = select(vec![
        named("web", Protocol::TCP, 80),
        named("web", Protocol::TCP, 81),
        named("web", Protocol::UDP, 80),
        named("dns", Protocol::UDP, 53),
    ]);
    let ports = prop::collection::btree_set(port, 0..3);
    let node = select(vec![HERE, HERE, "there", ""]);
    let flags = (prop::bool::weighted(0.15), prop::bool::weighted(0.15));
    let account = select(vec!["default", "robot"]);
    (
        some_name(),
        some_uid(),
        node,
        some_labels(),
        some_ips(),
        flags,
        ports,
        account,
    )
        .prop_map(
            |(key, uid, node, labels, ips, (host_network, finished), ports, account)| Pod {
                key,
                uid,
                node: Arc::from(node),
                labels,
                ips,
                host_network,
                finished,
                ports: ports.into_iter().collect(),
                service_account: Arc::from(account),
                spoofs: false,
            },
        )
}

fn some_policy() -> impl Strategy<Value = Policy> {
    let kind = select(vec![
        (PolicyKind::NetworkPolicy, Tier::Namespaced),
        (PolicyKind::NetworkPolicy, Tier::Namespaced),
        (PolicyKind::CalicoNamespaced, Tier::Namespaced),
        (PolicyKind::CalicoGlobal, Tier::Namespaced),
        (PolicyKind::AckGlobal, Tier::Namespaced),
        (PolicyKind::ClusterNetworkPolicy, Tier::Admin),
        (PolicyKind::AdminNetworkPolicy, Tier::Admin),
        (PolicyKind::BaselineAdminNetworkPolicy, Tier::Baseline),
    ]);
    let subject = select(keys()).prop_filter_map("pods", |key| match key {
        PeerKey::Pods(scope, None) => Some(scope),
        PeerKey::Pods(..) | PeerKey::Nodes(_) => None,
    });
    let place = (0_i64..3, select(vec!["one", "two", "three"]));
    (kind, select(vec!["a", "b"]), subject, place).prop_map(
        |((kind, tier), namespace, mut subject, (order, name))| {
            let namespaced = matches!(
                kind,
                PolicyKind::NetworkPolicy | PolicyKind::CalicoNamespaced
            );
            if namespaced {
                subject.namespaces = own(namespace);
            }
            Policy {
                id: PolicyId {
                    kind,
                    namespace: Arc::from(if namespaced { namespace } else { "" }),
                    name: Arc::from(name),
                },
                tier,
                order: Order(order),
                subject,
                ingress: Some(Vec::new()),
                egress: None,
                problems: Vec::new(),
            }
        },
    )
}

fn some_placement() -> impl Strategy<Value = LocalPod> {
    (
        some_name(),
        some_uid(),
        select(vec!["s1", "s2", "s3"]),
        some_ips(),
    )
        .prop_map(|(key, uid, sandbox, ips)| LocalPod {
            key,
            uid,
            attachment: attachment(sandbox),
            host_link: None,
            netns: None,
            ips,
        })
}

fn some_event() -> impl Strategy<Value = Event> {
    let place = || select(vec!["a", "b", "c"]).prop_map(Arc::<str>::from);
    let name = || select(vec!["default", "robot"]).prop_map(Arc::<str>::from);
    let bots = || select(vec![labels(&[]), labels(&[("bot", "1")])]);
    prop_oneof![
        8 => some_pod().prop_map(|pod| Event::Upsert(Object::Pod(pod))),
        3 => some_name().prop_map(|key| Event::Delete(ObjectKey::Pod(key))),
        3 => (place(), some_labels()).prop_map(|(name, labels)| {
            Event::Upsert(Object::Namespace(Namespace { name, labels }))
        }),
        1 => place().prop_map(|name| Event::Delete(ObjectKey::Namespace(name))),
        1 => (place(), some_labels(), some_ips()).prop_map(|(name, labels, ips)| {
            Event::Upsert(Object::Node(Node { name, labels, ips }))
        }),
        1 => place().prop_map(|name| Event::Delete(ObjectKey::Node(name))),
        1 => (place(), name(), bots()).prop_map(|(namespace, name, labels)| {
            Event::Upsert(Object::ServiceAccount(ServiceAccount { namespace, name, labels }))
        }),
        1 => (place(), name()).prop_map(|(namespace, name)| {
            Event::Delete(ObjectKey::ServiceAccount(namespace, name))
        }),
        3 => some_policy().prop_map(|policy| Event::Upsert(Object::Policy(policy))),
        1 => some_policy().prop_map(|policy| Event::Delete(ObjectKey::Policy(policy.id))),
    ]
}

fn some_step() -> impl Strategy<Value = Step> {
    let key = || 0..keys().len();
    prop_oneof![
        20 => some_event().prop_map(Step::Event),
        3 => some_placement().prop_map(Step::Place),
        2 => some_placement().prop_map(Step::Unplace),
        3 => key().prop_map(Step::Acquire),
        2 => key().prop_map(Step::Release),
        3 => Just(Step::Take),
    ]
}

/// An index, the model beside it, and what one knows who only listens to changes.
struct Bench {
    index: Index,
    model: Model,
    keys: Vec<PeerKey>,
    held: BTreeMap<usize, Vec<SetId>>,
    mirror: BTreeMap<SetId, BTreeSet<Member>>,
    subjects: BTreeMap<PodKey, Subject>,
}

impl Bench {
    fn new() -> Self {
        Self {
            index: Index::new(HERE),
            model: Model::default(),
            keys: keys(),
            held: BTreeMap::new(),
            mirror: BTreeMap::new(),
            subjects: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Event(event) => {
                self.index.apply(event.clone());
                self.model.apply(event);
            }
            Step::Place(pod) => {
                self.index.place(pod.clone());
                self.model.place(pod);
            }
            Step::Unplace(pod) => {
                self.index.unplace(&pod.attachment);
                self.model.unplace(pod);
            }
            Step::Acquire(which) => {
                let id = self.index.acquire(&self.keys[*which]);
                let held = self.held.entry(*which).or_default();
                if held.is_empty() {
                    let members = self.index.members(id).into_iter().collect();
                    assert!(self.mirror.insert(id, members).is_none());
                }
                held.push(id);
            }
            Step::Release(which) => {
                if let Some(id) = self.held.get_mut(which).and_then(Vec::pop) {
                    self.index.release(id);
                    if self.held.get(which).is_some_and(Vec::is_empty) {
                        self.mirror.remove(&id);
                    }
                }
            }
            Step::Take => self.take(),
        }
    }

    fn take(&mut self) {
        let Changes { sets, subjects, .. } = self.index.take_changes();
        for delta in sets {
            let mirror = self.mirror.get_mut(&delta.id).unwrap();
            for member in delta.removed {
                assert!(mirror.remove(&member), "{member:?} went twice");
            }
            for member in delta.added {
                assert!(mirror.insert(member), "{member:?} came twice");
            }
        }
        for key in subjects {
            self.subjects.remove(&key);
            self.subjects
                .extend(self.index.subject(&key).map(|subject| (key, subject)));
        }
    }

    fn check(&mut self) {
        self.take();
        for (which, held) in &self.held {
            let Some(id) = held.first() else { continue };
            let key = &self.keys[*which];
            let wanted = self.model.members(key);
            assert_eq!(self.index.members(*id), wanted, "{key:?}");
            assert_eq!(self.index.size(*id), wanted.len(), "{key:?}");
            let mirror: Vec<Member> = self.mirror[id].iter().copied().collect();
            assert_eq!(mirror, wanted, "{key:?} by changes");
            for last in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"] {
                for port in [None, Some((Protocol::TCP, 80)), Some((Protocol::UDP, 80))] {
                    let member = Member { ip: ip(last), port };
                    let tuple = matches!(key, PeerKey::Pods(_, Some(_)));
                    let plain = Member {
                        port: None,
                        ..member
                    };
                    let wanted = wanted.contains(if tuple { &member } else { &plain });
                    assert_eq!(self.index.contains(*id, member.ip, port), wanted);
                    assert_eq!(self.index.matches(key, member.ip, port), wanted);
                }
            }
        }
        let wanted = self.model.subjects();
        assert_eq!(self.index.subjects(), wanted);
        let known: Vec<Subject> = self.subjects.values().cloned().collect();
        assert_eq!(known, wanted, "by changes");
    }
}

/// Deletes everything that steps could have made.
fn teardown(steps: &[Step]) -> Vec<Step> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Event(Event::Upsert(object)) => Some(Step::Event(Event::Delete(match object {
                Object::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
                Object::Namespace(n) => ObjectKey::Namespace(Arc::clone(&n.name)),
                Object::Node(node) => ObjectKey::Node(Arc::clone(&node.name)),
                Object::ServiceAccount(a) => {
                    ObjectKey::ServiceAccount(Arc::clone(&a.namespace), Arc::clone(&a.name))
                }
                Object::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
            }))),
            Step::Place(pod) => Some(Step::Unplace(pod.clone())),
            Step::Acquire(which) => Some(Step::Release(*which)),
            Step::Event(Event::Delete(_)) | Step::Unplace(_) | Step::Release(_) | Step::Take => {
                None
            }
        })
        .collect()
}

/// The same story with every event told twice, spurious deletes before, and everything in reverse first.
fn expanded(steps: &[Step]) -> Vec<Step> {
    let reversed = steps
        .iter()
        .rev()
        .filter(|step| matches!(step, Step::Event(_)));
    let mut all: Vec<Step> = reversed.cloned().collect();
    all.extend(teardown(&all));
    for step in steps {
        if let Step::Event(Event::Upsert(_)) = step {
            all.extend(teardown(std::slice::from_ref(step)));
        }
        all.push(step.clone());
        if let Step::Event(_) | Step::Unplace(_) = step {
            all.push(step.clone());
        }
    }
    all
}

/// Upserts alone, one per object: a state rather than a story.
fn state(steps: &[Step]) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    let mut last: Vec<Step> = steps
        .iter()
        .rev()
        .filter(|step| match step {
            Step::Event(Event::Upsert(_)) => {
                let key = teardown(std::slice::from_ref(step));
                seen.insert(format!("{key:?}"))
            }
            Step::Event(Event::Delete(_))
            | Step::Place(_)
            | Step::Unplace(_)
            | Step::Acquire(_)
            | Step::Release(_)
            | Step::Take => false,
        })
        .cloned()
        .collect();
    last.reverse();
    last
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    // B8, E10
    #[test]
    fn index_after_any_story_is_as_built_from_scratch(
        steps in prop::collection::vec(some_step(), 1..80),
    ) {
        let mut bench = Bench::new();
        for which in 0..keys().len() / 2 {
            bench.step(&Step::Acquire(which * 2));
        }
        for step in &steps {
            bench.step(step);
        }
        for which in 0..keys().len() {
            bench.step(&Step::Acquire(which));
        }
        bench.check();
    }

    // A2, E10
    #[test]
    fn index_of_one_state_is_the_same_whatever_the_story(
        steps in prop::collection::vec(some_step(), 1..60),
    ) {
        let steps = state(&steps);
        let mut plain = Bench::new();
        let mut long = Bench::new();
        for which in 0..keys().len() {
            long.step(&Step::Acquire(which));
        }
        for step in &steps {
            plain.step(step);
        }
        for step in &expanded(&steps) {
            long.step(step);
        }
        for which in 0..keys().len() {
            plain.step(&Step::Acquire(which));
        }
        plain.check();
        long.check();
        prop_assert_eq!(plain.index.subjects(), long.index.subjects());
        for key in &keys() {
            let of = |bench: &Bench| bench.index.members(bench.index.set(key).unwrap());
            prop_assert_eq!(of(&plain), of(&long));
        }
    }

    // B8
    #[test]
    fn nothing_is_left_after_everything_was_deleted(
        steps in prop::collection::vec(some_step(), 1..80),
    ) {
        let mut bench = Bench::new();
        for step in &steps {
            bench.step(step);
        }
        for step in &teardown(&steps) {
            bench.step(step);
        }
        bench.check();
        prop_assert!(bench.index.counts().strings <= SLACK);
        prop_assert!(bench.index.is_bare(), "{:?}", bench.index);
        prop_assert!(bench.index.take_changes().is_empty());
    }
}

#[test]
fn strings_that_nothing_uses_any_more_go() {
    let mut index = Index::new(HERE);
    for n in 0..5 * SLACK {
        upsert(
            &mut index,
            &pod("a", "p", &format!("app-{n}"), &["10.0.0.1"]),
        );
        if n % 64 == 0 {
            drop(index.take_changes());
        }
    }
    drop(index.take_changes());
    assert!(index.counts().strings <= 2 * SLACK, "{:?}", index.counts());
    assert_eq!(index.counts().classes, 1);
    let kept = index.pod(&PodKey::new("a", "p")).unwrap();
    assert_eq!(kept.labels.get("app").map(AsRef::as_ref), Some("app-20479"));
    delete(&mut index, &kept);
    assert_eq!(index.counts().pods, 0);
}
