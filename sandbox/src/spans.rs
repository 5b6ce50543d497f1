//! Finished spans of all processes, read from their files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One finished span, as mesh's span file has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// Its trace.
    pub trace_id: String,
    /// Its id.
    pub span_id: String,
    /// Its parent; empty for a root.
    #[serde(default)]
    pub parent_span_id: String,
    /// Who did it.
    pub service: String,
    /// Nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// Nanoseconds since 1970.
    pub end_unix_nano: u64,
    /// `unset`, `ok` or `error`.
    #[serde(default)]
    pub status: String,
    /// Facts.
    #[serde(default)]
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Spans of other requests that it served too.
    #[serde(default)]
    pub links: Vec<SpanLink>,
}

/// A span of another request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanLink {
    /// Its trace.
    pub trace_id: String,
    /// Its id.
    pub span_id: String,
}

impl Span {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end_unix_nano.saturating_sub(self.start_unix_nano))
    }

    /// An attribute as text.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes
            .get(key)?
            .as_str()
            .filter(|text| !text.is_empty())
    }
}

/// Reads every `*.jsonl` of a folder. A last line that is being written is left out.
pub fn read_all(folder: &Path) -> io::Result<Vec<Span>> {
    let mut spans = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            let text = fs::read_to_string(&path)?;
            spans.extend(
                text.lines()
                    .filter_map(|line| serde_json::from_str(line).ok()),
            );
        }
    }
    spans.sort_by_key(|span: &Span| span.start_unix_nano);
    Ok(spans)
}
