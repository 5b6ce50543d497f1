//! Rules: transactions, dumps, and who owns a table.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nft_wire::batch::encode_batch;
use nft_wire::change::Change;
use nft_wire::element::Element;
use nft_wire::error::{DecodeError, EncodeError};
use nft_wire::frame::{DUMP_INTERRUPTED, Frames, MULTI};
use nft_wire::message::{Answer, Generation, Message, decode};
use nft_wire::name::{Name, TableRef};
use nft_wire::request::Request;
use nft_wire::rule::Rule;
use nft_wire::snapshot::Snapshot;
use nft_wire::table::Table;
use nix::errno::Errno;

use super::link::{Link, OpenError, Trouble};

/// How often a dump that was disturbed is begun anew.
const DUMP_TRIES: usize = 8;

/// A transaction that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The generation after it. Somebody else's transaction may have come in between.
    pub generation: u32,
    /// How long the kernel took, and the bytes to be written and read.
    pub took: Duration,
}

/// A transaction that is not in force, but for [`CommitError::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It can not be written as messages: built wrong.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The kernel refused one change, or the whole.
    #[error("{what}: {errno}{}", text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// Index of the first change that it refused; `None` when it blames none.
        index: Option<usize>,
        /// That change in words.
        what: String,
        /// Why.
        errno: Errno,
        /// Why in words, where the kernel says so.
        text: Option<Arc<str>>,
    },
    /// The table belongs to another socket: hands off until it is given up.
    #[error("{what}: the table belongs to another socket")]
    Owned {
        /// Index of the change.
        index: usize,
        /// That change in words.
        what: String,
    },
    /// This process may not change rules.
    #[error("no right to change rules (CAP_NET_ADMIN)")]
    Forbidden,
    /// Nothing was sent: repeat, or send less at once.
    #[error("transaction not sent: {0}")]
    NotSent(Errno),
    /// It was sent and no answer came: dump to see.
    #[error("transaction sent, outcome unknown: {0}")]
    Unknown(String),
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// What was asked for does not exist.
    #[error("no such table, chain or set")]
    Missing,
    /// The kernel refused.
    #[error("{0}")]
    Refused(Errno),
    /// The rules kept changing while they were dumped: again later.
    #[error("the rules kept changing while they were dumped")]
    Disturbed,
    /// An answer that is not understood.
    #[error(transparent)]
    Garbled(#[from] DecodeError),
    /// Answers were lost: again.
    #[error("answers were lost")]
    Lost,
}

/// What became of a table that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is new and empty.
    Created,
    /// It was an orphan of ours and has its content.
    Adopted,
    /// This socket owned it all along, handed over by whoever held it.
    Kept,
    /// It has its content and can not be owned: it was made without the flag.
    Unowned,
}

/// A way to the rules of one network namespace.
#[derive(Debug)]
pub struct Socket {
    link: Link,
}

impl Socket {
    /// Opens one in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`OpenError::Refused`].
    pub fn open() -> Result<Self, OpenError> {
        Link::open(&[]).map(|link| Self { link })
    }

    /// Opens one in the namespace at `netns`.
    ///
    /// # Errors
    /// [`OpenError::NamespaceGone`] when nothing is there, [`OpenError::Refused`].
    pub fn open_at(netns: &Path) -> Result<Self, OpenError> {
        Link::open_at(netns, &[]).map(|link| Self { link })
    }

