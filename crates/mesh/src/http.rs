//! The small HTTP servers beside gRPC: health and metrics, admin.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;

use crate::tasks::Tasks;

/// A port that is open but not served yet.
#[derive(Debug)]
pub(crate) struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

impl Port {
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until everybody must end: health answers during the drain as well.
    pub(crate) fn serve(self, name: &'static str, router: Router, tasks: &Tasks) {
        let stopping = tasks.stopping();
        tasks.spawn_fallible(name, async move {
            axum::serve(self.listener, router)
                .with_graceful_shutdown(stopping.cancelled_owned())
                .await
        });
    }
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open {what} port {address}")]
pub struct PortError {
    /// What the port is for.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}
