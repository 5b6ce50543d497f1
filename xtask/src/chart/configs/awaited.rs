//! Keys that the chart writes and a service is still to learn.
//!
//! They are decided (docs/install.md), so that chart and services can be written at the same time. Each row is tried:
//! a service that knows the key makes the check fail until the row is gone.

use std::collections::BTreeMap;

/// One such key.
#[derive(Debug)]
pub(crate) struct Awaited {
    /// Name of the binary.
    pub(crate) service: &'static str,
    /// Path of the key, or of a section.
    pub(crate) key: &'static str,
    /// What the service wants in its place until then, as `key=value`.
    pub(crate) stand_in: &'static [&'static str],
}

const fn to_learn(
    service: &'static str,
    key: &'static str,
    stand_in: &'static [&'static str],
) -> Awaited {
    Awaited {
        service,
        key,
        stand_in,
    }
}

/// All of them.
pub(crate) const AWAITED: &[Awaited] = &[
];

impl Awaited {
    /// Service and key as one word.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.service, self.key)
    }

    /// What variables of the key begin with.
    fn variable(&self) -> String {
        format!("TERWAY_{}", self.key.to_uppercase().replace('.', "__"))
    }

    /// Whether a file or its variables have it.
    pub(crate) fn is_in(&self, table: &toml::Table, variables: &BTreeMap<String, String>) -> bool {
        let prefix = self.variable();
        let mut parts = self.key.split('.');
        let first = parts.next().and_then(|part| table.get(part));
        let found = parts.fold(first, |value, part| value?.get(part));
        found.is_some() || variables.keys().any(|name| name.starts_with(&prefix))
    }

    /// Takes it out of both.
    pub(crate) fn take_out(
        &self,
        table: &mut toml::Table,
        variables: &mut BTreeMap<String, String>,
    ) {
        let prefix = self.variable();
        variables.retain(|name, _| !name.starts_with(&prefix));
        match self.key.split_once('.') {
            None => drop(table.remove(self.key)),
            Some((section, key)) => {
                if let Some(section) = table.get_mut(section).and_then(toml::Value::as_table_mut) {
                    drop(section.remove(key));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn awaited_key_is_found_and_taken_out_of_file_and_variables() {
        let awaited = to_learn("s", "a.b", &[]);
        let mut table: toml::Table = "a = { b = 1, c = 2 }".parse().unwrap();
        let mut variables = BTreeMap::from([("TERWAY_A__B".to_owned(), "3".to_owned())]);
        assert!(awaited.is_in(&table, &variables));

        awaited.take_out(&mut table, &mut variables);

        assert!(!awaited.is_in(&table, &variables));
        assert_eq!(table, "a = { c = 2 }".parse().unwrap());
        assert!(variables.is_empty());
    }
}
