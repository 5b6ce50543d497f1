//! Keeps kernel, ledger and sandboxes together: adoption at start, repair when something is lost, and freeing what
//! belongs to sandboxes that are gone.
//!
//! Level-triggered: a netlink notification only says "look"; a full look comes periodically anyway. Freeing is
//! two-phase: what looks gone must look gone again after an age floor (I7, and I3 for what is still alive).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datapath::kernel::Datapath;
use datapath::plan::Orphans;
use mesh::causes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::pod::AttachmentKey;

use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::notice::{self, Notice, Stakes};
use crate::pods::{PodError, Pods};
use crate::pool::Binding;
use crate::uplinks::Uplinks;

/// Paces of the reconciler.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between full looks.
    pub every: Duration,
    /// How long a sandbox must look gone before its addresses are freed.
    pub gone_after: Duration,
    /// Notifications within this time are one look.
    pub gather: Duration,
    /// Whether lost kernel state is put back, or only reported.
    pub repair: bool,
}

/// Asks for the node's own settings to be taken back, and hears when they are.
#[derive(Debug)]
pub struct Retirement {
    /// Whether nothing needs them any more.
    pub ask: watch::Sender<bool>,
    /// Whether they are gone.
    pub done: watch::Receiver<bool>,
}

/// The other side of [`Retirement`].
#[derive(Debug)]
pub struct Retiring {
    asked: watch::Receiver<bool>,
    done: watch::Sender<bool>,
}

