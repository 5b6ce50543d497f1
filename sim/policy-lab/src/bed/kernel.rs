//! Transactions and dumps of a node's packet filter, spoken by the bed itself.
//!
//! The agent has a way of its own; this one exists so that what the kernel holds can be read by somebody else, and
//! so that steps can be written as no agent would write them.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, bail};
use nft_wire::batch::encode_batch;
use nft_wire::change::Change;
use nft_wire::message::{Message, decode_all};
use nft_wire::name::TableRef;
use nft_wire::request::Request;
use nft_wire::snapshot::Snapshot;
use nft_wire::table::Table;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Room for one datagram of a dump.
const BUFFER: usize = 1 << 20;
/// Room for a transaction in the socket.
const SEND_BUFFER: usize = 32 << 20;
/// Dumps that are begun again because somebody changed something meanwhile.
const TRIES: usize = 50;

/// A socket in a node's namespace.
#[derive(Debug)]
pub struct Kernel {
    socket: OwnedFd,
    sequence: u32,
}

impl Kernel {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> anyhow::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER)?;
        setsockopt(&fd, sockopt::RcvBufForce, &SEND_BUFFER)?;
        Ok(Self {
            socket: fd,
            sequence: 1,
        })
    }

    /// Does all changes or none.
    ///
    /// # Errors
    /// The kernel refuses; the change it names is in the text.
    pub fn commit(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let batch = encode_batch(changes, self.sequence)?;
        self.sequence = batch.next_seq();
        let Some(wanted) = batch.ack_seq() else {
            return Ok(());
        };
        self.send(&batch.bytes)?;
        let mut refused = None;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                // After a refusal there is no acknowledgement to wait for.
                Err(Errno::EAGAIN) if refused.is_some() => break,
                Err(error) => return Err(error).context("hear of a transaction"),
            };
            for (header, message) in decode_all(buffer.get(..length).unwrap_or_default())? {
                let Message::Answer(answer) = message else {
                    continue;
                };
                if answer.errno != 0 && refused.is_none() {
                    let which = batch.change_of(header.seq).and_then(|i| changes.get(i));
                    refused = Some(format!("errno {} for {which:?}", answer.errno));
                    setsockopt(
                        &self.socket,
                        sockopt::ReceiveTimeout,
                        &TimeVal::milliseconds(20),
                    )?;
                } else if answer.errno == 0 && header.seq == wanted && refused.is_none() {
                    return Ok(());
                }
            }
        }
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        bail!("the kernel refuses {}", refused.unwrap_or_default())
    }

    /// What a table holds, as of one generation; nothing when it is not there.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn snapshot(&mut self, at: &TableRef) -> anyhow::Result<Option<Snapshot>> {
        for _ in 0..TRIES {
            let before = self.generation()?;
            let there = self.ask(&Request::Tables(at.family))?;
            let there = there
                .iter()
                .any(|m| matches!(m, Message::Change(c) if c.table() == at));
            if !there {
                return Ok(None);
            }
            let mut snapshot = Snapshot::new(Table::new(at.clone()), before);
            let tables = self.ask(&Request::Tables(at.family))?;
            let chains = self.ask(&Request::Chains(at.family))?;
            let rules = self.ask(&Request::Rules {
                table: at.clone(),
                chain: None,
            })?;
            let sets = self.ask(&Request::Sets(at.clone()))?;
            for message in tables.into_iter().chain(chains).chain(rules).chain(sets) {
                match message {
                    Message::Change(change) => snapshot.take(change),
                    Message::Foreign(Some(table)) if table == *at => snapshot.foreign = true,
                    // A chain, rule or set of another table of this family, and what no dump consists of.
                    Message::Foreign(_)
                    | Message::Answer(_)
                    | Message::Done(_)
                    | Message::Overrun
                    | Message::BatchBegin(_)
                    | Message::BatchEnd
                    | Message::Generation(_)
                    | Message::Trace(_)
                    | Message::Other => {}
                }
            }
            let names: Vec<_> = snapshot.sets.keys().cloned().collect();
            for set in names {
                let table = at.clone();
                for message in self.ask(&Request::Elements { table, set })? {
                    if let Message::Change(change) = message {
                        snapshot.take(change);
                    }
                }
            }
            if self.generation()? == before {
                return Ok(Some(snapshot));
            }
        }
        bail!("the ruleset changed during each of {TRIES} dumps")
    }

    fn generation(&mut self) -> anyhow::Result<u32> {
        for message in self.ask(&Request::Generation)? {
            if let Message::Generation(generation) = message {
                return Ok(generation.id);
            }
        }
        bail!("the kernel tells no generation")
    }

    /// All messages of an answer. A table that is gone meanwhile has an empty one.
    fn ask(&mut self, request: &Request) -> anyhow::Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&request.encode(self.sequence))?;
        let mut messages = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (_, message) in decode_all(buffer.get(..length).unwrap_or_default())? {
                match message {
                    Message::Done(_) | Message::Answer(_) => return Ok(messages),
                    Message::Generation(_) => return Ok(vec![message]),
                    Message::Overrun => bail!("the kernel dropped a part of its answer"),
                    Message::BatchBegin(_)
                    | Message::BatchEnd
                    | Message::Change(_)
                    | Message::Trace(_)
                    | Message::Foreign(_)
                    | Message::Other => messages.push(message),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        Ok(())
    }
}
