//! Sockets inside namespaces. A socket stays in the namespace it was made in.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::bed::{PATIENCE, inside};

/// A datagram socket.
pub(crate) fn udp(namespace: &str, address: IpAddr, port: u16) -> UdpSocket {
    let socket = inside(namespace, || UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives one datagram, which has to come.
pub(crate) fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 128];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

/// Whether nothing has come up to now.
pub(crate) fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let silent = match socket.recv_from(&mut [0; 128]) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    socket.set_nonblocking(false).unwrap();
    silent
}

/// Sends to a port that is denied and then to one that is allowed; says whether the first came. The second one is
/// the marker: what was sent before it and has not come when it comes was dropped.
pub(crate) fn passes(from: &UdpSocket, denied: &UdpSocket, marker: &UdpSocket) -> bool {
    match from.send_to(b"asked", denied.local_addr().unwrap()) {
        Ok(_) => {}
        // Rules of its own namespace drop it before it leaves, and the system says so.
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
    }
    from.send_to(b"marker", marker.local_addr().unwrap())
        .unwrap();
    assert_eq!(received(marker).0, b"marker");
    !is_silent(denied)
}

/// A connection from `client` to a listener at `server`, both ends.
pub(crate) fn connection(
    client: &str,
    (server, address): (&str, IpAddr),
    port: u16,
) -> (TcpStream, TcpStream) {
    let listener = inside(server, || TcpListener::bind((address, port)).unwrap());
    let near = inside(client, || {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE).unwrap()
    });
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// Whether bytes written at one end come out at the other; false only when the connection was reset or ended.
pub(crate) fn lives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    if from.write_all(b"x").is_err() {
        return false;
    }
    match to.read(&mut [0; 1]) {
        Ok(1) => true,
        Ok(_) => false,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => false,
            other => panic!("neither bytes nor an end: {other}"),
        },
    }
}

/// Waits until the end of a connection sees a reset; the other side is made to speak until then.
pub(crate) fn is_reset(end: &mut TcpStream) -> bool {
    end.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
        let written = end.write_all(b"x");
        match (written, end.read(&mut [0; 64])) {
            (Err(error), _) | (_, Err(error))
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                ) =>
            {
                return true;
            }
            (_, Ok(0)) => return true,
            _ => {}
        }
    }
    false
}
