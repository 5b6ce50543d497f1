//! The first span of a trace: the plug-in's own.
//!
//! Without a context from the runtime the trace starts here. The finished span is one JSON line, in
//! the form in which the services write theirs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

/// Name of this service in spans.
const SERVICE: &str = "cni";

/// Time since 1970 by the node's clock.
pub(crate) fn now() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "the plug-in has no other clock, and decides nothing by it"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A span that is under way.
#[derive(Debug)]
pub(crate) struct Span {
    name: &'static str,
    trace_id: String,
    id: String,
    parent_id: String,
    flags: u8,
    start: Duration,
    attributes: Map<String, Value>,
}

impl Span {
    /// Starts a span below the first valid one of `parents`, or as the root of a new trace.
    pub(crate) fn start(name: &'static str, parents: &[&str]) -> Self {
        let (mut trace, mut span) = ([0_u8; 16], [0_u8; 8]);
        random(&mut trace);
        random(&mut span);
        let parent = parents.iter().find_map(|text| parse(text));
        let (trace_id, parent_id, flags) = match parent {
            Some(parent) => (
                parent.trace_id.to_owned(),
                parent.span_id.to_owned(),
                parent.flags,
            ),
            None => (hex(&trace), String::new(), 1),
        };
        Self {
            name,
            trace_id,
            id: hex(&span),
            parent_id,
            flags,
            start: now(),
            attributes: Map::new(),
        }
    }

    /// Adds an attribute, unless it is empty.
    pub(crate) fn record(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.attributes.insert(key.to_owned(), json!(value));
        }
    }

    /// The context for the callee.
    pub(crate) fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.id, self.flags)
    }

    /// Ends the span and appends it to `file`, if there is one and the trace is recorded. A trace is
    /// never worth a failed call.
    pub(crate) fn end(self, succeeded: bool, file: Option<&Path>) {
        let Some(file) = file.filter(|_| self.flags & 1 == 1) else {
            return;
        };
        let mut line = json!({
            "name": self.name,
            "trace_id": self.trace_id,
            "span_id": self.id,
            "parent_span_id": self.parent_id,
            "service": SERVICE,
            "kind": "internal",
            "start_unix_nano": nanos(self.start),
            "end_unix_nano": nanos(now()),
            "status": if succeeded { "ok" } else { "error" },
            "attributes": self.attributes,
            "links": [],
        })
        .to_string();
        line.push('\n');
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .open(file);
        drop(file.and_then(|mut f| f.write_all(line.as_bytes())));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

struct Parent<'a> {
    trace_id: &'a str,
    span_id: &'a str,
    flags: u8,
}

/// Source: W3C Trace Context, version 00; later versions may append to it.
fn parse(text: &str) -> Option<Parent<'_>> {
    let mut parts = text.trim().split('-');
    let version = part(parts.next()?, 2)?;
    let trace_id = part(parts.next()?, 32)?;
    let span_id = part(parts.next()?, 16)?;
    let flags = part(parts.next()?, 2)?;
    let all_zero = |t: &str| t.bytes().all(|b| b == b'0');
    let appended = parts.next().is_some();
    if version == "ff" || (version == "00" && appended) || all_zero(trace_id) || all_zero(span_id) {
        return None;
    }
    Some(Parent {
        trace_id,
        span_id,
        flags: u8::from_str_radix(flags, 16).ok()?,
    })
}

fn part(text: &str, length: usize) -> Option<&str> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == length && text.bytes().all(lower_hex)).then_some(text)
}

fn hex(bytes: &[u8]) -> String {
    let nibbles = bytes.iter().flat_map(|b| [b >> 4, b & 0x0f]);
    nibbles
        .filter_map(|n| char::from_digit(u32::from(n), 16))
        .collect()
}

fn random(bytes: &mut [u8]) {
    let read = File::open("/dev/urandom").and_then(|mut f| f.read_exact(bytes));
    // An identifier of zeros is invalid, and one from the clock will do where /dev is missing.
    if read.is_err() || bytes.iter().all(|b| *b == 0) {
        let clock = (now().as_nanos() | 1).to_be_bytes();
        for (to, from) in bytes.iter_mut().zip(clock.iter().rev()) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn span_below_a_parent_keeps_its_trace() {
        let span = Span::start("cni.ADD", &["", PARENT]);

        assert!(
            span.traceparent()
                .starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")
        );
        assert_eq!(span.parent_id, "00f067aa0ba902b7");
        assert_ne!(span.id, span.parent_id);
    }

    #[test]
    fn span_without_a_valid_parent_is_a_recorded_root() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            let span = Span::start("cni.ADD", &[bad]);

            assert!(parse(&span.traceparent()).is_some(), "{bad}");
            assert_eq!((span.parent_id.as_str(), span.flags), ("", 1), "{bad}");
        }
    }
}
