//! Flows: dumped, marked, removed.

use std::net::IpAddr;
use std::path::Path;

use nft_wire::conntrack::{self, Filter, Flow, Mark};
use nft_wire::frame::{DUMP_INTERRUPTED, Frames};
use nft_wire::message::{Message, decode};
use nft_wire::name::Family;
use nix::errno::Errno;

use super::link::{Link, OpenError, Trouble};

/// Messages per send: each may be answered by an error of some 40 bytes.
const MESSAGES: usize = 1_000;

/// The connection tracker did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The kernel refused.
    #[error("conntrack: {0}")]
    Refused(Errno),
    /// Answers were lost or not understood: dump again.
    #[error("conntrack: {0}")]
    Lost(String),
}

/// What became of flows that were to be marked or removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Done.
    pub changed: usize,
    /// They had ended.
    pub gone: usize,
}

/// A way to the flows of one network namespace.
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

    /// Shows every flow that passes the filter. The table lives on meanwhile: a flow that comes or goes
    /// may be missed or shown twice.
    ///
    /// # Errors
    /// [`FlowError`]; some flows may have been shown.
    pub fn dump(&mut self, filter: &Filter, each: &mut dyn FnMut(&Flow)) -> Result<(), FlowError> {
        // A dump walks all buckets and takes their locks, also where there is nothing in them. A kernel that does not
        // tell the number is asked for the flows.
        if matches!(self.count(), Ok(0)) {
            return Ok(());
        }
        let wide = Filter {
            address: None,
            family: filter
                .family
                .or_else(|| filter.address.map(|(_, a)| family(a))),
            ..*filter
        };
        let mut narrow = |flow: &Flow| {
            if filter.passes(flow) {
                each(flow);
            }
        };
        match filter.address {
            // Kernels (6.18 among them) show the flows that do *not* have the IPv6 address that is asked
            // for, and hide those that do.
            Some((_, IpAddr::V6(_))) => self.dump_once(&wide, &mut narrow),
            None => self.dump_once(filter, &mut narrow),
            Some((_, IpAddr::V4(_))) => match self.dump_once(filter, &mut narrow) {
                // Kernels before 5.8 know no such filter.
                Err(FlowError::Refused(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
                    self.dump_once(&wide, &mut narrow)
                }
                other => other,
            },
        }
    }

    /// How many flows there are in the namespace; flows of packets on their way count.
    ///
    /// # Errors
    /// [`FlowError`].
    pub fn count(&mut self) -> Result<u32, FlowError> {
        let seq = self.link.take_seq(1);
        self.send(&conntrack::encode_count(seq))?;
        loop {
            let Some(datagram) = receive(&mut self.link)? else {
                return Err(FlowError::Lost("the number is missing".to_owned()));
            };
            for frame in Frames::new(datagram) {
                let frame = frame.map_err(|error| FlowError::Lost(error.to_string()))?;
                if frame.header.seq != seq {
                    continue;
                }
                let count = conntrack::decode_count(&frame);
                if let Some(count) = count.map_err(|error| FlowError::Lost(error.to_string()))? {
                    return Ok(count);
                }
                if let Ok(Message::Answer(answer)) = decode(&frame) {
                    return Err(FlowError::Refused(Errno::from_raw(answer.errno)));
                }
            }
        }
    }

    fn dump_once(&mut self, filter: &Filter, each: &mut dyn FnMut(&Flow)) -> Result<(), FlowError> {
        let seq = self.link.take_seq(1);
        self.send(&conntrack::encode_dump(filter, seq))?;
        loop {
            let Some(datagram) = receive(&mut self.link)? else {
                return Err(FlowError::Lost("the dump has no end".to_owned()));
            };
            for frame in Frames::new(datagram) {
                let frame = frame.map_err(|error| FlowError::Lost(error.to_string()))?;
                if frame.header.seq != seq {
                    continue;
                }
                // A resized table may have hidden flows; the dump goes on to its end.
                let disturbed = frame.header.flags & DUMP_INTERRUPTED != 0;
                let flow = conntrack::decode(&frame);
                match flow.map_err(|error| FlowError::Lost(error.to_string()))? {
                    Some(flow) => each(&flow),
                    None => match decode(&frame) {
                        Ok(Message::Done(0)) if disturbed => {
                            return Err(FlowError::Lost("the table was resized".to_owned()));
                        }
                        Ok(Message::Done(0)) => return Ok(()),
                        Ok(Message::Done(errno)) => {
                            return Err(FlowError::Refused(Errno::from_raw(errno)));
                        }
                        Ok(Message::Answer(answer)) => {
                            return Err(FlowError::Refused(Errno::from_raw(answer.errno)));
                        }
                        Ok(_) => {}
                        Err(error) => return Err(FlowError::Lost(error.to_string())),
                    },
                }
            }
        }
    }

    /// Changes bits of the marks of flows.
    ///
    /// # Errors
    /// [`FlowError`] of the first failure other than that a flow had ended; earlier ones are marked.
    pub fn mark<'a>(
        &mut self,
        flows: impl IntoIterator<Item = (&'a Flow, Mark)>,
    ) -> Result<Done, FlowError> {
        self.each(flows, |(flow, mark), seq, out| {
            conntrack::encode_mark(&flow.original, flow.zone, mark, seq, out);
        })
    }

    /// Removes flows; successors with the same addresses and ports are left alone.
    ///
    /// # Errors
    /// [`FlowError`] of the first failure other than that a flow had ended; earlier ones are removed.
    pub fn delete<'a>(
        &mut self,
        flows: impl IntoIterator<Item = &'a Flow>,
    ) -> Result<Done, FlowError> {
        self.each(flows, |flow, seq, out| {
            conntrack::encode_delete(&flow.original, flow.zone, Some(flow.id), seq, out);
        })
    }

    fn each<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        encode: impl Fn(T, u32, &mut Vec<u8>),
    ) -> Result<Done, FlowError> {
        let mut items = items.into_iter().peekable();
        let mut done = Done::default();
        while items.peek().is_some() {
            let mut out = Vec::new();
            let mut first_seq = None;
            let (mut count, mut last_seq, mut last_start) = (0_u32, 0, 0);
            for item in items.by_ref().take(MESSAGES) {
                last_start = out.len();
                last_seq = self.link.take_seq(1);
                first_seq.get_or_insert(last_seq);
                encode(item, last_seq, &mut out);
                count += 1;
            }
            conntrack::set_ack(&mut out, last_start);
            self.send(&out)?;
            let first_seq = first_seq.unwrap_or(last_seq);
            let gone = self.read_answers(first_seq, last_seq)?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            done.gone += gone;
            done.changed += count.saturating_sub(gone);
        }
        Ok(done)
    }

    /// Reads until the last message is answered; gives how many flows had ended.
    fn read_answers(&mut self, first_seq: u32, last_seq: u32) -> Result<usize, FlowError> {
        let mut gone = 0;
        let mut failed = None;
        loop {
            let Some(datagram) = receive(&mut self.link)? else {
                return Err(FlowError::Lost("no acknowledgement".to_owned()));
            };
            for frame in Frames::new(datagram) {
                let frame = frame.map_err(|error| FlowError::Lost(error.to_string()))?;
                let seq = frame.header.seq;
                if seq.wrapping_sub(first_seq) > last_seq.wrapping_sub(first_seq) {
                    continue;
                }
                let Ok(Message::Answer(answer)) = decode(&frame) else {
                    continue;
                };
                let errno = Errno::from_raw(answer.errno);
                if errno == Errno::ENOENT {
                    gone += 1;
                } else if answer.errno != 0 {
                    failed.get_or_insert(errno);
                }
                if seq == last_seq {
                    return failed.map_or(Ok(gone), |errno| Err(FlowError::Refused(errno)));
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), FlowError> {
        self.link.send(bytes).map_err(trouble)
    }
}

const fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

fn receive(link: &mut Link) -> Result<Option<&[u8]>, FlowError> {
    link.receive().map_err(trouble)
}

fn trouble(trouble: Trouble) -> FlowError {
    match trouble {
        Trouble::Errno(errno) => FlowError::Refused(errno),
        Trouble::Overrun => FlowError::Lost("too many answers".to_owned()),
        Trouble::Cut => FlowError::Lost("an answer was too long".to_owned()),
    }
}
