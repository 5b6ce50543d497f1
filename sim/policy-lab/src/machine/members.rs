//! Elements of one set, stored and looked up as the three kinds of sets of the kernel do.

use std::collections::{BTreeMap, BTreeSet};

use nft_wire::element::{Count, Element};
use nft_wire::key::{Field, Key};
use nft_wire::set::Set;
use nft_wire::verdict::Verdict;

use crate::machine::refusal::Errno;

/// What a member leads to. The chain is meant by its number, so that a chain of the same name that comes later is
/// another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// As it was written.
    pub verdict: Option<Verdict>,
    /// The chain of the verdict.
    pub target: Option<u64>,
    /// Whether a rule added it.
    pub dynamic: bool,
}

/// The elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    exact: BTreeMap<Key, Member>,
    starts: BTreeMap<Key, Member>,
    ends: BTreeSet<Key>,
    boxes: Vec<(Key, Key, Member)>,
    /// What dynamic elements counted.
    pub counts: BTreeMap<Key, Count>,
}

impl Members {
    /// How many elements there are, as the kernel counts them for a set's size.
    pub fn len(&self) -> usize {
        self.exact.len() + self.starts.len() + self.ends.len() + self.boxes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chains that elements lead to, one for each element.
    pub fn targets(&self) -> impl Iterator<Item = u64> {
        let boxes = self.boxes.iter().map(|(_, _, member)| member);
        self.exact
            .values()
            .chain(self.starts.values())
            .chain(boxes)
            .filter_map(|member| member.target)
    }

    /// Finds the member of a key.
    pub fn find(&self, set: &Set, key: &[u8]) -> Option<&Member> {
        let key = Key::new(key);
        if !set.flags.interval {
            return self.exact.get(&key);
        }
        if set.key.len() > 1 {
            return self
                .boxes
                .iter()
                .find(|(first, last, _)| within(&set.key, first, last, &key))
                .map(|(_, _, member)| member);
        }
        let (start, member) = self.starts.range(..=&key).next_back()?;
        match self.ends.range(..=&key).next_back() {
            Some(end) if end > start => None,
            _ => Some(member),
        }
    }

    /// Puts an element in. An equal one is left, unless `exclusive`.
    pub fn insert(
        &mut self,
        set: &Set,
        element: &Element,
        member: Member,
        exclusive: bool,
    ) -> Result<(), Errno> {
        let there = if !set.flags.interval {
            self.exact.get(&element.key)
        } else if set.key.len() > 1 {
            let last = element.end.as_ref().unwrap_or(&element.key);
            if !ordered(&set.key, &element.key, last) {
                return Err(Errno::Invalid);
            }
            self.boxed(set, &element.key, last)?
        } else if element.interval_end {
            if self.ends.contains(&element.key) {
                return if exclusive {
                    Err(Errno::Exists)
                } else {
                    Ok(())
                };
            }
            self.ends.insert(element.key.clone());
            return Ok(());
        } else {
            self.starts.get(&element.key)
        };
        if let Some(there) = there {
            return if exclusive || there.verdict != member.verdict {
                Err(Errno::Exists)
            } else {
                Ok(())
            };
        }
        if !set.flags.interval {
            self.exact.insert(element.key.clone(), member);
        } else if set.key.len() > 1 {
            let last = element.end.clone().unwrap_or_else(|| element.key.clone());
            self.boxes.push((element.key.clone(), last, member));
        } else {
            self.starts.insert(element.key.clone(), member);
        }
        Ok(())
    }

    /// The same box, if it is there; an overlap is refused.
    fn boxed(&self, set: &Set, first: &Key, last: &Key) -> Result<Option<&Member>, Errno> {
        for (from, to, member) in &self.boxes {
            if from == first && to == last {
                return Ok(Some(member));
            }
            if overlap(&set.key, (from, to), (first, last)) {
                return Err(Errno::Exists);
            }
        }
        Ok(None)
    }

    /// Whether starts and ends of ranges of one field take turns. Checked when a transaction is complete.
    pub fn ranges_take_turns(&self) -> bool {
        let mut open = false;
        let mut all: Vec<(&Key, bool)> = self
            .ends
            .iter()
            .map(|key| (key, false))
            .chain(self.starts.keys().map(|key| (key, true)))
            .collect();
        all.sort();
        for (_, start) in all {
            if open == start {
                return false;
            }
            open = start;
        }
        true
    }

    /// Takes an element out.
    pub fn remove(&mut self, set: &Set, element: &Element) -> Result<Option<u64>, Errno> {
        self.counts.remove(&element.key);
        let member = if !set.flags.interval {
            self.exact.remove(&element.key)
        } else if set.key.len() > 1 {
            let last = element.end.as_ref().unwrap_or(&element.key);
            let index = self
                .boxes
                .iter()
                .position(|(from, to, _)| *from == element.key && to == last)
                .ok_or(Errno::NoEntry)?;
            Some(self.boxes.remove(index).2)
        } else if element.interval_end {
            let there = self.ends.remove(&element.key);
            return if there { Ok(None) } else { Err(Errno::NoEntry) };
        } else {
            self.starts.remove(&element.key)
        };
        member.map(|m| m.target).ok_or(Errno::NoEntry)
    }

    /// Takes an exact element out, as a packet does: it need not be there.
    pub fn forget(&mut self, key: &Key) {
        self.exact.remove(key);
        self.counts.remove(key);
    }

    /// Takes all elements out; answers the chains they led to.
    pub fn clear(&mut self) -> Vec<u64> {
        let targets = self.targets().collect();
        *self = Self::default();
        targets
    }

    /// All elements, as a dump gives them.
    pub fn elements(&self) -> Vec<Element> {
        let leading = |key: &Key, member: &Member| {
            let mut element = Element::member(key.clone());
            element.verdict.clone_from(&member.verdict);
            element
        };
        let mut out: Vec<Element> = self.exact.iter().map(|(k, m)| leading(k, m)).collect();
        out.extend(self.starts.iter().map(|(k, m)| leading(k, m)));
        out.extend(self.ends.iter().map(|key| {
            let mut element = Element::member(key.clone());
            element.interval_end = true;
            element
        }));
        out.extend(self.boxes.iter().map(|(first, last, member)| {
            let mut element = leading(first, member);
            element.end = Some(last.clone());
            element
        }));
        out.sort_by(|a, b| (&a.key, !a.interval_end).cmp(&(&b.key, !b.interval_end)));
        out
    }
}

fn parts<'a>(fields: &'a [Field], key: &'a Key) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = key.as_bytes();
    fields.iter().map(move |field| {
        let (here, after) = rest.split_at_checked(field.padded()).unwrap_or((rest, &[]));
        rest = after;
        here.get(..field.len()).unwrap_or(here)
    })
}

fn within(fields: &[Field], first: &Key, last: &Key, key: &Key) -> bool {
    parts(fields, key)
        .zip(parts(fields, first))
        .zip(parts(fields, last))
        .all(|((value, from), to)| from <= value && value <= to)
}

fn ordered(fields: &[Field], first: &Key, last: &Key) -> bool {
    parts(fields, first)
        .zip(parts(fields, last))
        .all(|(a, b)| a <= b)
}

fn overlap(fields: &[Field], a: (&Key, &Key), b: (&Key, &Key)) -> bool {
    let firsts = parts(fields, a.0).zip(parts(fields, b.0));
    let lasts = parts(fields, a.1).zip(parts(fields, b.1));
    firsts
        .zip(lasts)
        .all(|((a_first, b_first), (a_last, b_last))| a_first <= b_last && b_first <= a_last)
}
