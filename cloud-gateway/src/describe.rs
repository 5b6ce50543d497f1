//! Reads of ENIs, merged: everybody who asks at about the same time shares one call.
//!
//! A read is answered by a call that was sent after the read began. Waiting for a state is a row of reads; their
//! times are drawn to common ticks, so that one call serves all who wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_api::action::{Action, MAX_DESCRIBE_ENIS_PAGE, MAX_DESCRIBE_IDS};
use ecs_api::model::eni::{DescribeNetworkInterfaces, Eni};
use mesh::tasks::Tasks;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, Span, info_span};
use types::cloud::EniId;

use crate::call::{CallError, Caller, Terms};
use crate::limits::Class;
use crate::metrics::Metrics;

/// Pages of one list. Reason: 100,000 ENIs are more than an account has in a region; bounds a cloud that never
/// says that a page is the last.
const MAX_PAGES: u32 = 200;

/// How reads are merged and repeated.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a read waits for company.
    pub window: Duration,
    /// Common ticks of those who wait for a state.
    pub tick: Duration,
    /// Wait before the second look.
    pub first: Duration,
    /// Longest wait between two looks.
    pub max: Duration,
    /// Longest time for one merged read.
    pub timeout: Duration,
}

/// ENIs by id; those that do not exist are absent.
pub type Rows = BTreeMap<EniId, Eni>;

type Shared = Result<Arc<Rows>, CallError>;

/// A read that has not been sent yet.
#[derive(Debug)]
struct Batch {
    ids: BTreeSet<EniId>,
    class: Class,
    spans: Vec<Span>,
    done: watch::Receiver<Option<Shared>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_number: u64,
    /// The batch that others can join.
    open: Option<u64>,
    batches: HashMap<u64, Batch>,
}

/// Reads ENIs.
#[derive(Debug, Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    caller: Arc<Caller>,
    settings: Settings,
    waiting: Mutex<Waiting>,
    tasks: Tasks,
    started: Instant,
    metrics: Arc<Metrics>,
}

