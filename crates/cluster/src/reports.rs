//! What a node wants written into the API server: said to the control plane, which may write it.
//!
//! Nobody waits for this. The report of the node is one state of which only the last counts; annotations and events
//! wait in a short queue whose oldest goes when it is full, which a metric counts. While the control plane is away
//! everything waits.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh::backoff::{Backoff, Params};
use mesh::client::{Channel, Outcome, outcome};
use mesh::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use proto::control::v1::node_reports_client::NodeReportsClient;
use proto::control::v1::{
    AnnotatePodRequest, NodeObject, PodObject, PostEventRequest, ReportNodeRequest,
    post_event_request,
};
use rand::RngExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Annotations and events that may wait.
pub const QUEUE_MAX: usize = 512;
/// How often one note is tried that the control plane answers with "not now".
const TRIES_MAX: u32 = 8;
/// Time between two reports of a state that does not change; drawn from this and a quarter more.
const SAY_AGAIN: Duration = Duration::from_mins(5);
/// The same while the node leaves, when somebody waits for it.
const SAY_AGAIN_LEAVING: Duration = Duration::from_secs(10);
/// The same after it was not taken.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// Changes of the state within this time are one report.
const GATHER: Duration = Duration::from_millis(500);
/// Pauses while the control plane is away.
const PAUSES: Params = Params {
    first_ms: 500,
    max_ms: 30_000,
};

/// An annotation or an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// Of a pod.
    Annotation(AnnotatePodRequest),
    /// About a pod or the node.
    Event(PostEventRequest),
}

impl Note {
    /// A note in whose place this one stands: the same event again, or another annotation of the same pod.
    fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Annotation(new), Self::Annotation(old)) => {
                let keys = |one: &AnnotatePodRequest| -> BTreeSet<String> {
                    one.annotations.keys().cloned().collect()
                };
                new.uid == old.uid && keys(new) == keys(old)
            }
            (Self::Event(new), Self::Event(old)) => !new.key.is_empty() && new == old,
            (Self::Annotation(_), Self::Event(_)) | (Self::Event(_), Self::Annotation(_)) => false,
        }
    }

    const fn what(&self) -> &'static str {
        match self {
            Self::Annotation(_) => "annotation",
            Self::Event(_) => "event",
        }
    }
}

/// Whether an event is good or bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

