//! A TCP proxy in front of etcd that loses what it is told to lose.
//!
//! It knows the frames of HTTP/2 (RFC 9113, section 4.1) just so far as to see where a request begins
//! and where its answer begins, so that a lost answer is the answer to a request that was carried out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// First bytes of a client. Source: RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It gets through, and so does its answer.
    Pass,
    /// It gets through; the connection is cut in place of the answer.
    LoseAnswer,
    /// The connection is cut in place of the request.
    LoseRequest,
    /// The connection is cut, and the request gets through when [`Proxy::deliver_late`] is called.
    Late,
}

/// A request that waits for its delivery.
type Late = oneshot::Sender<oneshot::Sender<()>>;

#[derive(Default)]
struct State {
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<Late>>,
}

/// The proxy. It ends with its value.
pub(crate) struct Proxy {
    state: Arc<State>,
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(upstream).await.unwrap();
                connections.spawn(serve(client, server, Arc::clone(&shared)));
            }
        });
        Self {
            state,
            address,
            _tasks: tasks,
        }
    }

    /// What happens to the next requests that have no fate yet, in their order.
    pub(crate) fn next(&self, fates: impl IntoIterator<Item = Fate>) {
        lock(&self.state.fates).extend(fates);
    }

    /// Lets the requests through that were held back; returns when etcd has answered them.
    pub(crate) async fn deliver_late(&self) -> usize {
        let late = std::mem::take(&mut *lock(&self.state.late));
        let count = late.len();
        for request in late {
            let (answered, answer) = oneshot::channel();
            assert!(request.send(answered).is_ok(), "the held request is gone");
            answer.await.expect("etcd answers the late request");
        }
        count
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    /// The next frame; none at the end of the connection.
    async fn read(from: &mut OwnedReadHalf) -> Option<Self> {
        let mut bytes = vec![0; 9];
        from.read_exact(&mut bytes).await.ok()?;
        let length =
            usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        bytes.resize(9 + length, 0);
        from.read_exact(&mut bytes[9..]).await.ok()?;
        Some(Self { bytes })
    }

    fn begins_message(&self) -> bool {
        self.bytes[3] == 1
    }

    fn ends_stream(&self) -> bool {
        matches!(self.bytes[3], 0 | 1) && self.bytes[4] & 1 == 1
    }

    fn stream(&self) -> u32 {
        u32::from_be_bytes([
            self.bytes[5] & 0x7f,
            self.bytes[6],
            self.bytes[7],
            self.bytes[8],
        ])
    }
}

/// What became of the request side.
enum End {
    Closed,
    Cut,
    /// These frames wait; the stream they belong to.
    Held(Vec<Frame>, u32),
}

/// One connection. Dropping both halves of a socket cuts it.
async fn serve(client: TcpStream, server: TcpStream, state: Arc<State>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut preface = [0; PREFACE_BYTES];
    if from_client.read_exact(&mut preface).await.is_err()
        || to_server.write_all(&preface).await.is_err()
    {
        return;
    }
    let doomed = Mutex::new(Vec::new());
    let end = {
        let requests = requests(&mut from_client, &mut to_server, &doomed, &state);
        let answers = answers(&mut from_server, to_client, &doomed);
        tokio::select! {
            end = requests => end,
            () = answers => End::Cut,
        }
    };
    drop(from_client);
    let End::Held(frames, stream) = end else {
        return;
    };
    let (deliver, delivery) = oneshot::channel();
    lock(&state.late).push(deliver);
    let Ok(answered) = delivery.await else { return };
    for frame in frames {
        to_server.write_all(&frame.bytes).await.unwrap();
    }
    while let Some(frame) = Frame::read(&mut from_server).await {
        if frame.begins_message() && frame.stream() == stream {
            assert!(
                answered.send(()).is_ok(),
                "nobody waits for the late request"
            );
            return;
        }
    }
}

async fn requests(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    doomed: &Mutex<Vec<u32>>,
    state: &State,
) -> End {
    let mut held: Option<(Vec<Frame>, u32)> = None;
    while let Some(frame) = Frame::read(from).await {
        if let Some((frames, stream)) = &mut held {
            let ends = frame.stream() == *stream && frame.ends_stream();
            if frame.stream() == *stream {
                frames.push(frame);
            }
            if ends {
                break;
            }
            continue;
        }
        if frame.begins_message() {
            let fate = lock(&state.fates).pop_front().unwrap_or(Fate::Pass);
            match fate {
                Fate::Pass => {}
                Fate::LoseAnswer => lock(doomed).push(frame.stream()),
                Fate::LoseRequest => return End::Cut,
                Fate::Late => {
                    let stream = frame.stream();
                    held = Some((vec![frame], stream));
                    continue;
                }
            }
        }
        if to.write_all(&frame.bytes).await.is_err() {
            return End::Closed;
        }
    }
    held.map_or(End::Closed, |(frames, stream)| End::Held(frames, stream))
}

async fn answers(from: &mut OwnedReadHalf, mut to: OwnedWriteHalf, doomed: &Mutex<Vec<u32>>) {
    while let Some(frame) = Frame::read(from).await {
        if frame.begins_message() && lock(doomed).contains(&frame.stream()) {
            return;
        }
        if to.write_all(&frame.bytes).await.is_err() {
            return;
        }
    }
}
