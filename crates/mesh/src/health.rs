//! Readiness as named conditions, liveness, and the port that shows both beside the metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::http::{Port, PortError};
use crate::metrics::{CONTENT_TYPE, Registry};
use crate::tasks::Tasks;

/// Where health and metrics are shown: plain HTTP, read-only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// `address:port`; port 0 takes a free one. Without it there is no such port.
    pub listen: Option<SocketAddr>,
}

/// The conditions of a process. Ready when all are, and none drains.
#[derive(Debug, Clone)]
pub struct Health {
    conditions: Arc<watch::Sender<BTreeMap<&'static str, Option<String>>>>,
}

impl Health {
    /// No condition yet: ready.
    pub fn new() -> Self {
        Self {
            conditions: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// Adds a condition that is not met yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            health: self.clone(),
        };
        condition.unmet("starting");
        condition
    }

    /// Whether every condition is met.
    pub fn is_ready(&self) -> bool {
        is_ready(&self.conditions.borrow())
    }

    /// Unmet conditions and why.
    pub fn unmet(&self) -> Vec<(&'static str, String)> {
        self.conditions
            .borrow()
            .iter()
            .filter_map(|(name, why)| why.clone().map(|why| (*name, why)))
            .collect()
    }

    /// Waits until every condition is met.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn until_ready(&self) {
        let mut conditions = self.conditions.subscribe();
        // Fails only when the sender is gone, which `self` holds.
        if conditions.wait_for(is_ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn set(&self, name: &'static str, why: Option<&str>) {
        self.conditions.send_if_modified(|all| {
            let same = all.get(name).is_some_and(|now| now.as_deref() == why);
            if !same {
                all.insert(name, why.map(ToOwned::to_owned));
            }
            !same
        });
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

fn is_ready(conditions: &BTreeMap<&'static str, Option<String>>) -> bool {
    conditions.values().all(Option::is_none)
}

/// One thing that readiness needs. It may be met and unmet many times.
#[derive(Debug, Clone)]
#[must_use = "a condition that nobody meets keeps the process unready"]
pub struct Condition {
    name: &'static str,
    health: Health,
}

impl Condition {
    /// The condition holds.
    pub fn met(&self) {
        self.health.set(self.name, None);
    }

    /// The condition does not hold, and why.
    pub fn unmet(&self, why: &str) {
        self.health.set(self.name, Some(why));
    }
}

/// The open port, not served yet.
#[derive(Debug)]
#[must_use = "a port that is not served hangs its clients"]
pub struct Bound(Port);

impl Bound {
    /// Opens the port, if there is to be one.
    ///
    /// # Errors
    /// [`PortError`] when the address is taken or not ours.
    pub async fn open(params: &Params) -> Result<Option<Self>, PortError> {
        let Some(address) = params.listen else {
            return Ok(None);
        };
        let port = Port::bind(address).await.map_err(|source| PortError {
            what: "health",
            address,
            source,
        })?;
        Ok(Some(Self(port)))
    }

    /// The address, with the port that was taken.
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Serves `/livez`, `/readyz` and `/metrics`.
    pub fn serve(self, health: Health, registry: Registry, tasks: &Tasks) {
        let drain = tasks.drain().clone();
        let ready = move || {
            let answer = readiness(&health, drain.why());
            async move { answer }
        };
        let metrics = move || {
            let text = registry.encode();
            async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], text) }
        };
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics));
        self.0.serve("health", router, tasks);
    }
}

fn readiness(health: &Health, draining: Option<&str>) -> Response {
    let mut text = String::new();
    if let Some(why) = draining {
        text = format!("draining: {why}\n");
    }
    for (name, why) in health.unmet() {
        // Writing to a String does not fail.
        if writeln!(text, "{name}: {why}").is_err() {
            break;
        }
    }
    if text.is_empty() {
        (StatusCode::OK, "ready\n".to_owned()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::{Health, readiness};

    #[tokio::test]
    async fn process_is_ready_once_every_condition_is_met() {
        let health = Health::new();
        let session = health.condition("session");
        let store = health.condition("store");

        store.met();
        assert_eq!(health.unmet(), [("session", "starting".to_owned())]);
        session.met();
        health.until_ready().await;
        session.unmet("stream ended");

        assert!(!health.is_ready());
    }

    #[test]
    fn draining_process_is_not_ready() {
        let answer = readiness(&Health::new(), Some("SIGTERM"));

        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(readiness(&Health::new(), None).status(), StatusCode::OK);
    }
}
