//! Kubernetes' label selectors.

use serde_json::Value;

use crate::document::{self, Labels};

/// `matchLabels` and `matchExpressions`, all of which must hold. Empty selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl LabelSelector {
    /// Reads a selector; `what` names the field in errors.
    pub(crate) fn parse(value: &Value, what: &str) -> Result<Self, String> {
        let object = document::as_object(value, what)?;
        document::only(object, &["matchLabels", "matchExpressions"], what)?;
        let mut requirements = Vec::new();
        for (key, value) in document::string_map(object, "matchLabels")? {
            if key.is_empty() {
                return Err(format!("{what} has an empty key"));
            }
            requirements.push(Requirement::In(key, vec![value]));
        }
        for expression in document::list(object, "matchExpressions")? {
            requirements.push(Requirement::parse(expression, what)?);
        }
        Ok(Self { requirements })
    }

    /// Whether an object with these labels is selected.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.holds(labels))
    }
}

impl Requirement {
    fn parse(value: &Value, what: &str) -> Result<Self, String> {
        let what = &format!("matchExpressions of {what}");
        let object = document::as_object(value, what)?;
        document::only(object, &["key", "operator", "values"], what)?;
        let key = document::text(object, "key")?
            .filter(|key| !key.is_empty())
            .ok_or_else(|| format!("{what} has no key"))?
            .to_owned();
        let values: Vec<String> = document::texts(object, "values")?
            .into_iter()
            .map(str::to_owned)
            .collect();
        let operator = document::text(object, "operator")?.unwrap_or_default();
        match (operator, values.is_empty()) {
            ("In", false) => Ok(Self::In(key, values)),
            ("NotIn", false) => Ok(Self::NotIn(key, values)),
            ("Exists", true) => Ok(Self::Exists(key)),
            ("DoesNotExist", true) => Ok(Self::DoesNotExist(key)),
            ("In" | "NotIn", true) => Err(format!("{what} has no values for {operator}")),
            ("Exists" | "DoesNotExist", false) => Err(format!("{what} has values for {operator}")),
            _ => Err(format!("{what} has the operator {operator:?}")),
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => !labels.get(key).is_some_and(|v| values.contains(v)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn selects(selector: &Value, pairs: &[(&str, &str)]) -> bool {
        LabelSelector::parse(selector, "podSelector")
            .unwrap()
            .matches(&labels(pairs))
    }

    fn expression(operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]})
    }

    // B2
    #[test]
    fn negative_operator_matches_absent_key() {
        assert!(selects(&expression("NotIn", &["1"]), &[]));
        assert!(selects(&expression("NotIn", &["1"]), &[("a", "2")]));
        assert!(!selects(&expression("NotIn", &["1"]), &[("a", "1")]));
        assert!(selects(&expression("DoesNotExist", &[]), &[("b", "1")]));
        assert!(!selects(&expression("DoesNotExist", &[]), &[("a", "")]));
    }

    // B2
    #[test]
    fn positive_operator_needs_the_key() {
        assert!(!selects(&expression("In", &["1", "2"]), &[]));
        assert!(selects(&expression("In", &["1", "2"]), &[("a", "2")]));
        assert!(!selects(&expression("Exists", &[]), &[("b", "1")]));
        assert!(selects(&expression("Exists", &[]), &[("a", "")]));
    }

    // B2
    #[test]
    fn labels_and_expressions_must_both_hold() {
        let both = json!({
            "matchLabels": {"a": "1"},
            "matchExpressions": [{"key": "b", "operator": "Exists"}],
        });
        assert!(selects(&both, &[("a", "1"), ("b", "x")]));
        assert!(!selects(&both, &[("a", "1")]));
        assert!(!selects(&both, &[("b", "x")]));
    }

    // B1
    #[test]
    fn empty_selector_selects_everything() {
        assert!(selects(&json!({}), &[]));
        assert!(selects(
            &json!({"matchLabels": null, "matchExpressions": []}),
            &[("a", "1")]
        ));
    }

    // B3
    #[test]
    fn selector_that_makes_no_sense_is_refused() {
        for bad in [
            json!("a=b"),
            json!({"matchLabels": ["a"]}),
            json!({"matchLabels": {"a": 1}}),
            json!({"matchLabel": {"a": "1"}}),
            json!({"matchExpressions": {}}),
            json!({"matchExpressions": [{"operator": "Exists"}]}),
            expression("In", &[]),
            expression("NotIn", &[]),
            expression("Exists", &["1"]),
            expression("in", &["1"]),
            expression("Gt", &["1"]),
        ] {
            assert!(LabelSelector::parse(&bad, "podSelector").is_err(), "{bad}");
        }
    }
}