impl Tone {
    fn text(self) -> String {
        match self {
            Self::Normal => "Normal".to_owned(),
            Self::Warning => "Warning".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

#[derive(Debug, Default)]
struct Metrics {
    sent: Family<What, Counter<u64, AtomicU64>>,
    failures: Family<What, Counter<u64, AtomicU64>>,
    dropped: Family<What, Counter<u64, AtomicU64>>,
    waiting: Gauge,
}

impl Metrics {
    fn register(&self, registry: &Registry) {
        registry.register(
            "control_sent",
            "reports, annotations and events that the control plane took",
            self.sent.clone(),
        );
        registry.register(
            "control_failures",
            "calls of the control plane that failed",
            self.failures.clone(),
        );
        registry.register(
            "control_dropped",
            "annotations and events that were given up: the queue was full, or the control plane refused them",
            self.dropped.clone(),
        );
        registry.register(
            "control_waiting",
            "annotations and events that wait for the control plane",
            self.waiting.clone(),
        );
    }
}

#[derive(Debug)]
struct Queued {
    number: u64,
    tries: u32,
    note: Note,
}

#[derive(Debug)]
struct Shared {
    component: &'static str,
    node: watch::Sender<Option<ReportNodeRequest>>,
    queue: Mutex<(u64, VecDeque<Queued>)>,
    nudge: Notify,
    metrics: Metrics,
}

/// Takes what is to be said; never waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reports {
    shared: Arc<Shared>,
}

impl Reports {
    /// For this component (`node-agent`, `policy-agent`), with its metrics.
    pub fn new(component: &'static str, registry: &Registry) -> Self {
        let shared = Shared {
            component,
            node: watch::Sender::new(None),
            queue: Mutex::default(),
            nudge: Notify::new(),
            metrics: Metrics::default(),
        };
        shared.metrics.register(registry);
        Self {
            shared: Arc::new(shared),
        }
    }

    fn queue(&self) -> MutexGuard<'_, (u64, VecDeque<Queued>)> {
        let queue = self.shared.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole of what the node says of itself now; who speaks is filled in.
    pub fn report(&self, report: ReportNodeRequest) {
        let report = ReportNodeRequest {
            component: self.shared.component.to_owned(),
            ..report
        };
        self.shared.node.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&report);
            if changed {
                *old = Some(report);
            }
            changed
        });
    }

    /// Annotations of a pod; nothing without a uid, by which the pod is known again.
    pub fn annotate(&self, request: AnnotatePodRequest) {
        if !request.uid.is_empty() {
            self.put(Note::Annotation(request));
        }
    }

    /// An event about a pod.
    pub fn pod_event(&self, pod: PodObject, tone: Tone, reason: &str, message: String) {
        if pod.uid.is_empty() {
            return;
        }
        let key = format!("{reason}/{}", pod.uid);
        self.event(
            post_event_request::About::Pod(pod),
            tone,
            reason,
            message,
            key,
        );
    }

    /// An event about our node; `key` says which one counts up.
    pub fn node_event(&self, tone: Tone, reason: &str, message: String, key: String) {
        let about = post_event_request::About::Node(NodeObject {});
        self.event(about, tone, reason, message, key);
    }

    fn event(
        &self,
        about: post_event_request::About,
        tone: Tone,
        reason: &str,
        message: String,
        key: String,
    ) {
        self.put(Note::Event(PostEventRequest {
            about: Some(about),
            r#type: tone.text(),
            reason: reason.to_owned(),
            message,
            key,
            component: self.shared.component.to_owned(),
        }));
    }

    fn put(&self, note: Note) {
        let mut queue = self.queue();
        let (numbers, waiting) = &mut *queue;
        waiting.retain(|old| !note.replaces(&old.note));
        if waiting.len() >= QUEUE_MAX
            && let Some(oldest) = waiting.pop_front()
        {
            count(&self.shared.metrics.dropped, oldest.note.what());
        }
        *numbers = numbers.wrapping_add(1);
        waiting.push_back(Queued {
            number: *numbers,
            tries: 0,
            note,
        });
        self.shared.metrics.waiting.set(length(waiting));
        drop(queue);
        self.shared.nudge.notify_one();
    }

    /// The oldest note that waits.
    fn oldest(&self) -> Option<(u64, Note)> {
        let queue = self.queue();
        let oldest = queue.1.front()?;
        Some((oldest.number, oldest.note.clone()))
    }

    /// Takes a note out, if it still waits.
    fn done(&self, number: u64) {
        let mut queue = self.queue();
        queue.1.retain(|queued| queued.number != number);
        self.shared.metrics.waiting.set(length(&queue.1));
    }

    /// Puts a note that can not be taken now behind the others. False when it was tried often enough, and is gone.
    fn later(&self, number: u64) -> bool {
        let mut queue = self.queue();
        let place = queue.1.iter().position(|queued| queued.number == number);
        let Some(mut queued) = place.and_then(|place| queue.1.remove(place)) else {
            return true;
        };
        queued.tries = queued.tries.saturating_add(1);
        let stays = queued.tries < TRIES_MAX;
        if stays {
            queue.1.push_back(queued);
        }
        self.shared.metrics.waiting.set(length(&queue.1));
        stays
    }

    /// Says it all over `channel`, until `drain` is cancelled.
    pub async fn run(self, channel: Channel, drain: CancellationToken) {
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            () = self.speak(channel) => {}
        }
    }

    async fn speak(&self, channel: Channel) {
        let mut client = NodeReportsClient::new(channel);
        let mut node = self.shared.node.subscribe();
        let mut backoff = Backoff::try_new(PAUSES).unwrap_or_default();
        // When the state is said although it is the same.
        let mut again = Instant::now();
        loop {
            let changed = node.has_changed().unwrap_or(false);
            let due = changed || Instant::now() >= again;
            let report = due.then(|| node.borrow_and_update().clone()).flatten();
            let heard = if let Some(report) = report {
                let leaving = report.left || !report.waits_for.is_empty();
                let heard = client.report_node(report).await.map(drop);
                let judged = self.judge("node", &heard);
                let pause = match judged {
                    Heard::Taken if !leaving => spread(SAY_AGAIN),
                    Heard::Taken | Heard::Refused => spread(SAY_AGAIN_LEAVING),
                    // What waits in the queue has its turn in between.
                    Heard::NotNow | Heard::Away => TRY_AGAIN,
                };
                again = Instant::now() + pause;
                judged
            } else if let Some((number, note)) = self.oldest() {
                let heard = match note.clone() {
                    Note::Annotation(request) => client.annotate_pod(request).await.map(drop),
                    Note::Event(request) => client.post_event(request).await.map(drop),
                };
                let judged = self.judge(note.what(), &heard);
                let given_up = match judged {
                    Heard::Taken | Heard::Away => false,
                    Heard::Refused => true,
                    Heard::NotNow => !self.later(number),
                };
                if matches!(judged, Heard::Taken | Heard::Refused) {
                    self.done(number);
                }
                if given_up {
                    count(&self.shared.metrics.dropped, note.what());
                }
                judged
            } else {
                tokio::select! {
                    () = self.shared.nudge.notified() => {}
                    // The sender is ours.
                    _ = node.changed() => {
                        node.mark_changed();
                        tokio::time::sleep(GATHER).await;
                    }
                    () = tokio::time::sleep_until(again) => {
                        // Nothing to say again before the first report.
                        if node.borrow().is_none() {
                            again = Instant::now() + SAY_AGAIN;
                        }
                    }
                }
                continue;
            };
            match heard {
                Heard::Taken => backoff.reset(),
                Heard::Refused => {}
                Heard::NotNow | Heard::Away => tokio::time::sleep(backoff.next_wait()).await,
            }
        }
    }

    fn judge(&self, what: &'static str, answer: &Result<(), Status>) -> Heard {
        let Err(status) = answer else {
            count(&self.shared.metrics.sent, what);
            return Heard::Taken;
        };
        count(&self.shared.metrics.failures, what);
        let heard = Heard::of(status);
        match heard {
            Heard::Taken | Heard::NotNow | Heard::Away => {
                tracing::debug!(
                    what,
                    error = status.message(),
                    "not told to the control plane yet"
                );
            }
            Heard::Refused => {
                tracing::warn!(
                    what,
                    error = status.message(),
                    "the control plane refuses what we say"
                );
            }
        }
        heard
    }
}

