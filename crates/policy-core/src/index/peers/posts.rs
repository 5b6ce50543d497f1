//! Classes by label, for the few keys that sets of the whole cluster ask for.
//!
//! Without this each new set would look at every class. A key is taken up when a set asks for it, and all are let go
//! when there are too many: they can be made again at any time.

use std::collections::HashMap;

/// Most keys that are kept.
const KEYS: usize = 16;

/// Classes that have a label, by its value.
type Values = HashMap<u32, Vec<u32>>;

/// Classes by key and value.
#[derive(Debug, Default)]
pub(super) struct Posts {
    keys: HashMap<u32, Values>,
}

impl Posts {
    /// Takes a key up if it is not kept: `all` are the classes with their labels, which are sorted by key.
    pub(super) fn ensure<'a>(
        &mut self,
        key: u32,
        all: impl Iterator<Item = (u32, &'a [(u32, u32)])>,
    ) {
        if self.keys.contains_key(&key) {
            return;
        }
        if self.keys.len() >= KEYS {
            self.keys.clear();
        }
        let values = self.keys.entry(key).or_default();
        for (class, labels) in all {
            if let Some(value) = value(labels, key) {
                values.entry(value).or_default().push(class);
            }
        }
    }

    /// Classes that have the label with one of these values, each once. Nothing for a key that is not kept.
    pub(super) fn find<'a>(
        &'a self,
        key: u32,
        wanted: &'a [u32],
    ) -> impl Iterator<Item = u32> + 'a {
        let values = self.keys.get(&key);
        let lists = wanted.iter().filter_map(move |value| values?.get(value));
        lists.flatten().copied()
    }

    /// A class came.
    pub(super) fn add(&mut self, class: u32, labels: &[(u32, u32)]) {
        for (key, values) in &mut self.keys {
            if let Some(value) = value(labels, *key) {
                values.entry(value).or_default().push(class);
            }
        }
    }

    /// A class went.
    pub(super) fn remove(&mut self, class: u32, labels: &[(u32, u32)]) {
        for (key, values) in &mut self.keys {
            let Some(value) = value(labels, *key) else {
                continue;
            };
            let Some(classes) = values.get_mut(&value) else {
                continue;
            };
            if let Some(place) = classes.iter().position(|other| *other == class) {
                classes.swap_remove(place);
            }
            if classes.is_empty() {
                values.remove(&value);
            }
        }
    }

    /// Lets all keys go.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
    }

    /// Memory held, bytes.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.keys.values().flat_map(HashMap::values);
        lists
            .map(|list| {
                40_usize.saturating_add(super::super::block(list.capacity().saturating_mul(4)))
            })
            .sum()
    }
}

/// The value of a label.
pub(super) fn value(labels: &[(u32, u32)], key: u32) -> Option<u32> {
    let place = labels.binary_search_by_key(&key, |pair| pair.0).ok()?;
    labels.get(place).map(|pair| pair.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(posts: &Posts, key: u32, wanted: &[u32]) -> Vec<u32> {
        let mut found: Vec<u32> = posts.find(key, wanted).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn classes_are_found_whether_they_came_before_their_key_or_after() {
        let mut posts = Posts::default();
        let old: [(u32, &[(u32, u32)]); 3] =
            [(1, &[(5, 7), (6, 1)]), (2, &[(5, 8)]), (3, &[(6, 7)])];
        posts.ensure(5, old.into_iter());
        posts.add(4, &[(5, 7)]);
        posts.add(9, &[(4, 7)]);

        assert_eq!(found(&posts, 5, &[7, 8]), [1, 2, 4]);
        assert!(found(&posts, 5, &[9]).is_empty());

        posts.remove(1, &[(5, 7), (6, 1)]);
        posts.remove(4, &[(5, 7)]);
        assert_eq!(found(&posts, 5, &[7, 8]), [2]);
    }

    #[test]
    fn keys_are_let_go_when_there_are_too_many_and_made_again() {
        let mut posts = Posts::default();
        for key in 0..100 {
            posts.ensure(key, [(key, [(key, 1)].as_slice())].into_iter());
            assert!(posts.keys.len() <= KEYS);
            assert_eq!(found(&posts, key, &[1]), [key]);
        }
    }
}
