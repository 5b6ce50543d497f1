//! A blocking route-netlink socket that sends many requests with one system call.
//!
//! The kernel works on a request while it is being sent, so the answers are there when the call
//! returns. Nothing waits for the network.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use crate::error::DatapathError;

pub mod executor;
pub mod observer;
pub mod request;

/// Most requests in one system call: their answers must fit the socket's receive buffer.
const BATCH: usize = 48;

/// Bytes read at once. Reason: the kernel fills dump answers up to 32 KiB when the reader's buffer
/// has that much.
const READ_SIZE: usize = 32 * 1024;

/// Seconds to wait for an answer that the kernel gives at once; more means that it lost one.
const ANSWER_TIMEOUT_S: i64 = 10;

/// Bytes of a message's header.
const HEADER: usize = 16;

/// How often a dump that changed under way is begun again.
const DUMP_TRIES: usize = 5;

/// A request and its flags beside "request" and "acknowledge".
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

/// The kernel's answer to one request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `Ok`, or why it was refused.
    pub(crate) result: Result<(), Errno>,
    /// What a "get" returned.
    pub(crate) message: Option<RouteNetlinkMessage>,
}

/// A socket in the namespace of the thread that opened it. It can be used from anywhere.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    read: Vec<u8>,
}

fn socket_error(what: &'static str) -> impl Fn(std::io::Error) -> DatapathError {
    move |source| DatapathError::Socket { what, source }
}

impl Connection {
    /// Opens one in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, DatapathError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(socket_error("socket"))?;
        socket.bind_auto().map_err(socket_error("bind"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(socket_error("connect"))?;
        // Acknowledgements need not repeat the request.
        socket.set_cap_ack(true).map_err(socket_error("cap_ack"))?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT_S, 0);
        setsockopt(&socket, ReceiveTimeout, &timeout)
            .map_err(|e| socket_error("timeout")(e.into()))?;
        Ok(Self {
            socket,
            sequence: 0,
            read: Vec::with_capacity(READ_SIZE),
        })
    }

    /// Sends all requests, in order, and returns an answer for each. A refused one does not stop
    /// those behind it.
    pub(crate) fn call(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, DatapathError> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests.into_iter();
        loop {
            let batch: Vec<Request> = rest.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(answers);
            }
            self.call_batch(batch, &mut answers)?;
        }
    }

    fn call_batch(
        &mut self,
        batch: Vec<Request>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), DatapathError> {
        let first = self.sequence.wrapping_add(1);
        let count = batch.len();
        let mut out = Vec::with_capacity(count * 128);
        for request in batch {
            self.push(&mut out, request.message, request.flags | NLM_F_ACK);
        }
        self.send(&out)?;
        let mut open: Vec<Option<Result<(), Errno>>> = (0..count).map(|_| None).collect();
        let mut messages: Vec<Option<RouteNetlinkMessage>> = (0..count).map(|_| None).collect();
        while open.iter().any(Option::is_none) {
            for message in self.receive()? {
                let slot = message.header.sequence_number.wrapping_sub(first);
                let Ok(slot) = usize::try_from(slot) else {
                    continue;
                };
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        if let Some(place) = open.get_mut(slot) {
                            *place = Some(match error.code {
                                None => Ok(()),
                                Some(code) => Err(Errno::from_raw(code.get().saturating_neg())),
                            });
                        }
                    }
                    NetlinkPayload::InnerMessage(inner) => {
                        if let Some(place) = messages.get_mut(slot) {
                            *place = Some(inner);
                        }
                    }
                    NetlinkPayload::Done(_)
                    | NetlinkPayload::Noop
                    | NetlinkPayload::Overrun(_)
                    | _ => {}
                }
            }
        }
        let results = open.into_iter().map(|r| r.unwrap_or(Err(Errno::EIO)));
        answers.extend(
            results
                .zip(messages)
                .map(|(result, message)| Answer { result, message }),
        );
        Ok(())
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, DatapathError> {
        for _ in 0..DUMP_TRIES {
            let mut out = Vec::with_capacity(128);
            self.push(&mut out, request.clone(), NLM_F_DUMP);
            self.send(&out)?;
            let (found, torn) = self.collect_dump()?;
            if !torn {
                return Ok(found);
            }
        }
        Err(DatapathError::Garbled(
            "the objects changed during each of several dumps".to_owned(),
        ))
    }

    fn collect_dump(&mut self) -> Result<(Vec<RouteNetlinkMessage>, bool), DatapathError> {
        let mut found = Vec::new();
        let mut torn = false;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok((found, torn)),
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Error(error) => {
                        return Err(DatapathError::Refused {
                            op: "dump".to_owned(),
                            errno: Errno::from_raw(error.raw_code().saturating_neg()),
                        });
                    }
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
                }
            }
        }
    }

    fn push(&mut self, out: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = out.len();
        // Messages start on multiples of four.
        out.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(space) = out.get_mut(start..) {
            message.serialize(space);
        }
    }

    fn send(&self, out: &[u8]) -> Result<(), DatapathError> {
        self.socket
            .send(out, 0)
            .map(drop)
            .map_err(socket_error("send"))
    }

    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, DatapathError> {
        self.read.clear();
        self.socket
            .recv(&mut self.read, 0)
            .map_err(socket_error("receive"))?;
        parse(&self.read)
    }
}

/// The messages in one datagram.
fn parse(mut bytes: &[u8]) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, DatapathError> {
    let garbled = || DatapathError::Garbled("a message header is cut".to_owned());
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let header = bytes.first_chunk::<HEADER>().ok_or_else(garbled)?;
        let [l0, l1, l2, l3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(length).map_err(|_| garbled())?;
        if length < HEADER {
            return Err(garbled());
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|e| DatapathError::Garbled(e.to_string()))?;
        messages.push(message);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_with_a_cut_header_is_garbled() {
        assert!(parse(&[16, 0, 0]).is_err());
        assert!(parse(&[0; 16]).is_err());
    }

    #[test]
    fn messages_of_a_datagram_are_read_past_their_padding() {
        // NLMSG_NOOP twice, the first with a body of one byte and its padding.
        let mut datagram = vec![17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
        datagram.extend([16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

        assert_eq!(parse(&datagram).unwrap().len(), 2);
    }
}
