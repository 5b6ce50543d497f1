//! Requests to the API server: few at a time, each with an end, and none while it is out of order.
//!
//! Nothing is queued here for later. Whoever wants something written is told that it is not written yet, and comes
//! back; that is what makes reports survive us. One pause is shared by all requests, so that a server in trouble is
//! not asked by everybody at once.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::server::{ConnectError, Server};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret};
use kube::Api;
use mesh::backoff::{Backoff, Params};
use mesh::status::{NOT_READY, Refusal};
use mesh::{causes, clock};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::metrics::{Asked, Metrics};

/// Requests at a time.
const AT_ONCE: usize = 64;
/// Longest wait for one of these places.
const ROOM_WAIT: Duration = Duration::from_secs(3);
/// Longest wait for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// When to come back after an answer that passes by.
const ODD_WAIT: Duration = Duration::from_secs(2);
/// Pauses after failures.
const PAUSES: Params = Params {
    first_ms: 200,
    max_ms: 15_000,
};

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server can not be asked now, or says that it has too much to do.
    #[error("the API server can not be asked: {why}")]
    Away {
        /// In words.
        why: String,
        /// When to come back.
        again: Duration,
    },
    /// It said no.
    #[error("the API server refuses to {what}: {code} {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// HTTP status.
        code: u16,
        /// Its machine-readable reason, such as `AlreadyExists`.
        reason: String,
        /// In words.
        message: String,
    },
}

impl Failure {
    fn is(&self, wanted: u16) -> bool {
        match self {
            Self::Refused { code, .. } => *code == wanted,
            Self::Away { .. } => false,
        }
    }

    /// There is no such object.
    pub fn is_missing(&self) -> bool {
        self.is(404)
    }

    /// We may not do that.
    pub fn is_forbidden(&self) -> bool {
        self.is(403)
    }

    /// Somebody else changed the object, or it is another one.
    pub fn is_conflict(&self) -> bool {
        self.is(409)
    }

    /// For a caller of ours: an outage of the API server is one of ours, and so is a lack of rights.
    pub fn into_status(self) -> Status {
        let text = self.to_string();
        match self {
            Self::Away { again, .. } => Refusal::new(Code::Unavailable, NOT_READY, text)
                .retry_after(again)
                .into_status(),
            Self::Refused { what, code, .. } => {
                tracing::warn!(what, code, why = text, "the API server refuses what we ask");
                Refusal::new(Code::Unavailable, NOT_READY, text).into_status()
            }
        }
    }
}

#[derive(Debug)]
struct Pause {
    until: Option<Instant>,
    backoff: Backoff,
    why: String,
}

#[derive(Debug)]
struct Shared {
    room: Semaphore,
    pause: Mutex<Pause>,
    metrics: Metrics,
}

/// The API server. Clones share connections and the pause.
#[derive(Clone)]
pub struct Kubernetes {
    server: Server,
    client: kube::Client,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Makes a client, with the kubeconfig or this pod's account. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        kubeconfig: Option<&Path>,
        metrics: Metrics,
    ) -> Result<Self, ConnectError> {
        let server = Server::connect(kubeconfig).await?;
        let pause = Pause {
            until: None,
            backoff: Backoff::try_new(PAUSES).unwrap_or_default(),
            why: String::new(),
        };
        Ok(Self {
            client: server.client(),
            server,
            shared: Arc::new(Shared {
                room: Semaphore::new(AT_ONCE),
                pause: Mutex::new(pause),
                metrics,
            }),
        })
    }

    /// For following objects.
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// For kinds without a method here.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }

    /// Nodes.
    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client())
    }

    /// Events of a namespace.
    pub fn events(&self, namespace: &str) -> Api<Event> {
        Api::namespaced(self.client(), namespace)
    }

    /// ConfigMaps of a namespace.
    pub fn config_maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client(), namespace)
    }

    /// Secrets of a namespace.
    pub fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client(), namespace)
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        // What is guarded is plain data: a panic leaves it usable.
        let pause = self.shared.pause.lock();
        pause.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one request, unless the server is in trouble. `what` is an infinitive, for messages.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn ask<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        if let Some(failure) = self.paused() {
            self.shared.metrics.asked(Asked::Held);
            return Err(failure);
        }
        let room = tokio::time::timeout(ROOM_WAIT, self.shared.room.acquire()).await;
        let Ok(Ok(_room)) = room else {
            self.shared.metrics.asked(Asked::Held);
            return Err(Failure::Away {
                why: "too many requests wait".to_owned(),
                again: ROOM_WAIT,
            });
        };
        match tokio::time::timeout(ANSWER_WAIT, request).await {
            Ok(Ok(answer)) => {
                self.shared.metrics.asked(Asked::Done);
                self.well();
                Ok(answer)
            }
            Ok(Err(kube::Error::Api(status))) if is_odd(status.code) => {
                self.shared.metrics.asked(Asked::Failed);
                Err(Failure::Away {
                    why: format!("{} {}", status.code, status.message),
                    again: ODD_WAIT,
                })
            }
            Ok(Err(kube::Error::Api(status))) if !is_trouble(status.code) => {
                self.shared.metrics.asked(Asked::Refused);
                self.well();
                Err(Failure::Refused {
                    what,
                    code: status.code,
                    reason: status.reason,
                    message: status.message,
                })
            }
            Ok(Err(kube::Error::Api(status))) => {
                Err(self.trouble(format!("{} {}", status.code, status.message)))
            }
            Ok(Err(error)) => Err(self.trouble(causes::text(&error))),
            Err(_) => Err(self.trouble("no answer in 10 s".to_owned())),
        }
    }

    fn paused(&self) -> Option<Failure> {
        let pause = self.pause();
        let again = pause.until?.checked_duration_since(Instant::now())?;
        (!again.is_zero()).then(|| Failure::Away {
            why: pause.why.clone(),
            again,
        })
    }

    fn well(&self) {
        let mut pause = self.pause();
        if pause.until.take().is_some() {
            pause.backoff.reset();
        }
    }

    fn trouble(&self, why: String) -> Failure {
        self.shared.metrics.asked(Asked::Failed);
        let mut pause = self.pause();
        let now = Instant::now();
        // Requests that were under way together fail together: that is one failure.
        let again = match pause.until {
            Some(until) if until > now => until.duration_since(now),
            Some(_) | None => {
                let wait = pause.backoff.next_wait();
                pause.until = Some(now + wait);
                wait
            }
        };
        pause.why.clone_from(&why);
        tracing::debug!(
            why,
            again_ms = again.as_millis(),
            "the API server is in trouble"
        );
        Failure::Away { why, again }
    }
}

/// The time, as objects have it.
pub fn now() -> Timestamp {
    // A clock outside jiff's range (years -9999 to 9999) is not worth a failure.
    Timestamp::try_from(clock::wall()).unwrap_or_default()
}

/// Says that everybody is to wait.
const fn is_trouble(code: u16) -> bool {
    matches!(code, 429 | 503)
}

/// Passes by, but is about this one request: a webhook of somebody else that is down makes a 500 of changes of pods
/// alone. 401 is for a token that kubelet is about to replace.
const fn is_odd(code: u16) -> bool {
    matches!(code, 401 | 500..=502 | 504..=599)
}
