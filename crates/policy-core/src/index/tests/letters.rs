//! Sets, by letter.

use std::sync::Arc;

use super::super::{Index, PeerKey};
use super::*;
use crate::object::{Node, ServiceAccount};

// B1
#[test]
fn set_of_own_namespace_has_its_pods_alone() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), is("app", "web")));
    upsert(&mut index, &pod("a", "p1", "web", &["10.0.0.1"]));
    upsert(&mut index, &pod("a", "p2", "db", &["10.0.0.2"]));
    upsert(&mut index, &pod("b", "p3", "web", &["10.0.0.3"]));
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
    assert_eq!(
        delta(&index.take_changes(), set),
        (vec![plain("10.0.0.1")], vec![])
    );
    assert!(index.contains(set, ip("10.0.0.1"), None));
    assert!(!index.contains(set, ip("10.0.0.3"), None));
}

// B4
#[test]
fn pods_before_their_namespace_are_matched_by_no_namespace_selector() {
    let mut index = Index::new(HERE);
    let team = index.acquire(&pods(NamespaceScope::Matching(is("team", "x")), all()));
    let not_team = Selector::clone(&is("team", "y")).negated();
    let others = index.acquire(&pods(NamespaceScope::Matching(Arc::new(not_team)), all()));
    let every = index.acquire(&pods(NamespaceScope::Matching(all()), all()));
    let any = index.acquire(&pods(NamespaceScope::Any, all()));
    upsert(&mut index, &pod("a", "p", "web", &["10.0.0.1"]));
    for set in [team, others, every] {
        assert_eq!(addresses(&index, set), NONE);
    }
    assert_eq!(addresses(&index, any), [ip("10.0.0.1")]);
    namespace(&mut index, "a", &[("team", "x")]);
    for set in [team, others, every, any] {
        assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
    }
    drop(index.take_changes());
    index.apply(Event::Delete(ObjectKey::Namespace(Arc::from("a"))));
    assert_eq!(delta(&index.take_changes(), every).1, [plain("10.0.0.1")]);
}

// B4
#[test]
fn namespace_label_change_looks_again_at_all_its_pods() {
    let mut index = Index::new(HERE);
    namespace(&mut index, "a", &[("team", "x")]);
    let set = index.acquire(&pods(NamespaceScope::Matching(is("team", "x")), all()));
    for n in 1..5 {
        let app = format!("app{n}");
        upsert(&mut index, &pod("a", &app, &app, &[&format!("10.0.0.{n}")]));
    }
    drop(index.take_changes());
    namespace(&mut index, "a", &[("team", "y")]);
    assert_eq!(delta(&index.take_changes(), set).1.len(), 4);
    namespace(&mut index, "a", &[("team", "x"), ("more", "z")]);
    assert_eq!(delta(&index.take_changes(), set).0.len(), 4);
    namespace(&mut index, "a", &[("team", "x")]);
    assert!(index.take_changes().is_empty());
}

// B5
#[test]
fn pod_without_address_contributes_nothing_and_with_two_both() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), all()));
    upsert(&mut index, &pod("a", "p", "web", &[]));
    assert_eq!(addresses(&index, set), NONE);
    upsert(&mut index, &pod("a", "p", "web", &["fd00::1", "10.0.0.1"]));
    assert_eq!(addresses(&index, set), [ip("10.0.0.1"), ip("fd00::1")]);
}

// B6
#[test]
fn finished_pod_leaves_every_set_at_once_and_its_address_serves_another() {
    let mut index = Index::new(HERE);
    let web = index.acquire(&pods(own("a"), is("app", "web")));
    let db = index.acquire(&pods(own("a"), is("app", "db")));
    let mut done = pod("a", "p1", "web", &["10.0.0.1"]);
    upsert(&mut index, &done);
    done.finished = true;
    upsert(&mut index, &done);
    assert_eq!(addresses(&index, web), NONE);
    upsert(&mut index, &pod("a", "p2", "db", &["10.0.0.1"]));
    upsert(&mut index, &done);
    delete(&mut index, &done);
    assert_eq!(addresses(&index, db), [ip("10.0.0.1")]);
    assert_eq!(addresses(&index, web), NONE);
}

// B8
#[test]
fn address_of_two_pods_stays_until_both_are_gone() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), all()));
    let (one, two) = (
        pod("a", "p1", "web", &["10.0.0.1"]),
        pod("a", "p2", "db", &["10.0.0.1"]),
    );
    upsert(&mut index, &one);
    upsert(&mut index, &two);
    assert_eq!(delta(&index.take_changes(), set).0, [plain("10.0.0.1")]);
    delete(&mut index, &one);
    assert!(index.take_changes().sets.is_empty());
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
    delete(&mut index, &two);
    assert_eq!(delta(&index.take_changes(), set).1, [plain("10.0.0.1")]);
}

