//! JSON as the vendor writes it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde_json::Value;

/// A reply that cannot be read. What the call did is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reply cannot be read: {what} (request {request_id:?})")]
pub struct Malformed {
    /// Which field, and why.
    pub what: String,
    /// The cloud's id of the call, if it could be read.
    pub request_id: String,
}

/// A JSON value, read as leniently as the vendor's clients read it: a number may be a string, a list may be null
/// or missing, an empty text is an absent one.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a>(&'a Value);

impl<'a> Node<'a> {
    /// Wraps a JSON value.
    pub fn new(value: &'a Value) -> Self {
        Self(value)
    }

    /// The field, or JSON null.
    #[must_use]
    pub fn child(self, name: &str) -> Self {
        Self(self.0.get(name).unwrap_or(&Value::Null))
    }

    /// The entries of the wrapped list `{outer: {inner: […]}}`.
    pub fn list(self, outer: &str, inner: &str) -> impl Iterator<Item = Self> + use<'a> {
        let entries = self.child(outer).child(inner).0;
        entries
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .map(Self)
    }

    /// This value as text: of a string, a number or a boolean. Empty text is absent.
    pub fn as_text(self) -> Option<String> {
        match self.0 {
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// A field as text.
    pub fn text(self, name: &str) -> Option<String> {
        self.child(name).as_text()
    }

    /// A field as a truth value: `true` or `"true"` in any case; everything else is false.
    pub fn flag(self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// This value, parsed.
    ///
    /// # Errors
    /// [`Malformed`] when it is absent or does not parse.
    pub fn as_parsed<T: FromStr<Err: Display>>(self) -> Result<T, Malformed> {
        self.as_text()
            .unwrap_or_default()
            .parse()
            .map_err(|err| Malformed {
                what: format!("list entry: {err}"),
                request_id: String::new(),
            })
    }

    /// A field that must be there, parsed.
    ///
    /// # Errors
    /// [`Malformed`] when it is absent or does not parse.
    pub fn parsed<T: FromStr<Err: Display>>(self, name: &str) -> Result<T, Malformed> {
        self.parsed_some(name)?
            .ok_or_else(|| self.malformed(name, "absent"))
    }

    /// A field that may be absent, parsed.
    ///
    /// # Errors
    /// [`Malformed`] when it is there and does not parse.
    pub fn parsed_some<T: FromStr<Err: Display>>(self, name: &str) -> Result<Option<T>, Malformed> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(err) => Err(self.malformed(name, err)),
            },
        }
    }

    /// Tags, written `TagKey`/`TagValue` by ECS and `Key`/`Value` by VPC.
    pub fn tags(self) -> BTreeMap<String, String> {
        self.list("Tags", "Tag")
            .filter_map(|tag| {
                let key = tag.text("TagKey").or_else(|| tag.text("Key"))?;
                let value = tag.text("TagValue").or_else(|| tag.text("Value"));
                Some((key, value.unwrap_or_default()))
            })
            .collect()
    }

    /// What to say about a field that cannot be read.
    pub fn malformed(self, name: &str, why: impl Display) -> Malformed {
        Malformed {
            what: format!("{name}: {why}"),
            request_id: String::new(),
        }
    }
}
