//! The API server's door to the machine: a loopback port whose connections come out inside the simulated VPC.
//!
//! What goes through is the API server's own TLS.

use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fabric::namespace::Namespace;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 256;
/// How long the API server may take to accept one.
const LIMIT: Duration = Duration::from_secs(5);

/// Closed when dropped.
#[derive(Debug)]
pub struct Door {
    port: u16,
    _task: JoinSet<()>,
}

impl Door {
    /// Opens it on 127.0.0.1; port 0 takes any.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(port: u16, namespace: &Namespace, to: SocketAddr) -> anyhow::Result<Self> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(at)
            .await
            .with_context(|| format!("listen on {at}"))?;
        let port = listener.local_addr()?.port();
        let mut task = JoinSet::new();
        task.spawn(serve(listener, namespace.clone(), to));
        Ok(Self { port, _task: task })
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(listener: TcpListener, namespace: Namespace, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        // Those that have ended.
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let namespace = namespace.clone();
        connections.spawn(async move {
            if let Err(error) = pass(stream, &namespace, to).await {
                tracing::debug!(%error, "a connection to the API server ended");
            }
            drop(permit);
        });
    }
}

async fn pass(mut stream: TcpStream, namespace: &Namespace, to: SocketAddr) -> anyhow::Result<()> {
    let open = move || -> std::io::Result<StdStream> {
        let stream = StdStream::connect_timeout(&to, LIMIT)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let inside = namespace.enter_async(open).await??;
    let mut inside = TcpStream::from_std(inside)?;
    stream.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut stream, &mut inside).await?;
    Ok(())
}
