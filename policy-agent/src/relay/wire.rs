//! Objects as the relay sends them: pods, namespaces, nodes and service accounts cut to what policies look at,
//! policies as their documents.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use cluster::documents::{Change, DocumentKey};
use foldhash::quality::RandomState;
use policy_core::flow::Protocol;
use policy_core::object::{
    Event, Labels, NamedPort, Namespace, Node, Object, ObjectKey, Pod, ServiceAccount,
};
use policy_core::parse::{self, Parsed};
use proto::policy::v1 as wire;
use proto::policy::v1::change::What;
use serde_json::{Value, json};
use types::pod::PodKey;

/// A change that can not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(String);

/// Whether policies look at documents of this kind at all; what [`parse::document`] ignores is left out later.
pub fn wanted(_api_version: &str, kind: &str) -> bool {
    matches!(
        kind,
        "Pod"
            | "Namespace"
            | "Node"
            | "ServiceAccount"
            | "NetworkPolicy"
            | "ClusterNetworkPolicy"
            | "AdminNetworkPolicy"
            | "BaselineAdminNetworkPolicy"
            | "GlobalNetworkPolicy"
    )
}

/// What a change in the cluster means to policy; nothing for kinds that policies do not look at.
pub fn event(change: &Change) -> Option<Event> {
    match change {
        Change::Upsert(document) => match parse::document(document) {
            Parsed::Object(object) => Some(Event::Upsert(object)),
            Parsed::Ignored(_) => None,
            Parsed::Unreadable { field, why } => {
                // Its identity can not be read, so nothing can be said of it later either.
                tracing::warn!(field, why, "document passed over");
                None
            }
        },
        Change::Delete(key) => object_key(key).map(Event::Delete),
    }
}

/// Which object documents with this key are about.
///
/// The parser is asked with a document that has nothing but its identity, so that the two can not disagree.
pub fn object_key(key: &DocumentKey) -> Option<ObjectKey> {
    let mut document = json!({
        "apiVersion": key.api_version,
        "kind": key.kind,
        "metadata": {"name": key.name},
    });
    if !key.namespace.is_empty() {
        document["metadata"]["namespace"] = json!(key.namespace);
    }
    match parse::document(&document) {
        Parsed::Object(object) => Some(key_of(&object)),
        Parsed::Ignored(_) | Parsed::Unreadable { .. } => None,
    }
}

/// The key of an object.
pub fn key_of(object: &Object) -> ObjectKey {
    match object {
        Object::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
        Object::Namespace(namespace) => ObjectKey::Namespace(Arc::clone(&namespace.name)),
        Object::Node(node) => ObjectKey::Node(Arc::clone(&node.name)),
        Object::ServiceAccount(account) => {
            ObjectKey::ServiceAccount(Arc::clone(&account.namespace), Arc::clone(&account.name))
        }
        Object::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
    }
}

/// What a change looks like on the wire; nothing for kinds that policies do not look at.
pub fn encode(change: &Change) -> Option<(ObjectKey, wire::Change)> {
    match change {
        Change::Upsert(document) => {
            let Some(Event::Upsert(object)) = event(change) else {
                return None;
            };
            let key = key_of(&object);
            let what = match object {
                Object::Pod(pod) => What::Pod(from_pod(&pod)),
                Object::Namespace(namespace) => What::Namespace(wire::Named {
                    name: namespace.name.to_string(),
                    labels: from_labels(&namespace.labels),
                }),
                Object::Node(node) => What::Node(wire::NodeObject {
                    name: node.name.to_string(),
                    labels: from_labels(&node.labels),
                    ips: from_ips(&node.ips),
                }),
                Object::ServiceAccount(account) => What::ServiceAccount(wire::ServiceAccount {
                    namespace: account.namespace.to_string(),
                    name: account.name.to_string(),
                    labels: from_labels(&account.labels),
                }),
                Object::Policy(_) => What::Policy(slim(document)),
            };
            Some((key, wire::Change { what: Some(what) }))
        }
        Change::Delete(gone) => {
            let key = object_key(gone)?;
            let what = What::Gone(from_gone(gone));
            Some((key, wire::Change { what: Some(what) }))
        }
    }
}

/// The document of a policy without what says nothing about traffic.
fn slim(document: &Value) -> Vec<u8> {
    let mut document = document.clone();
    if let Some(top) = document.as_object_mut() {
        top.remove("status");
        if let Some(metadata) = top.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|field, _| matches!(field.as_str(), "name" | "namespace"));
        }
    }
    document.to_string().into_bytes()
}

