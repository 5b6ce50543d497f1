//! The keys of everything that was told, small: 100,000 pods are some megabytes.
//!
//! All keys stand one behind the other in one piece of memory, and a table finds them by their text.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use policy_core::object::{Object, ObjectKey};
use policy_core::policy::{PolicyId, PolicyKind};
use types::pod::PodKey;

/// Between the parts of a packed key; no name has it.
const SEPARATOR: char = '\0';
/// By so much the memory grows at a time, bytes.
const STEP: usize = 256 << 10;

/// Keys, each with the round in which it was last seen.
#[derive(Debug, Default)]
pub(super) struct Keys {
    table: HashTable<u32>,
    texts: Texts,
    /// Bytes of keys that were forgotten.
    dead: usize,
    round: u32,
    /// A key that is looked for.
    packed: String,
    hasher: RandomState,
}

/// Records of a round, a length, and so many bytes of text.
#[derive(Debug, Default)]
struct Texts(Vec<u8>);

impl Texts {
    const HEAD: usize = 8;

    fn number(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..).and_then(|b| b.first_chunk::<4>());
        bytes.map_or(0, |b| u32::from_ne_bytes(*b))
    }

    fn round(&self, at: u32) -> u32 {
        self.number(place(at))
    }

    fn set_round(&mut self, at: u32, round: u32) {
        if let Some(bytes) = self
            .0
            .get_mut(place(at)..)
            .and_then(|b| b.first_chunk_mut::<4>())
        {
            *bytes = round.to_ne_bytes();
        }
    }

    fn text(&self, at: u32) -> &str {
        let head = place(at);
        let start = head.saturating_add(Self::HEAD);
        let end = start.saturating_add(place(self.number(head.saturating_add(4))));
        let text = self.0.get(start..end).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    /// Where it stands; `None` behind 4 GiB of keys, of which no cluster has so many.
    fn push(&mut self, round: u32, text: &str) -> Option<u32> {
        let at = u32::try_from(self.0.len()).ok()?;
        let length = u32::try_from(text.len()).ok()?;
        let wanted = Self::HEAD.saturating_add(text.len());
        if self.0.capacity().saturating_sub(self.0.len()) < wanted {
            self.0.reserve_exact(wanted.max(STEP));
        }
        self.0.extend_from_slice(&round.to_ne_bytes());
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        Some(at)
    }
}

fn place(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
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
        let hash = self.hasher.hash_one(self.packed.as_str());
        let same = |at: &u32| self.texts.text(*at) == self.packed;
        if let Some(at) = self.table.find(hash, same) {
            self.texts.set_round(*at, self.round);
        } else if let Some(at) = self.texts.push(self.round, &self.packed) {
            let (texts, hasher) = (&self.texts, &self.hasher);
            self.table
                .insert_unique(hash, at, |at| hasher.hash_one(texts.text(*at)));
        }
    }

    /// The object is not there.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        parts(key).pack(&mut self.packed);
        let hash = self.hasher.hash_one(self.packed.as_str());
        let same = |at: &u32| self.texts.text(*at) == self.packed;
        if let Ok(found) = self.table.find_entry(hash, same) {
            found.remove();
            self.dead = self.dead.saturating_add(Texts::HEAD + self.packed.len());
            self.tidy();
        }
    }

    /// Forgets what was not seen in this round, and says what that was.
    pub(super) fn sweep(&mut self) -> Vec<ObjectKey> {
        let (texts, round) = (&self.texts, self.round);
        let mut gone = Vec::new();
        let mut dead = 0_usize;
        self.table.retain(|at| {
            let stays = texts.round(*at) == round;
            if !stays {
                let text = texts.text(*at);
                gone.extend(unpack(text));
                dead = dead.saturating_add(Texts::HEAD + text.len());
            }
            stays
        });
        self.dead = self.dead.saturating_add(dead);
        self.tidy();
        gone.sort();
        gone
    }

    /// Moves what is left together, when more than half of the memory is of no use.
    fn tidy(&mut self) {
        if self.dead <= STEP.max(self.texts.0.len() / 2) {
            return;
        }
        let mut texts = Texts::default();
        for at in &mut self.table {
            if let Some(new) = texts.push(self.texts.round(*at), self.texts.text(*at)) {
                *at = new;
            }
        }
        self.texts = texts;
        self.dead = 0;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
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
#[derive(Clone, Copy)]
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

    #[test]
    fn keys_that_come_and_go_for_long_take_no_more_room_and_none_is_lost() {
        let mut keys = Keys::default();
        let stays = ObjectKey::Node("stays".into());
        keys.note(parts(&stays));
        for n in 0..100_000 {
            let key = ObjectKey::Pod(PodKey::new("x", format!("pod-{n}")));
            keys.note(parts(&key));
            if n % 2 == 0 {
                keys.forget(&key);
            } else if n % 1_000 == 1 {
                keys.begin();
                keys.note(parts(&stays));
                assert!(!keys.sweep().is_empty());
                assert_eq!(keys.len(), 1);
            }
            assert!(keys.texts.0.len() <= 3 * STEP);
        }
        keys.begin();

        assert!(keys.sweep().contains(&stays));
        assert_eq!(keys.len(), 0);
    }
}
