//! Flows as messages.

use std::net::IpAddr;

use super::{End, Filter, Flow, Mark, Ports, Tuple};
use crate::attribute::{self, Attributes, Writer, required};
use crate::error::DecodeError;
use crate::frame::{self, Frame, Header, Topic};
use crate::name::Family;

const MESSAGE_NEW: u8 = 0;
const MESSAGE_GET: u8 = 1;
const MESSAGE_DELETE: u8 = 2;
const MESSAGE_GET_STATS: u8 = 5;

const STATS_ENTRIES: u16 = 1;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const MARK_MASK: u16 = 21;
const FILTER: u16 = 25;

const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;

const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ICMP_ID: u16 = 4;
const ICMP_TYPE: u16 = 5;
const ICMP_CODE: u16 = 6;
const ICMPV6_ID: u16 = 7;
const ICMPV6_TYPE: u16 = 8;
const ICMPV6_CODE: u16 = 9;

const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const FILTER_SOURCE: u32 = 1;
const FILTER_DESTINATION: u32 = 2;

/// A request for the flows that pass a filter: many messages, then `Done`.
pub fn encode_dump(filter: &Filter, seq: u32) -> Vec<u8> {
    let family = match (filter.address, filter.family) {
        (Some((_, IpAddr::V4(_))), _) => Family::Ipv4,
        (Some((_, IpAddr::V6(_))), _) => Family::Ipv6,
        (None, family) => family.unwrap_or(Family::Unspecified),
    };
    let mut w = Writer::default();
    frame::write_conntrack(MESSAGE_GET, frame::DUMP, seq, family, &mut w, |w| {
        if let Some((end, address)) = filter.address {
            write_filter(end, address, w);
        }
        if let Some(Mark { value, mask }) = filter.mark {
            w.u32(MARK, value);
            w.u32(MARK_MASK, mask);
        }
    });
    w.out
}

/// A message that changes the marked bits of one flow. Several may go in one send; ask for an
/// acknowledgement of each or of the last ([`set_ack`]): errors are answered anyway.
pub fn encode_mark(flow: &Tuple, zone: u16, mark: Mark, seq: u32, out: &mut Vec<u8>) {
    write_one(MESSAGE_NEW, flow, zone, seq, out, |w| {
        w.u32(MARK, mark.value);
        w.u32(MARK_MASK, mark.mask);
    });
}

/// A message that removes one flow; the number keeps a successor with the same tuple alive.
pub fn encode_delete(flow: &Tuple, zone: u16, id: Option<u32>, seq: u32, out: &mut Vec<u8>) {
    write_one(MESSAGE_DELETE, flow, zone, seq, out, |w| {
        if let Some(id) = id {
            w.u32(ID, id);
        }
    });
}

/// Asks for an acknowledgement of the message that starts at `start`.
pub fn set_ack(out: &mut [u8], start: usize) {
    Header::set_flags(out, start, frame::ACK);
}

/// Reads a flow; `None` when the message is none.
///
/// # Errors
/// [`DecodeError`] when the message is cut short or says what can not be.
pub fn decode(frame: &Frame<'_>) -> Result<Option<Flow>, DecodeError> {
    if frame.header.topic != Topic::Conntrack(MESSAGE_NEW) {
        return Ok(None);
    }
    let (_, bytes) = frame.generic()?;
    let mut original = None;
    let mut reply = None;
    let (mut status, mut mark, mut id, mut zone) = (0, 0, 0, 0);
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.kind {
            TUPLE_ORIGINAL => original = Some(read_tuple(value)?),
            TUPLE_REPLY => reply = Some(read_tuple(value)?),
            STATUS => status = attribute::u32(value, "flow status")?,
            MARK => mark = attribute::u32(value, "flow mark")?,
            ID => id = attribute::u32(value, "flow id")?,
            ZONE => zone = attribute::u16(value, "flow zone")?,
            _ => {}
        }
    }
    Ok(Some(Flow {
        original: required(original, "flow tuple")?,
        reply: required(reply, "flow reply tuple")?,
        mark,
        status,
        id,
        zone,
    }))
}

/// A request for the number of flows of a namespace: one message, at the cost of reading a counter.
///
/// Source: linux/netfilter/nfnetlink_conntrack.h, IPCTNL_MSG_CT_GET_STATS.
pub fn encode_count(seq: u32) -> Vec<u8> {
    let mut w = Writer::default();
    let family = Family::Unspecified;
    frame::write_conntrack(MESSAGE_GET_STATS, 0, seq, family, &mut w, |_| {});
    w.out
}

/// Reads a number of flows; `None` when the message is none. Flows that are not yet confirmed count.
///
/// # Errors
/// [`DecodeError`] when the message is cut short or lacks the number.
pub fn decode_count(frame: &Frame<'_>) -> Result<Option<u32>, DecodeError> {
    if frame.header.topic != Topic::Conntrack(MESSAGE_GET_STATS) {
        return Ok(None);
    }
    let (_, bytes) = frame.generic()?;
    let mut entries = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        if attribute.kind == STATS_ENTRIES {
            entries = Some(attribute::u32(attribute.value, "number of flows")?);
        }
    }
    required(entries, "number of flows").map(Some)
}

