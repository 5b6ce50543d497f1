//! Everything behind the lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use types::cloud::EniId;
use types::time::Tick;

use crate::account::Account;
use crate::config::{Latency, SimConfig, Span};
use crate::dump::{Call, CallCount, SimDump};
use crate::faults::FaultSet;
use crate::passes::Passes;
use crate::quota::Quotas;
use crate::roles::Roles;
use crate::signature::Keys;

/// Calls that are remembered.
///
/// Reason: bounds memory; counts go on beyond it.
const MAX_CALLS: usize = 20_000;

/// Orders the data plane calls about one ENI.
pub(crate) type EniLock = Arc<tokio::sync::Mutex<()>>;

/// The state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) account: Account,
    pub(crate) keys: Keys,
    pub(crate) quotas: Quotas,
    pub(crate) faults: FaultSet,
    pub(crate) latency: Latency,
    pub(crate) read_lag: Duration,
    pub(crate) metadata_lag: Duration,
    pub(crate) passes: Passes,
    pub(crate) roles: Roles,
    pub(crate) ledger: Ledger,
    pub(crate) token_lifetime: Duration,
    locks: BTreeMap<EniId, EniLock>,
    seed: u64,
    rng: StdRng,
}

impl State {
    pub(crate) fn new(config: SimConfig) -> Self {
        Self {
            account: Account::new(config.region, config.limits, config.seed),
            keys: Keys::default(),
            quotas: Quotas::new(config.quotas),
            faults: FaultSet::default(),
            latency: config.latency,
            read_lag: config.read_lag,
            metadata_lag: config.metadata_lag,
            passes: Passes::new(config.metadata_tokens, config.seed),
            roles: Roles::new(config.seed),
            ledger: Ledger::default(),
            token_lifetime: Duration::from_secs(config.limits.client_token_seconds),
            locks: BTreeMap::new(),
            seed: config.seed,
            // Another stream than the account's, so that latencies do not change ids.
            rng: StdRng::seed_from_u64(config.seed.wrapping_add(1)),
        }
    }

    /// Draws a latency.
    pub(crate) fn draw(&mut self, span: Span) -> Duration {
        let most = span.max_ms.max(span.min_ms);
        Duration::from_millis(self.rng.random_range(span.min_ms..=most))
    }

    /// The lock under which the data plane is told about this ENI.
    pub(crate) fn lock_of(&mut self, eni: &EniId) -> EniLock {
        Arc::clone(self.locks.entry(eni.clone()).or_default())
    }

    /// Forgets the locks of ENIs that are gone.
    pub(crate) fn prune_locks(&mut self) {
        let account = &self.account;
        self.locks.retain(|eni, _| account.enis.contains_key(eni));
    }

    pub(crate) fn dump(&self) -> SimDump {
        SimDump {
            region: self.account.region.clone(),
            seed: self.seed,
            enis: self.account.dump_enis(),
            vswitches: self.account.dump_vswitches(),
            instances: self.account.dump_instances(),
            calls: self.ledger.counts.clone(),
        }
    }
}

/// What was called, and how it went.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    counts: BTreeMap<String, CallCount>,
    calls: VecDeque<Call>,
}

impl Ledger {
    /// Writes a call down. Actions that do not exist are in the list, but have no count.
    pub(crate) fn record(&mut self, call: Call, known: bool) {
        if known {
            let count = self.counts.entry(call.action.clone()).or_default();
            count.total += 1;
            if call.code.is_empty() {
                count.succeeded += 1;
            } else {
                *count.refused.entry(call.code.clone()).or_default() += 1;
            }
            if call.code.starts_with("Throttling") {
                count.throttled += 1;
            }
        }
        self.calls.push_back(call);
        while self.calls.len() > MAX_CALLS {
            self.calls.pop_front();
        }
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter()
    }
}

/// The state a reader sees that lags by `lag`.
pub(crate) fn behind(now: Tick, lag: Duration) -> Tick {
    let lag = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
    Tick(now.0.saturating_sub(lag))
}
