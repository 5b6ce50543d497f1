//! The agent's end of the hand-over: whoever holds the owner socket brings it here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use datapath::owner::{OwnerError, Peer};
use tokio::net::UnixListener;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a holder may take to say what it holds.
const HELLO: Duration = Duration::from_secs(2);
/// Only we and root may connect.
const MODE: u32 = 0o600;

/// Where holders connect.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
}

impl Listener {
    /// Listens at `path`; what lies there from an agent that is gone is replaced.
    ///
    /// # Errors
    /// What the system said.
    pub fn bind(path: &Path) -> Result<Self, std::io::Error> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        Ok(Self { listener })
    }

    /// The next holder, and what it holds. Strangers are turned away. Dropping the future loses at most
    /// a connection that said nothing yet, which then comes again.
    ///
    /// # Errors
    /// What the system said about listening.
    pub async fn accept(&self) -> Result<Holder, std::io::Error> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid != 0 && uid != rustix::process::geteuid().as_raw() {
                tracing::warn!(uid, "a stranger offered an owner socket");
                continue;
            }
            let mut peer = Peer::new(stream);
            match timeout(HELLO, peer.receive()).await {
                Ok(Ok(Some(offer))) => return Ok(Holder { peer, offer }),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a holder was not understood"),
                Err(_) => tracing::warn!("a holder connected and said nothing"),
            }
        }
    }

    /// The first holder that comes within `wait`.
    ///
    /// # Errors
    /// What the system said about listening.
    pub async fn accept_within(&self, wait: Duration) -> Result<Option<Holder>, std::io::Error> {
        match timeout_at(Instant::now() + wait, self.accept()).await {
            Ok(accepted) => accepted.map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// A process that holds the owner socket, or is ready to.
#[derive(Debug)]
pub struct Holder {
    peer: Peer,
    offer: Option<OwnedFd>,
}

impl Holder {
    /// What it held when it came. To be taken once.
    pub const fn take_offer(&mut self) -> Option<OwnedFd> {
        self.offer.take()
    }

    /// Gives it a copy to hold instead, or lets it hold nothing.
    ///
    /// # Errors
    /// [`OwnerError`]: it is gone, and will come again.
    pub async fn hand(&mut self, socket: Option<BorrowedFd<'_>>) -> Result<(), OwnerError> {
        self.peer.send(socket).await
    }

    /// Comes back when the holder is gone.
    async fn gone(&mut self) {
        while let Ok(Some(_)) = self.peer.receive().await {}
    }
}

/// Gives every holder that comes a copy of `socket`; the newest one is served. Never comes back but with an
/// error of the listener.
///
/// # Errors
/// What the system said about listening.
pub async fn keep(
    listener: &Listener,
    first: Option<Holder>,
    socket: impl AsFd,
) -> Result<std::convert::Infallible, std::io::Error> {
    let mut next = first;
    loop {
        let mut holder = match next.take() {
            Some(holder) => holder,
            None => listener.accept().await?,
        };
        if let Err(error) = holder.hand(Some(socket.as_fd())).await {
            tracing::warn!(%error, "the owner socket was not handed over");
            continue;
        }
        tokio::select! {
            () = holder.gone() => {}
            accepted = listener.accept() => next = Some(accepted?),
        }
    }
}
