//! SCTP sockets of the one-to-one style, which behave as TCP's do once they are made.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};

use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen as listen_on, socket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening socket; IPv4.
///
/// # Errors
/// When the kernel has no SCTP.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    listen_on(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// A connection; IPv4.
///
/// # Errors
/// When the kernel has no SCTP, or nobody answers.
pub(crate) fn dial(at: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))?;
    connect(&socket, &at)?;
    Ok(TcpStream::from(socket))
}
