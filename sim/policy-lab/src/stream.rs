//! Steady streams of datagrams between two namespaces, and the count of what came through.
//!
//! A stream that is denied must deliver nothing, one that is allowed must lose nothing: both are sums of whole
//! packets, so nothing here has to guess by time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use fabric::namespace::Namespace;
use rustix::net::sockopt;

/// Bytes that may wait at a receiver.
const BUFFER: usize = 64 << 20;
/// How long a sender rests when it is ahead of its rate.
const REST: Duration = Duration::from_micros(500);
/// Most packets that a sender makes up for after it was kept from its CPU.
const CATCH_UP: u64 = 5_000;
/// How long a receiver waits before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(4);

/// What a stream has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Datagrams that the kernel took from the sender.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
}

/// One end's view of a stream, for its description.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where it is sent.
    pub sender: Namespace,
    /// With which address.
    pub source: IpAddr,
    /// Where it is received.
    pub receiver: Namespace,
    /// At which address and port.
    pub destination: SocketAddr,
    /// Datagrams in a second.
    pub rate: u64,
}

/// A stream under way. Ends when dropped.
#[derive(Debug)]
pub struct Stream {
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    stop_sending: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    mouth: Option<JoinHandle<()>>,
    ear: Option<JoinHandle<()>>,
}

impl Stream {
    /// Begins to send and to receive.
    ///
    /// # Errors
    /// A socket that could not be opened.
    pub fn start(route: &Route) -> anyhow::Result<Self> {
        let at = route.destination;
        // Any address: the one meant may not be there yet.
        let any: IpAddr = if at.is_ipv6() {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        };
        let inbox = route
            .receiver
            .enter(move || UdpSocket::bind((any, at.port())))??;
        sockopt::set_socket_recv_buffer_size_force(&inbox, BUFFER)?;
        inbox.set_read_timeout(Some(LOOK))?;
        let source = route.source;
        let outbox = route.sender.enter(move || UdpSocket::bind((source, 0)))??;
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (stop_sending, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let from = outbox.local_addr()?;
        let (tally, end) = (Arc::clone(&received), Arc::clone(&stop));
        let ear = std::thread::Builder::new()
            .name("stream in".to_owned())
            .spawn(move || receive(&inbox, from, &tally, &end))?;
        let (tally, end) = (Arc::clone(&sent), Arc::clone(&stop_sending));
        let rate = route.rate;
        let mouth = std::thread::Builder::new()
            .name("stream out".to_owned())
            .spawn(move || send(&outbox, at, rate, &tally, &end))?;
        Ok(Self {
            sent,
            received,
            stop_sending,
            stop,
            mouth: Some(mouth),
            ear: Some(ear),
        })
    }

    /// What it has done so far. What is on its way counts as sent alone.
    pub fn count(&self) -> Count {
        let received = self.received.load(Ordering::Acquire);
        Count {
            sent: self.sent.load(Ordering::Acquire),
            received,
        }
    }

    /// Ends the sender, lets the receiver take what has arrived, and says the sums.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn finish(mut self) -> anyhow::Result<Count> {
        self.stop_sending.store(true, Ordering::Release);
        if let Some(mouth) = self.mouth.take()
            && mouth.join().is_err()
        {
            bail!("a sender panicked");
        }
        self.stop.store(true, Ordering::Release);
        if let Some(ear) = self.ear.take()
            && ear.join().is_err()
        {
            bail!("a receiver panicked");
        }
        Ok(self.count())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::Release);
        self.stop.store(true, Ordering::Release);
    }
}

fn send(outbox: &UdpSocket, at: SocketAddr, rate: u64, sent: &AtomicU64, stop: &AtomicBool) {
    let started = Instant::now();
    let mut forgiven = 0_u64;
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let due = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let due = due.saturating_mul(rate) / 1_000_000;
        let behind = due.saturating_sub(number.saturating_add(forgiven));
        forgiven = forgiven.saturating_add(behind.saturating_sub(CATCH_UP));
        for _ in 0..behind.min(CATCH_UP) {
            number = number.saturating_add(1);
            // An address without a route yet, or a full queue: it was not sent.
            if outbox.send_to(&number.to_be_bytes(), at).is_ok() {
                sent.fetch_add(1, Ordering::AcqRel);
            }
        }
        rest();
    }
}

#[expect(clippy::disallowed_methods, reason = "a stream has a rate")]
fn rest() {
    std::thread::sleep(REST);
}

fn receive(inbox: &UdpSocket, from: SocketAddr, received: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    loop {
        match inbox.recv_from(&mut buffer) {
            Ok((_, peer)) if peer.ip() == from.ip() && peer.port() == from.port() => {
                received.fetch_add(1, Ordering::AcqRel);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Acquire) {
                    return;
                }
            }
            // Another stream to the same port, or an ICMP error.
            Ok(_) | Err(_) => {}
        }
    }
}
