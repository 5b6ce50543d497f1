//! A configuration before it has a type: keys, values, and where each came from.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::Value;

use crate::config::Origin;

/// A key's value, or a section.
#[derive(Debug)]
pub(super) struct Tree {
    node: Node,
    origin: Origin,
}

#[derive(Debug)]
enum Node {
    Table(BTreeMap<String, Tree>),
    List(Vec<Tree>),
    Leaf(Value),
    /// From a variable or a flag: read as whatever the key wants.
    Text(String),
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            node: Node::Table(BTreeMap::new()),
            origin: Origin::Nowhere,
        }
    }
}

impl Tree {
    pub(super) fn of(table: toml::Table, origin: &Origin) -> Self {
        Self::of_value(Value::Table(table), origin)
    }

    fn of_value(value: Value, origin: &Origin) -> Self {
        let node = match value {
            Value::Table(table) => Node::Table(
                table
                    .into_iter()
                    .map(|(key, value)| (key, Self::of_value(value, origin)))
                    .collect(),
            ),
            Value::Array(values) => Node::List(
                values
                    .into_iter()
                    .map(|value| Self::of_value(value, origin))
                    .collect(),
            ),
            leaf @ (Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)) => Node::Leaf(leaf),
        };
        Self {
            node,
            origin: origin.clone(),
        }
    }

    /// Puts a text at a key, making sections on the way. Fails with the path of a value that is in
    /// the way.
    pub(super) fn put(
        &mut self,
        path: &[String],
        text: &str,
        origin: &Origin,
    ) -> Result<(), String> {
        let mut tree = self;
        for (depth, part) in path.iter().enumerate() {
            let Node::Table(table) = &mut tree.node else {
                return Err(path.get(..depth).unwrap_or_default().join("."));
            };
            let section = || Self {
                node: Node::Table(BTreeMap::new()),
                origin: origin.clone(),
            };
            tree = table.entry(part.clone()).or_insert_with(section);
        }
        tree.node = Node::Text(text.to_owned());
        tree.origin = origin.clone();
        Ok(())
    }

    /// Where the value at the path, or the nearest section above it, came from.
    pub(super) fn origin(&self, path: &[String]) -> Origin {
        let mut tree = self;
        for part in path {
            let below = match &tree.node {
                Node::Table(table) => table.get(part),
                Node::List(list) => part.parse::<usize>().ok().and_then(|at| list.get(at)),
                Node::Leaf(_) | Node::Text(_) => None,
            };
            match below {
                Some(below) => tree = below,
                None => break,
            }
        }
        tree.origin.clone()
    }

    pub(super) const fn reader(&self) -> Reader<'_> {
        Reader(self)
    }
}

/// What is wrong with the value at a path.
#[derive(Debug)]
pub(super) struct KeyError {
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

impl KeyError {
    fn at(mut self, part: impl Into<String>) -> Self {
        self.path.insert(0, part.into());
        self
    }
}

impl Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for KeyError {}

impl de::Error for KeyError {
    fn custom<T: Display>(message: T) -> Self {
        Self {
            path: Vec::new(),
            message: message.to_string(),
        }
    }
}

/// Reads a tree into typed values.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a Tree);

impl<'a> Reader<'a> {
    /// A text as TOML would read it, or as it stands.
    fn guess(self, text: &str) -> Tree {
        let parsed = format!("v = {text}").parse::<toml::Table>().ok();
        let value = parsed.and_then(|mut table| table.remove("v"));
        Tree::of_value(
            value.unwrap_or_else(|| Value::String(text.to_owned())),
            &self.0.origin,
        )
    }

    fn text(self) -> Option<&'a str> {
        match &self.0.node {
            Node::Text(text) => Some(text),
            Node::Table(_) | Node::List(_) | Node::Leaf(_) => None,
        }
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
            match self.text() {
                Some(text) => match text.trim().parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::custom(format!("{text:?} is not {}", $what))),
                },
                None => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match &self.0.node {
            Node::Table(table) => visitor.visit_map(Entries {
                rest: table.iter(),
                next: None,
            }),
            Node::List(list) => visitor.visit_seq(Elements {
                rest: list.iter(),
                at: 0,
            }),
            Node::Leaf(Value::String(text)) => visitor.visit_str(text),
            Node::Leaf(Value::Integer(number)) => visitor.visit_i64(*number),
            Node::Leaf(Value::Float(number)) => visitor.visit_f64(*number),
            Node::Leaf(Value::Boolean(flag)) => visitor.visit_bool(*flag),
            Node::Leaf(other) => visitor.visit_string(other.to_string()),
            Node::Text(text) => Reader(&self.guess(text)).deserialize_any(visitor),
        }
    }

    parsed! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_i8 visit_i8 i8, "a small whole number";
        deserialize_i16 visit_i16 i16, "a whole number";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number from 0";
        deserialize_u64 visit_u64 u64, "a whole number from 0";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self.text() {
            Some(text) => visitor.visit_str(text),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        match &self.0.node {
            Node::Text(text) | Node::Leaf(Value::String(text)) => visitor.visit_enum(Variant {
                name: text,
                content: None,
            }),
            Node::Table(table) if table.len() == 1 => match table.iter().next() {
                Some((name, content)) => visitor.visit_enum(Variant {
                    name,
                    content: Some(content),
                }),
                None => Err(de::Error::custom("a variant's name is missing")),
            },
            Node::Table(_) | Node::List(_) | Node::Leaf(_) => {
                Err(de::Error::custom("expected the name of a variant"))
            }
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct seq tuple tuple_struct map struct ignored_any
    }
}

struct Entries<'a> {
    rest: std::collections::btree_map::Iter<'a, String, Tree>,
    next: Option<(&'a String, &'a Tree)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, KeyError> {
        self.next = self.rest.next();
        let Some((key, _)) = self.next else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, KeyError> = key.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|error| error.at(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let Some((key, tree)) = self.next.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reader(tree))
            .map_err(|error| error.at(key))
    }
}

struct Elements<'a> {
    rest: std::slice::Iter<'a, Tree>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = KeyError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, KeyError> {
        let Some(tree) = self.rest.next() else {
            return Ok(None);
        };
        let at = self.at;
        self.at += 1;
        seed.deserialize(Reader(tree))
            .map(Some)
            .map_err(|error| error.at(at.to_string()))
    }
}

struct Variant<'a> {
    name: &'a str,
    content: Option<&'a Tree>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = KeyError;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content<'a>), KeyError> {
        let name: StrDeserializer<'_, KeyError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, Content(self.content)))
    }
}

struct Content<'a>(Option<&'a Tree>);

impl Content<'_> {
    fn reader(&self) -> Result<Reader<'_>, KeyError> {
        self.0
            .map(Reader)
            .ok_or_else(|| de::Error::custom("the variant needs content"))
    }
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = KeyError;

    fn unit_variant(self) -> Result<(), KeyError> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(de::Error::custom("the variant takes no content")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, KeyError> {
        seed.deserialize(self.reader()?)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        self.reader()?.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        self.reader()?.deserialize_any(visitor)
    }
}
