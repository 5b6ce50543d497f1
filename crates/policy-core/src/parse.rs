//! Reads Kubernetes documents, tolerantly.
//!
//! A policy whose identity can be read always becomes a [`Policy`](crate::policy::Policy); what is wrong in it fails
//! closed and is named in its problems:
//!
//! | what cannot be read | in a policy that adds (NetworkPolicy, Calico `Allow`, ACK) | in the tiers Admin and Baseline |
//! |---|---|---|
//! | a peer | matches nothing | the rule: an Accept matches nothing, a Deny or Pass denies everything |
//! | a port | matches nothing | the same |
//! | a rule | matches nothing | the same; every other action denies everything |
//! | the list of rules | isolates and allows nothing | denies everything |
//! | the subject | every pod of the namespace (of the cluster, for kinds without one), and the policy can only deny | the same |
//!
//! A subject that cannot be read widens, since nobody can say which pods were meant; the policy can then only deny,
//! since its other rules would open pods that were never meant. Calico's rules that deny or pass follow the second
//! column.

use serde_json::{Map, Value};

use crate::object::Object;

mod ack_policy;
mod calico_policy;
mod calico_rule;
mod closed;
mod cluster;
mod cluster_policy;
mod field;
mod label_selector;
mod network_policy;
mod pod;
mod port;

pub use pod::{EARLY_ADDRESSES, SPOOF_CHECK};

use field::{Meta, Place};

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// An object.
    Object(Object),
    /// A kind that policies do not look at: `apiVersion/kind`.
    Ignored(String),
    /// A kind that matters, or a document of no kind, whose identity cannot be read.
    Unreadable {
        /// Path of the field.
        field: String,
        /// What is wrong.
        why: String,
    },
}

/// Kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Namespace,
    Node,
    ServiceAccount,
    NetworkPolicy,
    ClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    CalicoGlobal,
    CalicoNamespaced,
    AckGlobal,
}

impl Kind {
    /// Recognises a kind by group and name; the version is not looked at where the shape is the same in all that
    /// were served.
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        Some(match (group, version, kind) {
            ("", "v1", "Pod") => Self::Pod,
            ("", "v1", "Namespace") => Self::Namespace,
            ("", "v1", "Node") => Self::Node,
            ("", "v1", "ServiceAccount") => Self::ServiceAccount,
            ("networking.k8s.io", "v1", "NetworkPolicy") => Self::NetworkPolicy,
            ("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy") => {
                Self::ClusterNetworkPolicy
            }
            ("policy.networking.k8s.io", "v1alpha1", "AdminNetworkPolicy") => {
                Self::AdminNetworkPolicy
            }
            ("policy.networking.k8s.io", "v1alpha1", "BaselineAdminNetworkPolicy") => {
                Self::BaselineAdminNetworkPolicy
            }
            ("crd.projectcalico.org", "v1", "GlobalNetworkPolicy")
            | ("projectcalico.org", "v3", "GlobalNetworkPolicy") => Self::CalicoGlobal,
            ("crd.projectcalico.org", "v1", "NetworkPolicy")
            | ("projectcalico.org", "v3", "NetworkPolicy") => Self::CalicoNamespaced,
            ("network.alibabacloud.com", _, "GlobalNetworkPolicy") => Self::AckGlobal,
            _ => return None,
        })
    }

    const fn has_namespace(self) -> bool {
        match self {
            Self::Pod | Self::ServiceAccount | Self::NetworkPolicy | Self::CalicoNamespaced => true,
            Self::Namespace
            | Self::Node
            | Self::ClusterNetworkPolicy
            | Self::AdminNetworkPolicy
            | Self::BaselineAdminNetworkPolicy
            | Self::CalicoGlobal
            | Self::AckGlobal => false,
        }
    }
}

/// Reads one document by its `apiVersion` and `kind`.
pub fn document(value: &Value) -> Parsed {
    let unreadable = |field: &str, why: &str| Parsed::Unreadable {
        field: field.to_owned(),
        why: why.to_owned(),
    };
    let Some(map) = value.as_object() else {
        return unreadable("", "the document is not an object");
    };
    let text = |key| map.get(key).and_then(Value::as_str);
    let Some(api_version) = text("apiVersion") else {
        return unreadable("apiVersion", "is missing or not a text");
    };
    let Some(word) = text("kind") else {
        return unreadable("kind", "is missing or not a text");
    };
    let Some(kind) = Kind::of(api_version, word) else {
        return Parsed::Ignored(format!("{api_version}/{word}"));
    };
    match Meta::read(map, kind.has_namespace()) {
        Ok(meta) => Parsed::Object(object(kind, &meta, map)),
        Err((field, why)) => unreadable(field, why),
    }
}

/// Reads one document, or every item of a `List`. Items of a typed list, as an API server answers them, may lack
/// `apiVersion` and `kind`: they are those of the list.
pub fn documents(value: &Value) -> Vec<Parsed> {
    let listed = value.as_object().and_then(|map| {
        let kind = map.get("kind")?.as_str()?.strip_suffix("List")?;
        Some((map, kind, map.get("items")?.as_array()?))
    });
    let Some((map, kind, items)) = listed else {
        return vec![document(value)];
    };
    let mut parsed = Vec::with_capacity(items.len());
    for item in items {
        let typed = item
            .as_object()
            .filter(|item| !kind.is_empty() && !item.contains_key("kind"))
            .map(|item| {
                let mut item = item.clone();
                item.insert("kind".to_owned(), Value::from(kind));
                if let Some(version) = map.get("apiVersion") {
                    item.insert("apiVersion".to_owned(), version.clone());
                }
                Value::Object(item)
            });
        parsed.push(document(typed.as_ref().unwrap_or(item)));
    }
    parsed
}

fn object(kind: Kind, meta: &Meta<'_>, map: &Map<String, Value>) -> Object {
    let spec = map.get("spec").unwrap_or(&Value::Null);
    let status = map.get("status").unwrap_or(&Value::Null);
    let root = Place::root("spec");
    match kind {
        Kind::Pod => Object::Pod(pod::read(meta, spec, status)),
        Kind::Namespace => Object::Namespace(cluster::namespace(meta)),
        Kind::Node => Object::Node(cluster::node(meta, status)),
        Kind::ServiceAccount => Object::ServiceAccount(cluster::service_account(meta)),
        Kind::NetworkPolicy => Object::Policy(network_policy::read(meta, spec, &root)),
        Kind::ClusterNetworkPolicy => Object::Policy(cluster_policy::read(
            meta,
            spec,
            &root,
            cluster_policy::Dialect::V1Alpha2,
        )),
        Kind::AdminNetworkPolicy => Object::Policy(cluster_policy::read(
            meta,
            spec,
            &root,
            cluster_policy::Dialect::Admin,
        )),
        Kind::BaselineAdminNetworkPolicy => Object::Policy(cluster_policy::read(
            meta,
            spec,
            &root,
            cluster_policy::Dialect::BaselineAdmin,
        )),
        Kind::CalicoGlobal | Kind::CalicoNamespaced => {
            Object::Policy(calico_policy::read(meta, spec, &root))
        }
        Kind::AckGlobal => {
            let version = map.get("apiVersion").and_then(Value::as_str);
            Object::Policy(ack_policy::read(meta, version, spec, &root))
        }
    }
}

#[cfg(test)]
mod tests;
