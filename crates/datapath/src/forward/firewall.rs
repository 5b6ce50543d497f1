//! nf_tables by netlink: other people's chains at the forward hook, looked at and added to.

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nft_wire::batch::encode_batch;
use nft_wire::chain::Chain;
use nft_wire::change::Change;
use nft_wire::frame::{DUMP_INTERRUPTED, Frames, Op, Topic};
use nft_wire::message::{Answer, Message, decode};
use nft_wire::name::{Family, Name, TableRef};
use nft_wire::request::Request;
use nft_wire::rule::Rule;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use crate::error::DatapathError;

/// How often a dump that was disturbed is begun anew.
const TRIES: usize = 8;

/// Longest wait for the kernel, in seconds.
const PATIENCE_S: i64 = 10;

/// Bytes of one read. Reason: the kernel's dumps come in pieces of up to 32 KiB.
const READ: usize = 64 * 1024;

/// Why a change is not in force.
pub(super) enum Refused {
    /// The kernel does not want it.
    Not(String),
    /// It could not be asked.
    Broken(DatapathError),
}

/// A socket in the namespace of the thread that opened it.
pub(super) struct Firewall {
    socket: Socket,
    seq: u32,
}

impl Firewall {
    /// Nothing where the kernel has no nf_tables.
    pub(super) fn open() -> Result<Option<Self>, DatapathError> {
        let Ok(mut socket) = Socket::new(NETLINK_NETFILTER) else {
            return Ok(None);
        };
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))
            .map_err(|error| failed(error.into()))?;
        Ok(Some(Self { socket, seq: 0 }))
    }

    /// Tables whose chains see no packets.
    pub(super) fn dormant(&mut self) -> Result<BTreeSet<TableRef>, DatapathError> {
        let found = self.dump(&Request::Tables(Family::Unspecified))?;
        let mut tables = BTreeSet::new();
        for change in found {
            if let Change::AddTable(table) = change
                && table.flags.dormant
            {
                tables.insert(table.at);
            }
        }
        Ok(tables)
    }

    /// All chains.
    pub(super) fn chains(&mut self) -> Result<Vec<Chain>, DatapathError> {
        let found = self.dump(&Request::Chains(Family::Unspecified))?;
        let mut chains = Vec::new();
        for change in found {
            if let Change::AddChain(chain) = change {
                chains.push(chain);
            }
        }
        Ok(chains)
    }

    /// The rules of a chain, in order; none if it is gone.
    pub(super) fn rules(&mut self, chain: &Chain) -> Result<Vec<Rule>, DatapathError> {
        let found = self.dump(&Request::Rules {
            table: chain.table.clone(),
            chain: Some(Name::clone(&chain.name)),
        })?;
        let mut rules = Vec::new();
        for change in found {
            // Older kernels do not filter by chain.
            if let Change::AddRule(rule) = change
                && rule.table == chain.table
                && rule.chain == chain.name
            {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    /// Makes one change, as a transaction of its own.
    pub(super) fn commit(&mut self, change: &Change) -> Result<(), Refused> {
        let batch = encode_batch(std::slice::from_ref(change), self.next_seqs(3))
            .map_err(|error| Refused::Not(error.to_string()))?;
        self.send(&batch.bytes).map_err(Refused::Broken)?;
        let ours = batch.first_seq..batch.next_seq();
        loop {
            let bytes = self.receive().map_err(Refused::Broken)?;
            for frame in Frames::new(&bytes) {
                let frame = frame.map_err(|error| Refused::Broken(garbled(&error)))?;
                if !ours.contains(&frame.header.seq) || frame.header.topic != Topic::Error {
                    continue;
                }
                match decode(&frame) {
                    Ok(Message::Answer(Answer { errno: 0, .. })) => return Ok(()),
                    Ok(Message::Answer(Answer { errno, text })) => {
                        return Err(Refused::Not(refusal(errno, text.as_deref())));
                    }
                    Ok(_) => {}
                    Err(error) => return Err(Refused::Broken(garbled(&error))),
                }
            }
        }
    }

    /// What a dump reports, of one state. What this crate can not read is not ours and left out.
    fn dump(&mut self, request: &Request) -> Result<Vec<Change>, DatapathError> {
        for _ in 0..TRIES {
            if let Some(found) = self.dump_once(request)? {
                return Ok(found);
            }
        }
        Err(DatapathError::Garbled(
            "rules of the firewall change faster than they can be read".to_owned(),
        ))
    }

    /// Nothing when a change came in between.
    fn dump_once(&mut self, request: &Request) -> Result<Option<Vec<Change>>, DatapathError> {
        let seq = self.next_seqs(1);
        self.send(&request.encode(seq))?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            let bytes = self.receive()?;
            for frame in Frames::new(&bytes) {
                let frame = frame.map_err(|error| garbled(&error))?;
                if frame.header.seq != seq {
                    continue;
                }
                whole &= frame.header.flags & DUMP_INTERRUPTED == 0;
                match (frame.header.topic, decode(&frame)) {
                    (Topic::Done, Ok(Message::Done(0))) => return Ok(whole.then_some(found)),
                    (Topic::Done, Ok(Message::Done(errno)))
                    | (Topic::Error, Ok(Message::Answer(Answer { errno, .. }))) => {
                        return after(errno, found);
                    }
                    (Topic::Nft(_), Ok(Message::Change(change))) => found.push(change),
                    (Topic::Nft(Op::NewRule | Op::NewChain | Op::NewTable), _) => {
                        tracing::debug!("something of another tool's rules was not understood");
                    }
                    _ => {}
                }
            }
        }
    }

    fn next_seqs(&mut self, count: u32) -> u32 {
        let first = self.seq.wrapping_add(1);
        self.seq = self.seq.wrapping_add(count);
        first
    }

    fn send(&self, bytes: &[u8]) -> Result<(), DatapathError> {
        self.socket.send(bytes, 0).map(drop).map_err(failed)
    }

    fn receive(&self) -> Result<Vec<u8>, DatapathError> {
        let mut bytes = Vec::with_capacity(READ);
        self.socket.recv(&mut bytes, 0).map_err(failed)?;
        Ok(bytes)
    }
}

/// A dump that ended with an error: what is gone, or what the kernel does not have, has nothing in it.
fn after(errno: i32, found: Vec<Change>) -> Result<Option<Vec<Change>>, DatapathError> {
    const NOTHING: [Errno; 3] = [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT];
    let errno = Errno::from_raw(errno);
    if errno == Errno::EINTR {
        return Ok(None);
    }
    if NOTHING.contains(&errno) {
        return Ok(Some(found));
    }
    Err(DatapathError::Refused {
        op: "look at the firewall's rules".to_owned(),
        errno,
    })
}

fn refusal(errno: i32, text: Option<&str>) -> String {
    let errno = Errno::from_raw(errno);
    // The same for a table that another process owns, and for a process without CAP_NET_ADMIN.
    let why = if errno == Errno::EPERM {
        "EPERM, as for a table that its owner keeps to itself".to_owned()
    } else {
        errno.to_string()
    };
    text.map_or_else(|| why.clone(), |text| format!("{why} ({text})"))
}

fn failed(source: std::io::Error) -> DatapathError {
    DatapathError::Socket {
        what: "nf_tables",
        source,
    }
}

fn garbled(error: &nft_wire::error::DecodeError) -> DatapathError {
    DatapathError::Garbled(error.to_string())
}
