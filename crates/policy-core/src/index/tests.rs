//! The index by letter of the checklist, and against a model that knows no index.

mod letters;
mod model;
mod placement;
mod random;

use std::net::IpAddr;
use std::sync::Arc;

use types::pod::{AttachmentKey, PodKey};

use super::{Changes, Index, LocalPod, Member, PeerKey, PortName, SetId};
use crate::flow::Protocol;
use crate::labels::Labels;
use crate::object::{Event, NamedPort, Namespace, Object, ObjectKey, Pod};
use crate::policy::{NamespaceScope, PodScope};
use crate::selector::Selector;

const HERE: &str = "here";

/// No addresses.
const NONE: [IpAddr; 0] = [];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
        .collect()
}

fn is(key: &str, value: &str) -> Arc<Selector> {
    Arc::new(Selector::In(Arc::from(key), [Arc::from(value)].into()))
}

fn all() -> Arc<Selector> {
    Arc::new(Selector::Everything)
}

fn own(namespace: &str) -> NamespaceScope {
    NamespaceScope::Own(Arc::from(namespace))
}

fn scope(namespaces: NamespaceScope, pods: Arc<Selector>) -> PodScope {
    PodScope {
        namespaces,
        pods,
        accounts: all(),
    }
}

fn pods(namespaces: NamespaceScope, pods: Arc<Selector>) -> PeerKey {
    PeerKey::Pods(scope(namespaces, pods), None)
}

fn port_name(protocol: Option<Protocol>, name: &str) -> PortName {
    PortName {
        protocol,
        name: Arc::from(name),
    }
}

fn named(name: &str, protocol: Protocol, number: u16) -> NamedPort {
    NamedPort {
        name: Arc::from(name),
        protocol,
        number,
    }
}

/// A pod of another node.
fn pod(namespace: &str, name: &str, app: &str, ips: &[&str]) -> Pod {
    Pod {
        key: PodKey::new(namespace, name),
        uid: Arc::from(format!("{namespace}-{name}")),
        node: Arc::from("there"),
        labels: labels(&[("app", app)]),
        ips: ips.iter().map(|text| ip(text)).collect(),
        host_network: false,
        finished: false,
        ports: Vec::new(),
        service_account: Arc::from("default"),
        spoofs: false,
    }
}

/// A pod of this node.
fn local(namespace: &str, name: &str, app: &str, ips: &[&str]) -> Pod {
    Pod {
        node: Arc::from(HERE),
        ..pod(namespace, name, app, ips)
    }
}

fn attachment(sandbox: &str) -> AttachmentKey {
    AttachmentKey {
        sandbox: sandbox.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn placement(pod: &Pod, sandbox: &str, ips: &[&str]) -> LocalPod {
    LocalPod {
        key: pod.key.clone(),
        uid: Arc::clone(&pod.uid),
        attachment: attachment(sandbox),
        host_link: Some(Arc::from("cali0")),
        netns: None,
        ips: ips.iter().map(|text| ip(text)).collect(),
    }
}

fn upsert(index: &mut Index, pod: &Pod) {
    index.apply(Event::Upsert(Object::Pod(pod.clone())));
}

fn delete(index: &mut Index, pod: &Pod) {
    index.apply(Event::Delete(ObjectKey::Pod(pod.key.clone())));
}

fn namespace(index: &mut Index, name: &str, pairs: &[(&str, &str)]) {
    index.apply(Event::Upsert(Object::Namespace(Namespace {
        name: Arc::from(name),
        labels: labels(pairs),
    })));
}

fn addresses(index: &Index, set: SetId) -> Vec<IpAddr> {
    index
        .members(set)
        .into_iter()
        .map(|member| member.ip)
        .collect()
}

fn plain(text: &str) -> Member {
    Member {
        ip: ip(text),
        port: None,
    }
}

/// What came and went in one set.
fn delta(changes: &Changes, set: SetId) -> (Vec<Member>, Vec<Member>) {
    changes
        .sets
        .iter()
        .find(|delta| delta.id == set)
        .map(|delta| (delta.added.clone(), delta.removed.clone()))
        .unwrap_or_default()
}
