//! Entries of connection tracking, written by hand: as many as a busy node has, without sending a packet for each.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};
use fabric::namespace::Namespace;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Subsystem ctnetlink and message NEW, as a message type.
///
/// Source: linux/netfilter/nfnetlink.h, NFNL_SUBSYS_CTNETLINK; nfnetlink_conntrack.h, IPCTNL_MSG_CT_NEW.
const NEW: u16 = 1 << 8;
/// NLM_F_REQUEST | NLM_F_EXCL | NLM_F_CREATE.
///
/// Source: linux/netlink.h.
const FLAGS: u16 = 0x01 | 0x200 | 0x400;
/// NLM_F_ACK.
const ACK: u16 = 0x04;
/// An attribute that holds others.
const NESTED: u16 = 1 << 15;
/// IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED.
///
/// Source: linux/netfilter/nf_conntrack_common.h.
const STATUS: u32 = 2 | 4 | 8;
/// Seconds until an entry would go: longer than any benchmark.
const TIMEOUT: u32 = 7_200;
/// Messages per send.
const BATCH: usize = 500;
/// UDP.
const PROTOCOL: u8 = 17;

/// One UDP flow as its first packet had it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// Who spoke first, and its port.
    pub(crate) source: (Ipv4Addr, u16),
    /// Whom it spoke to.
    pub(crate) destination: (Ipv4Addr, u16),
}

/// Writes established flows into the namespace's table, and says how many entries it has then.
pub(crate) fn fill(node: &Namespace, flows: Vec<Flow>) -> Result<usize> {
    node.enter(move || -> Result<usize> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        for batch in flows.chunks(BATCH) {
            let mut bytes = Vec::new();
            for (n, flow) in batch.iter().enumerate() {
                let flags = if n + 1 == batch.len() {
                    FLAGS | ACK
                } else {
                    FLAGS
                };
                bytes.extend(message(flow, flags)?);
            }
            let sent = socket.send(&bytes, 0)?;
            ensure!(sent == bytes.len(), "half a batch was sent");
            acknowledged(&socket)?;
        }
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
        count.trim().parse().context("nf_conntrack_count")
    })?
}

/// Reads the answer to a batch: an error of any message, or the acknowledgement of the last one.
fn acknowledged(socket: &Socket) -> Result<()> {
    let mut buffer = Vec::with_capacity(1 << 16);
    socket.recv(&mut buffer, 0)?;
    let errno = buffer
        .get(16..20)
        .and_then(|b| b.first_chunk::<4>())
        .map(|b| i32::from_ne_bytes(*b));
    match errno {
        Some(0) => Ok(()),
        Some(errno) => bail!("the kernel refuses a flow: error {}", -errno),
        None => bail!("the kernel answers {} bytes", buffer.len()),
    }
}

fn message(flow: &Flow, flags: u16) -> Result<Vec<u8>> {
    // nfgenmsg: AF_INET, version 0, no resource.
    let mut body = vec![2, 0, 0, 0];
    body.extend(attribute(
        1 | NESTED,
        &tuple(flow.source, flow.destination)?,
    )?);
    body.extend(attribute(
        2 | NESTED,
        &tuple(flow.destination, flow.source)?,
    )?);
    body.extend(attribute(3, &STATUS.to_be_bytes())?);
    body.extend(attribute(7, &TIMEOUT.to_be_bytes())?);
    let length = u32::try_from(body.len() + 16)?;
    let mut message = Vec::with_capacity(body.len() + 16);
    message.extend(length.to_ne_bytes());
    message.extend(NEW.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

/// CTA_TUPLE_IP with source and destination, CTA_TUPLE_PROTO with number and ports.
fn tuple(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Result<Vec<u8>> {
    let mut ip = attribute(1, &source.0.octets())?;
    ip.extend(attribute(2, &destination.0.octets())?);
    let mut protocol = attribute(1, &[PROTOCOL])?;
    protocol.extend(attribute(2, &source.1.to_be_bytes())?);
    protocol.extend(attribute(3, &destination.1.to_be_bytes())?);
    let mut tuple = attribute(1 | NESTED, &ip)?;
    tuple.extend(attribute(2 | NESTED, &protocol)?);
    Ok(tuple)
}

/// Length, type, value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(value.len() + 4)?;
    let mut bytes = Vec::with_capacity(value.len() + 7);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}