fn count(family: &Family<What, Counter<u64, AtomicU64>>, what: &'static str) {
    family.get_or_create(&What { what }).inc();
}

fn length(waiting: &VecDeque<Queued>) -> i64 {
    i64::try_from(waiting.len()).unwrap_or(i64::MAX)
}

fn spread(time: Duration) -> Duration {
    time + rand::rng().random_range(Duration::ZERO..=time / 4)
}

/// What became of something that was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It was taken.
    Taken,
    /// It will not be taken, however often it is said.
    Refused,
    /// The control plane is there and can not take it now.
    NotNow,
    /// Nobody answers.
    Away,
}

impl Heard {
    fn of(status: &Status) -> Self {
        if outcome(status) != Outcome::Answered {
            return Self::Away;
        }
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::DataLoss => Self::Refused,
            Code::Ok => Self::Taken,
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Internal => Self::NotNow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> (Reports, Registry) {
        let registry = Registry::new();
        (Reports::new("node-agent", &registry), registry)
    }

    fn pod(uid: &str) -> PodObject {
        PodObject {
            namespace: "n".to_owned(),
            name: "a".to_owned(),
            uid: uid.to_owned(),
        }
    }

    #[test]
    fn queue_that_is_full_loses_its_oldest_and_says_so() {
        let (reports, registry) = reports();
        for n in 0..=QUEUE_MAX {
            reports.pod_event(
                pod(&n.to_string()),
                Tone::Normal,
                "AllocIPSucceed",
                String::new(),
            );
        }

        let (_, oldest) = reports.oldest().unwrap();
        let Note::Event(event) = oldest else {
            panic!("{oldest:?}")
        };
        assert_eq!(event.key, "AllocIPSucceed/1");
        let text = registry.encode();
        assert!(
            text.contains(r#"terway_control_dropped_total{what="event"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(&format!("terway_control_waiting {QUEUE_MAX}")),
            "{text}"
        );
    }

    #[test]
    fn newer_annotation_of_a_pod_stands_for_the_older_one() {
        let (reports, _registry) = reports();
        for ip in ["10.0.0.1", "10.0.0.2"] {
            reports.annotate(AnnotatePodRequest {
                uid: "u".to_owned(),
                annotations: [("k8s.aliyun.com/pod-ips".to_owned(), ip.to_owned())].into(),
                ..AnnotatePodRequest::default()
            });
        }
        // Without a uid nobody knows whose it is.
        reports.annotate(AnnotatePodRequest::default());

        assert_eq!(reports.queue().1.len(), 1);
        let (_, Note::Annotation(kept)) = reports.oldest().unwrap() else {
            panic!()
        };
        assert_eq!(kept.annotations["k8s.aliyun.com/pod-ips"], "10.0.0.2");
    }

    #[test]
    fn note_that_is_never_taken_is_given_up() {
        let (reports, _registry) = reports();
        reports.pod_event(pod("u"), Tone::Warning, "AllocIPFailed", String::new());
        let (number, _) = reports.oldest().unwrap();

        let tries = (1..100).take_while(|_| reports.later(number)).count();

        assert_eq!(u32::try_from(tries).unwrap() + 1, TRIES_MAX);
        assert!(reports.oldest().is_none());
    }
}