    /// Goes on with a socket that another process opened and handed over. Only one of them may use it
    /// at a time.
    ///
    /// # Errors
    /// [`OpenError::Stranger`] when it is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OpenError> {
        Link::adopt(fd).map(|link| Self { link })
    }

    /// The kernel's number for this socket: the owner of tables that it made as such.
    pub const fn port(&self) -> u32 {
        self.link.port()
    }

    /// Does all changes or none.
    ///
    /// # Errors
    /// [`CommitError`]. Only after [`CommitError::Unknown`] something may have happened.
    pub fn commit(&mut self, changes: &[Change]) -> Result<Committed, CommitError> {
        let start = Instant::now();
        let first_seq = self.link.take_seq(1);
        let batch = encode_batch(changes, first_seq)?;
        let used = batch.next_seq().wrapping_sub(first_seq);
        self.link.take_seq(used.saturating_sub(1));
        if let Some(ack_seq) = batch.ack_seq() {
            self.link
                .send(&batch.bytes)
                .map_err(|trouble| match trouble {
                    Trouble::Errno(errno) => CommitError::NotSent(errno),
                    Trouble::Overrun | Trouble::Cut => CommitError::NotSent(Errno::ENOBUFS),
                })?;
            let outcome = self.read_outcome(first_seq, ack_seq);
            if let Some((seq, answer)) = outcome.refusal {
                let index = batch.change_of(seq);
                return Err(refusal(changes, index, answer));
            }
            if !outcome.acknowledged {
                return Err(CommitError::Unknown(outcome.trouble.unwrap_or_default()));
            }
        }
        let generation = self
            .generation()
            .map_err(|error| CommitError::Unknown(format!("generation: {error}")))?;
        Ok(Committed {
            generation: generation.id,
            took: start.elapsed(),
        })
    }

    /// Reads all that lies ready. The kernel worked off the transaction while it was being sent.
    fn read_outcome(&mut self, first_seq: u32, ack_seq: u32) -> Outcome {
        let mut outcome = Outcome::default();
        let span = ack_seq.wrapping_sub(first_seq);
        loop {
            let datagram = match self.link.receive() {
                Ok(Some(datagram)) => datagram,
                Ok(None) => return outcome,
                Err(Trouble::Errno(errno)) => {
                    outcome.trouble = Some(errno.to_string());
                    return outcome;
                }
                Err(trouble @ (Trouble::Overrun | Trouble::Cut)) => {
                    outcome.trouble = Some(format!("{trouble:?}"));
                    continue;
                }
            };
            for frame in Frames::new(datagram) {
                let message = frame.and_then(|frame| Ok((frame.header, decode(&frame)?)));
                match message {
                    Ok((header, Message::Answer(answer)))
                        if header.seq.wrapping_sub(first_seq) <= span =>
                    {
                        if answer.errno != 0 && outcome.refusal.is_none() {
                            outcome.refusal = Some((header.seq, answer));
                        } else if header.seq == ack_seq && answer.errno == 0 {
                            outcome.acknowledged = true;
                        }
                    }
                    // Left over from earlier.
                    Ok(_) => {}
                    Err(error) => outcome.trouble = Some(error.to_string()),
                }
            }
        }
    }

    /// The current generation.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn generation(&mut self) -> Result<Generation, QueryError> {
        let mut found = None;
        self.ask(&Request::Generation, &mut |message| {
            if let Message::Generation(generation) = message {
                found = Some(generation);
            }
        })?;
        found.ok_or(QueryError::Lost)
    }

    /// One table without its content; `None` when it does not exist.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn table(&mut self, at: &TableRef) -> Result<Option<Table>, QueryError> {
        let mut found = None;
        let asked = self.ask(&Request::Table(at.clone()), &mut |message| {
            if let Message::Change(Change::AddTable(table) | Change::CreateTable(table)) = message {
                found = Some(table);
            }
        });
        match asked {
            Ok(()) => Ok(found),
            Err(QueryError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All tables of the namespace.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn tables(&mut self) -> Result<Vec<Table>, QueryError> {
        let family = nft_wire::name::Family::Unspecified;
        self.settled(|socket| {
            let mut tables = Vec::new();
            socket.ask(&Request::Tables(family), &mut |message| {
                if let Message::Change(Change::AddTable(table) | Change::CreateTable(table)) =
                    message
                {
                    tables.push(table);
                }
            })?;
            Ok(tables)
        })
    }

    /// A table with all that is in it, as of one generation; `None` when it does not exist.
    ///
    /// # Errors
    /// [`QueryError::Disturbed`] when no attempt of eight was left alone by other writers.
    pub fn dump(&mut self, at: &TableRef) -> Result<Option<Snapshot>, QueryError> {
        let dumped = self.settled(|socket| {
            let before = socket.generation()?.id;
            let Some(table) = socket.table(at)? else {
                return Ok(None);
            };
            let snapshot = socket.dump_once(table, before)?;
            if socket.generation()?.id == before {
                Ok(Some(snapshot))
            } else {
                Err(QueryError::Disturbed)
            }
        });
        match dumped {
            // Something went away between two steps, over and over.
            Err(QueryError::Missing) => Err(QueryError::Disturbed),
            other => other,
        }
    }

    fn dump_once(&mut self, table: Table, generation: u32) -> Result<Snapshot, QueryError> {
        let at = table.at.clone();
        let mut snapshot = Snapshot::new(table, generation);
        let rules = Request::Rules {
            table: at.clone(),
            chain: None,
        };
        for request in [Request::Chains(at.family), Request::Sets(at.clone()), rules] {
            self.ask(&request, &mut |message| take(&mut snapshot, message))?;
        }
        let sets: Vec<Name> = snapshot.sets.keys().map(Name::clone).collect();
        for set in sets {
            let table = at.clone();
            self.ask(&Request::Elements { table, set }, &mut |message| {
                take(&mut snapshot, message);
            })?;
        }
        Ok(snapshot)
    }

    /// Shows the elements of a set, without keeping them; `each` may see elements twice when the dump was
    /// disturbed.
    ///
    /// # Errors
    /// [`QueryError::Missing`] without such a set.
    pub fn elements(
        &mut self,
        at: &TableRef,
        set: &str,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), QueryError> {
        let request = Request::Elements {
            table: at.clone(),
            set: set.into(),
        };
        self.settled(|socket| {
            socket.ask(&request, &mut |message| {
                if let Message::Change(Change::AddElements(more)) = message {
                    more.elements.into_iter().for_each(&mut *each);
                }
            })
        })
    }

    /// The rules of a table, or of one chain, with their counters.
    ///
    /// # Errors
    /// [`QueryError`]; a chain that does not exist has no rules.
    pub fn rules(&mut self, at: &TableRef, chain: Option<&str>) -> Result<Vec<Rule>, QueryError> {
        let request = Request::Rules {
            table: at.clone(),
            chain: chain.map(Name::from),
        };
        self.settled(|socket| {
            let mut rules = Vec::new();
            socket.ask(&request, &mut |message| {
                if let Message::Change(Change::AddRule(rule)) = message {
                    rules.push(rule);
                }
            })?;
            Ok(rules)
        })
    }

    /// Makes `table` ours, with its flags: creates it, adopts it as an orphan, or finds it ours already.
    ///
    /// # Errors
    /// [`CommitError::Owned`] when another socket owns it.
    pub fn claim(&mut self, table: &Table) -> Result<Claim, CommitError> {
        let found = self
            .table(&table.at)
            .map_err(|error| CommitError::Unknown(error.to_string()))?;
        let Some(found) = found else {
            self.commit(&[Change::CreateTable(table.clone())])?;
            return Ok(Claim::Created);
        };
        if found.owner == Some(self.port()) {
            return Ok(Claim::Kept);
        }
        if found.owner.is_some() {
            let change = Change::AddTable(table.clone());
            return Err(CommitError::Owned {
                index: 0,
                what: change.label(),
            });
        }
        if table.flags.owner && found.flags.persist {
            self.commit(&[Change::AddTable(table.clone())])?;
            return Ok(Claim::Adopted);
        }
        Ok(Claim::Unowned)
    }

    /// Removes a table with all that is in it; one that does not exist is fine.
    ///
    /// # Errors
    /// [`CommitError::Owned`] when another socket owns it.
    pub fn remove(&mut self, at: &TableRef) -> Result<(), CommitError> {
        match self.commit(&[Change::DeleteTable(at.clone())]) {
            Ok(_)
            | Err(CommitError::Refused {
                errno: Errno::ENOENT,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Begins anew while others disturb.
    fn settled<T>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let mut result = work(self);
        for _ in 1..DUMP_TRIES {
            match result {
                Err(QueryError::Disturbed | QueryError::Missing) => result = work(self),
                Ok(_) | Err(QueryError::Refused(_) | QueryError::Garbled(_) | QueryError::Lost) => {
                    break;
                }
            }
        }
        result
    }

    /// Asks, and reads the answer to its end.
    fn ask(&mut self, request: &Request, each: &mut dyn FnMut(Message)) -> Result<(), QueryError> {
        let seq = self.link.take_seq(1);
        self.link
            .send(&request.encode(seq))
            .map_err(|trouble| match trouble {
                Trouble::Errno(errno) => QueryError::Refused(errno),
                Trouble::Overrun | Trouble::Cut => QueryError::Lost,
            })?;
        let mut disturbed = false;
        let mut failed = None;
        loop {
            let datagram = match self.link.receive() {
                Ok(Some(datagram)) => datagram,
                Ok(None) | Err(Trouble::Overrun | Trouble::Cut) => return Err(QueryError::Lost),
                Err(Trouble::Errno(errno)) => return Err(QueryError::Refused(errno)),
            };
            for frame in Frames::new(datagram) {
                let frame = frame?;
                if frame.header.seq != seq {
                    continue;
                }
                disturbed |= frame.header.flags & DUMP_INTERRUPTED != 0;
                let last = frame.header.flags & MULTI == 0;
                match decode(&frame) {
                    Ok(Message::Done(errno)) => return finish(errno, disturbed, failed),
                    Ok(Message::Answer(Answer { errno, .. })) => {
                        return finish(errno, disturbed, failed);
                    }
                    Ok(message) => each(message),
                    // The rest of the answer must be read all the same.
                    Err(error) => failed = Some(error),
                }
                if last {
                    return finish(0, disturbed, failed);
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// What was read after a transaction.
#[derive(Debug, Default)]
struct Outcome {
    refusal: Option<(u32, Answer)>,
    acknowledged: bool,
    trouble: Option<String>,
}

fn refusal(changes: &[Change], index: Option<usize>, answer: Answer) -> CommitError {
    let errno = Errno::from_raw(answer.errno);
    let change = index.and_then(|at| changes.get(at));
    match (errno, index, change) {
        (Errno::EPERM, Some(index), Some(change)) => CommitError::Owned {
            index,
            what: change.label(),
        },
        (Errno::EPERM, _, _) => CommitError::Forbidden,
        (errno, index, change) => CommitError::Refused {
            index,
            what: change.map_or_else(|| "transaction".to_owned(), Change::label),
            errno,
            text: answer.text,
        },
    }
}

fn finish(errno: i32, disturbed: bool, failed: Option<DecodeError>) -> Result<(), QueryError> {
    match (Errno::from_raw(errno), failed) {
        (Errno::ENOENT, _) => Err(QueryError::Missing),
        (Errno::EINTR, _) => Err(QueryError::Disturbed),
        (errno, _) if errno != Errno::from_raw(0) => Err(QueryError::Refused(errno)),
        (_, Some(error)) => Err(error.into()),
        (_, None) if disturbed => Err(QueryError::Disturbed),
        (_, None) => Ok(()),
    }
}

fn take(snapshot: &mut Snapshot, message: Message) {
    match message {
        Message::Change(change) => snapshot.take(change),
        Message::Foreign(table) => {
            snapshot.foreign |= table.is_none_or(|table| table == *snapshot.at());
        }
        Message::Answer(_)
        | Message::Done(_)
        | Message::Overrun
        | Message::BatchBegin(_)
        | Message::BatchEnd
        | Message::Generation(_)
        | Message::Trace(_)
        | Message::Other => {}
    }
}
