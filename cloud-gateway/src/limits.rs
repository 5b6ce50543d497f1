//! Who may call the cloud next: one budget per action, shared by everything this gateway does in its account and
//! region.
//!
//! Waiting calls are served by class, then by arrival. A call that can not be served before its deadline is
//! refused at once, so that its caller learns early and the queue stays short.

pub mod bucket;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_api::action::Action;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits::bucket::{Bucket, Monotonic};
use crate::metrics::Metrics;

/// Who goes first when a budget is short. Lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Fixed addresses and moves: a pod waits, and only this address will do.
    Fixed,
    /// A pod waits.
    PodWaiting,
    /// The pool of a node is below its target.
    Refill,
    /// Addresses go back.
    Release,
    /// Comparison with the cloud.
    Reconcile,
}

/// A call was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoBudget {
    /// The budget allows the call only after its deadline.
    #[error("the budget of the action allows the call in {retry_after:?}, after its deadline")]
    TooLate {
        /// When there may be room.
        retry_after: Duration,
    },
    /// As many calls wait as may wait.
    #[error("{waiting} calls of the action are waiting already")]
    Full {
        /// How many wait.
        waiting: usize,
        /// When there may be room.
        retry_after: Duration,
    },
}

/// Calls per minute by action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas {
    /// Quota by action; an action that is absent has the documented default.
    pub per_minute: BTreeMap<Action, u32>,
    /// Thousandths of each quota that are ours to use.
    pub share_permille: u32,
}

impl Quotas {
    /// Calls per minute that are ours.
    pub fn of(&self, action: Action) -> u32 {
        let whole = self
            .per_minute
            .get(&action)
            .copied()
            .unwrap_or_else(|| action.default_quota_per_minute());
        let ours = u64::from(whole).saturating_mul(u64::from(self.share_permille)) / 1_000;
        u32::try_from(ours).unwrap_or(u32::MAX)
    }
}

/// The budgets of all actions in one account and region.
#[derive(Debug)]
pub struct Budgets {
    lanes: BTreeMap<Action, Lane>,
    max_waiting: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Lane {
    state: Mutex<LaneState>,
    changed: Notify,
}

#[derive(Debug)]
struct LaneState {
    bucket: Bucket<Monotonic>,
    waiting: BTreeSet<Ticket>,
    next_number: u64,
}

type Ticket = (Class, u64);

impl LaneState {
    /// How many of the waiting go before a ticket; before a newcomer of `class` if there is no ticket.
    fn ahead_of(&self, class: Class, ticket: Option<Ticket>) -> usize {
        let mine = ticket.unwrap_or((class, u64::MAX));
        self.waiting.range(..mine).count()
    }
}

/// Takes its ticket out of the queue again, also when the waiting future is dropped.
struct Queued<'a> {
    budgets: &'a Budgets,
    action: Action,
    lane: &'a Lane,
    ticket: Ticket,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.lane.state);
        state.waiting.remove(&self.ticket);
        self.budgets.report(self.action, &mut state);
        drop(state);
        self.lane.changed.notify_waiters();
    }
}

impl Budgets {
    /// Full budgets. At most `max_waiting` calls wait per action.
    pub fn new(quotas: &Quotas, max_waiting: usize, metrics: Arc<Metrics>) -> Self {
        let clock = Monotonic::start();
        let lanes = Action::ALL
            .into_iter()
            .map(|action| {
                let state = LaneState {
                    bucket: Bucket::new(quotas.of(action), clock),
                    waiting: BTreeSet::new(),
                    next_number: 0,
                };
                let lane = Lane {
                    state: Mutex::new(state),
                    changed: Notify::new(),
                };
                (action, lane)
            })
            .collect();
        Self {
            lanes,
            max_waiting,
            metrics,
        }
    }