fn write_one(
    message: u8,
    flow: &Tuple,
    zone: u16,
    seq: u32,
    out: &mut Vec<u8>,
    rest: impl FnOnce(&mut Writer),
) {
    let family = match flow.source {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    };
    let mut w = Writer {
        out: std::mem::take(out),
        overflow: false,
    };
    frame::write_conntrack(message, 0, seq, family, &mut w, |w| {
        w.nest(TUPLE_ORIGINAL, |w| write_tuple(flow, w));
        if zone != 0 {
            w.u16(ZONE, zone);
        }
        rest(w);
    });
    *out = w.out;
}

fn write_filter(end: End, address: IpAddr, w: &mut Writer) {
    let (tuple, flag, source) = match end {
        End::OriginalSource => (TUPLE_ORIGINAL, FILTER_SOURCE, true),
        End::OriginalDestination => (TUPLE_ORIGINAL, FILTER_DESTINATION, false),
        End::ReplySource => (TUPLE_REPLY, FILTER_SOURCE, true),
        End::ReplyDestination => (TUPLE_REPLY, FILTER_DESTINATION, false),
    };
    w.nest(tuple, |w| {
        w.nest(TUPLE_IP, |w| write_address(address, source, w));
    });
    w.nest(FILTER, |w| {
        // The flags are in the order of the host, unlike everything else.
        let (original, reply) = if tuple == TUPLE_ORIGINAL {
            (flag, 0)
        } else {
            (0, flag)
        };
        w.bytes(FILTER_ORIGINAL, &original.to_ne_bytes());
        w.bytes(FILTER_REPLY, &reply.to_ne_bytes());
    });
}

fn write_address(address: IpAddr, source: bool, w: &mut Writer) {
    match (address, source) {
        (IpAddr::V4(a), true) => w.bytes(V4_SOURCE, &a.octets()),
        (IpAddr::V4(a), false) => w.bytes(V4_DESTINATION, &a.octets()),
        (IpAddr::V6(a), true) => w.bytes(V6_SOURCE, &a.octets()),
        (IpAddr::V6(a), false) => w.bytes(V6_DESTINATION, &a.octets()),
    }
}

fn write_tuple(tuple: &Tuple, w: &mut Writer) {
    w.nest(TUPLE_IP, |w| {
        write_address(tuple.source, true, w);
        write_address(tuple.destination, false, w);
    });
    w.nest(TUPLE_PROTOCOL, |w| {
        w.u8(PROTOCOL_NUMBER, tuple.protocol);
        match tuple.ports {
            Ports::Ports {
                source,
                destination,
            } => {
                w.u16(SOURCE_PORT, source);
                w.u16(DESTINATION_PORT, destination);
            }
            Ports::Icmp { id, kind, code } => {
                let numbers = match tuple.source {
                    IpAddr::V4(_) => (ICMP_ID, ICMP_TYPE, ICMP_CODE),
                    IpAddr::V6(_) => (ICMPV6_ID, ICMPV6_TYPE, ICMPV6_CODE),
                };
                w.u16(numbers.0, id);
                w.u8(numbers.1, kind);
                w.u8(numbers.2, code);
            }
            Ports::None => {}
        }
    });
}

fn read_tuple(bytes: &[u8]) -> Result<Tuple, DecodeError> {
    let mut addresses = (None, None);
    let mut protocol = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            TUPLE_IP => addresses = read_addresses(attribute.value)?,
            TUPLE_PROTOCOL => protocol = Some(read_protocol(attribute.value)?),
            _ => {}
        }
    }
    let source = required(addresses.0, "flow source")?;
    let destination = required(addresses.1, "flow destination")?;
    let (protocol, ports) = required(protocol, "flow protocol")?;
    Ok(Tuple {
        source,
        destination,
        protocol,
        ports,
    })
}

fn read_addresses(bytes: &[u8]) -> Result<(Option<IpAddr>, Option<IpAddr>), DecodeError> {
    let mut found = (None, None);
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.kind {
            V4_SOURCE => found.0 = Some(attribute::v4(value, "flow source")?),
            V4_DESTINATION => found.1 = Some(attribute::v4(value, "flow destination")?),
            V6_SOURCE => found.0 = Some(attribute::v6(value, "flow source")?),
            V6_DESTINATION => found.1 = Some(attribute::v6(value, "flow destination")?),
            _ => {}
        }
    }
    Ok(found)
}

fn read_protocol(bytes: &[u8]) -> Result<(u8, Ports), DecodeError> {
    let mut number = None;
    let (mut source, mut destination) = (None, None);
    let (mut id, mut kind, mut code) = (None, 0, 0);
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.kind {
            PROTOCOL_NUMBER => number = Some(attribute::u8(value, "flow protocol")?),
            SOURCE_PORT => source = Some(attribute::u16(value, "flow source port")?),
            DESTINATION_PORT => destination = Some(attribute::u16(value, "flow port")?),
            ICMP_ID | ICMPV6_ID => id = Some(attribute::u16(value, "flow icmp id")?),
            ICMP_TYPE | ICMPV6_TYPE => kind = attribute::u8(value, "flow icmp type")?,
            ICMP_CODE | ICMPV6_CODE => code = attribute::u8(value, "flow icmp code")?,
            _ => {}
        }
    }
    let ports = match (source, destination, id) {
        (Some(source), Some(destination), _) => Ports::Ports {
            source,
            destination,
        },
        (_, _, Some(id)) => Ports::Icmp { id, kind, code },
        _ => Ports::None,
    };
    Ok((required(number, "flow protocol")?, ports))
}
