//! The keys of everything that was told, small: 100,000 pods are some megabytes.

use std::collections::HashMap;
use std::sync::Arc;

use policy_core::object::{Object, ObjectKey};
use policy_core::policy::{PolicyId, PolicyKind};
use types::pod::PodKey;

/// Between the parts of a packed key; no name has it.
const SEPARATOR: char = '\0';

/// Keys, each with the round in which it was last seen.
#[derive(Debug, Default)]
pub(super) struct Keys {
    seen: HashMap<Box<str>, u32>,
    round: u32,
    /// A key that is looked for.
    packed: String,
}

impl Keys {
    /// From now on only what is seen again counts as seen.
    pub(super) const fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// The object is there.
    pub(super) fn see(&mut self, object: &Object) {
        self.note(parts_of(object));
    }

    fn note(&mut self, parts: Parts<'_>) {
        parts.pack(&mut self.packed);
        match self.seen.get_mut(self.packed.as_str()) {
            Some(round) => *round = self.round,
            None => {
                self.seen
                    .insert(Box::from(self.packed.as_str()), self.round);
            }
        }
    }

    /// The object is not there.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        parts(key).pack(&mut self.packed);
        self.seen.remove(self.packed.as_str());
    }

    /// Forgets what was not seen in this round, and says what that was.
    pub(super) fn sweep(&mut self) -> Vec<ObjectKey> {
        let round = self.round;
        let mut gone = Vec::new();
        self.seen.retain(|key, seen| {
            let stays = *seen == round;
            if !stays {
                gone.extend(unpack(key));
            }
            stays
        });
        gone.sort();
        gone
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }
}

/// One letter for each kind.
const fn letter(kind: PolicyKind) -> char {
    match kind {
        PolicyKind::NetworkPolicy => 'k',
        PolicyKind::ClusterNetworkPolicy => 'c',
        PolicyKind::AdminNetworkPolicy => 'a',
        PolicyKind::BaselineAdminNetworkPolicy => 'b',
        PolicyKind::CalicoGlobal => 'g',
        PolicyKind::CalicoNamespaced => 'n',
        PolicyKind::AckGlobal => 'x',
    }
}

const POLICY_KINDS: [PolicyKind; 7] = [
    PolicyKind::NetworkPolicy,
    PolicyKind::ClusterNetworkPolicy,
    PolicyKind::AdminNetworkPolicy,
    PolicyKind::BaselineAdminNetworkPolicy,
    PolicyKind::CalicoGlobal,
    PolicyKind::CalicoNamespaced,
    PolicyKind::AckGlobal,
];

/// A key before it is packed.
struct Parts<'a> {
    letter: char,
    namespace: &'a str,
    name: &'a str,
}

impl Parts<'_> {
    fn pack(&self, into: &mut String) {
        into.clear();
        into.push(self.letter);
        into.push_str(self.namespace);
        into.push(SEPARATOR);
        into.push_str(self.name);
    }
}

fn parts(key: &ObjectKey) -> Parts<'_> {
    let (letter, namespace, name): (char, &str, &str) = match key {
        ObjectKey::Pod(pod) => ('P', &pod.namespace, &pod.name),
        ObjectKey::Namespace(name) => ('N', "", name),
        ObjectKey::Node(name) => ('M', "", name),
        ObjectKey::ServiceAccount(namespace, name) => ('S', namespace, name),
        ObjectKey::Policy(id) => (letter(id.kind), &id.namespace, &id.name),
    };
    Parts {
        letter,
        namespace,
        name,
    }
}

/// Those of the object's key, which is not made for it.
fn parts_of(object: &Object) -> Parts<'_> {
    let (letter, namespace, name): (char, &str, &str) = match object {
        Object::Pod(pod) => ('P', &pod.key.namespace, &pod.key.name),
        Object::Namespace(namespace) => ('N', "", &namespace.name),
        Object::Node(node) => ('M', "", &node.name),
        Object::ServiceAccount(account) => ('S', &account.namespace, &account.name),
        Object::Policy(policy) => {
            let id = &policy.id;
            (letter(id.kind), &id.namespace, &id.name)
        }
    };
    Parts {
        letter,
        namespace,
        name,
    }
}

fn unpack(packed: &str) -> Option<ObjectKey> {
    let mut rest = packed.chars();
    let letter = rest.next()?;
    let (namespace, name) = rest.as_str().split_once(SEPARATOR)?;
    Some(match letter {
        'P' => ObjectKey::Pod(PodKey::new(namespace, name)),
        'N' => ObjectKey::Namespace(name.into()),
        'M' => ObjectKey::Node(name.into()),
        'S' => ObjectKey::ServiceAccount(namespace.into(), name.into()),
        other => ObjectKey::Policy(PolicyId {
            kind: POLICY_KINDS
                .into_iter()
                .find(|k| self::letter(*k) == other)?,
            namespace: Arc::from(namespace),
            name: Arc::from(name),
        }),
    })
}

#[cfg(test)]
mod tests {
    use policy_core::parse::Parsed;
    use serde_json::json;

    use super::*;
    use crate::relay::wire::key_of;

    fn all() -> Vec<ObjectKey> {
        let policies = POLICY_KINDS.into_iter().map(|kind| {
            ObjectKey::Policy(PolicyId {
                kind,
                namespace: "x".into(),
                name: "p".into(),
            })
        });
        let others = [
            ObjectKey::Pod(PodKey::new("x", "a")),
            ObjectKey::Namespace("x".into()),
            ObjectKey::Node("x".into()),
            ObjectKey::ServiceAccount("x".into(), "a".into()),
        ];
        others.into_iter().chain(policies).collect()
    }

    #[test]
    fn keys_of_all_kinds_come_out_as_they_went_in() {
        let mut packed = String::new();
        for key in all() {
            parts(&key).pack(&mut packed);
            assert_eq!(unpack(&packed), Some(key));
        }
    }

    #[test]
    fn sweep_finds_what_was_not_seen_again() {
        let mut keys = Keys::default();
        for key in all() {
            keys.note(parts(&key));
        }
        keys.begin();
        let (first, rest) = (all().remove(0), &all()[1..]);
        for key in rest {
            keys.note(parts(key));
        }

        assert_eq!(keys.sweep(), [first]);
        assert_eq!(keys.len(), rest.len());
        assert!(keys.sweep().is_empty());
    }

    #[test]
    fn round_that_was_broken_off_takes_nothing_away() {
        let mut keys = Keys::default();
        let key = ObjectKey::Node("n".into());
        keys.note(parts(&key));
        keys.begin();
        keys.begin();
        keys.note(parts(&key));

        assert!(keys.sweep().is_empty());
    }

    #[test]
    fn object_is_seen_under_its_own_key() {
        let documents = [
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "a"}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "x", "name": "a"}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "x", "name": "a"}, "spec": {"podSelector": {}}}),
        ];
        for document in documents {
            let Parsed::Object(object) = policy_core::parse::document(&document) else {
                panic!("{document}");
            };
            let mut keys = Keys::default();
            keys.see(&object);
            keys.begin();

            assert_eq!(keys.sweep(), [key_of(&object)]);
        }
    }
}
