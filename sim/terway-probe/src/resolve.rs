//! Names by the pod's `/etc/resolv.conf`. A program without libraries can not use the C library's resolver.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long an answer may take, and how often it is asked for.
const LIMIT: (Duration, u32) = (Duration::from_millis(1500), 3);
/// Longest answer over UDP, bytes.
///
/// Source: RFC 1035 §4.2.1.
const ANSWER: usize = 512;
/// Bytes of a header, of the fixed part of a record, and of the two numbers behind a question's name.
const HEADER: usize = 12;
const RECORD: usize = 10;
const QUESTION: usize = 4;

/// The address of `HOST:PORT`.
pub(crate) fn address(target: &str) -> io::Result<SocketAddr> {
    if let Ok(at) = target.parse() {
        return Ok(at);
    }
    let (host, port) = target
        .rsplit_once(':')
        .ok_or_else(|| io::Error::other("not HOST:PORT"))?;
    let port = port.parse().map_err(io::Error::other)?;
    let conf = std::fs::read_to_string("/etc/resolv.conf")?;
    let server: IpAddr = word(&conf, "nameserver")
        .next()
        .ok_or_else(|| io::Error::other("no nameserver"))?
        .parse()
        .map_err(io::Error::other)?;
    let mut names = vec![host.to_owned()];
    names.extend(word(&conf, "search").map(|domain| format!("{host}.{domain}")));
    let mut outcome = Err(io::Error::other("no name"));
    for name in names {
        outcome = ask(server, &name);
        if let Ok(ip) = outcome {
            return Ok(SocketAddr::from((ip, port)));
        }
    }
    outcome.map(|ip| SocketAddr::from((ip, port)))
}

/// The words behind a key of resolv.conf.
fn word<'a>(conf: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    conf.lines()
        .filter_map(move |line| line.trim().strip_prefix(key))
        .flat_map(str::split_whitespace)
}

fn ask(server: IpAddr, name: &str) -> io::Result<Ipv4Addr> {
    let (wait, tries) = LIMIT;
    let question = question(name)?;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(wait))?;
    let mut buffer = [0; ANSWER];
    let mut outcome = Err(io::Error::other("not tried"));
    for _ in 0..tries {
        outcome = socket
            .send(&question)
            .and_then(|_| socket.recv(&mut buffer));
        if let Ok(length) = outcome {
            let answer = buffer.get(..length).unwrap_or_default();
            return first_address(answer)
                .ok_or_else(|| io::Error::other(format!("{name} is not known")));
        }
    }
    outcome.map(|_| Ipv4Addr::UNSPECIFIED)
}

fn question(name: &str) -> io::Result<Vec<u8>> {
    // Identity 7, recursion desired, one question.
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        bytes.extend_from_slice(label.as_bytes());
    }
    // The root; type A, class IN.
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(bytes)
}

/// The first record of type A in an answer to one question.
fn first_address(answer: &[u8]) -> Option<Ipv4Addr> {
    let mut rest = skip_name(answer.get(HEADER..)?)?.get(QUESTION..)?;
    while !rest.is_empty() {
        rest = skip_name(rest)?;
        let fixed = rest.get(..RECORD)?;
        let [kind_high, kind_low, .., length_high, length_low] = *fixed else {
            return None;
        };
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        let data = rest.get(RECORD..RECORD.checked_add(length)?)?;
        if [kind_high, kind_low] == [0, 1] {
            return <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
        }
        rest = rest.get(RECORD.checked_add(length)?..)?;
    }
    None
}

/// What stands behind a name: labels up to the root, or up to a pointer of two bytes.
fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (length, rest) = bytes.split_first()?;
        match *length {
            0 => return Some(rest),
            pointer if pointer >= 0xc0 => return rest.get(1..),
            label => bytes = rest.get(usize::from(label)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_an_answer_is_its_first_a_record() {
        let mut answer = question("a.b").unwrap();
        // A CNAME that points back, then the address.
        answer.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 1, 2, 3]);

        assert_eq!(first_address(&answer), Some(Ipv4Addr::new(10, 1, 2, 3)));
    }

    #[test]
    fn answer_without_records_or_cut_short_has_no_address() {
        let question = question("a.b").unwrap();

        assert_eq!(first_address(&question), None);
        assert_eq!(first_address(&question[..9]), None);
    }

    #[test]
    fn words_of_resolv_conf_are_found_behind_their_key() {
        let conf = "search a.svc svc\nnameserver 172.16.0.10\n";

        assert_eq!(word(conf, "search").collect::<Vec<_>>(), ["a.svc", "svc"]);
        assert_eq!(word(conf, "nameserver").next(), Some("172.16.0.10"));
    }
}
