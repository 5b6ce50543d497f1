//! Conversations that go on while policy changes: who was heard last, and when.
//!
//! One thread drives all of them. Each conversation begins with a word and its answer, so that the flow is
//! established; from then on one end speaks every few milliseconds, and the other end's ear notes what it heard. A
//! word is the time when it was said: however late it is read on a busy machine, it tells when the flow was open. A
//! conversation that policy cut falls silent while others on the same path, by the same thread, go on: those are the
//! markers that tell "denied" from "slow".

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fabric::namespace::Namespace;

/// Name of the thread that drives all conversations.
pub const THREAD: &str = "talks";
/// Between two words of a conversation.
const BEAT: Duration = Duration::from_millis(5);
/// An ear that heard nothing of so many words has been cut off. Words are counted and not time: on a busy machine
/// nobody may speak for long.
const SILENCE: u32 = 60;
/// Bytes of a word: nanoseconds since the talks began.
const WORD: usize = 8;
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
    /// When the newest word was said that the listening end heard.
    pub last: Instant,
    /// When the first word was said that it heard after the last silence.
    pub resumed: Option<Instant>,
    /// Words that were said since, of which it heard none.
    pub unheard: u32,
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
    begun: Instant,
    talks: Mutex<Vec<Talk>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Talk {
    mouth: Line,
    ear: Line,
    heard: Heard,
}

/// One end of a conversation. A connection has neither whole words nor room for them always: what is left of one.
#[derive(Debug)]
enum Line {
    Tcp(TcpStream, Vec<u8>),
    Udp(UdpSocket, SocketAddr),
}

impl Talks {
    /// Nobody talks yet.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            talks: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
        });
        let driven = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(THREAD.to_owned())
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
            resumed: None,
            unheard: 0,
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
            talk.beat(shared.begun);
        }
        rest();
    }
}

#[expect(clippy::disallowed_methods, reason = "a conversation has a rhythm")]
fn rest() {
    std::thread::sleep(BEAT);
}

impl Talk {
    fn beat(&mut self, begun: Instant) {
        let now = Instant::now();
        let word = u64::try_from((now - begun).as_nanos()).unwrap_or(u64::MAX);
        let said = self.mouth.say(word);
        let listened = self.ear.listen();
        match listened {
            Ok(Some(word)) => self.heard.hears(begun + Duration::from_nanos(word)),
            Ok(None) | Err(_) => self.heard.unheard = self.heard.unheard.saturating_add(1),
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

impl Heard {
    /// Whether the words do not come through any more.
    pub const fn is_cut(&self) -> bool {
        self.unheard >= SILENCE
    }

    fn hears(&mut self, said: Instant) {
        if self.is_cut() {
            self.resumed = Some(said);
        }
        self.unheard = 0;
        self.last = self.last.max(said);
    }
}

impl Line {
    /// Says a word, if there is room for it.
    fn say(&mut self, word: u64) -> io::Result<()> {
        let word = word.to_be_bytes();
        let said = match self {
            Self::Tcp(stream, rest) => {
                if rest.is_empty() {
                    rest.extend(word);
                }
                stream.write(rest).map(|n| drop(rest.drain(..n)))
            }
            Self::Udp(socket, to) => socket.send_to(&word, *to).map(drop),
        };
        match said {
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The newest word of those that are there; takes all of them.
    fn listen(&mut self) -> io::Result<Option<u64>> {
        let mut newest = None;
        let mut buffer = [0; 512];
        loop {
            let heard = match self {
                Self::Tcp(stream, _) => stream.read(&mut buffer),
                Self::Udp(socket, _) => socket.recv(&mut buffer),
            };
            let bytes = match heard {
                Ok(0) => return Ok(newest),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(newest),
                Err(e) => return Err(e),
            };
            let words = match self {
                Self::Tcp(_, rest) => {
                    rest.extend(bytes);
                    let whole = rest.len() / WORD * WORD;
                    rest.drain(..whole).collect()
                }
                Self::Udp(..) => bytes.to_vec(),
            };
            let last = words.rchunks_exact(WORD).next();
            let last = last.and_then(|w| w.try_into().ok()).map(u64::from_be_bytes);
            newest = last.max(newest);
        }
    }

    fn quick(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream, _) => stream.set_nonblocking(true),
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
    let ends = (Line::Tcp(client, Vec::new()), Line::Tcp(server, Vec::new()));
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
