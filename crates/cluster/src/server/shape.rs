//! Reads of a document what is kept of it, and nothing else.
//!
//! What a shape does not name is passed over while it is read: a pod of ten kilobytes never becomes a tree of its
//! own. A value that is not of the form that the shape expects is kept as it is; whoever reads the document says
//! what is wrong with it.

use std::fmt;

use serde::Deserialize as _;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Which parts of a value are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// All of it.
    All,
    /// Of an object, these fields.
    Fields(&'static [(&'static str, Shape)]),
    /// Of an object, the fields whose name is good.
    Names(fn(&str) -> bool),
    /// Of a list, of each item.
    Each(&'static Shape),
}

impl Shape {
    /// Reads a document.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(super) fn read(self, json: &str) -> Result<Value, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_str(json);
        let value = self.deserialize(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match self {
            Self::All => Value::deserialize(from),
            Self::Fields(_) | Self::Names(_) | Self::Each(_) => from.deserialize_any(Keep(self)),
        }
    }
}

struct Keep(Shape);

impl Keep {
    fn plain<E: serde::de::Error>(value: impl serde::Serialize) -> Result<Value, E> {
        value
            .serialize(serde_json::value::Serializer)
            .map_err(E::custom)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        match self.0 {
            Shape::Fields(fields) => {
                while let Some(found) = from.next_key_seed(FieldOf(fields))? {
                    match found {
                        Some((name, shape)) => {
                            kept.insert(name.to_owned(), from.next_value_seed(shape)?);
                        }
                        None => {
                            from.next_value::<IgnoredAny>()?;
                        }
                    }
                }
            }
            Shape::Names(good) => {
                while let Some(name) = from.next_key::<String>()? {
                    if good(&name) {
                        kept.insert(name, from.next_value()?);
                    } else {
                        from.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Shape::All | Shape::Each(_) => {
                return Value::deserialize(MapAccessDeserializer::new(from));
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let Shape::Each(shape) = self.0 else {
            return Value::deserialize(SeqAccessDeserializer::new(from));
        };
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(*shape)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        Self::plain(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        Self::plain(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        Self::plain(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Self::plain(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        Self::plain(value)
    }
}

/// Finds a field by its name, without keeping the name.
struct FieldOf(&'static [(&'static str, Shape)]);

impl<'de> DeserializeSeed<'de> for FieldOf {
    type Value = Option<(&'static str, Shape)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldOf {
    type Value = Option<(&'static str, Shape)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(known, _)| *known == name).copied())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SHAPE: Shape = Shape::Fields(&[
        ("name", Shape::All),
        ("notes", Shape::Names(|name| name.starts_with("ours/"))),
        (
            "ports",
            Shape::Each(&Shape::Fields(&[("number", Shape::All)])),
        ),
    ]);

    fn read(value: &Value) -> Value {
        SHAPE.read(&value.to_string()).unwrap()
    }

    #[test]
    fn what_the_shape_does_not_name_is_left_out() {
        let document = json!({
            "name": {"all": [1, -2, 2.5, true, null, "x"]},
            "other": {"deep": [{"a": 1}]},
            "notes": {"ours/a": "1", "theirs/b": "2"},
            "ports": [{"number": 80, "host": 1}, {"host": 2}],
        });

        let expected = json!({
            "name": {"all": [1, -2, 2.5, true, null, "x"]},
            "notes": {"ours/a": "1"},
            "ports": [{"number": 80}, {}],
        });
        assert_eq!(read(&document), expected);
    }

    #[test]
    fn value_of_another_form_is_kept_as_it_is() {
        for document in [
            json!({"ports": {"number": 1, "x": 2}}),
            json!({"ports": [1, "a", null, [2]]}),
            json!({"notes": ["x"], "ports": null}),
            json!(["name"]),
            json!("name"),
            json!(-3),
            json!(null),
        ] {
            assert_eq!(read(&document), document);
        }
    }

    #[test]
    fn text_with_escapes_in_names_and_values_is_read() {
        let text = r#"{"n\u0061me": "a\n\"b\"", "p\\": 1}"#;

        assert_eq!(SHAPE.read(text).unwrap(), json!({"name": "a\n\"b\""}));
    }

    #[test]
    fn text_that_goes_on_after_the_document_is_refused() {
        SHAPE.read("{} x").unwrap_err();
        SHAPE.read(r#"{"name": "#).unwrap_err();
    }
}