// B8
#[test]
fn pods_of_one_class_with_one_address_leave_together_once() {
    let mut index = Index::new(HERE);
    namespace(&mut index, "a", &[("team", "x")]);
    let set = index.acquire(&pods(NamespaceScope::Matching(is("team", "x")), all()));
    upsert(&mut index, &pod("a", "p1", "web", &["10.0.0.1"]));
    upsert(&mut index, &pod("a", "p2", "web", &["10.0.0.1"]));
    assert_eq!(index.counts().classes, 1);
    drop(index.take_changes());
    namespace(&mut index, "a", &[]);
    assert_eq!(
        delta(&index.take_changes(), set),
        (vec![], vec![plain("10.0.0.1")])
    );
    namespace(&mut index, "a", &[("team", "x")]);
    namespace(&mut index, "a", &[]);
    assert!(index.take_changes().sets.is_empty());
}

// B9
#[test]
fn pod_of_the_host_network_is_neither_peer_nor_subject() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(NamespaceScope::Any, all()));
    let mut host = local("a", "p", "web", &["10.0.0.9"]);
    host.host_network = true;
    upsert(&mut index, &host);
    assert_eq!(addresses(&index, set), NONE);
    assert_eq!(index.subject(&host.key), None);
    assert_eq!(index.subjects(), []);
    assert!(index.pods_by_ip(ip("10.0.0.9")).is_empty());
    assert!(index.pod(&host.key).is_some_and(|pod| pod.host_network));
    host.host_network = false;
    upsert(&mut index, &host);
    assert_eq!(addresses(&index, set), [ip("10.0.0.9")]);
    assert!(index.subject(&host.key).is_some());
}

// B10
#[test]
fn pod_that_changes_labels_address_or_node_moves_between_sets() {
    let mut index = Index::new(HERE);
    let web = index.acquire(&pods(own("a"), is("app", "web")));
    let db = index.acquire(&pods(own("a"), is("app", "db")));
    upsert(&mut index, &pod("a", "p", "web", &["10.0.0.1"]));
    upsert(&mut index, &pod("a", "p", "db", &["10.0.0.1"]));
    let changes = index.take_changes();
    assert_eq!(delta(&changes, web), (vec![], vec![]));
    assert_eq!(delta(&changes, db).0, [plain("10.0.0.1")]);
    let mut again = pod("a", "p", "db", &["10.0.0.2"]);
    again.uid = Arc::from("another");
    again.node = Arc::from("elsewhere");
    upsert(&mut index, &again);
    assert_eq!(addresses(&index, db), [ip("10.0.0.2")]);
    assert_eq!(index.pods_by_ip(ip("10.0.0.1")), []);
    again.node = Arc::from(HERE);
    upsert(&mut index, &again);
    assert!(index.subject(&again.key).is_some());
    again.node = Arc::from("elsewhere");
    upsert(&mut index, &again);
    assert_eq!(index.subject(&again.key), None);
    assert_eq!(addresses(&index, db), [ip("10.0.0.2")]);
}

// D4, D6
#[test]
fn set_with_port_name_has_the_number_that_each_pod_gave_it() {
    let mut index = Index::new(HERE);
    let key = |protocol| PeerKey::Pods(scope(own("a"), all()), Some(port_name(protocol, "web")));
    let tcp = index.acquire(&key(Some(Protocol::TCP)));
    let any = index.acquire(&key(None));
    let mut one = pod("a", "p1", "x", &["10.0.0.1"]);
    one.ports = vec![
        named("web", Protocol::TCP, 80),
        named("web", Protocol::TCP, 8080),
    ];
    let mut two = pod("a", "p2", "x", &["10.0.0.2"]);
    two.ports = vec![
        named("web", Protocol::UDP, 81),
        named("other", Protocol::TCP, 82),
    ];
    for pod in [&one, &two, &pod("a", "p3", "x", &["10.0.0.3"])] {
        upsert(&mut index, pod);
    }
    let member = |text, protocol, number| Member {
        ip: ip(text),
        port: Some((protocol, number)),
    };
    let of_one = [
        member("10.0.0.1", Protocol::TCP, 80),
        member("10.0.0.1", Protocol::TCP, 8080),
    ];
    assert_eq!(index.members(tcp), of_one);
    let with_two = [of_one[0], of_one[1], member("10.0.0.2", Protocol::UDP, 81)];
    assert_eq!(index.members(any), with_two);
    assert!(index.contains(tcp, ip("10.0.0.1"), Some((Protocol::TCP, 80))));
    assert!(!index.contains(tcp, ip("10.0.0.1"), Some((Protocol::TCP, 82))));
    assert!(!index.contains(tcp, ip("10.0.0.2"), Some((Protocol::UDP, 81))));
    // Two pods with one address and different numbers: each takes its own number with it.
    let mut three = two.clone();
    three.key.name = "p4".to_owned();
    three.ports = vec![named("web", Protocol::UDP, 99)];
    upsert(&mut index, &three);
    delete(&mut index, &two);
    drop(index.take_changes());
    assert!(index.contains(any, ip("10.0.0.2"), Some((Protocol::UDP, 99))));
    assert!(!index.contains(any, ip("10.0.0.2"), Some((Protocol::UDP, 81))));
}

