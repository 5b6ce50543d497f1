//! The second hand on the socket that owns the policy table.
//!
//! A table that belongs to a socket can be changed by nobody else, and that ends with the socket. So the
//! policy agent gives a copy of its socket to a process that outlives it, and gets it back when it starts
//! again: meanwhile the table is still owned. [`Holder`] is the end of the process that only holds.
//! [`Peer`] is the connection, the same for both ends: each message carries one socket or says that there
//! is none. The holder speaks first; then the agent says what to hold, whenever that changes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Protocol and version.
const MAGIC: [u8; 3] = *b"TO\x01";
const WITH_SOCKET: u8 = 1;
const WITHOUT_SOCKET: u8 = 0;

/// The other end could not be understood or reached: connect again later.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The connection failed.
    #[error("{what}: {source}")]
    Broken {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The other end speaks something else.
    #[error("the other end does not speak this protocol")]
    Garbled,
}

fn broken(what: &'static str) -> impl FnOnce(std::io::Error) -> OwnerError {
    move |source| OwnerError::Broken { what, source }
}

/// A connection between the agent and the holder.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
}

impl Peer {
    /// Over a connection that exists.
    pub const fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Sends a copy of `socket`, or that there is none.
    ///
    /// # Errors
    /// [`OwnerError::Broken`].
    pub async fn send(&mut self, socket: Option<BorrowedFd<'_>>) -> Result<(), OwnerError> {
        let [a, b, c] = MAGIC;
        let kind = if socket.is_some() {
            WITH_SOCKET
        } else {
            WITHOUT_SOCKET
        };
        let bytes = [a, b, c, kind];
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
            if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(std::io::Error::other("no room for a socket"));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let iov = [IoSlice::new(&bytes)];
            Ok(sendmsg(&self.stream, &iov, &mut control, flags)?)
        });
        match sent.await {
            Ok(len) if len == bytes.len() => Ok(()),
            Ok(_) => Err(OwnerError::Garbled),
            Err(error) => Err(broken("send the owner socket")(error)),
        }
    }

    /// What the other end says; the outer `None` when it is gone.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn receive(&mut self) -> Result<Option<Option<OwnedFd>>, OwnerError> {
        let received = self.stream.async_io(Interest::READABLE, || {
            let mut bytes = [0; 4];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg(&self.stream, &mut iov, &mut control, flags)?;
            let mut socket = None;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(sockets) = message {
                    socket = sockets.last();
                }
            }
            Ok((message.bytes, bytes, socket))
        });
        let (len, bytes, socket) = received.await.map_err(broken("receive the owner socket"))?;
        let [a, b, c, kind] = bytes;
        match (len, kind, socket) {
            (0, _, _) => Ok(None),
            (4, WITH_SOCKET, Some(socket)) if [a, b, c] == MAGIC => Ok(Some(Some(socket))),
            (4, WITHOUT_SOCKET, None) if [a, b, c] == MAGIC => Ok(Some(None)),
            _ => Err(OwnerError::Garbled),
        }
    }
}

/// Holds the socket for an agent that comes and goes.
#[derive(Debug, Default)]
pub struct Holder {
    held: Option<OwnedFd>,
}

impl Holder {
    /// Holds nothing yet.
    pub const fn new() -> Self {
        Self { held: None }
    }

    /// The socket, if one is held.
    pub fn held(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(AsFd::as_fd)
    }

    /// Connects to the agent at `path`, offers what is held, and holds what it is told to, until the
    /// agent is gone. To be called again then, with pauses; what is held survives in between. Dropping
    /// the future loses nothing.
    ///
    /// # Errors
    /// [`OwnerError`]; what is held stays held.
    pub async fn attend(&mut self, path: &Path) -> Result<(), OwnerError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(broken("connect to the policy agent"))?;
        let mut peer = Peer::new(stream);
        peer.send(self.held()).await?;
        while let Some(socket) = peer.receive().await? {
            self.held = socket;
        }
        Ok(())
    }
}
