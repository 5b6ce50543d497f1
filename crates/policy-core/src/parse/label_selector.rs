//! `LabelSelector` of Kubernetes.

use std::sync::Arc;

use serde_json::Value;

use super::field::{Broken, Fields, Notes, Place, present};
use crate::selector::Selector;

/// Reads the selector at `key`; `None` when it is absent, which is not the same as empty.
pub(super) fn optional(
    fields: &Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Option<Selector>, Broken> {
    present(fields, key)
        .map(|value| read(value, &at.key(key), notes))
        .transpose()
}

/// Reads a selector.
pub(super) fn read(value: &Value, at: &Place<'_>, notes: &mut Notes) -> Result<Selector, Broken> {
    let fields = notes.as_object(value, at)?;
    let known = notes.only(fields, &["matchLabels", "matchExpressions"], at);
    let mut parts = Vec::new();
    if let Some(labels) = notes.object(fields, "matchLabels", at)? {
        let at = at.key("matchLabels");
        for (key, value) in labels {
            let Value::String(value) = value else {
                return Err(notes.broken(&at.key(key), "is not a text"));
            };
            if key.is_empty() {
                return Err(notes.broken(&at, "has an empty key"));
            }
            parts.push(is_in(key, [value.as_str()]));
        }
    }
    if let Some(expressions) = notes.list(fields, "matchExpressions", at)? {
        let at = at.key("matchExpressions");
        for (index, expression) in expressions.iter().enumerate() {
            parts.push(requirement(expression, &at.item(index), notes)?);
        }
    }
    known.map(|()| Selector::all(parts))
}

fn is_in<'v>(key: &str, values: impl IntoIterator<Item = &'v str>) -> Selector {
    let mut values: Vec<Arc<str>> = values.into_iter().map(Arc::from).collect();
    values.sort();
    values.dedup();
    Selector::In(Arc::from(key), values.into())
}

fn requirement(value: &Value, at: &Place<'_>, notes: &mut Notes) -> Result<Selector, Broken> {
    let fields = notes.as_object(value, at)?;
    notes.only(fields, &["key", "operator", "values"], at)?;
    let Some(key) = notes.text(fields, "key", at)?.filter(|key| !key.is_empty()) else {
        return Err(notes.broken(&at.key("key"), "is missing or empty"));
    };
    let mut values = Vec::new();
    for (index, value) in notes
        .list(fields, "values", at)?
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let Value::String(value) = value else {
            return Err(notes.broken(&at.key("values").item(index), "is not a text"));
        };
        values.push(value.as_str());
    }
    match (notes.text(fields, "operator", at)?, values.is_empty()) {
        (Some("In"), false) => Ok(is_in(key, values)),
        (Some("NotIn"), false) => Ok(is_in(key, values).negated()),
        (Some("Exists"), true) => Ok(Selector::Has(Arc::from(key))),
        (Some("DoesNotExist"), true) => Ok(Selector::Has(Arc::from(key)).negated()),
        (Some("In" | "NotIn"), true) => Err(notes.broken(
            &at.key("values"),
            "is empty, which In and NotIn do not allow",
        )),
        (Some("Exists" | "DoesNotExist"), false) => Err(notes.broken(
            &at.key("values"),
            "is not empty, which Exists and DoesNotExist do not allow",
        )),
        (Some(other), _) => Err(notes.broken(
            &at.key("operator"),
            format!("{other:?} is not one of In, NotIn, Exists, DoesNotExist"),
        )),
        (None, _) => Err(notes.broken(&at.key("operator"), "is missing")),
    }
}