// F4
#[test]
fn set_of_nodes_has_all_their_addresses() {
    let mut index = Index::new(HERE);
    let node = |name: &str, zone: &str, ips: &[&str]| Node {
        name: Arc::from(name),
        labels: labels(&[("zone", zone)]),
        ips: ips.iter().map(|text| ip(text)).collect(),
    };
    let put = |index: &mut Index, node: Node| index.apply(Event::Upsert(Object::Node(node)));
    put(&mut index, node("n1", "a", &["10.0.0.8", "fd00::8"]));
    let set = index.acquire(&PeerKey::Nodes(is("zone", "a")));
    assert_eq!(addresses(&index, set), [ip("10.0.0.8"), ip("fd00::8")]);
    put(&mut index, node("n2", "a", &["10.0.0.8", "10.0.0.9"]));
    assert_eq!(delta(&index.take_changes(), set).0, [plain("10.0.0.9")]);
    put(&mut index, node("n1", "b", &["10.0.0.8", "fd00::8"]));
    assert_eq!(delta(&index.take_changes(), set).1, [plain("fd00::8")]);
    assert_eq!(
        index.nodes_by_ip(ip("10.0.0.8")),
        [Arc::from("n1"), Arc::from("n2")]
    );
    index.apply(Event::Delete(ObjectKey::Node(Arc::from("n2"))));
    assert_eq!(addresses(&index, set), NONE);
}

// F7
#[test]
fn labels_that_calico_gives_are_there_for_selectors() {
    let mut index = Index::new(HERE);
    namespace(&mut index, "a", &[]);
    let mut robot = pod("a", "p", "web", &["10.0.0.1"]);
    robot.service_account = Arc::from("robot");
    upsert(&mut index, &robot);
    let by = |selector| pods(NamespaceScope::Any, selector);
    let name = pods(
        NamespaceScope::Matching(is("projectcalico.org/name", "a")),
        all(),
    );
    for key in [
        by(is("projectcalico.org/namespace", "a")),
        by(is("projectcalico.org/serviceaccount", "robot")),
        by(is("projectcalico.org/orchestrator", "k8s")),
        name,
    ] {
        let set = index.acquire(&key);
        assert_eq!(addresses(&index, set), [ip("10.0.0.1")], "{key:?}");
        assert!(index.matches(&key, ip("10.0.0.1"), None));
    }
}

// F7
#[test]
fn service_account_selector_matches_nothing_before_its_object() {
    let mut index = Index::new(HERE);
    let with = |selector: Selector| {
        let mut scope = scope(NamespaceScope::Any, all());
        scope.accounts = Arc::new(selector);
        PeerKey::Pods(scope, None)
    };
    let has = index.acquire(&with(Selector::Has(Arc::from("bot"))));
    let has_not = index.acquire(&with(Selector::Has(Arc::from("bot")).negated()));
    upsert(&mut index, &pod("a", "p", "web", &["10.0.0.1"]));
    assert_eq!(
        (addresses(&index, has), addresses(&index, has_not)),
        (vec![], vec![])
    );
    let account = |pairs: &[(&str, &str)]| {
        Event::Upsert(Object::ServiceAccount(ServiceAccount {
            namespace: Arc::from("a"),
            name: Arc::from("default"),
            labels: labels(pairs),
        }))
    };
    index.apply(account(&[]));
    assert_eq!(addresses(&index, has_not), [ip("10.0.0.1")]);
    index.apply(account(&[("bot", "1")]));
    assert_eq!(addresses(&index, has), [ip("10.0.0.1")]);
    assert_eq!(addresses(&index, has_not), NONE);
}

#[test]
fn set_is_shared_and_counted() {
    let mut index = Index::new(HERE);
    let key = pods(own("a"), all());
    let one = index.acquire(&key);
    let two = index.acquire(&key);
    assert_eq!(one, two);
    assert_eq!(index.key(one), Some(&key));
    upsert(&mut index, &pod("a", "p", "web", &["10.0.0.1"]));
    index.release(one);
    assert_eq!(addresses(&index, two), [ip("10.0.0.1")]);
    index.release(two);
    assert_eq!((index.set(&key), index.counts().sets), (None, 0));
    assert!(index.take_changes().sets.is_empty());
    index.release(two);
    assert_eq!(index.members(two), []);
}

// E10
#[test]
fn event_that_changes_nothing_makes_no_change() {
    let mut index = Index::new(HERE);
    let pod = local("a", "p", "web", &["10.0.0.1"]);
    let set = index.acquire(&pods(own("a"), all()));
    upsert(&mut index, &pod);
    namespace(&mut index, "a", &[("x", "y")]);
    drop(index.take_changes());
    upsert(&mut index, &pod);
    namespace(&mut index, "a", &[("x", "y")]);
    delete(&mut index, &super::pod("a", "never", "web", &[]));
    index.apply(Event::Delete(ObjectKey::Node(Arc::from("never"))));
    index.apply(Event::Delete(ObjectKey::Namespace(Arc::from("never"))));
    assert!(index.take_changes().is_empty());
    // A spurious delete with the object coming again is as if nothing had been, as far as members go.
    delete(&mut index, &pod);
    upsert(&mut index, &pod);
    assert!(index.take_changes().sets.is_empty());
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
}
