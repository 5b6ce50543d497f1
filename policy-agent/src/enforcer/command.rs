//! What others ask of the enforcer.

use std::net::IpAddr;
use std::time::Duration;

use policy_core::flow::Flow;
use policy_core::plan::Target;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Span;
use types::pod::AttachmentKey;

use super::core::{Core, Progress};
use super::waiter::Unready;
use crate::attachments::Attached;

/// Most commands that wait.
const QUEUE: usize = 1024;

/// How long a question may wait for its answer: the enforcer is never away for long.
const ANSWER: Duration = Duration::from_secs(10);

/// Something that the enforcer does between two transactions, with all that it has.
pub(super) type Look = Box<dyn FnOnce(&mut Core) + Send>;

/// One command.
pub(super) enum Command {
    /// The attachment is there: answer when its policy is in force.
    Ready {
        pod: Box<Attached>,
        /// Attachments under the same link that are over.
        over: Vec<AttachmentKey>,
        until: Instant,
        unknown_until: Instant,
        /// Whose transactions these are.
        span: Span,
        answer: oneshot::Sender<Result<u64, Unready>>,
    },
    /// The attachments are over: answer when the kernel has nothing of them.
    Release {
        attachments: Vec<AttachmentKey>,
        answer: oneshot::Sender<Result<(), Unready>>,
    },
    /// These are there, and those are over.
    Restore {
        there: Vec<Attached>,
        over: Vec<AttachmentKey>,
        answer: oneshot::Sender<Result<(), Unready>>,
    },
    /// Somebody else changed our tables in this namespace.
    Mistrust(Target),
    /// Anything else.
    Look(Look),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Ready { .. } => "Ready",
            Self::Release { .. } => "Release",
            Self::Restore { .. } => "Restore",
            Self::Mistrust(_) => "Mistrust",
            Self::Look(_) => "Look",
        };
        f.write_str(name)
    }
}

/// Asks the enforcer. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

pub(super) fn channel() -> (Handle, mpsc::Receiver<Command>) {
    let (commands, receiver) = mpsc::channel(QUEUE);
    (Handle { commands }, receiver)
}

impl Handle {
    /// Notes the attachment; the answer comes when its policy is in force, at the latest at `until`. `over` are
    /// predecessors under the same link. When this returns the command is queued: later ones come after it.
    ///
    /// # Errors
    /// [`Unready`].
    pub async fn ready(
        &self,
        pod: Attached,
        over: Vec<AttachmentKey>,
        until: Instant,
        unknown_until: Instant,
    ) -> Result<Asked<u64>, Unready> {
        let (answer, told) = oneshot::channel();
        self.send(Command::Ready {
            pod: Box::new(pod),
            over,
            until,
            unknown_until,
            span: Span::current(),
            answer,
        })
        .await?;
        // The enforcer answers in time; the bound is for one that does not.
        let until = until + ANSWER;
        Ok(Asked { told, until })
    }

    /// Forgets attachments; the answer comes when the kernel has nothing of them.
    ///
    /// # Errors
    /// [`Unready`].
    pub async fn release(&self, attachments: Vec<AttachmentKey>) -> Result<Asked<()>, Unready> {
        let (answer, told) = oneshot::channel();
        self.send(Command::Release {
            attachments,
            answer,
        })
        .await?;
        let until = Instant::now() + ANSWER;
        Ok(Asked { told, until })
    }

    /// Notes these attachments and forgets those; the answer comes when the kernel has nothing of the latter.
    ///
    /// # Errors
    /// [`Unready`].
    pub async fn restore(
        &self,
        there: Vec<Attached>,
        over: Vec<AttachmentKey>,
    ) -> Result<Asked<()>, Unready> {
        let (answer, told) = oneshot::channel();
        self.send(Command::Restore {
            there,
            over,
            answer,
        })
        .await?;
        let until = Instant::now() + ANSWER;
        Ok(Asked { told, until })
    }

    /// What the feed and the kernel have come to.
    ///
    /// # Errors
    /// [`Unready`] when the enforcer ends or is away for too long.
    pub async fn progress(&self) -> Result<Progress, Unready> {
        self.look(|core| core.progress).await
    }

    /// Why policy is not in force as it should be; `None`: it is.
    ///
    /// # Errors
    /// [`Unready`] when the enforcer ends or is away for too long.
    pub async fn readiness(&self) -> Result<Option<String>, Unready> {
        self.look(|core| core.unready()).await
    }

    /// Says that somebody else changed our tables there.
    pub async fn mistrust(&self, target: Target) {
        // An enforcer that has ended compares everything when it starts again.
        drop(self.send(Command::Mistrust(target)).await);
    }

    /// Which of these flows policy allows now, judged with the node's own addresses as they are now.
    ///
    /// # Errors
    /// [`Unready`] when the enforcer ends or does not know yet.
    pub async fn judge(
        &self,
        flows: Vec<Flow>,
        node: Option<Vec<IpAddr>>,
    ) -> Result<Vec<bool>, Unready> {
        self.look(move |core| core.judge(&flows, node)).await?
    }

    /// Does something with all that the enforcer has, between two transactions. Nothing else happens meanwhile, so
    /// it has to be quick.
    ///
    /// # Errors
    /// [`Unready`] when the enforcer ends or is away for too long.
    pub(crate) async fn look<T, F>(&self, look: F) -> Result<T, Unready>
    where
        T: Send + 'static,
        F: FnOnce(&mut Core) -> T + Send + 'static,
    {
        let (answer, told) = oneshot::channel();
        let look: Look = Box::new(move |core| drop(answer.send(look(core))));
        self.send(Command::Look(look)).await?;
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Unready::Ending),
            Err(_) => Err(Unready::Overloaded),
        }
    }

    async fn send(&self, command: Command) -> Result<(), Unready> {
        match tokio::time::timeout(ANSWER, self.commands.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unready::Ending),
            Err(_) => Err(Unready::Overloaded),
        }
    }
}

/// A command that is queued.
#[derive(Debug)]
#[must_use = "the answer says whether it was done"]
pub struct Asked<T> {
    told: oneshot::Receiver<Result<T, Unready>>,
    until: Instant,
}

impl<T> Asked<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Unready`]: what the enforcer said, or that it did not say anything in time.
    pub async fn answer(self) -> Result<T, Unready> {
        match tokio::time::timeout_at(self.until, self.told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Unready::Ending),
            Err(_) => Err(Unready::Overloaded),
        }
    }
}
