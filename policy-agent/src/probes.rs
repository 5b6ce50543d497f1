//! The port that probes made for Felix look at: `/liveness` and `/readiness`, on loopback.
//!
//! Source: Felix' health endpoints; Terway's DaemonSet probes port 9099.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use mesh::health::Health;
use mesh::tasks::Tasks;
use tokio::net::TcpListener;

/// An open port that nobody serves yet.
#[derive(Debug)]
#[must_use = "a port that is not served hangs its clients"]
pub struct Bound(TcpListener);

impl Bound {
    /// Opens the port; port 0 takes a free one.
    ///
    /// # Errors
    /// What the system said: as a rule that somebody else, such as Felix, has it.
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self(TcpListener::bind(address).await?))
    }

    /// The address, with the port that was taken.
    ///
    /// # Errors
    /// What the system said.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers until the process ends. Felix answers 204 when well and 503 when not; a drain does not make it
    /// unwell.
    pub fn serve(self, health: Health, tasks: &Tasks) {
        let ready = move || {
            let code = if health.is_ready() {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            async move { code }
        };
        let router = Router::new()
            .route("/liveness", get(|| async { StatusCode::NO_CONTENT }))
            .route("/readiness", get(ready));
        let stopping = tasks.stopping();
        tasks.spawn_fallible("felix health", async move {
            axum::serve(self.0, router)
                .with_graceful_shutdown(stopping.cancelled_owned())
                .await
        });
    }
}
