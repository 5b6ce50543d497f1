//! When the kernel committed: the times of its own notifications.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fabric::namespace::Namespace;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

/// Group of nf_tables.
///
/// Source: linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// Subsystem nf_tables and message NEWGEN, as a message type.
///
/// Source: linux/netfilter/nf_tables.h, NFT_MSG_NEWGEN.
const NEWGEN: u16 = (10 << 8) | 15;

/// Room for the notifications of a burst, bytes; each object of a transaction has one.
const BUFFER: usize = 256 << 20;

/// Listens in one namespace until the process ends.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    commits: Arc<Mutex<Vec<Instant>>>,
    overruns: Arc<AtomicUsize>,
}

impl Watcher {
    /// Starts to listen.
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.enter(|| -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            socket.add_membership(GROUP)?;
            Ok(socket)
        })??;
        let commits = Arc::<Mutex<Vec<Instant>>>::default();
        let into = Arc::clone(&commits);
        let overruns = Arc::<AtomicUsize>::default();
        let lost = Arc::clone(&overruns);
        std::thread::Builder::new()
            .name("commits".to_owned())
            .spawn(move || {
                let mut buffer = Vec::with_capacity(1 << 20);
                loop {
                    buffer.clear();
                    if socket.recv(&mut buffer, 0).is_err() {
                        lost.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let now = Instant::now();
                    let count = generations(&buffer);
                    let mut all = into.lock().unwrap_or_else(PoisonError::into_inner);
                    all.extend(std::iter::repeat_n(now, count));
                }
            })
            .context("start the listener")?;
        Ok(Self { commits, overruns })
    }

    /// Waits until no commit came for `pause`.
    pub(crate) async fn quiet(&self, pause: Duration) {
        let mut seen = self.count();
        let mut since = Instant::now();
        while since.elapsed() < pause {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = self.count();
            if now != seen {
                seen = now;
                since = Instant::now();
            }
        }
    }

    fn count(&self) -> usize {
        self.commits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// How often the kernel had more to say than there was room for: what was taken then is not whole.
    pub(crate) fn overruns(&self) -> usize {
        self.overruns.load(Ordering::Relaxed)
    }

    /// Commits since the last call.
    pub(crate) fn take(&self) -> Vec<Instant> {
        std::mem::take(&mut *self.commits.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How many messages of a datagram say that a transaction was committed.
fn generations(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((head, _)) = bytes.split_at_checked(16) {
        let length = head
            .first_chunk::<4>()
            .map_or(0, |b| u32::from_ne_bytes(*b));
        let kind = head.get(4..6).and_then(|b| b.first_chunk::<2>());
        count += usize::from(kind.is_some_and(|b| u16::from_ne_bytes(*b) == NEWGEN));
        let Ok(length) = usize::try_from(length.next_multiple_of(4)) else {
            break;
        };
        match bytes.get(length..) {
            Some(rest) if length >= 16 => bytes = rest,
            _ => break,
        }
    }
    count
}