impl Reader {
    /// A reader whose merged calls run among `tasks`.
    pub fn new(
        caller: Arc<Caller>,
        settings: Settings,
        tasks: Tasks,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                caller,
                settings,
                waiting: Mutex::new(Waiting::default()),
                tasks,
                started: Instant::now(),
                metrics,
            }),
        }
    }

    /// Reads the ENIs with these ids.
    pub async fn read(&self, ids: &[EniId], terms: &Terms) -> Result<Rows, CallError> {
        let mut rows = Rows::new();
        let mut waiting = Vec::new();
        for chunk in ids.chunks(MAX_DESCRIBE_IDS) {
            waiting.push((chunk, self.join(chunk, terms.class)));
        }
        for (chunk, mut done) in waiting {
            let shared = tokio::time::timeout_at(terms.deadline, done.wait_for(Option::is_some))
                .await
                .map_err(|_| late())?
                .map_err(|_| died())?
                .clone();
            let all = shared.unwrap_or_else(|| Err(died()))?;
            rows.extend(
                chunk
                    .iter()
                    .filter_map(|id| all.get_key_value(id))
                    .map(|(id, eni)| (id.clone(), eni.clone())),
            );
        }
        Ok(rows)
    }

    /// Reads one ENI.
    pub async fn read_one(&self, id: &EniId, terms: &Terms) -> Result<Option<Eni>, CallError> {
        let mut rows = self.read(std::slice::from_ref(id), terms).await?;
        Ok(rows.remove(id))
    }

    /// How long the `n`-th look (from 0) should wait: growing, and to a common tick.
    pub fn wait_before(&self, n: u32) -> Duration {
        let settings = &self.inner.settings;
        let factor = 1.5_f64.powi(i32::try_from(n.min(32)).unwrap_or(32));
        let wait = settings
            .first
            .mul_f64(factor.min(1e6))
            .min(settings.max)
            .max(settings.tick);
        to_tick(self.inner.started.elapsed(), wait, settings.tick)
    }

    /// Lists by filters, all pages.
    pub async fn list(
        &self,
        filter: &DescribeNetworkInterfaces,
        terms: &Terms,
    ) -> Result<Vec<Eni>, CallError> {
        let mut request = DescribeNetworkInterfaces {
            max_results: Some(MAX_DESCRIBE_ENIS_PAGE),
            next_token: None,
            ..filter.clone()
        };
        let mut enis = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.inner.caller.call(&request, terms).await?.reply;
            enis.extend(page.enis);
            match page.next_token {
                Some(token) if !token.is_empty() => request.next_token = Some(token),
                Some(_) | None => return Ok(enis),
            }
        }
        Err(CallError::Unknown {
            what: format!("the list of ENIs does not end within {MAX_PAGES} pages"),
        })
    }

    fn join(&self, ids: &[EniId], class: Class) -> watch::Receiver<Option<Shared>> {
        let mut waiting = self.inner.waiting();
        let open = waiting.open;
        if let Some(batch) = open.and_then(|number| waiting.batches.get_mut(&number)) {
            let more = ids.iter().filter(|id| !batch.ids.contains(*id)).count();
            // One that is more urgent than the batch would wait in its queue.
            if batch.class <= class && batch.ids.len().saturating_add(more) <= MAX_DESCRIBE_IDS {
                batch.ids.extend(ids.iter().cloned());
                batch.spans.push(Span::current());
                return batch.done.clone();
            }
        }
        let (sender, done) = watch::channel(None);
        let number = waiting.next_number;
        waiting.next_number = number.wrapping_add(1);
        waiting.open = Some(number);
        waiting.batches.insert(
            number,
            Batch {
                ids: ids.iter().cloned().collect(),
                class,
                spans: vec![Span::current()],
                done: done.clone(),
            },
        );
        drop(waiting);
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn_once("describe", async move {
            let shared = inner.run(number, class).await;
            sender.send_replace(Some(shared));
        });
        done
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for company and for the budget, then reads for all who came meanwhile.
    async fn run(&self, number: u64, class: Class) -> Shared {
        tokio::time::sleep(self.settings.window).await;
        let terms = Terms::read(class, Instant::now() + self.settings.timeout);
        let admitted = self
            .caller
            .admit(Action::DescribeNetworkInterfaces, &terms)
            .await;
        let Some(batch) = self.take(number) else {
            return Err(died());
        };
        admitted?;
        self.metrics.merged(batch.ids.len());
        let span = merged_span(&batch);
        let request = DescribeNetworkInterfaces {
            enis: batch.ids.into_iter().collect(),
            max_results: Some(MAX_DESCRIBE_ENIS_PAGE),
            ..DescribeNetworkInterfaces::default()
        };
        let answer = self
            .caller
            .call_admitted(&request, &terms)
            .instrument(span)
            .await?;
        let rows = answer.reply.enis.into_iter();
        Ok(Arc::new(rows.map(|eni| (eni.id.clone(), eni)).collect()))
    }

    fn take(&self, number: u64) -> Option<Batch> {
        let mut waiting = self.waiting();
        if waiting.open == Some(number) {
            waiting.open = None;
        }
        waiting.batches.remove(&number)
    }
}

/// The read belongs to the trace of the first who asked; the others are linked.
fn merged_span(batch: &Batch) -> Span {
    let mut spans = batch.spans.iter();
    let first = spans.next().cloned().unwrap_or_else(Span::none);
    let span = info_span!(
        parent: &first,
        "gw.describe",
        gw.merged_ids = batch.ids.len(),
        gw.merged_readers = batch.spans.len(),
    );
    for other in spans {
        span.follows_from(other);
    }
    span
}

/// Stretches `wait` so that it ends on a common tick.
fn to_tick(elapsed: Duration, wait: Duration, tick: Duration) -> Duration {
    let tick = tick.as_nanos().max(1);
    let end = elapsed.saturating_add(wait).as_nanos();
    let rest = match end % tick {
        0 => 0,
        over => tick.saturating_sub(over),
    };
    wait.saturating_add(Duration::from_nanos(u64::try_from(rest).unwrap_or(0)))
}

fn late() -> CallError {
    CallError::NotSent {
        what: "no time left to read".to_owned(),
    }
}

fn died() -> CallError {
    CallError::NotSent {
        what: "the merged read ended without an answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(500);

    #[test]
    fn waits_that_begin_at_different_times_end_on_the_same_tick() {
        let ends = [0, 120, 499].map(|start| {
            let start = Duration::from_millis(start);
            start + to_tick(start, TICK, TICK)
        });

        assert_eq!(ends, [500, 1_000, 1_000].map(Duration::from_millis));
    }

    #[test]
    fn wait_is_never_shortened() {
        for millis in (0..3_000).step_by(77) {
            let wait = Duration::from_millis(millis);

            assert!(to_tick(Duration::from_millis(13), wait, TICK) >= wait);
        }
    }
}
