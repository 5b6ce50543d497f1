//! Logs and traces.
//!
//! Spans go to an OTLP/gRPC collector, to a file of JSON lines, to both, or nowhere; the context
//! travels in every case, so that a service without an exporter does not cut a trace. Queues are
//! bounded and nothing here ever waits: spans that do not fit are dropped.

pub mod span_file;
pub mod traceparent;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider,
};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::metrics;
use crate::telemetry::span_file::SpanFile;
pub use crate::telemetry::traceparent::{
    HEADER, add_link, current_traceparent, link, recorded_trace_id, set_parent, traceparent_of,
};

/// Longest wait for spans to leave when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the collector gets a batch.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// Logs and traces, as a configuration holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Form of log lines on standard error.
    pub log_format: LogFormat,
    /// Directives such as `info` or `warn,mesh=debug`; the admin port can change them.
    pub log_filter: String,
    /// `http://host:port` of an OTLP/gRPC collector.
    pub otlp_endpoint: Option<String>,
    /// File that gets one JSON object per finished span.
    pub span_file: Option<PathBuf>,
    /// Share of new traces that are recorded, 0 to 1. A caller's decision is always followed.
    pub sample_ratio: f64,
    /// Finished spans that may wait for each exporter; more are dropped.
    pub queue: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            span_file: None,
            sample_ratio: 1.0,
            queue: 8192,
        }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object per line.
    Json,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `sample_ratio` is not a share.
    #[error("sample_ratio must be from 0 to 1, not {ratio}")]
    BadRatio {
        /// As configured.
        ratio: f64,
    },
    /// `queue` has no room.
    #[error("queue must be 1 or more")]
    NoQueue,
    /// `log_filter` cannot be parsed.
    #[error("log filter {text:?} can not be parsed")]
    BadFilter {
        /// As given.
        text: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The file for spans cannot be opened.
    #[error("open span file {}", path.display())]
    SpanFile {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The exporter refuses its endpoint.
    #[error("make an exporter to {endpoint:?}")]
    Otlp {
        /// As configured.
        endpoint: String,
        /// What the library said.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Another subscriber is installed.
    #[error("telemetry is installed already")]
    Installed,
    /// The filter is gone, since the subscriber is.
    #[error("telemetry has ended")]
    Ended,
}

impl Params {
    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`TelemetryError`] naming the value.
    pub fn check(&self) -> Result<(), TelemetryError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(TelemetryError::BadRatio {
                ratio: self.sample_ratio,
            });
        }
        if self.queue == 0 {
            return Err(TelemetryError::NoQueue);
        }
        parse_filter(&self.log_filter).map(drop)
    }
}

/// Telemetry of the process. [`Telemetry::flush`] it at the end.
#[derive(Debug)]
#[must_use = "spans that were not flushed are lost"]
pub struct Telemetry {
    provider: SdkTracerProvider,
    filter: LogFilter,
    dropped: Counter,
}

impl Telemetry {
    /// Installs logs and traces for the process. Needs a tokio runtime when there is a collector.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn install(params: &Params, service: &'static str) -> Result<Self, TelemetryError> {
        let (subscriber, telemetry) = build(params, service)?;
        tracing::subscriber::set_global_default(subscriber)
            .map_err(|_| TelemetryError::Installed)?;
        Ok(telemetry)
    }

    /// The handle that changes the log filter.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Shows among the metrics how many spans did not fit into the file's queue.
    pub fn register(&self, registry: &metrics::Registry) {
        registry.register(
            "telemetry_spans_dropped",
            "spans that did not fit into the queue of the span file",
            self.dropped.clone(),
        );
    }

    /// Sends what waits, for at most 3 s.
    pub async fn flush(self) {
        let provider = self.provider;
        // The exporter needs the runtime to make progress, so its blocking end runs elsewhere.
        let ended =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "spans were lost at the end");
        }
    }
}

/// Makes the subscriber without installing it: for tests, and for programs that add layers.
///
/// # Errors
/// [`TelemetryError`].
pub fn build(
    params: &Params,
    service: &'static str,
) -> Result<(impl Subscriber + Send + Sync + use<>, Telemetry), TelemetryError> {
    params.check()?;
    let (filter, handle) = reload::Layer::new(parse_filter(&params.log_filter)?);
    let dropped = Counter::default();
    let provider = provider(params, service, &dropped)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(service))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(filter_fn(is_traced));
    let subscriber = Registry::default()
        .with(spans)
        .with(log_layer(params.log_format).with_filter(filter));
    let filter = LogFilter::of(handle);
    Ok((
        subscriber,
        Telemetry {
            provider,
            filter,
            dropped,
        },
    ))
}

fn log_layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// Our spans. Libraries below gRPC would trace the exporter's own calls, which make further spans.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    const NOISY: [&str; 7] = [
        "h2",
        "hyper",
        "tonic",
        "tower",
        "rustls",
        "opentelemetry",
        "axum",
    ];
    metadata.is_span()
        && *metadata.level() <= Level::INFO
        && !NOISY
            .iter()
            .any(|noisy| metadata.target().starts_with(noisy))
}

