//! Connections that are tried.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::{resolve, sctp};

/// How long one try may take; a lost SYN is sent again within.
const LIMIT: Duration = Duration::from_secs(4);
/// How long an answer to a datagram may take, and how often it is asked for.
const DATAGRAM: (Duration, u32) = (Duration::from_secs(1), 4);
/// Longest answer, bytes.
const ANSWER: usize = 512;

/// Asks who is there; an error if nobody answers, or another than `name`.
pub(crate) fn dial(kind: &str, target: &str, name: Option<&str>) -> Result<String, String> {
    let answer = resolve::address(target)
        .and_then(|at| ask(kind, at))
        .map_err(|e| e.to_string())?;
    match name {
        Some(name) if answer != name => Err(format!("{answer} answered")),
        Some(_) | None => Ok(answer),
    }
}

fn ask(kind: &str, at: SocketAddr) -> io::Result<String> {
    match kind {
        "tcp" => until_the_end(TcpStream::connect_timeout(&at, LIMIT)?),
        "sctp" => until_the_end(sctp::dial(at)?),
        "http" => {
            let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
            stream.set_write_timeout(Some(LIMIT))?;
            write!(
                stream,
                "GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
            )?;
            let text = until_the_end(stream)?;
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            body.ok_or_else(|| io::Error::other("not an HTTP answer"))
        }
        "udp" => datagram(at),
        other => Err(io::Error::other(format!(
            "{other} is no kind of connection"
        ))),
    }
}

fn until_the_end(mut stream: TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn datagram(at: SocketAddr) -> io::Result<String> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let (wait, tries) = DATAGRAM;
    let socket = UdpSocket::bind(any)?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(wait))?;
    let mut answer = [0; ANSWER];
    let mut outcome = Err(io::Error::other("not tried"));
    for _ in 0..tries {
        outcome = socket.send(b"?").and_then(|_| socket.recv(&mut answer));
        if let Ok(length) = outcome {
            let answer = answer.get(..length).unwrap_or_default();
            return Ok(String::from_utf8_lossy(answer).into_owned());
        }
    }
    outcome.map(|_| String::new())
}
