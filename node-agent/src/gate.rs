//! Asks policy-agent: a pod starts when its policy is in the kernel, and its addresses are free when the kernel has
//! nothing of it any more.
//!
//! Whether it is asked is said by the configuration alone: a socket that is not there is a failure, never "off".

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh::client::{self, Channel, Outcome, outcome};
use proto::node::v1::{Attachment, PodRef};
use proto::policy::v1::gate_client::GateClient;
use proto::policy::v1::policies_client::PoliciesClient;
use proto::policy::v1::{LocalPod, ReadyRequest, ReleaseRequest, RestoreRequest, StatusRequest};
use tokio::sync::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use types::pod::AttachmentKey;

use crate::dial::pauses;
use crate::ledger::Ledger;
use crate::pool::Binding;

/// Longest wait for a release: policy-agent hears of what it missed when it is back.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for a restoration.
const RESTORE_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for what policy-agent says of itself.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// Between two looks whether policy-agent was started anew.
const LOOK: Duration = Duration::from_secs(1);

/// Why the policy of a pod is not in force.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Nothing was asked: nobody serves the socket.
    #[error("policy-agent is not reached: {0}")]
    Away(String),
    /// It was asked and nobody can say what came of it.
    #[error("policy-agent did not answer: {0}")]
    Silent(String),
    /// It said no.
    #[error("policy-agent: {0}")]
    Refused(String),
}

impl GateError {
    fn of(status: &Status) -> Self {
        let said = status.message().to_owned();
        match outcome(status) {
            Outcome::NotSent => Self::Away(said),
            Outcome::Unknown => Self::Silent(said),
            Outcome::Answered => Self::Refused(said),
        }
    }
}

/// The way to policy-agent, or the knowledge that policy is off. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open: Option<Arc<Open>>,
}

#[derive(Debug)]
struct Open {
    channel: Channel,
    socket: PathBuf,
    wait: Duration,
    /// Attachments between their release and the end of their binding: none of what is restored.
    leaving: Mutex<BTreeSet<AttachmentKey>>,
    /// Held while everything is told again, so that nothing that is newer is undone by what was collected before.
    telling: RwLock<()>,
    /// A release was not heard: all is to be told again, though policy-agent is the same as before.
    unheard: AtomicBool,
}

/// An attachment that leaves; hold it until its addresses are free.
#[derive(Debug)]
#[must_use = "an attachment that does not leave any more is told to policy-agent again"]
pub struct Leaving {
    from: Option<(Arc<Open>, AttachmentKey)>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some((open, attachment)) = &self.from {
            open.leaving().remove(attachment);
        }
    }
}

impl Gate {
    /// Policy is off: nobody is asked.
    pub fn off() -> Self {
        Self::default()
    }

    /// Policy is on: policy-agent is asked at `socket`, and waited for up to `wait`.
    pub fn new(socket: &Path, wait: Duration) -> Self {
        Self {
            open: Some(Arc::new(Open {
                channel: Channel::unix(socket, &client::Params::default()),
                socket: socket.to_owned(),
                wait,
                leaving: Mutex::default(),
                telling: RwLock::new(()),
                unheard: AtomicBool::new(false),
            })),
        }
    }

    /// Waits until the policy of the binding's pod is in the kernel. Repeating it is harmless.
    ///
    /// # Errors
    /// [`GateError`], at the latest after the wait.
    pub async fn ready(&self, binding: &Binding) -> Result<(), GateError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let deadline = Instant::now() + open.wait;
        for pod in local_pods(binding) {
            open.ready(&pod, deadline).await?;
        }
        Ok(())
    }

    /// Why policy-agent does not let pods start; nothing when it does, or policy is off here.
    pub async fn complaint(&self) -> Option<String> {
        let open = self.open.as_ref()?;
        let mut door = PoliciesClient::new(open.channel.with_deadline(LOOK_WAIT));
        match door.status(StatusRequest {}).await {
            Ok(status) => {
                let status = status.into_inner();
                let serves = matches!(status.state.as_str(), "on" | "off");
                (!serves).then(|| format!("policy-agent is {}: {}", status.state, status.reason))
            }
            Err(status) => Some(GateError::of(&status).to_string()),
        }
    }

    /// Takes the attachment out of the kernel's policy. When policy-agent does not hear of it, the log has it, and
    /// policy-agent learns it from [`Gate::follow`], which tells everything again.
    pub async fn release(&self, attachment: &AttachmentKey, host_link: &str) -> Leaving {
        let Some(open) = &self.open else {
            return Leaving { from: None };
        };
        open.leaving().insert(attachment.clone());
        let leaving = Leaving {
            from: Some((Arc::clone(open), attachment.clone())),
        };
        if let Err(error) = open.release(attachment, host_link).await {
            tracing::warn!(%attachment, %error, "policy not released");
            open.unheard.store(true, Ordering::Release);
        }
        leaving
    }

    /// Tells policy-agent of every binding, now, whenever it was started anew, and after a release that it did not
    /// hear, until `drain` is cancelled.
    pub async fn follow(self, ledger: Ledger, drain: CancellationToken) {
        let Some(open) = self.open else {
            drain.cancelled().await;
            return;
        };
        let mut told = None;
        let mut complained = false;
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                _ = every.tick() => {}
            }
            let now = open.incarnation();
            // Taken before it is told: what is not heard meanwhile is told once more.
            let unheard = open.unheard.swap(false, Ordering::AcqRel);
            if now.is_some() && now == told && !unheard {
                continue;
            }
            told = None;
            let restored = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                restored = open.restore(&ledger) => restored,
            };
            match restored {
                Ok(pods) => {
                    tracing::info!(pods, "policy-agent knows the pods of this node");
                    told = now;
                    complained = false;
                }
                Err(error) if complained => tracing::debug!(%error, "pods not told"),
                Err(error) => {
                    tracing::warn!(%error, "policy-agent does not know the pods of this node yet");
                    complained = true;
                }
            }
        }
    }
}

