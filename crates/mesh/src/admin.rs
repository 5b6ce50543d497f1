//! The admin port, on loopback only: state dump, effective configuration, log filter, drain.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::http::{Port, PortError};
use crate::tasks::Tasks;
use crate::telemetry::LogFilter;

/// Longest wait for one dump: a task that is stuck must not hang the person who looks for it.
const DUMP_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the admin port is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// `127.0.0.1:port` or `[::1]:port`; anything but loopback is refused. Without it there is
    /// no such port.
    pub listen: Option<SocketAddr>,
}

impl Params {
    /// Checks that the address is loopback.
    ///
    /// # Errors
    /// [`NotLoopback`] with the address.
    pub fn check(&self) -> Result<(), NotLoopback> {
        match self.listen {
            Some(address) if !address.ip().is_loopback() => Err(NotLoopback { address }),
            Some(_) | None => Ok(()),
        }
    }
}

/// The admin port was asked for on an address that others can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("admin port must be on loopback, not on {address}")]
pub struct NotLoopback {
    /// As configured.
    pub address: SocketAddr,
}

type Dump = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// What the admin port can show. Services register their dumps; clones share them.
#[derive(Clone, Default)]
pub struct Admin {
    dumps: Arc<Mutex<BTreeMap<&'static str, Dump>>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Shows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part of the state dump, shown at `/state` and `/state/<name>`.
    pub fn dump<F, Fut>(&self, name: &'static str, dump: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Value> + Send + 'static,
    {
        let dump: Dump = Arc::new(move || Box::pin(dump()));
        self.dumps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, dump);
    }

    fn named(&self, name: &str) -> Option<Dump> {
        self.dumps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn all(&self) -> Vec<(&'static str, Dump)> {
        let dumps = self.dumps.lock().unwrap_or_else(PoisonError::into_inner);
        dumps
            .iter()
            .map(|(name, dump)| (*name, Arc::clone(dump)))
            .collect()
    }
}

/// The open port, not served yet.
#[derive(Debug)]
#[must_use = "a port that is not served hangs its clients"]
pub struct Bound(Port);

#[derive(Clone)]
struct Shared {
    admin: Admin,
    config: Arc<Value>,
    filter: LogFilter,
    tasks: Tasks,
}

impl Bound {
    /// Opens the port, if there is to be one.
    ///
    /// # Errors
    /// [`PortError`] when the address is taken or is not loopback.
    pub async fn open(params: &Params) -> Result<Option<Self>, PortError> {
        let Some(address) = params.listen else {
            return Ok(None);
        };
        let failed = |source| PortError {
            what: "admin",
            address,
            source,
        };
        params
            .check()
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Some(Self(Port::bind(address).await.map_err(failed)?)))
    }

    /// The address, with the port that was taken.
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Serves it. `config` is the redacted effective configuration.
    pub fn serve(self, admin: Admin, config: Value, filter: LogFilter, tasks: &Tasks) {
        let shared = Shared {
            admin,
            config: Arc::new(config),
            filter,
            tasks: tasks.clone(),
        };
        let router = Router::new()
            .route("/state", get(whole_state))
            .route("/state/{name}", get(one_state))
            .route("/config", get(config_shown))
            .route("/log", get(filter_shown).put(filter_changed))
            .route("/drain", post(drain_started))
            .with_state(shared);
        self.0.serve("admin", router, tasks);
    }
}

async fn whole_state(State(shared): State<Shared>) -> Json<Value> {
    let mut all = Map::new();
    for (name, dump) in shared.admin.all() {
        all.insert(name.to_owned(), within_limit(&dump).await);
    }
    Json(Value::Object(all))
}

async fn one_state(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    match shared.admin.named(&name) {
        Some(dump) => Json(within_limit(&dump).await).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no state named {name:?}\n")).into_response(),
    }
}

async fn within_limit(dump: &Dump) -> Value {
    match tokio::time::timeout(DUMP_TIMEOUT, dump()).await {
        Ok(value) => value,
        Err(_) => serde_json::json!({ "error": "no answer within 5 s" }),
    }
}

async fn config_shown(State(shared): State<Shared>) -> Json<Value> {
    Json((*shared.config).clone())
}

async fn filter_shown(State(shared): State<Shared>) -> String {
    format!("{}\n", shared.filter.get())
}

async fn filter_changed(State(shared): State<Shared>, text: String) -> Response {
    match shared.filter.set(text.trim()) {
        Ok(()) => {
            tracing::info!(filter = text.trim(), "log filter changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn drain_started(State(shared): State<Shared>) -> StatusCode {
    shared.tasks.drain().start("admin request");
    StatusCode::ACCEPTED
}

#[cfg(test)]
mod tests {
    use super::Params;

    #[test]
    fn admin_port_off_loopback_is_refused() {
        let open = Params {
            listen: Some("0.0.0.0:9000".parse().unwrap()),
        };
        let closed = Params {
            listen: Some("127.0.0.1:9000".parse().unwrap()),
        };

        assert!(
            open.check()
                .unwrap_err()
                .to_string()
                .contains("0.0.0.0:9000")
        );
        assert_eq!(closed.check(), Ok(()));
    }
}
