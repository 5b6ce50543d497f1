//! What an API server answers: pages of a list, events of a watch, and refusals.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::server::shape::Shape;

/// Annotation of the bookmark that ends the initial events of a streamed list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// The answer is not what an API server says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("answer not understood: {0}")]
pub(super) struct Garbled(String);

impl From<serde_json::Error> for Garbled {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Namespace and name; the namespace is empty where the kind has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

/// An object, with what is kept of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    pub(super) name: Name,
    /// `metadata.resourceVersion`, which is not in `value`.
    pub(super) version: String,
    pub(super) value: Value,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Page {
    pub(super) version: String,
    /// Where the next page begins; nothing on the last one.
    pub(super) more: Option<String>,
    pub(super) items: Vec<Document>,
}

/// An event of a watch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The object is now so.
    Put(Document),
    /// The object is gone.
    Gone(Document),
    /// Everything up to here was told.
    Bookmark {
        version: String,
        /// All that was there when the watch began was told.
        initial_end: bool,
    },
    /// The watch has ended.
    Refused(Refusal),
}

/// What a `Status` object says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    more: String,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct RawBookmark {
    metadata: RawBookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBookmarkMeta {
    resource_version: String,
    #[serde(default)]
    annotations: Option<serde_json::Map<String, Value>>,
}

/// Whose documents are read: what they say of themselves is not believed, since lists and metadata say otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) api_version: &'a str,
    pub(super) kind: &'a str,
    pub(super) shape: Shape,
}

impl Reader<'_> {
    /// Reads a page.
    pub(super) fn page(self, text: &[u8]) -> Result<Page, Garbled> {
        let raw: RawPage<'_> = serde_json::from_slice(text)?;
        let items = raw.items.unwrap_or_default();
        Ok(Page {
            version: raw.metadata.resource_version,
            more: Some(raw.metadata.more).filter(|more| !more.is_empty()),
            items: items
                .into_iter()
                .map(|item| self.document(item.get()))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Reads one line of a watch.
    pub(super) fn event(self, line: &[u8]) -> Result<Event, Garbled> {
        let raw: RawEvent<'_> = serde_json::from_slice(line)?;
        let object = raw.object.get();
        Ok(match raw.kind.as_ref() {
            "ADDED" | "MODIFIED" => Event::Put(self.document(object)?),
            "DELETED" => Event::Gone(self.document(object)?),
            "BOOKMARK" => {
                let bookmark: RawBookmark = serde_json::from_str(object)?;
                let notes = bookmark.metadata.annotations.unwrap_or_default();
                Event::Bookmark {
                    version: bookmark.metadata.resource_version,
                    initial_end: notes.get(INITIAL_END).and_then(Value::as_str) == Some("true"),
                }
            }
            "ERROR" => Event::Refused(serde_json::from_str(object)?),
            other => return Err(Garbled(format!("an event of type {other}"))),
        })
    }

    fn document(self, text: &str) -> Result<Document, Garbled> {
        let mut value = self.shape.read(text)?;
        let map = value
            .as_object_mut()
            .ok_or_else(|| Garbled("an object that is none".to_owned()))?;
        map.insert("apiVersion".to_owned(), Value::from(self.api_version));
        map.insert("kind".to_owned(), Value::from(self.kind));
        let meta = map.get_mut("metadata").and_then(Value::as_object_mut);
        let meta = meta.ok_or_else(|| Garbled("an object without metadata".to_owned()))?;
        let version = match meta.remove("resourceVersion") {
            Some(Value::String(version)) => version,
            Some(_) | None => String::new(),
        };
        let word = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = Name {
            namespace: Box::from(word("namespace")),
            name: Box::from(word("name")),
        };
        if name.name.is_empty() {
            return Err(Garbled("an object without a name".to_owned()));
        }
        Ok(Document {
            name,
            version,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const READER: Reader<'_> = Reader {
        api_version: "v1",
        kind: "Namespace",
        shape: Shape::Fields(&[("metadata", Shape::All)]),
    };

    fn event(value: &Value) -> Result<Event, Garbled> {
        READER.event(value.to_string().as_bytes())
    }

    #[test]
    fn item_of_a_list_is_told_with_the_kind_that_was_asked_for() {
        let page = json!({
            "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": "12", "continue": "abc", "remainingItemCount": 3},
            "items": [{"kind": "PartialObjectMetadata", "metadata": {"name": "a", "resourceVersion": "7"}}],
        });

        let page = READER.page(page.to_string().as_bytes()).unwrap();

        assert_eq!(
            (page.version.as_str(), page.more.as_deref()),
            ("12", Some("abc"))
        );
        assert_eq!(page.items[0].version, "7");
        assert_eq!(
            page.items[0].value,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})
        );
    }

    #[test]
    fn page_without_items_is_empty() {
        let page = READER
            .page(br#"{"metadata": {"resourceVersion": "1", "continue": ""}, "items": null}"#)
            .unwrap();

        assert_eq!((page.items.len(), page.more), (0, None));
    }

    #[test]
    fn bookmark_says_whether_the_initial_events_are_over() {
        let bookmark = |notes: Value| {
            event(&json!({"type": "BOOKMARK", "object": {
                "metadata": {"resourceVersion": "9", "annotations": notes}}}))
        };
        let expected = |initial_end| {
            Ok(Event::Bookmark {
                version: "9".to_owned(),
                initial_end,
            })
        };

        assert_eq!(bookmark(json!(null)), expected(false));
        assert_eq!(bookmark(json!({INITIAL_END: "true"})), expected(true));
    }

    #[test]
    fn error_event_is_a_refusal_with_its_code() {
        let refused = event(&json!({"type": "ERROR", "object": {
            "kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}));

        let Ok(Event::Refused(refusal)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((refusal.code, refusal.reason.as_str()), (410, "Expired"));
    }

    #[test]
    fn events_that_say_nothing_sensible_are_refused() {
        for wrong in [
            json!({"type": "MOVED", "object": {"metadata": {"name": "a"}}}),
            json!({"type": "ADDED", "object": {"metadata": {}}}),
            json!({"type": "ADDED", "object": {}}),
            json!({"type": "ADDED", "object": [1]}),
            json!({"type": "BOOKMARK", "object": {}}),
            json!({"object": {}}),
        ] {
            event(&wrong).unwrap_err();
        }
    }
}
