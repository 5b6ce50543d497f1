//! Parameters in the conventions of the RPC style.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::model::Pick;

/// Parameters of a request, in the order they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds one if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds `name.1 … name.N`.
    #[must_use]
    pub fn with_list(mut self, name: &str, values: impl IntoIterator<Item = impl Display>) -> Self {
        for (value, n) in values.into_iter().zip(1_u32..) {
            self.0.push((format!("{name}.{n}"), value.to_string()));
        }
        self
    }

    /// Adds `Tag.N.Key` and `Tag.N.Value`.
    #[must_use]
    pub fn with_tags(mut self, tags: &BTreeMap<String, String>) -> Self {
        for ((key, value), n) in tags.iter().zip(1_u32..) {
            self.0.push((format!("Tag.{n}.Key"), key.clone()));
            self.0.push((format!("Tag.{n}.Value"), value.clone()));
        }
        self
    }

    /// Adds either the listed addresses or their count.
    #[must_use]
    pub fn with_pick<A: Display>(self, list: &str, count: &str, pick: &Pick<A>) -> Self {
        match pick {
            Pick::Nothing => self,
            Pick::Listed(addresses) => self.with_list(list, addresses),
            Pick::Count(n) => self.with(count, n),
        }
    }

    /// The pairs.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// The pairs, taken out.
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_parameters_count_from_one() {
        let params = Params::new().with_list("A", ["x", "y"]);

        assert_eq!(
            params.pairs(),
            [("A.1", "x"), ("A.2", "y")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn pick_by_count_sends_only_the_count() {
        let params = Params::new().with_pick::<u32>("A", "ACount", &Pick::Count(3));

        assert_eq!(params.pairs(), [("ACount".to_owned(), "3".to_owned())]);
    }
}
