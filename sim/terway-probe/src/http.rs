//! A small HTTP server: our name, and connections that we are asked to try.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::{dial, name};

/// How long a client may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest body, bytes.
const MAX_BODY: u64 = 1 << 20;
/// Connections tried at a time.
const AT_ONCE: usize = 16;

/// Answers one request.
///
/// `GET /` gives our name. `POST /dial` takes lines `KIND HOST:PORT NAME` (NAME may be missing) and gives one line
/// for each that failed, with the reason behind it, and a last line `N reached`.
///
/// # Errors
/// When the client goes away.
pub(crate) fn answer(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = String::new();
    reader
        .take(std::cmp::min(length, MAX_BODY))
        .read_to_string(&mut body)?;
    let text = if first.starts_with("POST /dial ") {
        dial_all(&body)
    } else {
        name::ours()
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

fn dial_all(body: &str) -> String {
    let lines: Vec<&str> = body.lines().collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = dial_line(line)
                && let Ok(mut failures) = failures.lock()
            {
                failures.push(format!("{line}: {error}\n"));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    format!(
        "{}{} reached\n",
        failures.concat(),
        lines.len().saturating_sub(failures.len())
    )
}

fn dial_line(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let (Some(kind), Some(target)) = (words.next(), words.next()) else {
        return Err("not KIND HOST:PORT [NAME]".to_owned());
    };
    dial::dial(kind, target, words.next())
}
