//! One run of probes: what is under way, and what has come in.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::sockopt::IpTransparent;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto, socket_with,
    sockopt,
};

use crate::probe::packet::{self, Chunk, Echo, Portless, Sctp, Solicitation};
use crate::probe::station;
use crate::probe::{Probe, Verdict};

/// One attempt under way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) socket: Option<OwnedFd>,
    pub(super) arrived: bool,
    pub(super) answered: bool,
    pub(super) refused: bool,
}

impl Flight {
    /// Whether it has arrived and its answer has not.
    pub(super) const fn waits_for_answer(&self) -> bool {
        self.arrived && !self.answered
    }
}

/// What came of a run.
#[derive(Debug)]
pub(super) enum Outcome {
    /// What became of each probe.
    Settled(Vec<Verdict>),
    /// The sums did not meet in time; in words.
    Unsettled(String),
}

/// Probes under way.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) probes: &'a [Probe],
    pub(super) flights: Vec<Flight>,
    /// By station, address, and whether the address is somebody else's.
    pub(super) senders: HashMap<(usize, IpAddr, bool), UdpSocket>,
    pub(super) accepted: Vec<OwnedFd>,
    pub(super) port: u16,
}

impl Run<'_> {
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |f: &Flight| match (f.arrived, f.answered, f.refused) {
            (_, true, _) => Verdict::Allowed,
            (true, false, _) => Verdict::Deaf,
            (false, false, true) => Verdict::Refused,
            (false, false, false) => Verdict::Denied,
        };
        self.flights.iter().map(verdict).collect()
    }

    pub(super) fn note(&mut self, number: u32, answered: bool) {
        let flight = usize::try_from(number)
            .ok()
            .and_then(|i| self.flights.get_mut(i));
        if let Some(flight) = flight {
            flight.arrived = true;
            flight.answered |= answered;
        }
    }

    fn is_answered(&self, number: u32) -> bool {
        let probe = usize::try_from(number)
            .ok()
            .and_then(|i| self.probes.get(i));
        probe.is_none_or(|p| p.kind.is_answered())
    }

    pub(super) fn hear_answers(&mut self) -> anyhow::Result<bool> {
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        for socket in self.senders.values() {
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        heard.extend(number_of(bytes, self.port));
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    // An ICMP error about one of the datagrams.
                    Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                    Err(e) => return Err(e).context("hear an answer"),
                }
            }
        }
        let any = !heard.is_empty();
        for number in heard {
            self.note(number, true);
        }
        Ok(any)
    }

    pub(super) fn look_at_connections(&mut self) -> bool {
        let mut progress = false;
        for flight in &mut self.flights {
            let Some(socket) = &flight.socket else {
                continue;
            };
            if flight.arrived || flight.refused {
                continue;
            }
            let connected = rustix::net::getpeername(socket).is_ok_and(|peer| peer.is_some());
            if connected {
                flight.arrived = true;
                flight.answered = true;
                progress = true;
            } else if sockopt::socket_error(socket).is_ok_and(|e| e.is_err()) {
                flight.refused = true;
                progress = true;
            }
        }
        progress
    }
}