fn from_gone(key: &DocumentKey) -> wire::Gone {
    let kind = match key.kind.as_str() {
        plain @ ("Pod" | "Namespace" | "Node" | "ServiceAccount") => plain.to_owned(),
        policy => format!("{}/{policy}", key.api_version),
    };
    wire::Gone {
        kind,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

fn from_pod(pod: &Pod) -> wire::Pod {
    let ports = pod.ports.iter().map(|port| wire::NamedPort {
        name: port.name.to_string(),
        protocol: port.protocol.0.into(),
        number: port.number.into(),
    });
    wire::Pod {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        uid: pod.uid.to_string(),
        node: pod.node.to_string(),
        labels: from_labels(&pod.labels),
        ips: from_ips(&pod.ips),
        host_network: pod.host_network,
        finished: pod.finished,
        ports: ports.collect(),
        service_account: pod.service_account.to_string(),
        spoofs: pod.spoofs,
    }
}

fn from_labels(labels: &Labels) -> Vec<wire::Label> {
    let label = |(key, value): (&Arc<str>, &Arc<str>)| wire::Label {
        key: key.to_string(),
        value: value.to_string(),
    };
    labels.iter().map(label).collect()
}

fn from_ips(ips: &[IpAddr]) -> Vec<Vec<u8>> {
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    ips.iter().map(octets).collect()
}

/// Strings that many objects have, each kept once: labels above all.
#[derive(Debug, Default)]
pub struct Pool(HashSet<Arc<str>, RandomState>);

impl Pool {
    /// Most strings that are kept; then all are let go, those in use included, which costs no more than time.
    const MOST: usize = 8192;

    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        let text: Arc<str> = Arc::from(text);
        self.0.insert(Arc::clone(&text));
        text
    }
}

/// Reads a change from the wire; nothing when it is of a kind that this version does not know. Strings that objects
/// have in common are those of the pool.
///
/// # Errors
/// [`Garbled`] when it is of a known kind and can not be read.
pub fn decode(change: Bytes, pool: &mut Pool) -> Result<Option<Event>, Garbled> {
    let change = <wire::Change as prost::Message>::decode(change)
        .map_err(|error| Garbled(format!("a change: {error}")))?;
    let upsert = |object| Ok(Some(Event::Upsert(object)));
    match change.what {
        Some(What::Pod(pod)) => upsert(Object::Pod(to_pod(pod, pool)?)),
        Some(What::Namespace(named)) => upsert(Object::Namespace(Namespace {
            name: named.name.into(),
            labels: to_labels(&named.labels, pool),
        })),
        Some(What::Node(node)) => upsert(Object::Node(Node {
            name: node.name.into(),
            labels: to_labels(&node.labels, pool),
            ips: to_ips(&node.ips)?,
        })),
        Some(What::ServiceAccount(account)) => upsert(Object::ServiceAccount(ServiceAccount {
            namespace: account.namespace.into(),
            name: account.name.into(),
            labels: to_labels(&account.labels, pool),
        })),
        Some(What::Policy(text)) => {
            let document = serde_json::from_slice(&text)
                .map_err(|error| Garbled(format!("document of a policy: {error}")))?;
            Ok(event(&Change::Upsert(document)))
        }
        Some(What::Gone(gone)) => Ok(object_key(&to_gone(gone)).map(Event::Delete)),
        None => Ok(None),
    }
}

fn to_gone(gone: wire::Gone) -> DocumentKey {
    let (api_version, kind) = match gone.kind.rsplit_once('/') {
        Some((api_version, kind)) => (api_version.to_owned(), kind.to_owned()),
        None => ("v1".to_owned(), gone.kind),
    };
    DocumentKey {
        api_version,
        kind,
        namespace: gone.namespace,
        name: gone.name,
    }
}

fn to_pod(pod: wire::Pod, pool: &mut Pool) -> Result<Pod, Garbled> {
    let mut ports = Vec::with_capacity(pod.ports.len());
    for port in pod.ports {
        let bad = || {
            Garbled(format!(
                "port {} of {}/{}",
                port.name, pod.namespace, pod.name
            ))
        };
        ports.push(NamedPort {
            protocol: Protocol(u8::try_from(port.protocol).map_err(|_| bad())?),
            number: u16::try_from(port.number).map_err(|_| bad())?,
            name: pool.share(&port.name),
        });
    }
    Ok(Pod {
        ips: to_ips(&pod.ips)?,
        key: PodKey::new(pod.namespace, pod.name),
        uid: pod.uid.into(),
        node: pool.share(&pod.node),
        labels: to_labels(&pod.labels, pool),
        host_network: pod.host_network,
        finished: pod.finished,
        ports,
        service_account: pool.share(&pod.service_account),
        spoofs: pod.spoofs,
    })
}

fn to_labels(labels: &[wire::Label], pool: &mut Pool) -> Labels {
    let pair = |label: &wire::Label| (pool.share(&label.key), pool.share(&label.value));
    labels.iter().map(pair).collect()
}

fn to_ips(ips: &[Vec<u8>]) -> Result<Vec<IpAddr>, Garbled> {
    let read = |octets: &Vec<u8>| {
        if let Ok(four) = <[u8; 4]>::try_from(octets.as_slice()) {
            return Ok(IpAddr::from(four));
        }
        <[u8; 16]>::try_from(octets.as_slice())
            .map(IpAddr::from)
            .map_err(|_| Garbled(format!("an address of {} bytes", octets.len())))
    };
    ips.iter().map(read).collect()
}

/// A `WatchFrame` whose changes are encoded already: on the wire a message within a message is its bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    /// Place in the stream; 0 in all frames of the first state but the last.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// With this frame the state is whole.
    #[prost(bool, tag = "2")]
    pub synced: bool,
    /// Changes; [`decode`] reads one.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub changes: Vec<Bytes>,
    /// When the newest change was seen by who watches, in milliseconds since the epoch; 0: unknown.
    #[prost(uint64, tag = "4")]
    pub seen_at_ms: u64,
}