    /// Waits until the budget allows one call of `action`, and spends it.
    ///
    /// Dropping the future gives the place in the queue up.
    pub async fn acquire(
        &self,
        action: Action,
        class: Class,
        deadline: Instant,
    ) -> Result<(), NoBudget> {
        let Some(lane) = self.lanes.get(&action) else {
            return Ok(());
        };
        let mut queued: Option<Queued<'_>> = None;
        loop {
            let mut changed = pin!(lane.changed.notified());
            changed.as_mut().enable();
            let Some(wait) = self.attempt(action, lane, class, deadline, &mut queued)? else {
                return Ok(());
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// `None`: passed. `Some`: look again after this time, or when the queue changes.
    fn attempt<'a>(
        &'a self,
        action: Action,
        lane: &'a Lane,
        class: Class,
        deadline: Instant,
        queued: &mut Option<Queued<'a>>,
    ) -> Result<Option<Duration>, NoBudget> {
        let mut state = lock(&lane.state);
        let ahead = state.ahead_of(class, queued.as_ref().map(|queued| queued.ticket));
        if ahead == 0 && state.bucket.take().is_ok() {
            self.report(action, &mut state);
            return Ok(None);
        }
        let place = u64::try_from(ahead).unwrap_or(u64::MAX).saturating_add(1);
        let wait = state.bucket.wait_for(place);
        if wait > deadline.saturating_duration_since(Instant::now()) {
            return Err(NoBudget::TooLate { retry_after: wait });
        }
        if queued.is_none() {
            if state.waiting.len() >= self.max_waiting {
                return Err(NoBudget::Full {
                    waiting: state.waiting.len(),
                    retry_after: wait,
                });
            }
            let ticket = (class, state.next_number);
            state.next_number = state.next_number.saturating_add(1);
            state.waiting.insert(ticket);
            self.report(action, &mut state);
            *queued = Some(Queued {
                budgets: self,
                action,
                lane,
                ticket,
            });
        }
        Ok(Some(wait))
    }

    /// The cloud refused a call of `action` for its rate.
    pub fn throttled(&self, action: Action) {
        if let Some(lane) = self.lanes.get(&action) {
            let mut state = lock(&lane.state);
            state.bucket.throttled();
            self.report(action, &mut state);
        }
    }

    /// The state of the budgets: for people.
    pub fn dump(&self) -> serde_json::Value {
        let lanes = self.lanes.iter().map(|(action, lane)| {
            let mut state = lock(&lane.state);
            let budget = serde_json::json!({
                "waiting": state.waiting.len(),
                "calls_now": state.bucket.available(),
                "rate_permille": state.bucket.share_permille(),
            });
            (action.name().to_owned(), budget)
        });
        lanes.collect::<serde_json::Map<_, _>>().into()
    }

    fn report(&self, action: Action, state: &mut LaneState) {
        let tokens = state.bucket.available();
        self.metrics.budget(
            action,
            state.waiting.len(),
            tokens,
            state.bucket.share_permille(),
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: Action = Action::DescribeVSwitches;

    fn budgets(quota: u32, max_waiting: usize) -> Arc<Budgets> {
        let quotas = Quotas {
            per_minute: BTreeMap::from([(ACTION, quota)]),
            share_permille: 1_000,
        };
        Arc::new(Budgets::new(
            &quotas,
            max_waiting,
            Arc::new(Metrics::default()),
        ))
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[tokio::test(start_paused = true)]
    async fn call_within_the_burst_passes_at_once() {
        let budgets = budgets(20, 10);
        let start = Instant::now();

        for _ in 0..2 {
            budgets
                .acquire(ACTION, Class::Refill, in_a_minute())
                .await
                .unwrap();
        }

        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_can_not_pass_in_time_is_refused_at_once() {
        let budgets = budgets(20, 10);
        for _ in 0..2 {
            budgets
                .acquire(ACTION, Class::Refill, in_a_minute())
                .await
                .unwrap();
        }
        let start = Instant::now();

        let refused = budgets
            .acquire(ACTION, Class::Refill, start + Duration::from_secs(1))
            .await;

        assert!(
            matches!(refused, Err(NoBudget::TooLate { retry_after }) if retry_after > Duration::from_secs(3)),
            "{refused:?}"
        );
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_pod_goes_before_an_earlier_reconcile() {
        let budgets = budgets(20, 10);
        for _ in 0..2 {
            budgets
                .acquire(ACTION, Class::Refill, in_a_minute())
                .await
                .unwrap();
        }
        let late = async {
            budgets
                .acquire(ACTION, Class::Reconcile, in_a_minute())
                .await
                .unwrap();
            Instant::now()
        };
        let soon = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            budgets
                .acquire(ACTION, Class::PodWaiting, in_a_minute())
                .await
                .unwrap();
            Instant::now()
        };

        let (late, soon) = tokio::join!(late, soon);

        assert!(soon < late);
    }

    #[tokio::test(start_paused = true)]
    async fn queue_with_no_place_left_sheds_the_next_call() {
        let budgets = budgets(20, 1);
        for _ in 0..2 {
            budgets
                .acquire(ACTION, Class::Refill, in_a_minute())
                .await
                .unwrap();
        }
        let first = budgets.acquire(ACTION, Class::Refill, in_a_minute());
        let second = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            budgets.acquire(ACTION, Class::Refill, in_a_minute()).await
        };

        let (first, second) = tokio::join!(first, second);

        assert_eq!(first, Ok(()));
        assert!(
            matches!(second, Err(NoBudget::Full { waiting: 1, .. })),
            "{second:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn caller_that_goes_away_leaves_its_place() {
        let budgets = budgets(20, 1);
        for _ in 0..2 {
            budgets
                .acquire(ACTION, Class::Refill, in_a_minute())
                .await
                .unwrap();
        }
        let gone = tokio::time::timeout(
            Duration::from_millis(1),
            budgets.acquire(ACTION, Class::Refill, in_a_minute()),
        )
        .await;
        assert!(gone.is_err());

        let next = budgets.acquire(ACTION, Class::Refill, in_a_minute()).await;

        assert_eq!(next, Ok(()));
    }

    #[test]
    fn share_of_a_quota_is_taken_before_it_is_split() {
        let quotas = Quotas {
            per_minute: BTreeMap::from([(ACTION, 300)]),
            share_permille: 500,
        };

        assert_eq!(quotas.of(ACTION), 150);
        assert_eq!(quotas.of(Action::AttachNetworkInterface), 250);
    }
}