impl Retirement {
    /// Both sides: who asks, and who does it.
    pub fn pair() -> (Self, Retiring) {
        let ((ask, asked), (done, heard)) = (watch::channel(false), watch::channel(false));
        (Self { ask, done: heard }, Retiring { asked, done })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// ENIs in the kernel.
    pub uplinks: Uplinks,
    /// What frees a binding.
    pub pods: Pods,
    /// The kernel.
    pub datapath: Arc<Datapath>,
    /// The present boot.
    pub boot_id: String,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Paces.
    pub pace: Pace,
    /// Where it is said that the node's settings are not as pods need them.
    pub complaint: watch::Sender<Option<String>>,
    /// Whether the node's settings are to be taken back.
    pub retiring: Retiring,
}

/// What looked wrong at the last look.
#[derive(Debug, Default)]
struct Suspicion {
    gone: BTreeMap<AttachmentKey, Instant>,
    orphans: Option<(Orphans, Instant)>,
}

impl Reconciler {
    /// Frees the bindings of earlier boots: no sandbox outlives a reboot, and no link of theirs is left.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger stopped.
    pub async fn adopt(&self) -> Result<(), LedgerError> {
        let view = self.ledger.view();
        let old = view.bindings.values().filter(|b| b.boot_id != self.boot_id);
        for binding in old {
            tracing::info!(attachment = %binding.attachment, "freed after a reboot");
            match self.pods.del(&binding.attachment, None).await {
                Ok(()) => {
                    self.metrics.reaped.inc();
                }
                Err(PodError::Ledger(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(attachment = %binding.attachment, error = %causes::text(&error),
                        "not freed after a reboot yet");
                }
            }
        }
        self.uplinks.look().await
    }

    /// Looks until `drain` is cancelled.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger stopped.
    pub async fn run(self, drain: CancellationToken) -> Result<(), LedgerError> {
        let mut suspicion = Suspicion::default();
        let mut view = self.ledger.watch();
        let mut known = Vec::new();
        let mut asked = self.retiring.asked.clone();
        loop {
            asked.borrow_and_update();
            view.borrow_and_update();
            self.look(&mut suspicion).await?;
            let mut watch = match self.datapath.watch().await {
                Ok(watch) => Some(watch),
                Err(error) => {
                    tracing::warn!(error = %causes::text(&error), "no netlink notifications");
                    None
                }
            };
            // The watch was opened after the look: look at the ENIs again, so that nothing falls between.
            self.uplinks.look().await?;
            let full = Instant::now() + self.pace.every;
            loop {
                let notified = async {
                    match &mut watch {
                        Some(watch) => watch.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = drain.cancelled() => return Ok(()),
                    () = tokio::time::sleep_until(full) => break,
                    Ok(()) = asked.changed() => break,
                    changed = view.changed() => {
                        if changed.is_err() {
                            return Err(LedgerError::Stopped);
                        }
                        let now: Vec<_> = view.borrow_and_update().enis.keys().cloned().collect();
                        if now != known {
                            known = now;
                            self.uplinks.look().await?;
                        }
                    }
                    change = notified => match change {
                        Ok(change) => match notice::judge(&change, &self.stakes()) {
                            Notice::Nothing => {}
                            Notice::Uplinks => self.uplinks.look().await?,
                            Notice::Everything => {
                                // Losses come in swarms: gather them into one comparison.
                                tokio::time::sleep(self.pace.gather).await;
                                self.uplinks.look().await?;
                                self.look(&mut suspicion).await?;
                            }
                        },
                        Err(error) => {
                            tracing::warn!(error = %causes::text(&error), "netlink notifications lost");
                            break;
                        }
                    },
                }
            }
        }
    }

    /// Takes the node's settings back, unless that was done.
    async fn retire(&self) {
        if *self.retiring.done.borrow() {
            return;
        }
        match self.datapath.leave_host().await {
            Ok(done) => {
                self.report(&done);
                self.retiring.done.send_replace(true);
            }
            Err(error) => {
                tracing::warn!(error = %causes::text(&error), "the node's settings are not taken back");
            }
        }
    }

    fn stakes(&self) -> Stakes {
        let view = self.ledger.view();
        let settled = view
            .bindings
            .values()
            .filter(|b| !self.pods.is_busy(&b.attachment));
        let mut stakes = Stakes::default();
        for binding in settled {
            stakes.pod_addresses.extend(binding.addresses());
            stakes.pod_links.insert(binding.host_link.clone());
        }
        stakes.eni_macs = view.enis.values().map(|e| e.record.mac).collect();
        stakes.enis = view
            .enis
            .keys()
            .filter_map(|id| self.uplinks.state(id))
            .collect();
        stakes
    }

    async fn look(&self, suspicion: &mut Suspicion) -> Result<(), LedgerError> {
        let host = self.uplinks.host(self.ledger.view().ipv6);
        let retire = *self.retiring.asked.borrow();
        if retire {
            self.retire().await;
        } else if self.pace.repair {
            self.retiring.done.send_replace(false);
            match self.datapath.ensure_host(&host).await {
                Ok(done) => {
                    self.report(&done);
                    let unsettled = self.datapath.forward_complaints().len();
                    let unsettled = i64::try_from(unsettled).unwrap_or(i64::MAX);
                    self.metrics.forward_unsettled.set(unsettled);
                    self.complaint.send_replace(None);
                }
                Err(error) => {
                    let why = causes::text(&error);
                    tracing::warn!(error = why, "host settings not complete");
                    self.complaint.send_replace(Some(why));
                }
            }
        }
        let view = self.ledger.view();
        let enis: Vec<_> = view
            .enis
            .values()
            .filter(|e| !e.record.whole)
            .map(|e| self.uplinks.desired(&e.record))
            .collect();
        // A binding whose ADD or DEL is running belongs to that call.
        let settled: Vec<_> = view
            .bindings
            .values()
            .filter(|b| !self.pods.is_busy(&b.attachment))
            .collect();
        let wholes: Vec<_> = settled
            .iter()
            .filter_map(|b| self.pods.desired_whole(b))
            .collect();
        let pods: Vec<_> = settled
            .iter()
            .filter(|b| !b.whole)
            .filter_map(|b| self.pods.desired(b))
            .collect();
        if self.pace.repair && pods.len().saturating_add(wholes.len()) == settled.len() {
            match self.datapath.repair(&pods, &wholes, &enis).await {
                Ok(report) => {
                    self.report(&report.done);
                    if !report.done.is_empty() {
                        self.enforce_again(&settled).await;
                    }
                    for failed in &report.failed {
                        tracing::warn!(what = failed, "not repaired");
                    }
                    self.sweep(report.orphans, suspicion).await;
                }
                Err(error) => {
                    tracing::warn!(error = %causes::text(&error), "kernel not compared");
                }
            }
        }
        self.reap(suspicion).await
    }

    /// A link that was made anew has lost what policy hung on it.
    async fn enforce_again(&self, bindings: &[&Binding]) {
        for binding in bindings {
            if let Err(error) = self.pods.enforce(binding).await {
                // The others would wait as long, one after the other; policy-agent looks at links itself, too.
                tracing::warn!(error = %causes::text(&error), "policy not looked at after a repair");
                return;
            }
        }
    }

    fn report(&self, done: &[String]) {
        for what in done {
            tracing::info!(what, "repaired");
            self.metrics.repairs.inc();
        }
    }

    /// Removes links and rules that belonged to nobody at two looks.
    async fn sweep(&self, now: Orphans, suspicion: &mut Suspicion) {
        let Some((before, since)) = suspicion.orphans.take() else {
            suspicion.orphans = Some((now, Instant::now()));
            return;
        };
        if since.elapsed() < self.pace.gone_after {
            suspicion.orphans = Some((before.still(&now), since));
            return;
        }
        let still = before.still(&now);
        if let Err(error) = self.datapath.remove_orphans(&still).await {
            tracing::warn!(error = %causes::text(&error), "orphans not removed");
        }
        suspicion.orphans = Some((now, Instant::now()));
    }

    /// Frees bindings whose sandbox has neither a namespace nor a link, at two looks.
    async fn reap(&self, suspicion: &mut Suspicion) -> Result<(), LedgerError> {
        let view = self.ledger.view();
        let Ok(observed) = self.datapath.observe_host().await else {
            return Ok(());
        };
        let mut gone = BTreeMap::new();
        for binding in view.bindings.values() {
            let linked = observed
                .link(&binding.host_link)
                .and_then(datapath::observed::Link::attachment)
                .is_some_and(|a| binding.parts().iter().any(|(part, _)| *part == a));
            if linked
                || Path::new(&binding.netns).exists()
                || self.pods.is_busy(&binding.attachment)
            {
                continue;
            }
            let first = suspicion.gone.get(&binding.attachment).copied();
            let first = first.unwrap_or_else(Instant::now);
            if first.elapsed() < self.pace.gone_after {
                gone.insert(binding.attachment.clone(), first);
                continue;
            }
            tracing::warn!(attachment = %binding.attachment, "freed: its sandbox is gone");
            match self.pods.del(&binding.attachment, None).await {
                Ok(()) => {
                    self.metrics.reaped.inc();
                }
                Err(PodError::Ledger(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(attachment = %binding.attachment, error = %causes::text(&error),
                        "not freed yet");
                }
            }
        }
        suspicion.gone = gone;
        Ok(())
    }
}