/// The frame that carries these changes, each encoded already.
pub fn frame(sequence: u64, synced: bool, changes: Vec<Bytes>, seen_at_ms: u64) -> Bytes {
    let frame = Frame {
        sequence,
        synced,
        changes,
        seen_at_ms,
    };
    prost::Message::encode_to_vec(&frame).into()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": "a", "uid": "u", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.3"}, {"ip": "2001:db8::3"}]},
        })
    }

    fn policy() -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "p", "managedFields": [{"manager": "m"}]},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        })
    }

    #[test]
    fn objects_come_out_of_the_wire_as_they_went_in() {
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"z": "a"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.5"}]}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}}});
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": "x", "name": "s", "labels": {"l": "v"}}});
        for document in [pod(), node, namespace, account, policy()] {
            let change = Change::Upsert(document);
            let (key, encoded) = encode(&change).unwrap();

            let bytes = encoded.encode_to_vec().into();
            let decoded = decode(bytes, &mut Pool::default()).unwrap();

            assert_eq!(decoded, event(&change));
            let Some(Event::Upsert(object)) = decoded else {
                panic!("{decoded:?}")
            };
            assert_eq!(key_of(&object), key);
        }
    }

    #[test]
    fn deletion_comes_out_of_the_wire_as_it_went_in() {
        for document in [pod(), policy()] {
            let change = Change::Delete(DocumentKey::of(&document));
            let (key, encoded) = encode(&change).unwrap();

            assert_eq!(
                decode(encoded.encode_to_vec().into(), &mut Pool::default()).unwrap(),
                Some(Event::Delete(key))
            );
        }
    }

    #[test]
    fn policy_travels_without_its_book_keeping() {
        let (_, encoded) = encode(&Change::Upsert(policy())).unwrap();

        let bytes = encoded.encode_to_vec();
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("policyTypes") && !text.contains("managedFields"),
            "{text}"
        );
    }

    #[test]
    fn frame_of_encoded_changes_is_what_prost_would_write() {
        let changes: Vec<wire::Change> = [pod(), policy()]
            .into_iter()
            .map(|document| encode(&Change::Upsert(document)).unwrap().1)
            .collect();
        let encoded: Vec<Bytes> = changes.iter().map(|c| c.encode_to_vec().into()).collect();

        let ours = frame(7, true, encoded, 99);

        let theirs = wire::WatchFrame {
            sequence: 7,
            synced: true,
            changes,
            seen_at_ms: 99,
        };
        assert_eq!(ours, theirs.encode_to_vec());
        assert!(frame(0, false, Vec::new(), 0).is_empty());
    }

    #[test]
    fn pods_share_the_strings_of_their_labels_however_many_there_are() {
        let mut pool = Pool::default();
        let mut labels = |n: usize| {
            let (_, encoded) = encode(&Change::Upsert(pod())).unwrap();
            pool.share(&n.to_string());
            match decode(encoded.encode_to_vec().into(), &mut pool) {
                Ok(Some(Event::Upsert(Object::Pod(pod)))) => pod.labels,
                other => panic!("{other:?}"),
            }
        };
        let (first, second) = (labels(0), labels(1));

        assert!(Arc::ptr_eq(&first["app"], &second["app"]));
        for n in 0..3 * Pool::MOST {
            assert_eq!(pool.share(&n.to_string()), n.to_string().into());
            assert!(pool.0.len() <= Pool::MOST);
        }
    }

    #[test]
    fn address_of_odd_length_is_refused() {
        let change = wire::Change {
            what: Some(What::Node(wire::NodeObject {
                name: "n".to_owned(),
                labels: Vec::new(),
                ips: vec![vec![1, 2, 3]],
            })),
        };

        assert!(decode(change.encode_to_vec().into(), &mut Pool::default()).is_err());
    }
}
