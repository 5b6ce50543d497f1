//! Who waits for a pod's policy, and what they are told.

use std::sync::Arc;

use policy_core::engine::Engine;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Span;
use types::pod::{AttachmentKey, PodKey};

/// Why a pod may not start yet. All of it may be asked again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The pod's object has not come yet.
    #[error("pod {0} is not known yet")]
    PodUnknown(PodKey),
    /// Not everything was listed once.
    #[error("pods and policies are not listed yet")]
    NotInSync,
    /// Something of the pod is not in the kernel.
    #[error("pod {pod}: {why}")]
    Waiting {
        /// The pod.
        pod: PodKey,
        /// What is missing.
        why: String,
    },
    /// The attachment was released meanwhile.
    #[error("the attachment of pod {0} was released")]
    Released(PodKey),
    /// The enforcer has too much to do.
    #[error("too many calls wait")]
    Overloaded,
    /// The enforcer ends.
    #[error("the agent ends")]
    Ending,
}

/// One call that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) attachment: AttachmentKey,
    pub(super) pod: PodKey,
    /// Empty: any.
    pub(super) uid: String,
    /// When it is told why it waits.
    pub(super) until: Instant,
    /// When it is told so, if that is because the pod is unknown.
    pub(super) unknown_until: Instant,
    /// The call.
    pub(super) span: Span,
    pub(super) answer: oneshot::Sender<Result<u64, Unready>>,
}

/// Calls that wait for their pod.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    all: Vec<Waiter>,
}

impl Waiters {
    /// Most calls that wait. More than pods fit a node; kubelet comes back.
    const MOST: usize = 1024;

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        if self.all.len() >= Self::MOST {
            // Whoever asked may be gone.
            drop(waiter.answer.send(Err(Unready::Overloaded)));
            return;
        }
        self.all.push(waiter);
    }

    /// The calls, in the order in which they came.
    pub(super) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.all.iter().map(|waiter| &waiter.span)
    }

    /// The next time at which somebody has to be told something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.all.iter().map(|w| w.until.min(w.unknown_until)).min()
    }

    /// Tells those whose pod is in force, and those whose time is over. Callers that went are forgotten.
    pub(super) fn settle(&mut self, engine: &Engine, synced: bool, generation: u64, now: Instant) {
        let mut waiting = Vec::with_capacity(self.all.len());
        for waiter in self.all.drain(..) {
            if waiter.answer.is_closed() {
                continue;
            }
            let why = missing(engine, synced, &waiter);
            let answer = match why {
                None => Ok(generation),
                Some(why) if now >= waiter.until => Err(why),
                Some(why @ Unready::PodUnknown(_)) if now >= waiter.unknown_until => Err(why),
                Some(_) => {
                    waiting.push(Waiter {
                        // Once it has passed, it need not wake anybody.
                        unknown_until: if now >= waiter.unknown_until {
                            waiter.until
                        } else {
                            waiter.unknown_until
                        },
                        ..waiter
                    });
                    continue;
                }
            };
            drop(waiter.answer.send(answer));
        }
        self.all = waiting;
    }

    /// Tells those who wait for this attachment that it is over.
    pub(super) fn release(&mut self, attachment: &AttachmentKey) {
        for waiter in self.all.extract_if(.., |w| w.attachment == *attachment) {
            let released = Unready::Released(waiter.pod);
            drop(waiter.answer.send(Err(released)));
        }
    }
}

/// What a pod lacks; `None`: it may start.
fn missing(engine: &Engine, synced: bool, waiter: &Waiter) -> Option<Unready> {
    if !synced {
        return Some(Unready::NotInSync);
    }
    let known = engine
        .index()
        .pod(&waiter.pod)
        .is_some_and(|pod| is_the_one(&pod.uid, &waiter.uid));
    if !known {
        return Some(Unready::PodUnknown(waiter.pod.clone()));
    }
    if engine.is_ready(&waiter.attachment) {
        return None;
    }
    let why = engine
        .waiting_for(&waiter.attachment)
        .unwrap_or_else(|| "its rules are not in the kernel yet".to_owned());
    Some(Unready::Waiting {
        pod: waiter.pod.clone(),
        why,
    })
}

/// A pod of the same name with another UID is the one before it, or the one after. Manifests written by hand have
/// no UID, and older runtimes say none.
fn is_the_one(object: &Arc<str>, asked: &str) -> bool {
    object.is_empty() || asked.is_empty() || **object == *asked
}
