//! Who leads: one replica at a time, by a Lease.
//!
//! A lead is taken over when its Lease did not change for as long as it says, by our own clock, and given up by its
//! holder earlier than that when it can not renew. What the leader writes is guarded by resource versions besides:
//! two leaders for a moment do no harm.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Leader;
use crate::kubernetes::{self, Failure, Kubernetes};
use crate::metrics::Metrics;

/// Takes part in the election.
#[derive(Debug)]
pub struct Candidate {
    kubernetes: Kubernetes,
    leases: Api<Lease>,
    config: Leader,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    /// What was seen of the Lease, and since when it was so.
    seen: Option<(LeaseSpec, Instant)>,
    /// When our lead ends unless it is renewed.
    until: Option<Instant>,
}

impl Candidate {
    /// Takes part once it runs; and tells whether we lead.
    pub fn new(
        kubernetes: Kubernetes,
        namespace: &str,
        config: Leader,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<bool>) {
        let leads = watch::Sender::new(false);
        let told = leads.subscribe();
        let leases = Api::namespaced(kubernetes.client(), namespace);
        let this = Self {
            kubernetes,
            leases,
            config,
            leads,
            metrics,
            seen: None,
            until: None,
        };
        (this, told)
    }

    const fn renew(&self) -> Duration {
        Duration::from_millis(self.config.renew_ms)
    }

    /// Takes part until `drain` is cancelled; gives the lead up then.
    pub async fn run(mut self, drain: CancellationToken) {
        loop {
            let now = Instant::now();
            // A request that hangs must not let the lead outlive its end.
            let lead = self.until.filter(|until| *until > now);
            let end = lead.unwrap_or(now + Duration::from_millis(self.config.lease_ms));
            match tokio::time::timeout_at(end, self.round()).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    tracing::debug!(%failure, "lease");
                }
                Err(_) => tracing::debug!("lease: no answer in time"),
            }
            let leads = self.until.is_some_and(|until| until > Instant::now());
            self.tell(leads);
            let pause = match self.until {
                Some(until) if leads => self.renew().min(until.duration_since(Instant::now())),
                Some(_) | None => self.renew(),
            };
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            if self.until.is_some_and(|until| until <= Instant::now()) {
                self.until = None;
                self.tell(false);
            }
        }
        self.give_up().await;
    }

    fn tell(&self, leads: bool) {
        self.metrics.leads.set(i64::from(leads));
        self.leads.send_if_modified(|now| {
            let changed = *now != leads;
            if changed {
                tracing::info!(leads, lease = self.config.lease, "lead");
                *now = leads;
            }
            changed
        });
    }

    /// One look at the Lease; renews it, or takes it if it is free.
    async fn round(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let name = &self.config.lease;
        let lease = self.kubernetes.ask("read the lease", self.leases.get(name));
        let lease = lease.await?;
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((old, since)) if *old == spec => *since,
            Some(_) | None => started,
        };
        self.seen = Some((spec.clone(), since));
        let ours = spec.holder_identity.as_deref() == Some(&self.config.name);
        if !ours && !is_free(&spec, since.elapsed()) {
            self.until = None;
            return Ok(());
        }
        let taken = self.taken(lease, &spec, ours);
        let params = PostParams::default();
        let replaced = self.leases.replace(name, &params, &taken);
        let written = self.kubernetes.ask("take the lease", replaced).await;
        match written {
            Ok(lease) => {
                self.seen = Some((lease.spec.unwrap_or_default(), started));
                // Earlier than others may take it over, by the time between two of their looks.
                let ours = Duration::from_millis(self.config.lease_ms).saturating_sub(self.renew());
                self.until = Some(started + ours);
                Ok(())
            }
            // Somebody else was quicker: the next look tells who.
            Err(failure) if failure.is_conflict() => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn taken(&self, mut lease: Lease, spec: &LeaseSpec, ours: bool) -> Lease {
        let now = Some(MicroTime(kubernetes::now()));
        let acquired = if ours {
            spec.acquire_time.clone()
        } else {
            None
        };
        let changes = spec.lease_transitions.unwrap_or_default();
        let seconds = self.config.lease_ms.div_ceil(1_000);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.config.name.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: acquired.or_else(|| now.clone()),
            renew_time: now,
            lease_transitions: Some(changes.saturating_add(i32::from(!ours))),
            ..LeaseSpec::default()
        });
        lease
    }

    /// Lets another one lead at once.
    async fn give_up(mut self) {
        if self.until.take().is_none() {
            return;
        }
        self.tell(false);
        let name = &self.config.lease;
        let freed = async {
            let get = self.kubernetes.ask("read the lease", self.leases.get(name));
            let mut lease = get.await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.config.name) {
                return Ok(());
            }
            spec.holder_identity = None;
            let params = PostParams::default();
            let replaced = self.leases.replace(name, &params, &lease);
            self.kubernetes.ask("free the lease", replaced).await?;
            Ok::<(), Failure>(())
        };
        match tokio::time::timeout(Duration::from_secs(2), freed).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::info!(%failure, "the lease was not freed; it ends by itself");
            }
            Err(_) => tracing::info!("the lease was not freed in time; it ends by itself"),
        }
    }
}

/// Whether somebody may take a Lease that did not change for `unchanged`.
fn is_free(spec: &LeaseSpec, unchanged: Duration) -> bool {
    let held = spec.holder_identity.as_ref().is_some_and(|h| !h.is_empty());
    let seconds = spec
        .lease_duration_seconds
        .and_then(|s| u64::try_from(s).ok());
    !held || unchanged >= Duration::from_secs(seconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: Option<&str>, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn lease_of_nobody_is_free_at_once() {
        assert!(is_free(&LeaseSpec::default(), Duration::ZERO));
        assert!(is_free(&spec(None, 15), Duration::ZERO));
        assert!(is_free(&spec(Some(""), 15), Duration::ZERO));
    }

    #[test]
    fn lease_that_is_held_is_free_only_when_it_did_not_change_for_its_time() {
        let held = spec(Some("other"), 15);

        assert!(!is_free(&held, Duration::from_secs(14)));
        assert!(is_free(&held, Duration::from_secs(15)));
    }
}
