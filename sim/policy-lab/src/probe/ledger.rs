//! The bed's own books: probes that entered a node and probes that left it, counted in a table of the bed.
//!
//! The difference is what the node dropped, whoever dropped it and however. Nothing of the code under test is
//! asked, and no time-out decides anything: a probe has either arrived, or it is missing in these books.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::bail;
use fabric::namespace::Namespace;
use fabric::shell;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The bed's table in each node.
pub const TABLE: &str = "bed";

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ`.
const GET_OBJECT: u16 = (10 << 8) | 0x13;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`; without a tuple it means all.
const DELETE_FLOWS: u16 = (1 << 8) | 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ACK: u16 = 0x5;
/// `NFPROTO_INET`.
const INET: u8 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// `NFTA_OBJ_TABLE`.
const A_TABLE: u16 = 1;
/// `NFTA_OBJ_NAME`.
const A_NAME: u16 = 2;
/// `NFTA_OBJ_DATA`.
const A_DATA: u16 = 4;
/// `NFTA_COUNTER_PACKETS`.
const A_PACKETS: u16 = 2;

/// What a node's books say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Books {
    /// Probes that came in or were made on the node.
    pub entered: u64,
    /// Probes that went out or were taken in by the node itself.
    pub left: u64,
}

/// Reads one node's books.
#[derive(Debug)]
pub struct Ledger {
    socket: OwnedFd,
}

/// The nft script of the bed's table.
pub fn script(ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    let rules = |counter: &str| {
        format!(
            "tcp flags & (syn | ack) == syn tcp dport {{ {ports} }} counter name {counter}\n\
             udp dport {{ {ports} }} counter name {counter}\n\
             sctp dport {{ {ports} }} counter name {counter}\n\
             icmp type echo-request counter name {counter}\n\
             icmpv6 type echo-request counter name {counter}\n\
             icmpv6 type nd-neighbor-solicit ip6 hoplimit < 255 counter name {counter}\n\
             meta l4proto gre counter name {counter}\n"
        )
    };
    format!(
        "table inet {TABLE} {{\n\
         counter entered {{ }}\n counter left {{ }}\n\
         chain note_entered {{ {entered} }}\n chain note_left {{ {left} }}\n\
         chain pre {{ type filter hook prerouting priority -350; jump note_entered; }}\n\
         chain local {{ type filter hook output priority -350; jump note_entered; }}\n\
         chain post {{ type filter hook postrouting priority 350; jump note_left; }}\n\
         chain taken {{ type filter hook input priority 350; jump note_left; }}\n}}\n",
        entered = rules("entered"),
        left = rules("left"),
    )
}

impl Ledger {
    /// Opens a node's books, and puts them there first where they are not (or were flushed). All openings of one node
    /// are for the same ports.
    ///
    /// # Errors
    /// What `nft` or the kernel refused.
    pub async fn open(node: &Namespace, ports: &[u16]) -> anyhow::Result<Self> {
        let socket = node.enter_async(open_socket).await??;
        let ledger = Self { socket };
        if ledger.read().is_err() {
            let script = format!(
                "table inet {TABLE}\ndelete table inet {TABLE}\n{}",
                script(ports)
            );
            shell::nft(node, &script).await?;
            ledger.read()?;
        }
        Ok(ledger)
    }

    /// Makes the node forget all flows that it tracks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_flows(&self) -> anyhow::Result<()> {
        self.ask(DELETE_FLOWS, ACK, 0, &[])?;
        let mut buffer = [0_u8; 512];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let answer = message(buffer.get(..length).unwrap_or_default());
        match answer {
            Some((NLMSG_ERROR, body, _)) if body.starts_with(&[0; 4]) => Ok(()),
            _ => bail!("the kernel does not forget its flows: {answer:?}"),
        }
    }

    fn ask(&self, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> anyhow::Result<()> {
        let length = HEADER
            .saturating_add(FAMILY_HEADER)
            .saturating_add(attributes.len());
        let mut request = Vec::with_capacity(length);
        request.extend_from_slice(&u32::try_from(length)?.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&[family, 0, 0, 0]);
        request.extend_from_slice(attributes);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &request,
            &kernel,
            MsgFlags::empty(),
        )?;
        Ok(())
    }

    /// What the books say now.
    ///
    /// # Errors
    /// The kernel did not answer, or the table is gone.
    pub fn read(&self) -> anyhow::Result<Books> {
        let mut table = Vec::new();
        push_text(&mut table, A_TABLE, TABLE)?;
        self.ask(GET_OBJECT, DUMP, INET, &table)?;
        let mut books = Books::default();
        let mut seen = 0;
        let mut buffer = vec![0_u8; 16384];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, after)) = message(rest) {
                rest = after;
                match kind {
                    NLMSG_DONE if seen == 2 => return Ok(books),
                    NLMSG_DONE => bail!("the bed's books are gone: {seen} of 2 counters"),
                    NLMSG_ERROR => bail!("the kernel refuses to show the bed's books"),
                    _ => seen += note(&mut books, body.get(FAMILY_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    Ok(fd)
}

/// Takes one counter into the books; how many it was.
fn note(books: &mut Books, body: &[u8]) -> u32 {
    let packets = attribute(body, A_DATA)
        .and_then(|data| attribute(data, A_PACKETS))
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes);
    let (Some(name), Some(packets)) = (attribute(body, A_NAME), packets) else {
        return 0;
    };
    match name {
        b"entered\0" => books.entered = packets,
        b"left\0" => books.left = packets,
        _ => return 0,
    }
    1
}

fn message(rest: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let body = rest.get(HEADER..length)?;
    Some((
        kind,
        body,
        rest.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn push_text(out: &mut Vec<u8>, kind: u16, text: &str) -> anyhow::Result<()> {
    let length = u16::try_from(text.len().saturating_add(5))?;
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}
