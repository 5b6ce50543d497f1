//! Label selectors as boolean expressions: those of Kubernetes and those of Calico.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// Label that Calico gives to every pod: its namespace.
pub const NAMESPACE: &str = "projectcalico.org/namespace";

/// Label that Calico gives to every pod: its service account.
pub const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";

/// Label that Calico gives to every pod: `k8s`.
pub const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";

/// Label that Calico gives to every namespace and service account: its name.
pub const NAME: &str = "projectcalico.org/name";

/// A condition on labels. Canonical when made by [`Selector::all`] and [`Selector::any`]: equal meaning written in
/// another order is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Selector {
    /// Matches everything.
    Everything,
    /// Matches nothing.
    Nothing,
    /// The key is there.
    Has(Arc<str>),
    /// The key is there and its value is one of these (sorted, not empty).
    In(Arc<str>, Arc<[Arc<str>]>),
    /// The key is there and its value starts so (Calico).
    StartsWith(Arc<str>, Arc<str>),
    /// The key is there and its value ends so (Calico).
    EndsWith(Arc<str>, Arc<str>),
    /// The key is there and its value contains this (Calico).
    Contains(Arc<str>, Arc<str>),
    /// The opposite. `NotIn` is `Not(In)`: it matches when the key is absent.
    Not(Arc<Selector>),
    /// All match (sorted, two or more).
    All(Arc<[Selector]>),
    /// At least one matches (sorted, two or more).
    Any(Arc<[Selector]>),
}

impl Selector {
    /// The conjunction of the parts, flat and sorted.
    pub fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::Everything => {}
                Self::Nothing => return Self::Nothing,
                Self::All(inner) => flat.extend(inner.iter().cloned()),
                other @ (Self::Has(_)
                | Self::In(..)
                | Self::StartsWith(..)
                | Self::EndsWith(..)
                | Self::Contains(..)
                | Self::Not(_)
                | Self::Any(_)) => flat.push(other),
            }
        }
        flat.sort();
        flat.dedup();
        match flat.len() {
            0 => Self::Everything,
            1 => flat.remove(0),
            _ => Self::All(flat.into()),
        }
    }

    /// The disjunction of the parts, flat and sorted.
    pub fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::Nothing => {}
                Self::Everything => return Self::Everything,
                Self::Any(inner) => flat.extend(inner.iter().cloned()),
                other @ (Self::Has(_)
                | Self::In(..)
                | Self::StartsWith(..)
                | Self::EndsWith(..)
                | Self::Contains(..)
                | Self::Not(_)
                | Self::All(_)) => flat.push(other),
            }
        }
        flat.sort();
        flat.dedup();
        match flat.len() {
            0 => Self::Nothing,
            1 => flat.remove(0),
            _ => Self::Any(flat.into()),
        }
    }

    /// The opposite.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Everything => Self::Nothing,
            Self::Nothing => Self::Everything,
            Self::Not(inner) => (*inner).clone(),
            other @ (Self::Has(_)
            | Self::In(..)
            | Self::StartsWith(..)
            | Self::EndsWith(..)
            | Self::Contains(..)
            | Self::All(_)
            | Self::Any(_)) => Self::Not(Arc::new(other)),
        }
    }

    /// Whether the labels match.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_by(&|key| labels.get(key).map(AsRef::as_ref))
    }

    /// Whether labels match that are looked up otherwise.
    pub fn matches_by<'a>(&self, value: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Everything => true,
            Self::Nothing => false,
            Self::Has(key) => value(key).is_some(),
            Self::In(key, values) => {
                value(key).is_some_and(|v| values.iter().any(|wanted| **wanted == *v))
            }
            Self::StartsWith(key, part) => value(key).is_some_and(|v| v.starts_with(&**part)),
            Self::EndsWith(key, part) => value(key).is_some_and(|v| v.ends_with(&**part)),
            Self::Contains(key, part) => value(key).is_some_and(|v| v.contains(&**part)),
            Self::Not(inner) => !inner.matches_by(value),
            Self::All(parts) => parts.iter().all(|p| p.matches_by(value)),
            Self::Any(parts) => parts.iter().any(|p| p.matches_by(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn text(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    fn is_in(values: &[&str]) -> Selector {
        Selector::In(
            text("app"),
            values.iter().map(|value| text(value)).collect(),
        )
    }

    fn has(key: &str) -> Selector {
        Selector::Has(text(key))
    }

    // B2
    #[rstest]
    #[case(is_in(&["web"]), true, false)]
    #[case(is_in(&["db"]), false, false)]
    #[case(is_in(&["web"]).negated(), false, true)]
    #[case(is_in(&["db"]).negated(), true, true)]
    #[case(has("app"), true, false)]
    #[case(has("app").negated(), false, true)]
    #[case(Selector::Everything, true, true)]
    #[case(Selector::Nothing, false, false)]
    #[case(Selector::all([has("app"), is_in(&["db"])]), false, false)]
    #[case(Selector::any([has("app").negated(), is_in(&["web"])]), true, true)]
    #[case(Selector::StartsWith(text("app"), text("")), true, false)]
    #[case(Selector::Contains(text("app"), text("e")), true, false)]
    #[case(Selector::EndsWith(text("app"), text("e")), false, false)]
    fn selector_matches_with_the_key_and_without(
        #[case] selector: Selector,
        #[case] with: bool,
        #[case] without: bool,
    ) {
        let web = Labels::from([(text("app"), text("web"))]);
        assert_eq!(selector.matches(&web), with);
        assert_eq!(selector.matches(&Labels::new()), without);
        assert_ne!(selector.clone().negated().matches(&web), with);
        assert_eq!(selector.clone().negated().negated(), selector);
    }

    #[test]
    fn selector_of_equal_meaning_is_equal_whatever_the_order() {
        let (a, b, c) = (has("a"), has("b"), is_in(&["web"]));
        let nested = Selector::all([a.clone(), Selector::all([c.clone(), b.clone()])]);
        assert_eq!(
            nested,
            Selector::all([c.clone(), b.clone(), a.clone(), a.clone()])
        );
        assert_eq!(Selector::all([a.clone(), Selector::Everything]), a);
        assert_eq!(
            Selector::all([a.clone(), Selector::Nothing]),
            Selector::Nothing
        );
        assert_eq!(Selector::all([]), Selector::Everything);
        assert_eq!(Selector::any([]), Selector::Nothing);
        assert_eq!(Selector::any([a.clone(), Selector::Nothing]), a);
        assert_eq!(
            Selector::any([a, Selector::Everything]),
            Selector::Everything
        );
    }
}
