//! Servers that answer with our name.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use crate::{http, name, sctp};

/// Connections of one server that are open at a time; more wait in the kernel.
const THREADS: usize = 8;
/// Longest question over UDP, bytes.
const QUESTION: usize = 512;

/// Starts all servers; they live as long as the process.
///
/// # Errors
/// When a port is taken.
pub(crate) fn start(port: u16) -> io::Result<()> {
    let tcp = any(port, TcpListener::bind)?;
    workers("tcp", tcp, |stream: &mut std::net::TcpStream| {
        stream.write_all(name::ours().as_bytes())
    })?;
    let udp = any(port, UdpSocket::bind)?;
    thread::Builder::new()
        .name("udp".to_owned())
        .spawn(move || {
            let mut question = [0; QUESTION];
            loop {
                if let Ok((_, from)) = udp.recv_from(&mut question) {
                    // Who asks by datagrams asks again.
                    drop(udp.send_to(name::ours().as_bytes(), from));
                }
            }
        })?;
    // Not every kernel has it; who dials finds out.
    if let Ok(sctp) = sctp::listen(port) {
        workers("sctp", sctp, |stream: &mut std::net::TcpStream| {
            stream.write_all(name::ours().as_bytes())
        })?;
    }
    let http = any(port.saturating_add(1), TcpListener::bind)?;
    workers("http", http, http::answer)
}

/// Both families where there are two.
fn any<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn workers(
    what: &str,
    listener: TcpListener,
    answer: impl Fn(&mut std::net::TcpStream) -> io::Result<()> + Send + Copy + 'static,
) -> io::Result<()> {
    for _ in 0..THREADS {
        let listener = listener.try_clone()?;
        thread::Builder::new()
            .name(what.to_owned())
            .spawn(move || {
                loop {
                    if let Ok((mut stream, _)) = listener.accept() {
                        // The other end may have gone.
                        drop(answer(&mut stream));
                    }
                }
            })?;
    }
    drop(listener);
    Ok(())
}
