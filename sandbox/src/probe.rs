//! Questions over plain HTTP from inside a namespace: is it ready?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fabric::error::FabricError;
use fabric::namespace::Namespace;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The text.
    pub body: String,
}

/// `GET path`; `Err` in the inner result when nobody answers.
pub async fn get(
    namespace: &Namespace,
    at: SocketAddr,
    path: &str,
) -> Result<std::io::Result<Answer>, FabricError> {
    let path = path.to_owned();
    namespace.enter_async(move || ask(at, &path)).await
}

/// Whether anybody accepts connections there.
pub async fn is_open(namespace: &Namespace, at: SocketAddr) -> Result<bool, FabricError> {
    namespace
        .enter_async(move || TcpStream::connect_timeout(&at, LIMIT).is_ok())
        .await
}

fn ask(at: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| std::io::Error::other("not an HTTP answer"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_split_into_status_and_body() {
        let answer = parse("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nsession: starting\n");

        assert_eq!(
            answer.unwrap(),
            Answer {
                status: 503,
                body: "session: starting\n".to_owned()
            }
        );
        assert_eq!(parse("nonsense"), None);
    }
}