fn provider(
    params: &Params,
    service: &'static str,
    dropped: &Counter,
) -> Result<SdkTracerProvider, TelemetryError> {
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", service))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(params.sample_ratio)));
    let mut builder = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(sampler);
    if let Some(path) = &params.span_file {
        let file =
            SpanFile::open(path, service, params.queue, dropped.clone()).map_err(|source| {
                TelemetryError::SpanFile {
                    path: path.clone(),
                    source,
                }
            })?;
        builder = builder.with_span_processor(file);
    }
    if let Some(endpoint) = &params.otlp_endpoint {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(FLUSH_TIMEOUT)
            .build()
            .map_err(|source| TelemetryError::Otlp {
                endpoint: endpoint.clone(),
                source,
            })?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(params.queue)
            .with_scheduled_delay(EXPORT_EVERY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batch)
            .build();
        builder = builder.with_span_processor(processor);
    }
    Ok(builder.build())
}

fn parse_filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| TelemetryError::BadFilter {
            text: text.to_owned(),
            source,
        })
}

/// Changes which log lines are shown, while the process runs.
#[derive(Clone)]
pub struct LogFilter {
    get: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    set: Arc<dyn Fn(EnvFilter) -> Option<()> + Send + Sync>,
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogFilter").field(&self.get()).finish()
    }
}

impl LogFilter {
    fn of<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> Self {
        let reader = handle.clone();
        Self {
            get: Arc::new(move || reader.with_current(ToString::to_string).ok()),
            set: Arc::new(move |filter| handle.reload(filter).ok()),
        }
    }

    /// The directives in force; empty after telemetry has ended.
    pub fn get(&self) -> String {
        (self.get)().unwrap_or_default()
    }

    /// Replaces the directives.
    ///
    /// # Errors
    /// [`TelemetryError::BadFilter`]; the directives before stay.
    pub fn set(&self, text: &str) -> Result<(), TelemetryError> {
        (self.set)(parse_filter(text)?).ok_or(TelemetryError::Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::{Params, add_link, build, current_traceparent, set_parent};

    const REMOTE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn spans(params: &Params, record: impl FnOnce()) -> Vec<serde_json::Value> {
        let (subscriber, telemetry) = build(params, "tester").unwrap();
        tracing::subscriber::with_default(subscriber, record);
        telemetry.provider.shutdown().unwrap();
        std::fs::read_to_string(params.span_file.as_ref().unwrap())
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn to_file(dir: &tempfile::TempDir) -> Params {
        Params {
            span_file: Some(dir.path().join("spans.jsonl")),
            ..Params::default()
        }
    }

    #[test]
    fn traceparent_round_trips_through_a_span() {
        let dir = tempfile::tempdir().unwrap();
        let mut inside = None;

        let spans = spans(&to_file(&dir), || {
            let span = tracing::info_span!("agent.add", eni.id = "eni-1");
            set_parent(&span, REMOTE);
            add_link(
                &span,
                "00-11111111111111111111111111111111-2222222222222222-01",
            );
            let _entered = span.enter();
            inside = current_traceparent();
        });

        let [span] = spans.as_slice() else {
            panic!("{spans:?}")
        };
        assert_eq!(span["name"], "agent.add");
        assert_eq!(span["service"], "tester");
        assert_eq!(span["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span["parent_span_id"], "b7ad6b7169203331");
        assert_eq!(span["attributes"]["eni.id"], "eni-1");
        assert_eq!(span["links"][0]["span_id"], "2222222222222222");
        let id = span["span_id"].as_str().unwrap();
        assert_eq!(
            inside.unwrap(),
            format!("00-0af7651916cd43dd8448eb211c80319c-{id}-01")
        );
        assert!(span["end_unix_nano"].as_u64() >= span["start_unix_nano"].as_u64());
    }

    #[test]
    fn child_span_belongs_to_its_parents_trace() {
        let dir = tempfile::tempdir().unwrap();

        let spans = spans(&to_file(&dir), || {
            let _outer = tracing::info_span!("outer").entered();
            let _inner = tracing::info_span!("inner").entered();
        });

        assert_eq!(spans[0]["name"], "inner");
        assert_eq!(spans[0]["parent_span_id"], spans[1]["span_id"]);
        assert_eq!(spans[0]["trace_id"], spans[1]["trace_id"]);
        assert_eq!(spans[1]["parent_span_id"], "");
    }

    #[test]
    fn ratio_of_zero_records_only_what_the_caller_records() {
        let dir = tempfile::tempdir().unwrap();
        let params = Params {
            sample_ratio: 0.0,
            ..to_file(&dir)
        };
        let mut unsampled = None;

        let spans = spans(&params, || {
            tracing::info_span!("new").in_scope(|| unsampled = current_traceparent());
            let asked_for = tracing::info_span!("asked for");
            set_parent(&asked_for, REMOTE);
            drop(asked_for);
        });

        let names: Vec<_> = spans.iter().map(|span| span["name"].clone()).collect();
        assert_eq!(names, ["asked for"]);
        assert!(unsampled.unwrap().ends_with("-00"));
    }

    #[test]
    fn filter_changes_while_the_process_runs() {
        let (_subscriber, telemetry) = build(&Params::default(), "tester").unwrap();
        let filter = telemetry.filter();

        filter.set("warn,mesh=debug").unwrap();
        let refused = filter.set("mesh=loud");

        assert!(refused.unwrap_err().to_string().contains("mesh=loud"));
        assert!(filter.get().contains("mesh=debug"), "{}", filter.get());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for params in [
            Params {
                sample_ratio: 1.5,
                ..Params::default()
            },
            Params {
                sample_ratio: f64::NAN,
                ..Params::default()
            },
            Params {
                queue: 0,
                ..Params::default()
            },
            Params {
                log_filter: "a=b=c".to_owned(),
                ..Params::default()
            },
        ] {
            assert!(params.check().is_err(), "{params:?}");
        }
    }
}