/// Takes in what came to one address of a station, and answers.
pub(super) fn hear(ear: &station::Ear, run: &mut Run<'_>) -> anyhow::Result<bool> {
    let mut progress = false;
    let mut buffer = [0; 128];
    for (_, listener) in &ear.tcp {
        while let Ok(accepted) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            run.accepted.push(accepted);
        }
    }
    for (_, socket) in &ear.udp {
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            let Some(number) = number_of(bytes, run.port) else {
                continue;
            };
            progress = true;
            let answered = run.is_answered(number);
            run.note(number, !answered);
            if answered {
                kept_is_fine(socket.send_to(bytes, peer))?;
            }
        }
    }
    while let Some((bytes, peer)) = receive_raw(&ear.sctp, &mut buffer)? {
        let Some(packet) = Sctp::decode(bytes) else {
            continue;
        };
        match packet.chunk {
            Chunk::Init if packet.source == run.port => {
                run.note(packet.number, false);
                progress = true;
                let answer = Sctp {
                    source: packet.destination,
                    destination: packet.source,
                    chunk: Chunk::InitAck,
                    verification: packet.tag,
                    ..packet
                };
                kept_is_fine(send_raw(&ear.sctp, &answer.encode(), peer))?;
            }
            Chunk::InitAck if packet.destination == run.port => {
                run.note(packet.number, true);
                progress = true;
            }
            Chunk::Init | Chunk::InitAck => {}
        }
    }
    while let Some((bytes, peer)) = receive_raw(&ear.portless, &mut buffer)? {
        let Some(packet) = Portless::decode(bytes).filter(|p| p.port == run.port) else {
            continue;
        };
        run.note(packet.number, packet.answer);
        progress = true;
        if !packet.answer {
            let answer = Portless {
                answer: true,
                ..packet
            };
            kept_is_fine(send_raw(&ear.portless, &answer.encode(), peer))?;
        }
    }
    while let Some((bytes, _)) = receive_raw(&ear.echo, &mut buffer)? {
        let heard = Solicitation::decode(bytes).filter(|_| ear.address.is_ipv6());
        if let Some(heard) = heard.filter(|h| h.port == run.port) {
            run.note(heard.number, true);
            progress = true;
        }
        let reply = Echo::decode_reply(bytes, ear.address.is_ipv6());
        if let Some(reply) = reply.filter(|r| r.id == run.port) {
            run.note(reply.number, true);
            progress = true;
        }
    }
    Ok(progress)
}

/// Begins to connect from a fixed port. The socket resets its connection when it goes, so that nothing of it stays.
pub(super) fn connect(source: IpAddr, port: u16, to: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = if to.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    rustix::net::bind(&socket, &SocketAddr::new(source, port))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::PERM) => Ok(socket),
        Err(error) => Err(error).context("connect"),
    }
}

/// A socket that sends datagrams from an address, which may be one that its namespace does not hold.
pub(super) fn sender(source: IpAddr, port: u16, foreign: bool) -> anyhow::Result<UdpSocket> {
    let family = if source.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if foreign {
        nix::sys::socket::setsockopt(&socket, IpTransparent, &true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(source, port))?;
    Ok(socket.into())
}

pub(super) fn payload(port: u16, number: u32) -> [u8; 6] {
    let [p1, p2] = port.to_be_bytes();
    let [n1, n2, n3, n4] = number.to_be_bytes();
    [p1, p2, n1, n2, n3, n4]
}

/// The number that a payload of this run begins with.
fn number_of(bytes: &[u8], port: u16) -> Option<u32> {
    let (of_run, rest) = bytes.split_first_chunk::<2>()?;
    if u16::from_be_bytes(*of_run) != port {
        return None;
    }
    rest.first_chunk().copied().map(u32::from_be_bytes)
}

/// A packet that the node's own rules keep is refused to its sender; the books have it.
pub(super) fn kept_is_fine<T>(outcome: io::Result<T>) -> io::Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn send_raw(socket: &OwnedFd, packet: &[u8], to: IpAddr) -> io::Result<()> {
    sendto(socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
    Ok(())
}

/// The next packet without its IP header, and who sent it.
fn receive_raw<'a>(
    socket: &OwnedFd,
    buffer: &'a mut [u8; 128],
) -> anyhow::Result<Option<(&'a [u8], IpAddr)>> {
    let (length, peer) = match recvfrom(socket, &mut buffer[..], RecvFlags::TRUNC) {
        Ok((length, _, peer)) => (length, peer),
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error).context("hear a raw packet"),
    };
    let peer = peer.context("a raw packet has a sender")?;
    let peer = SocketAddr::try_from(peer)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    let bytes = if peer.is_ipv4() {
        packet::behind_ipv4_header(bytes)
    } else {
        bytes
    };
    Ok(Some((bytes, peer.ip())))
}
