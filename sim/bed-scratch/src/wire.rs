use std::sync::Arc;
use cluster::documents::{Change, DocumentKey};
use policy_core::object::{Event, Object, ObjectKey};
use policy_core::parse::{self, Parsed};
use serde_json::json;
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
