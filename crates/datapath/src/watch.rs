//! What changes in a namespace, as the kernel tells it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt as _, StreamExt as _};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use rtnetlink::MulticastGroup;
use rtnetlink::proto::Connection;
use tokio::runtime::Handle;
use types::address::MacAddr;

use crate::error::DatapathError;
use crate::netlink::observer;

/// Links, and addresses, routes and rules of both families.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

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
    /// Moves what the kernel sent into `read`. It is driven only when `read` is empty and somebody
    /// waits, and tokio lets it read no more than its budget of 128 datagrams at a time: what nobody
    /// takes stays in the kernel's buffer. `None` once the socket is broken.
    connection: Option<Connection<RouteNetlinkMessage>>,
    read: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("open", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Opens one in the namespace of the calling thread, to be used on the runtime of `handle`.
    pub(crate) fn open(handle: &Handle, links_only: bool) -> Result<Self, DatapathError> {
        let _runtime = handle.enter();
        let groups: &[MulticastGroup] = if links_only {
            &[MulticastGroup::Link]
        } else {
            &GROUPS
        };
        let (connection, _requests, read) =
            rtnetlink::new_multicast_connection(groups).map_err(|source| {
                DatapathError::Socket {
                    what: "watch socket",
                    source,
                }
            })?;
        Ok(Self {
            connection: Some(connection),
            read,
        })
    }

    /// The next change. Can be cancelled without losing one.
    ///
    /// # Errors
    /// [`DatapathError::Socket`] when the socket is broken: open a new watch and compare everything.
    pub async fn next(&mut self) -> Result<Change, DatapathError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Change, DatapathError>> {
        let mut driven = false;
        loop {
            match self.read.poll_next_unpin(cx) {
                Poll::Ready(Some((message, _))) => {
                    if let Some(change) = change(&message.payload) {
                        return Poll::Ready(Ok(change));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Err(broken())),
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    driven = true;
                    if let Some(connection) = &mut self.connection
                        && connection.poll_unpin(cx).is_ready()
                    {
                        // With it goes the sender, so that `read` ends behind what was read before.
                        self.connection = None;
                    }
                }
            }
        }
    }
}

/// The library keeps the reason to itself and its log.
fn broken() -> DatapathError {
    DatapathError::Socket {
        what: "watch",
        source: io::ErrorKind::ConnectionAborted.into(),
    }
}

fn change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    match payload {
        NetlinkPayload::InnerMessage(message) => told(message),
        NetlinkPayload::Overrun(_) => Some(Change::Resync),
        NetlinkPayload::Done(_) | NetlinkPayload::Error(_) | NetlinkPayload::Noop | _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is the library's, open, and mostly of no concern here"
)]
fn told(message: &RouteNetlinkMessage) -> Option<Change> {
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
