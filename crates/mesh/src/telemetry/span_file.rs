//! Finished spans as JSON lines, for machines without a collector.
//!
//! One object per span: `name`, `trace_id`, `span_id`, `parent_span_id` (empty for a root),
//! `service`, `kind`, `start_unix_nano`, `end_unix_nano`, `status`, `attributes` (an object),
//! `links` (a list of `{trace_id, span_id}`). A writer thread takes spans from a bounded queue and
//! writes whole lines, as soon as the queue is empty.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, Status};
use opentelemetry::{Context, Value};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, json};

/// Spans written with one system call at most.
const BATCH_MAX: usize = 256;

enum Item {
    Span(Box<SpanData>),
    Flush(SyncSender<()>),
    End,
}

/// The processor that feeds the file.
#[derive(Debug)]
pub struct SpanFile {
    queue: SyncSender<Item>,
    dropped: Counter,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SpanFile {
    /// Opens the file for appending and starts its writer. `dropped` counts spans that did not fit.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(
        path: &Path,
        service: &'static str,
        queue: usize,
        dropped: Counter,
    ) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (sender, receiver) = sync_channel(queue);
        let writer = std::thread::Builder::new()
            .name("span-file".to_owned())
            .spawn(move || write_all(file, service, &receiver))?;
        Ok(Self {
            queue: sender,
            dropped,
            writer: Mutex::new(Some(writer)),
        })
    }
}

impl SpanProcessor for SpanFile {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        // A full queue drops the span: telemetry never waits.
        match self.queue.try_send(Item::Span(Box::new(span))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.inc();
            }
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        let (done, wait) = sync_channel(1);
        self.queue
            .send(Item::Flush(done))
            .map_err(|_| OTelSdkError::AlreadyShutdown)?;
        let limit = Duration::from_secs(5);
        wait.recv_timeout(limit)
            .map_err(|_| OTelSdkError::Timeout(limit))
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else {
            return Err(OTelSdkError::AlreadyShutdown);
        };
        // The writer drains what is queued before it sees the end; a file does not hang.
        let ended = self.queue.send(Item::End).is_ok() && writer.join().is_ok();
        if ended {
            Ok(())
        } else {
            Err(OTelSdkError::InternalFailure("span writer died".into()))
        }
    }
}

fn write_all(mut file: File, service: &str, queue: &Receiver<Item>) {
    let mut lines = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        let mut count = 0;
        let mut waiting = Vec::new();
        let mut ended = false;
        while let Some(item) = next.take() {
            match item {
                Item::Span(span) => {
                    append(&mut lines, service, &span);
                    count += 1;
                }
                Item::Flush(done) => waiting.push(done),
                Item::End => ended = true,
            }
            if !ended && count < BATCH_MAX {
                next = queue.try_recv().ok();
            }
        }
        // A full disk loses spans, not pods.
        let written = file.write_all(&lines).is_ok();
        lines.clear();
        for done in waiting {
            match done.try_send(()) {
                // Nobody listens any more: then nobody needs to know.
                Ok(()) | Err(_) => {}
            }
        }
        if ended || !written {
            return;
        }
    }
}

fn append(lines: &mut Vec<u8>, service: &str, span: &SpanData) {
    let attributes: Map<String, serde_json::Value> = span
        .attributes
        .iter()
        .map(|pair| (pair.key.as_str().to_owned(), to_json(&pair.value)))
        .collect();
    let linked: Vec<serde_json::Value> = span
        .links
        .iter()
        .map(|link| {
            json!({
                "trace_id": link.span_context.trace_id().to_string(),
                "span_id": link.span_context.span_id().to_string(),
            })
        })
        .collect();
    let parent = match span.parent_span_id {
        SpanId::INVALID => String::new(),
        id => id.to_string(),
    };
    let status = match &span.status {
        Status::Unset => "unset",
        Status::Ok => "ok",
        Status::Error { .. } => "error",
    };
    let line = json!({
        "name": span.name,
        "trace_id": span.span_context.trace_id().to_string(),
        "span_id": span.span_context.span_id().to_string(),
        "parent_span_id": parent,
        "service": service,
        "kind": format!("{:?}", span.span_kind).to_lowercase(),
        "start_unix_nano": nanos(span.start_time),
        "end_unix_nano": nanos(span.end_time),
        "status": status,
        "attributes": attributes,
        "links": linked,
    });
    // Writing to memory does not fail.
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n');
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::String(_) | Value::Array(_) => json!(value.as_str()),
        _ => serde_json::Value::Null,
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
