//! TCP inside namespaces: servers that say who they are, and dialers that check it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fabric::error::FabricError;
use fabric::namespace::Namespace;
use fabric::vpc::listen_in;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Where every server listens.
pub const PORT: u16 = 7000;
/// How long a name may be.
const NAME_LIMIT: u64 = 256;

/// Answers each connection, over both families, with a name; ends when dropped.
#[derive(Debug)]
pub struct EchoServer {
    _task: JoinSet<()>,
}

impl EchoServer {
    /// Listens in the namespace.
    pub async fn start(namespace: &Namespace, name: &str) -> Result<Self, FabricError> {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT));
        let listener = listen_in(namespace, any).await?;
        let mut task = JoinSet::new();
        task.spawn(serve(listener, name.to_owned()));
        Ok(Self { _task: task })
    }
}

async fn serve(listener: TcpListener, name: String) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(name, %error, "connection lost before it was accepted");
                continue;
            }
        };
        // A name fits the send buffer of a new connection, so this never waits for the peer.
        let mut stream = stream;
        if let Err(error) = stream.write_all(name.as_bytes()).await {
            tracing::debug!(name, %error, "peer went away");
        }
    }
}

/// One connection to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// Our source, if it matters.
    pub source: Option<IpAddr>,
    /// Where to.
    pub target: IpAddr,
    /// Who must answer.
    pub expect: String,
}

/// What came of a [`Dial`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The expected one answered.
    Reached,
    /// Another answered.
    Wrong {
        /// Who.
        name: String,
    },
    /// Nobody answered.
    Failed {
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// Whether the expected one answered.
    pub fn is_reached(&self) -> bool {
        *self == Self::Reached
    }
}

/// Tries all dials from inside a namespace at once; outcomes come in the order of `dials`.
pub async fn dial_all(
    namespace: &Namespace,
    dials: Vec<Dial>,
    limit: Duration,
) -> Result<Vec<Outcome>, FabricError> {
    namespace
        .enter_async(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(FabricError::io("start a runtime for dialing"))?;
            Ok(runtime.block_on(dial_each(&dials, limit)))
        })
        .await?
}

async fn dial_each(dials: &[Dial], limit: Duration) -> Vec<Outcome> {
    let mut all: FuturesUnordered<_> = dials
        .iter()
        .enumerate()
        .map(|(n, dial)| async move { (n, dial_one(dial, limit).await) })
        .collect();
    let mut outcomes = vec![None; dials.len()];
    while let Some((n, outcome)) = all.next().await {
        if let Some(slot) = outcomes.get_mut(n) {
            *slot = Some(outcome);
        }
    }
    outcomes.into_iter().flatten().collect()
}

async fn dial_one(dial: &Dial, limit: Duration) -> Outcome {
    match tokio::time::timeout(limit, ask(dial)).await {
        Err(_) => Outcome::Failed {
            why: format!("no answer within {} ms", limit.as_millis()),
        },
        Ok(Err(error)) => Outcome::Failed {
            why: error.to_string(),
        },
        Ok(Ok(name)) if name == dial.expect => Outcome::Reached,
        Ok(Ok(name)) => Outcome::Wrong { name },
    }
}

async fn ask(dial: &Dial) -> std::io::Result<String> {
    let socket = if dial.target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(source) = dial.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(SocketAddr::new(dial.target, PORT)).await?;
    let mut name = String::new();
    stream.take(NAME_LIMIT).read_to_string(&mut name).await?;
    Ok(name)
}
