//! Places that send and answer probes: pods, nodes, the host outside.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use fabric::namespace::Namespace;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes that may wait at a socket: a burst of all probes of a world.
const BUFFER: usize = 4 << 20;

/// Something with a network namespace and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    /// For messages.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Open sockets of a station.
#[derive(Debug)]
pub struct Ears {
    ears: Vec<Ear>,
}

/// Open sockets at one address.
#[derive(Debug)]
pub(crate) struct Ear {
    pub(crate) address: IpAddr,
    pub(crate) tcp: Vec<(u16, OwnedFd)>,
    pub(crate) udp: Vec<(u16, UdpSocket)>,
    pub(crate) sctp: OwnedFd,
    pub(crate) echo: OwnedFd,
    pub(crate) portless: OwnedFd,
}

impl Ears {
    /// Opens servers at all addresses and ports of the station, in its namespace.
    pub(crate) fn open(station: &Station, ports: &[u16]) -> anyhow::Result<Self> {
        let (addresses, ports) = (station.addresses.clone(), ports.to_vec());
        let ears = station.namespace.enter(move || {
            let ears = addresses.into_iter().map(|a| Ear::open(a, &ports));
            ears.collect::<io::Result<Vec<_>>>()
        })??;
        Ok(Self { ears })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Ear> {
        self.ears.iter()
    }

    pub(crate) fn of(&self, address: IpAddr) -> Option<&Ear> {
        self.ears.iter().find(|e| e.address == address)
    }
}

impl Ear {
    fn open(address: IpAddr, ports: &[u16]) -> io::Result<Self> {
        let (family, icmp) = match address {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = |protocol| -> io::Result<OwnedFd> {
            let socket = socket_with(family, SocketType::RAW, flags, Some(protocol))?;
            bind(&socket, &SocketAddr::new(address, 0))?;
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            Ok(socket)
        };
        let mut tcp = Vec::new();
        let mut udp = Vec::new();
        for port in ports {
            let at = SocketAddr::new(address, *port);
            let listener = socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_socket_reuseaddr(&listener, true)?;
            bind(&listener, &at)?;
            listen(&listener, BACKLOG)?;
            tcp.push((*port, listener));
            let socket = UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            udp.push((*port, socket));
        }
        Ok(Self {
            address,
            tcp,
            udp,
            sctp: raw(ipproto::SCTP)?,
            echo: raw(icmp)?,
            portless: raw(ipproto::GRE)?,
        })
    }
}
