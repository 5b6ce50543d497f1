//! Fields of documents: where they are, and what is wrong with them.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::object::Labels;
use crate::policy::Problem;

/// A document's object.
pub(super) type Fields = Map<String, Value>;

/// Something could not be read; it has been noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Where in a document. A chain on the stack, so that a path costs nothing until something is wrong there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

impl<'a> Place<'a> {
    /// The first step.
    pub(super) const fn root(key: &'a str) -> Self {
        Self {
            parent: None,
            step: Step::Key(key),
        }
    }

    /// A field of the object here.
    pub(super) const fn key(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    /// An item of the list here.
    pub(super) const fn item(&'a self, index: usize) -> Self {
        Self {
            parent: Some(self),
            step: Step::Item(index),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match (self.step, self.parent) {
            (Step::Key(key), None) => f.write_str(key),
            (Step::Key(key), Some(_)) => write!(f, ".{key}"),
            (Step::Item(index), _) => write!(f, "[{index}]"),
        }
    }
}

/// What has been found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    problems: Vec<Problem>,
}

impl Notes {
    /// Notes a problem, and gives what stands for the thing.
    pub(super) fn broken(&mut self, at: &Place<'_>, why: impl Into<String>) -> Broken {
        self.problems.push(Problem {
            field: at.to_string(),
            why: why.into(),
        });
        Broken
    }

    /// The problems, sorted, each once.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort();
        self.problems.dedup();
        self.problems.shrink_to_fit();
        self.problems
    }

    /// An object; `null` and absence are `None`.
    pub(super) fn object<'v>(
        &mut self,
        fields: &'v Fields,
        key: &str,
        at: &Place<'_>,
    ) -> Result<Option<&'v Fields>, Broken> {
        match present(fields, key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.broken(&at.key(key), wrong("an object", other))),
        }
    }

    /// A list; `null` and absence are `None`.
    pub(super) fn list<'v>(
        &mut self,
        fields: &'v Fields,
        key: &str,
        at: &Place<'_>,
    ) -> Result<Option<&'v [Value]>, Broken> {
        match present(fields, key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.broken(&at.key(key), wrong("a list", other))),
        }
    }

    /// A text; `null` and absence are `None`.
    pub(super) fn text<'v>(
        &mut self,
        fields: &'v Fields,
        key: &str,
        at: &Place<'_>,
    ) -> Result<Option<&'v str>, Broken> {
        match present(fields, key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.broken(&at.key(key), wrong("a text", other))),
        }
    }

    /// A port number, 1 to 65535; `null` and absence are `None`.
    pub(super) fn port(
        &mut self,
        fields: &Fields,
        key: &str,
        at: &Place<'_>,
    ) -> Result<Option<u16>, Broken> {
        match present(fields, key) {
            None => Ok(None),
            Some(value) => port_number(value)
                .map(Some)
                .ok_or_else(|| self.broken(&at.key(key), "is not a port number from 1 to 65535")),
        }
    }

    /// Notes fields that are not among the known ones: a condition that is not understood must not count as none.
    pub(super) fn only(
        &mut self,
        fields: &Fields,
        known: &[&str],
        at: &Place<'_>,
    ) -> Result<(), Broken> {
        let mut answer = Ok(());
        for (key, value) in fields {
            if !value.is_null() && !known.contains(&key.as_str()) {
                answer = Err(self.broken(&at.key(key), "is not known here"));
            }
        }
        answer
    }

    /// This value as an object.
    pub(super) fn as_object<'v>(
        &mut self,
        value: &'v Value,
        at: &Place<'_>,
    ) -> Result<&'v Fields, Broken> {
        value
            .as_object()
            .ok_or_else(|| self.broken(at, wrong("an object", value)))
    }
}

/// A field that is there and not `null`.
pub(super) fn present<'v>(fields: &'v Fields, key: &str) -> Option<&'v Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// A port number, 1 to 65535.
pub(super) fn port_number(value: &Value) -> Option<u16> {
    value
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
}

/// A message: what was wanted, and what stands there.
pub(super) fn wrong(wanted: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("is {found} instead of {wanted}")
}

/// Identity and metadata of an object.
#[derive(Debug)]
pub(super) struct Meta<'v> {
    /// `metadata.namespace`, `default` when a kind that has one comes without; empty for other kinds.
    pub(super) namespace: Arc<str>,
    /// `metadata.name`.
    pub(super) name: Arc<str>,
    fields: &'v Fields,
}

impl<'v> Meta<'v> {
    /// Reads the identity, or says which field hinders it.
    pub(super) fn read(
        document: &'v Fields,
        has_namespace: bool,
    ) -> Result<Self, (&'static str, &'static str)> {
        let fields = document
            .get("metadata")
            .and_then(Value::as_object)
            .ok_or(("metadata", "is missing or not an object"))?;
        let name = fields
            .get("name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .ok_or(("metadata.name", "is missing or not a text"))?;
        let namespace = if has_namespace {
            match present(fields, "namespace") {
                None => "default",
                Some(Value::String(namespace)) if namespace.is_empty() => "default",
                Some(Value::String(namespace)) => namespace.as_str(),
                Some(_) => return Err(("metadata.namespace", "is not a text")),
            }
        } else {
            ""
        };
        Ok(Self {
            namespace: Arc::from(namespace),
            name: Arc::from(name),
            fields,
        })
    }

    /// `metadata.uid`, or nothing.
    pub(super) fn uid(&self) -> &'v str {
        self.fields
            .get("uid")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// `metadata.labels`; entries that are not texts are left out.
    pub(super) fn labels(&self) -> Labels {
        self.fields
            .get("labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((Arc::from(key.as_str()), Arc::from(value.as_str()?))))
            .collect()
    }

    /// One of `metadata.annotations`.
    pub(super) fn annotation(&self, key: &str) -> Option<&'v Value> {
        self.fields.get("annotations")?.as_object()?.get(key)
    }
}
