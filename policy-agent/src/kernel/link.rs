//! A netlink socket: opened in a namespace, sent to, and emptied.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, netlink, sockopt};

/// The largest message the kernel sends by itself is 32 KiB; an error that repeats its request is at
/// most as long as a message of ours.
const BUFFER: usize = 256 * 1024;
/// A transaction must fit into the send buffer as a whole.
const SEND_BUFFER: usize = 256 * 1024 * 1024;
/// Answers to thousands of messages of one send.
const RECEIVE_BUFFER: usize = 32 * 1024 * 1024;

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The network namespace does not exist (any more).
    #[error("network namespace {0} does not exist")]
    NamespaceGone(std::path::PathBuf),
    /// The system refused: no right, or no netlink.
    #[error("{what}: {source}")]
    Refused {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A socket that was handed over is none of netfilter's.
    #[error("the socket that was handed over is not a netfilter socket")]
    Stranger,
}

fn refused(what: &'static str) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Refused { what, source }
}

/// What a send or a receive said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The kernel dropped answers since they were too many.
    Overrun,
    /// An answer that is longer than any should be.
    Cut,
    /// Anything else.
    Errno(Errno),
}

/// A netfilter socket.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    port: u32,
    buffer: Vec<u8>,
    next_seq: u32,
}

impl Link {
    /// Opens one in the namespace of the calling thread, listening to multicast groups.
    pub(crate) fn open(groups: &[u32]) -> Result<Self, OpenError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(refused("open netlink socket"))?;
        socket.bind_auto().map_err(refused("bind netlink socket"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(refused("connect netlink socket"))?;
        // Errors in words, and without repeating the request; kernels before 4.12 lack one or the other
        // and then simply say less.
        drop(socket.set_ext_ack(true));
        drop(socket.set_cap_ack(true));
        // Refuses what it does not understand instead of ignoring it; kernel 4.20.
        drop(socket.set_netlink_get_strict_chk(true));
        for group in groups {
            socket
                .add_membership(*group)
                .map_err(refused("join netlink group"))?;
        }
        let fd = socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(refused("keep netlink socket"))?;
        Self::over(fd)
    }

    /// Opens one in the namespace at `path`.
    pub(crate) fn open_at(path: &Path, groups: &[u32]) -> Result<Self, OpenError> {
        let file = std::fs::File::open(path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                return OpenError::NamespaceGone(path.to_owned());
            }
            refused("open network namespace")(source)
        })?;
        // A thread that changed its namespace has no way back; this one ends.
        let groups = groups.to_vec();
        let worker = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| refused("enter network namespace")(errno.into()))?;
                Self::open(&groups)
            })
            .map_err(refused("start a thread"))?;
        worker.join().map_err(|_| {
            refused("enter network namespace")(std::io::Error::other("the thread ended early"))
        })?
    }

    /// Goes on with a socket that another process opened. Answers that nobody read are thrown away.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, OpenError> {
        let family = sockopt::socket_domain(&fd).map_err(|_| OpenError::Stranger)?;
        let protocol = sockopt::socket_protocol(&fd).map_err(|_| OpenError::Stranger)?;
        if family != AddressFamily::NETLINK || protocol != Some(netlink::NETFILTER) {
            return Err(OpenError::Stranger);
        }
        let mut link = Self::over(fd)?;
        while !matches!(link.receive(), Ok(None) | Err(Trouble::Errno(_))) {}
        Ok(link)
    }

    fn over(fd: OwnedFd) -> Result<Self, OpenError> {
        // Root may go beyond the system's limit; without that right large transactions are refused when
        // they are sent.
        let send = sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER);
        let receive = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER);
        if let Err(error) = send.and(receive) {
            tracing::warn!(%error, "netlink buffers stay at the system's limit");
        }
        let address = rustix::net::getsockname(&fd)
            .map_err(|errno| refused("read netlink port")(errno.into()))?;
        let address =
            netlink::SocketAddrNetlink::try_from(address).map_err(|_| OpenError::Stranger)?;
        Ok(Self {
            fd,
            port: address.pid(),
            buffer: vec![0; BUFFER],
            // Whoever held the socket before counted from elsewhere.
            next_seq: rand::random(),
        })
    }

    /// The kernel's number for this socket.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// A number for a request, and `count - 1` more behind it.
    pub(crate) const fn take_seq(&mut self, count: u32) -> u32 {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(count);
        seq
    }

    /// Sends. When it fails, the kernel did nothing.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Trouble> {
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Trouble::Errno(Errno::from_raw(errno.raw_os_error()))),
            }
        }
    }

    /// One datagram that lies ready; `None` when there is none.
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>, Trouble> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let len = loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), flags) {
                Ok((_, len)) => break len,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::NOBUFS) => return Err(Trouble::Overrun),
                Err(errno) => return Err(Trouble::Errno(Errno::from_raw(errno.raw_os_error()))),
            }
        };
        self.buffer.get(..len).map(Some).ok_or(Trouble::Cut)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
