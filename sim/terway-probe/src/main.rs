//! `terway-probe`: what runs in the pods of the test bed. It answers with its name over TCP, UDP, SCTP and HTTP, tries
//! connections to others, and waits.
//!
//! It needs nothing but the kernel, so that an image of it is this one file.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

mod dial;
mod http;
mod name;
mod resolve;
mod sctp;
mod serve;

/// Port of TCP, UDP and SCTP, unless another is given; HTTP has the next one.
const PORT: u16 = 7000;
/// Between two tries of `await`.
const AGAIN: Duration = Duration::from_millis(200);

const USAGE: &str =
    "terway-probe                                    waits, as the first process of a sandbox
terway-probe serve [PORT]                       TCP, UDP and SCTP at PORT, HTTP at PORT + 1
terway-probe dial KIND HOST:PORT [NAME]         exits with 0 if NAME, or anybody, answers
terway-probe await SECONDS KIND HOST:PORT [NAME]
terway-probe say TEXT                           prints it and exits with 0
KIND is tcp, udp, sctp or http; HOST an address or a name.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => wait_for_the_end(|| Ok(())),
        ["serve"] => wait_for_the_end(|| serve::start(PORT)),
        ["serve", port] => match port.parse() {
            Ok(port) => wait_for_the_end(|| serve::start(port)),
            Err(_) => Err(format!("{port} is not a port")),
        },
        ["dial", kind, target] => dial::dial(kind, target, None),
        ["dial", kind, target, name] => dial::dial(kind, target, Some(name)),
        ["await", seconds, kind, target] => insist(seconds, kind, target, None),
        ["await", seconds, kind, target, name] => insist(seconds, kind, target, Some(name)),
        ["say", text] => Ok((*text).to_owned()),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

/// Starts something and waits for SIGTERM. Signals are blocked before there is any thread: the first process of a
/// container would not get them otherwise.
fn wait_for_the_end(start: impl FnOnce() -> std::io::Result<()>) -> Result<String, String> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block().map_err(|e| e.to_string())?;
    start().map_err(|e| e.to_string())?;
    let signal = ends.wait().map_err(|e| e.to_string())?;
    Ok(format!("ended by {signal}"))
}

fn insist(seconds: &str, kind: &str, target: &str, name: Option<&str>) -> Result<String, String> {
    let seconds = seconds
        .parse()
        .map_err(|_| format!("{seconds} are not seconds"))?;
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match dial::dial(kind, target, name) {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => rest(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the other end of a network has no event that could be waited for"
)]
fn rest() {
    std::thread::sleep(AGAIN);
}

fn say(text: &str) {
    // Whoever started us may not listen.
    drop(writeln!(std::io::stdout(), "{text}"));
}
