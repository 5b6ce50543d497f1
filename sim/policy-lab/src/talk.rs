//! Conversations that go on while policy changes: who was heard last, and when.
//!
//! One thread drives all of them. Each conversation begins with a word and its answer, so that the flow is
//! established; from then on one end speaks every few milliseconds, and the other end's ear notes when it last heard
//! something. A conversation that policy cut falls silent while others on the same path, by the same thread, go on:
//! those are the markers that tell "denied" from "slow".

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fabric::namespace::Namespace;

/// Between two words of a conversation.
const BEAT: Duration = Duration::from_millis(5);
/// How long the beginning of a conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Who speaks once the flow is established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The end that opened it.
    Client,
    /// The end that took it.
    Server,
}

/// A conversation to begin.
#[derive(Debug, Clone)]
pub struct Topic {
    /// For messages.
    pub name: String,
    /// Where the client is.
    pub client: Namespace,
    /// Its address.
    pub client_address: IpAddr,
    /// What the client calls: the server itself, or a Service.
    pub call: SocketAddr,
    /// Where the server is.
    pub server: Namespace,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Over what.
    pub over: Over,
    /// Who goes on speaking.
    pub speaker: Speaker,
}

/// What is known of a conversation.
#[derive(Debug, Clone)]
pub struct Heard {
    /// For messages.
    pub name: String,
    /// Over what.
    pub over: Over,
    /// When the listening end last heard something.
    pub last: Instant,
    /// When an end was told that the connection is no more.
    pub reset: Option<Instant>,
}

/// Conversations under way. They end when dropped.
#[derive(Debug)]
pub struct Talks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    talks: Mutex<Vec<Talk>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Talk {
    mouth: Line,
    ear: Line,
    heard: Heard,
}

/// One end of a conversation.
#[derive(Debug)]
enum Line {
    Tcp(TcpStream),
    Udp(UdpSocket, SocketAddr),
}

impl Talks {
    /// Nobody talks yet.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            talks: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
        });
        let driven = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("talks".to_owned())
            .spawn(move || drive(&driven))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Begins a conversation and returns its number when both ends have heard each other.
    ///
    /// # Errors
    /// They did not.
    pub fn begin(&self, topic: &Topic) -> anyhow::Result<usize> {
        let (client, server) = match topic.over {
            Over::Tcp => meet_tcp(topic),
            Over::Udp => meet_udp(topic),
        }
        .with_context(|| format!("begin {}", topic.name))?;
        let (mouth, ear) = match topic.speaker {
            Speaker::Client => (client, server),
            Speaker::Server => (server, client),
        };
        let heard = Heard {
            name: topic.name.clone(),
            over: topic.over,
            last: Instant::now(),
            reset: None,
        };
        let mut talks = self.shared.lock();
        talks.push(Talk { mouth, ear, heard });
        Ok(talks.len().saturating_sub(1))
    }

    /// What is known of all conversations, by number.
    pub fn heard(&self) -> Vec<Heard> {
        self.shared.lock().iter().map(|t| t.heard.clone()).collect()
    }

    /// Drops all conversations.
    pub fn forget(&self) {
        self.shared.lock().clear();
    }
}

impl Drop for Talks {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the talks panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Talk>> {
        self.talks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drive(shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        for talk in shared.lock().iter_mut() {
            talk.beat();
        }
        rest();
    }
}

#[expect(clippy::disallowed_methods, reason = "a conversation has a rhythm")]
fn rest() {
    std::thread::sleep(BEAT);
}

impl Talk {
    fn beat(&mut self) {
        let now = Instant::now();
        let said = self.mouth.say();
        let listened = self.ear.listen();
        if matches!(listened, Ok(true)) {
            self.heard.last = now;
        }
        let reset = |e: &io::Error| {
            e.kind() == ErrorKind::ConnectionReset || e.kind() == ErrorKind::BrokenPipe
        };
        let told = said.as_ref().is_err_and(reset) || listened.as_ref().is_err_and(reset);
        if told && self.heard.over == Over::Tcp && self.heard.reset.is_none() {
            self.heard.reset = Some(now);
        }
    }
}

impl Line {
    /// Says a word, if there is room for it.
    fn say(&mut self) -> io::Result<()> {
        let said = match self {
            Self::Tcp(stream) => stream.write(b"word"),
            Self::Udp(socket, to) => socket.send_to(b"word", *to),
        };
        match said {
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether anything was heard; takes all of it.
    fn listen(&mut self) -> io::Result<bool> {
        let mut any = false;
        let mut buffer = [0; 512];
        loop {
            let heard = match self {
                Self::Tcp(stream) => stream.read(&mut buffer),
                Self::Udp(socket, _) => socket.recv(&mut buffer),
            };
            match heard {
                Ok(0) => return Ok(any),
                Ok(_) => any = true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(any),
                Err(e) => return Err(e),
            }
        }
    }

    fn quick(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Udp(socket, _) => socket.set_nonblocking(true),
        }
    }
}

fn meet_tcp(topic: &Topic) -> anyhow::Result<(Line, Line)> {
    let (listen, call) = (topic.listen, topic.call);
    let listener = topic.server.enter(move || TcpListener::bind(listen))??;
    listener.set_nonblocking(true)?;
    let mut client = topic
        .client
        .enter(move || TcpStream::connect_timeout(&call, PATIENCE))??;
    let begun = Instant::now();
    let mut server = loop {
        match listener.accept() {
            Ok((server, _)) => break server,
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            Err(e) => return Err(e.into()),
        }
    };
    let mut word = [0; 5];
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
    }
    server.set_nonblocking(false)?;
    client.write_all(b"hello")?;
    server.read_exact(&mut word)?;
    server.write_all(b"hello")?;
    client.read_exact(&mut word)?;
    let ends = (Line::Tcp(client), Line::Tcp(server));
    ends.0.quick()?;
    ends.1.quick()?;
    Ok(ends)
}

fn meet_udp(topic: &Topic) -> anyhow::Result<(Line, Line)> {
    let (listen, source) = (topic.listen, topic.client_address);
    let server = topic.server.enter(move || UdpSocket::bind(listen))??;
    let client = topic.client.enter(move || UdpSocket::bind((source, 0)))??;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let mut word = [0; 5];
    client.send_to(b"hello", topic.call)?;
    let (_, caller) = server.recv_from(&mut word)?;
    server.send_to(b"hello", caller)?;
    let (_, answerer) = client.recv_from(&mut word)?;
    if answerer != topic.call {
        bail!("{answerer} answered instead of {}", topic.call);
    }
    let ends = (Line::Udp(client, topic.call), Line::Udp(server, caller));
    ends.0.quick()?;
    ends.1.quick()?;
    Ok(ends)
}
