//! News of rules that somebody changed, and of packets that are traced.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nft_wire::frame::Frames;
use nft_wire::message::{Message, decode};
use nft_wire::name::TableRef;
use nft_wire::trace::Trace;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::link::{Link, OpenError, Trouble};

const GROUP_RULES: u32 = 7;
const GROUP_TRACES: u32 = 9;
/// Datagrams that one read takes at most.
const AT_ONCE: usize = 1_000;

/// What to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Changes of rules, by anybody. Costs the kernel a copy of each change.
    Rules,
    /// Steps of traced packets.
    Traces,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Somebody changed something in a table; `None` when the table could not be read.
    Changed {
        /// Which table.
        table: Option<TableRef>,
        /// Netlink port of the socket that did it: ours are known.
        port: u32,
    },
    /// A step of a traced packet.
    Trace(Trace),
    /// News was lost: whatever it was happened.
    Lost,
}

/// Listens in one network namespace.
#[derive(Debug)]
pub struct Listener {
    link: Link,
}

impl Listener {
    /// Listens in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`OpenError::Refused`].
    pub fn open(group: Group) -> Result<Self, OpenError> {
        Link::open(&[number(group)]).map(|link| Self { link })
    }

    /// Listens in the namespace at `netns`.
    ///
    /// # Errors
    /// [`OpenError::NamespaceGone`] when nothing is there, [`OpenError::Refused`].
    pub fn open_at(netns: &Path, group: Group) -> Result<Self, OpenError> {
        Link::open_at(netns, &[number(group)]).map(|link| Self { link })
    }

    /// What happened since the last read, waiting up to `wait` for the first; whole milliseconds count.
    ///
    /// # Errors
    /// What the system said; listen anew.
    pub fn read(&mut self, wait: Duration) -> Result<Vec<Event>, std::io::Error> {
        let wait = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
        let mut ready = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(wait)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut events = Vec::new();
        for _ in 0..AT_ONCE {
            match self.link.receive() {
                Ok(Some(datagram)) => collect(datagram, &mut events),
                Ok(None) => break,
                Err(Trouble::Overrun | Trouble::Cut) => events.push(Event::Lost),
                Err(Trouble::Errno(errno)) => return Err(errno.into()),
            }
        }
        Ok(events)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

const fn number(group: Group) -> u32 {
    match group {
        Group::Rules => GROUP_RULES,
        Group::Traces => GROUP_TRACES,
    }
}

/// One event per table and port is enough, however many messages tell it.
fn collect(datagram: &[u8], events: &mut Vec<Event>) {
    for frame in Frames::new(datagram) {
        let Ok(frame) = frame else {
            events.push(Event::Lost);
            return;
        };
        let port = frame.header.port;
        let event = match decode(&frame) {
            Ok(Message::Change(change)) => Event::Changed {
                table: Some(change.table().clone()),
                port,
            },
            Ok(Message::Foreign(table)) => Event::Changed { table, port },
            Ok(Message::Trace(trace)) => Event::Trace(trace),
            Ok(Message::Overrun) => Event::Lost,
            Ok(
                Message::Answer(_)
                | Message::Done(_)
                | Message::BatchBegin(_)
                | Message::BatchEnd
                | Message::Generation(_)
                | Message::Other,
            ) => continue,
            Err(_) => Event::Changed { table: None, port },
        };
        let repeated = matches!(event, Event::Changed { .. }) && events.last() == Some(&event);
        if !repeated {
            events.push(event);
        }
    }
}
