//! Reading JSON values as an API server would have meant them.
//!
//! `null` is the same as a missing field everywhere. Errors are sentences for a person, without the
//! name of the object, which the caller knows.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// The field, unless it is missing or `null`.
pub(crate) fn field<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// The value as an object.
pub(crate) fn as_object<'a>(value: &'a Value, what: &str) -> Result<&'a Object, String> {
    value
        .as_object()
        .ok_or_else(|| format!("{what} is not an object"))
}

/// The field as an object.
pub(crate) fn object<'a>(object: &'a Object, key: &str) -> Result<Option<&'a Object>, String> {
    field(object, key)
        .map(|value| as_object(value, key))
        .transpose()
}

/// The field as a list; missing and empty are the same.
pub(crate) fn list<'a>(object: &'a Object, key: &str) -> Result<&'a [Value], String> {
    match field(object, key) {
        None => Ok(&[]),
        Some(value) => value
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| format!("{key} is not a list")),
    }
}

/// The field as a string.
pub(crate) fn text<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>, String> {
    match field(object, key) {
        None => Ok(None),
        Some(value) => value
            .as_str()
            .map(Some)
            .ok_or_else(|| format!("{key} is not a string")),
    }
}

/// The field as a list of strings; missing and empty are the same.
pub(crate) fn texts<'a>(object: &'a Object, key: &str) -> Result<Vec<&'a str>, String> {
    list(object, key)?
        .iter()
        .map(|item| {
            item.as_str()
                .ok_or_else(|| format!("{key} has an item that is not a string"))
        })
        .collect()
}

/// The field as a yes or no; missing is no.
pub(crate) fn flag(object: &Object, key: &str) -> Result<bool, String> {
    match field(object, key) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("{key} is neither true nor false")),
    }
}

/// A port number as it stands in a rule, 1–65535.
pub(crate) fn port_number(value: &Value, what: &str) -> Result<u16, String> {
    value
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("{what} {value} is not a port number"))
}

/// A map of strings; an entry whose value is not a string is an error.
pub(crate) fn string_map(object: &Object, key: &str) -> Result<Labels, String> {
    let Some(map) = self::object(object, key)? else {
        return Ok(Labels::new());
    };
    map.iter()
        .map(|(name, value)| match value.as_str() {
            Some(value) => Ok((name.clone(), value.to_owned())),
            None => Err(format!("{key} has a value that is not a string, at {name}")),
        })
        .collect()
}

/// Refuses fields that are not in `known`: they might restrict in a way that we would miss.
pub(crate) fn only(object: &Object, known: &[&str], what: &str) -> Result<(), String> {
    match object
        .iter()
        .find(|(key, value)| !value.is_null() && !known.contains(&key.as_str()))
    {
        None => Ok(()),
        Some((key, _)) => Err(format!("{what} has a field that is not known: {key}")),
    }
}

/// Exactly one of the fields of a union, with its name.
pub(crate) fn one_of<'a>(
    value: &'a Value,
    known: &[&str],
    what: &str,
) -> Result<(&'a str, &'a Value), String> {
    let object = as_object(value, what)?;
    only(object, known, what)?;
    let mut set = object.iter().filter(|(_, value)| !value.is_null());
    match (set.next(), set.next()) {
        (Some((key, value)), None) => Ok((key.as_str(), value)),
        (None, _) => Err(format!("{what} has none of the fields that are known")),
        (Some(_), Some(_)) => Err(format!("{what} has more than one field set")),
    }
}

/// Namespace and name of a document; absent parts are empty.
pub(crate) fn identity(document: &Object) -> (String, String) {
    let part = |key: &str| {
        document
            .get("metadata")
            .and_then(|metadata| metadata.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    (part("namespace"), part("name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: &Value) -> Object {
        value.as_object().cloned().unwrap()
    }

    // A5
    #[test]
    fn list_missing_null_or_empty_is_the_same() {
        for value in [json!({}), json!({"from": null}), json!({"from": []})] {
            assert_eq!(list(&map(&value), "from"), Ok([].as_slice()));
        }
    }

    #[test]
    fn union_with_no_or_two_fields_is_refused() {
        for value in [
            json!({}),
            json!({"a": 1, "b": 2}),
            json!({"z": 1}),
            json!(7),
        ] {
            assert!(one_of(&value, &["a", "b"], "peer").is_err());
        }
        assert!(one_of(&json!({"a": 1, "b": null}), &["a", "b"], "peer").is_ok());
    }

    #[test]
    fn port_number_out_of_range_is_refused() {
        for value in [json!(0), json!(65536), json!(-1), json!(1.5), json!("80")] {
            assert!(port_number(&value, "port").is_err(), "{value}");
        }
        assert_eq!(port_number(&json!(65535), "port"), Ok(65535));
    }
}
