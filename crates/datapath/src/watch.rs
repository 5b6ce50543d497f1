//! What changes in a namespace, as the kernel tells it.

use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use tokio::runtime::Handle;
use types::address::MacAddr;

use crate::error::DatapathError;
use crate::netlink::{self, observer};

/// Multicast groups: links, addresses, routes and rules of both families.
///
/// Source: `RTNLGRP_*` in the kernel's linux/rtnetlink.h.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];

/// The group for links.
const LINK_GROUP: u32 = 1;

/// Types of the messages that can be a [`Change`]. Each ADD makes routes and rules, of which nobody
/// needs to be told: they are not even decoded.
///
/// Source: `RTM_NEWLINK`, `RTM_DELLINK`, `RTM_NEWADDR`, `RTM_DELADDR`, `RTM_DELROUTE`, `RTM_DELRULE` in
/// linux/rtnetlink.h.
const WANTED: [u16; 6] = [16, 17, 20, 21, 25, 33];

/// Bytes read at once: more than any notification has.
const READ_SIZE: usize = 32 * 1024;

/// Something that may need repair, or that somebody waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link appeared or changed.
    Link {
        /// Interface index.
        index: u32,
        /// Name.
        name: String,
        /// Hardware address.
        mac: Option<MacAddr>,
        /// Whether it is up.
        up: bool,
    },
    /// A link went away.
    LinkGone {
        /// Interface index it had.
        index: u32,
        /// Name it had.
        name: String,
    },
    /// An address was removed.
    AddressGone {
        /// Index of the link.
        link: u32,
        /// The address.
        net: IpNet,
    },
    /// An address was added.
    Address {
        /// Index of the link.
        link: u32,
        /// The address.
        net: IpNet,
    },
    /// A unicast route was removed.
    RouteGone {
        /// Where it led.
        dst: IpNet,
        /// Its table.
        table: u32,
    },
    /// A rule was removed.
    RuleGone {
        /// Its priority.
        priority: u32,
        /// Address it matched, as source or destination.
        ip: Option<IpAddr>,
    },
    /// Notifications were lost: compare everything.
    Resync,
}

/// A stream of changes. The kernel's buffer is its bound; what does not fit is told as
/// [`Change::Resync`].
pub struct Watch {
    socket: TokioSocket,
    queued: VecDeque<Change>,
    read: Vec<u8>,
}

fn socket_error(what: &'static str) -> impl Fn(std::io::Error) -> DatapathError {
    move |source| DatapathError::Socket { what, source }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("queued", &self.queued.len())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Opens one in the namespace of the calling thread, to be used on the runtime of `handle`.
    pub(crate) fn open(handle: &Handle, links_only: bool) -> Result<Self, DatapathError> {
        let _runtime = handle.enter();
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(socket_error("watch socket"))?;
        let inner = socket.socket_mut();
        inner
            .bind(&SocketAddr::new(0, 0))
            .map_err(socket_error("watch bind"))?;
        for group in GROUPS {
            if !links_only || group == LINK_GROUP {
                inner
                    .add_membership(group)
                    .map_err(socket_error("watch group"))?;
            }
        }
        Ok(Self {
            socket,
            queued: VecDeque::new(),
            read: Vec::with_capacity(READ_SIZE),
        })
    }

    /// The next change. Can be cancelled without losing one.
    ///
    /// # Errors
    /// [`DatapathError::Socket`] when the socket is broken: open a new watch and compare everything.
    pub async fn next(&mut self) -> Result<Change, DatapathError> {
        loop {
            if let Some(change) = self.queued.pop_front() {
                return Ok(change);
            }
            self.read.clear();
            match self.socket.recv(&mut self.read).await {
                Ok(()) => self.take(),
                Err(e) if e.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS) => {
                    return Ok(Change::Resync);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(socket_error("watch")(e)),
            }
        }
    }

    fn take(&mut self) {
        let Ok(messages) = netlink::parse_some(&self.read, |kind| WANTED.contains(&kind)) else {
            // What can not be read may have been important.
            self.queued.push_back(Change::Resync);
            return;
        };
        for message in messages {
            if let NetlinkPayload::InnerMessage(inner) = message.payload {
                self.queued.extend(change(&inner));
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is the library's, open, and mostly of no concern here"
)]
fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(_) => observer::link(message).map(|l| Change::Link {
            index: l.index,
            name: l.name,
            mac: l.mac,
            up: l.up,
        }),
        RouteNetlinkMessage::DelLink(_) => observer::link(message).map(|l| Change::LinkGone {
            index: l.index,
            name: l.name,
        }),
        RouteNetlinkMessage::NewAddress(_) => observer::address(message).map(|a| Change::Address {
            link: a.link,
            net: a.net,
        }),
        RouteNetlinkMessage::DelAddress(_) => {
            observer::address(message).map(|a| Change::AddressGone {
                link: a.link,
                net: a.net,
            })
        }
        RouteNetlinkMessage::DelRoute(_) => observer::route(message).map(|r| Change::RouteGone {
            dst: r.dst,
            table: r.table,
        }),
        RouteNetlinkMessage::DelRule(_) => observer::rule(message).map(|r| Change::RuleGone {
            priority: r.priority,
            ip: r.src.or(r.dst).map(|n| n.addr()),
        }),
        _ => None,
    }
}
