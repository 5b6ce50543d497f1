//! The keys of everything that was told, small: 100,000 pods are some megabytes.

use std::collections::HashMap;
use std::sync::Arc;

use policy_core::object::ObjectKey;
use policy_core::policy::{PolicyId, PolicyKind};
use types::pod::PodKey;

/// Between the parts of a packed key; no name has it.
const SEPARATOR: char = '\0';

/// Keys, each with the round in which it was last seen.
#[derive(Debug, Default)]
pub(super) struct Keys {
    seen: HashMap<Box<str>, u32>,
    round: u32,
}

impl Keys {
    /// From now on only what is seen again counts as seen.
    pub(super) const fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// The object is there.
    pub(super) fn see(&mut self, key: &ObjectKey) {
        self.seen.insert(pack(key), self.round);
    }

    /// The object is not there.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.seen.remove(&pack(key));
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

fn pack(key: &ObjectKey) -> Box<str> {
    let (letter, namespace, name): (char, &str, &str) = match key {
        ObjectKey::Pod(pod) => ('P', &pod.namespace, &pod.name),
        ObjectKey::Namespace(name) => ('N', "", name),
        ObjectKey::Node(name) => ('M', "", name),
        ObjectKey::ServiceAccount(namespace, name) => ('S', namespace, name),
        ObjectKey::Policy(id) => (letter(id.kind), &id.namespace, &id.name),
    };
    let mut packed = String::with_capacity(namespace.len() + name.len() + 2);
    packed.push(letter);
    packed.push_str(namespace);
    packed.push(SEPARATOR);
    packed.push_str(name);
    packed.into_boxed_str()
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
    use super::*;

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
        for key in all() {
            assert_eq!(unpack(&pack(&key)), Some(key));
        }
    }

    #[test]
    fn sweep_finds_what_was_not_seen_again() {
        let mut keys = Keys::default();
        for key in all() {
            keys.see(&key);
        }
        keys.begin();
        let (first, rest) = (all().remove(0), &all()[1..]);
        for key in rest {
            keys.see(key);
        }

        assert_eq!(keys.sweep(), [first]);
        assert_eq!(keys.len(), rest.len());
        assert!(keys.sweep().is_empty());
    }

    #[test]
    fn round_that_was_broken_off_takes_nothing_away() {
        let mut keys = Keys::default();
        let key = ObjectKey::Node("n".into());
        keys.see(&key);
        keys.begin();
        keys.begin();
        keys.see(&key);

        assert!(keys.sweep().is_empty());
    }
}