impl Open {
    async fn ready(&self, pod: &LocalPod, deadline: Instant) -> Result<(), GateError> {
        let mut pauses = pauses(20, 500);
        loop {
            match self.ask(pod, deadline).await {
                Ok(()) => return Ok(()),
                // One that is being replaced is back in a moment; asking twice does no harm.
                Err(error @ (GateError::Away(_) | GateError::Silent(_))) => {
                    let again = Instant::now() + pauses.next_wait();
                    if again >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep_until(again).await;
                }
                Err(error @ GateError::Refused(_)) => return Err(error),
            }
        }
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, BTreeSet<AttachmentKey>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, deadline: Instant) -> GateClient<Channel> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A call without any time left would be sent without a deadline.
        let left = left.max(Duration::from_millis(1));
        GateClient::new(self.channel.with_deadline(left))
    }

    async fn ask(&self, pod: &LocalPod, deadline: Instant) -> Result<(), GateError> {
        drop(self.telling.read().await);
        let request = ReadyRequest {
            pod: Some(pod.clone()),
        };
        let answer = self.client(deadline).ready(request).await;
        answer.map(drop).map_err(|status| GateError::of(&status))
    }

    async fn release(&self, attachment: &AttachmentKey, link: &str) -> Result<(), GateError> {
        drop(self.telling.read().await);
        let request = ReleaseRequest {
            attachment: Some(wire(attachment)),
            host_link: link.to_owned(),
        };
        let deadline = Instant::now() + RELEASE_WAIT;
        let answer = self.client(deadline).release(request).await;
        answer.map(drop).map_err(|status| GateError::of(&status))
    }

    async fn restore(&self, ledger: &Ledger) -> Result<usize, GateError> {
        let _telling = self.telling.write().await;
        let pods: Vec<LocalPod> = {
            let view = ledger.view();
            let leaving = self.leaving();
            let stay = view
                .bindings
                .values()
                .filter(|binding| !leaving.contains(&binding.attachment));
            stay.flat_map(local_pods).collect()
        };
        let count = pods.len();
        let deadline = Instant::now() + RESTORE_WAIT;
        let answer = self.client(deadline).restore(RestoreRequest { pods }).await;
        answer
            .map(|_| count)
            .map_err(|status| GateError::of(&status))
    }

    /// What tells one process behind the socket from the next: each makes the file anew.
    fn incarnation(&self) -> Option<(u64, u64, i64, i64)> {
        let file = std::fs::symlink_metadata(&self.socket).ok()?;
        Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
    }
}

fn wire(attachment: &AttachmentKey) -> Attachment {
    Attachment {
        sandbox_id: attachment.sandbox.clone(),
        ifname: attachment.ifname.clone(),
    }
}

/// The sandbox as policy-agent knows it: one attachment, or two for a pod with an ENI of its own, whose rules stand in
/// its own namespace and, for the way to the node, at the host end of its veth.
fn local_pods(binding: &Binding) -> Vec<LocalPod> {
    let of = |(attachment, host_link): (AttachmentKey, String)| LocalPod {
        attachment: Some(wire(&attachment)),
        pod: Some(PodRef {
            namespace: binding.pod.namespace.clone(),
            name: binding.pod.name.clone(),
            uid: binding.pod_uid.clone(),
        }),
        host_link,
        netns: binding.netns.clone(),
        ips: binding.addresses().map(|ip| ip.to_string()).collect(),
    };
    binding.parts().into_iter().map(of).collect()
}
