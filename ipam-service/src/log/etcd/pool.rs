//! One client per member: a preferred one, and a rest for those that failed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client as etcd;
use tokio::time::Instant;

use super::endpoint::{self, SettingsError};
use super::failure::{Failure, classify};
use super::{CALL_DEADLINE, Settings};
use crate::log::kv::KvError;

/// A member that failed is left out for so long at first; twice as long each further time.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest time that a member is left out.
const LONGEST_REST: Duration = Duration::from_secs(30);

pub(super) struct Pool {
    members: Vec<Member>,
    preferred: AtomicUsize,
}

struct Member {
    name: String,
    client: etcd::Client,
    rest: Mutex<Rest>,
}

#[derive(Default)]
struct Rest {
    until: Option<Instant>,
    length: Duration,
}

impl Pool {
    pub(super) async fn new(settings: &Settings) -> Result<Self, SettingsError> {
        if settings.endpoints.is_empty() {
            return Err(SettingsError::NoEndpoints);
        }
        let mut members = Vec::new();
        for name in &settings.endpoints {
            let channel = endpoint::channel(name, &settings.security)?;
            // Connects to nothing: without a user there is no token to get.
            let client = etcd::Client::from_channel(channel, None)
                .await
                .map_err(|err| SettingsError::Endpoint {
                    endpoint: name.clone(),
                    why: err.to_string(),
                })?;
            members.push(Member {
                name: name.clone(),
                client,
                rest: Mutex::default(),
            });
        }
        Ok(Self {
            members,
            preferred: AtomicUsize::new(0),
        })
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.members.iter().map(|m| m.name.as_str()).collect()
    }

    /// Makes a call; on another member too, if that is safe. Each member is asked at most once.
    ///
    /// `repeatable`: doing it twice is the same as once, so a lost answer is no reason to stop.
    pub(super) async fn call<T, F>(
        &self,
        repeatable: bool,
        call: impl Fn(etcd::Client) -> F,
    ) -> Result<T, KvError>
    where
        F: Future<Output = Result<T, etcd::Error>>,
    {
        let mut why = String::new();
        for at in self.order() {
            let Some(member) = self.members.get(at) else {
                continue;
            };
            let answer = tokio::time::timeout(CALL_DEADLINE, call(member.client.clone())).await;
            let failure = match answer {
                Ok(Ok(answer)) => {
                    member.works();
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(err)) => classify(&err),
                Err(_) => Failure::Lost("no answer in time".to_owned()),
            };
            match failure {
                Failure::Refused(err) => return Err(err),
                Failure::Busy(text) => return Err(KvError::Unavailable(text)),
                Failure::NotSent(text) => {
                    member.failed();
                    why = format!("{}: {text}", member.name);
                }
                Failure::Lost(text) => {
                    member.failed();
                    why = format!("{}: {text}", member.name);
                    if !repeatable {
                        return Err(KvError::Unknown(why));
                    }
                }
            }
            tracing::debug!(%why, "etcd member left out for a while");
        }
        Err(KvError::Unavailable(why))
    }

    /// Members in the order to ask: the preferred one, others that work, those that rest.
    fn order(&self) -> Vec<usize> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|at| {
            let rests = self.members.get(*at).is_some_and(|m| m.rests(now));
            (rests, *at != preferred, *at)
        });
        order
    }
}

impl Member {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        // Two plain values: whole whatever a panicking holder did.
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rests(&self, now: Instant) -> bool {
        self.rest().until.is_some_and(|until| until > now)
    }

    fn works(&self) {
        *self.rest() = Rest::default();
    }

    fn failed(&self) {
        let mut rest = self.rest();
        rest.length = (rest.length * 2).clamp(FIRST_REST, LONGEST_REST);
        rest.until = Instant::now().checked_add(rest.length);
    }
}
