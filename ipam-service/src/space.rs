//! The address space: the configured vSwitches, as the cloud describes them, divided into shards.
//!
//! A vSwitch that the cloud does not know, or knows otherwise than it is configured, is left out and said by name; the
//! others serve. It is looked at again until it fits, so that what an operator mends in the cloud needs no restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use ipam_core::spec::{self, Mode, ShardSpec, VSwitchSpec, shards_of_vswitch};
use k8s_api::eni_conf::EniConf;
use mesh::backoff::{Backoff, Params as BackoffParams};
use mesh::health::Condition;
use mesh::status::Refusal;
use proto::types::v1::Reason;
use tokio::sync::watch;
use tonic::{Code, Status};
use tracing::{info, warn};
use types::cloud::{VSwitchId, ZoneId};
use types::op::ShardId;

use crate::cloud::{Cloud, CloudError, CloudVSwitch};
use crate::config::{Config, Timing, VSwitchMode};
use crate::fault::Fault;
use crate::metrics::Metrics;

/// All vSwitches of a configuration, each once.
fn all_vswitches(vswitches: &BTreeMap<ZoneId, Vec<VSwitchId>>) -> BTreeSet<VSwitchId> {
    vswitches.values().flatten().cloned().collect()
}

/// A configured vSwitch that can not be used.
#[derive(Debug, Clone)]
pub struct Misfit {
    /// The zone that it is configured for.
    pub zone: ZoneId,
    /// Why.
    pub fault: Fault,
}

/// All shards, and the vSwitches that give none. Clones share them.
#[derive(Debug, Clone)]
pub struct Space {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    eni_conf: EniConf,
    cloud: Cloud,
    metrics: Metrics,
    backoff: BackoffParams,
    specs: watch::Sender<BTreeMap<ShardId, ShardSpec>>,
    misfits: watch::Sender<BTreeMap<VSwitchId, Misfit>>,
    vpcs: watch::Sender<BTreeMap<VSwitchId, String>>,
}

impl Space {
    /// The configured vSwitches, not looked at yet.
    ///
    /// # Errors
    /// A configuration that contradicts itself; the key is named.
    pub fn new(
        config: &Config,
        eni_conf: &EniConf,
        cloud: Cloud,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let wanted = all_vswitches(&eni_conf.vswitches);
        if wanted.is_empty() {
            bail!("eni_conf key vswitches: no vSwitch is given");
        }
        for vswitch in config.vswitch.keys() {
            if !wanted.contains(vswitch) {
                bail!("vswitch.{vswitch}: eni_conf does not use this vSwitch");
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                config: config.clone(),
                eni_conf: eni_conf.clone(),
                cloud,
                metrics: metrics.clone(),
                backoff: BackoffParams {
                    first_ms: config.timing.retry_min,
                    max_ms: config.timing.retry_max,
                },
                specs: watch::Sender::default(),
                misfits: watch::Sender::default(),
                vpcs: watch::Sender::default(),
            }),
        })
    }

    /// All shards of vSwitches that can be used.
    pub fn specs(&self) -> BTreeMap<ShardId, ShardSpec> {
        self.inner.specs.borrow().clone()
    }

    /// The same, as they become more.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<ShardId, ShardSpec>> {
        self.inner.specs.subscribe()
    }

    /// vSwitches that can not be used.
    pub fn faults(&self) -> watch::Receiver<BTreeMap<VSwitchId, Misfit>> {
        self.inner.misfits.subscribe()
    }

    /// The VPC of each vSwitch that can be used.
    pub fn vpcs(&self) -> watch::Receiver<BTreeMap<VSwitchId, String>> {
        self.inner.vpcs.subscribe()
    }

    /// Waits until one vSwitch can be used, or more; `ready` says what keeps it.
    ///
    /// # Errors
    /// The gateway says that the question itself is wrong.
    pub async fn open(&self, ready: &Condition) -> anyhow::Result<()> {
        let wanted = all_vswitches(&self.inner.eni_conf.vswitches);
        let mut backoff = self.backoff();
        loop {
            match self.look(&wanted).await {
                Ok(()) => {}
                Err(error @ CloudError::Refused { .. })
                    if matches!(error.reason(), Reason::CloudInvalid | Reason::BadField) =>
                {
                    return Err(error).context("describe the vSwitches");
                }
                Err(error) => {
                    warn!(%error, "the vSwitches can not be described yet");
                    self.blame(&wanted, &error);
                }
            }
            let specs = self.inner.specs.borrow().len();
            if specs > 0 {
                info!(
                    vswitches = wanted.len(),
                    shards = specs,
                    misfits = self.inner.misfits.borrow().len(),
                    "the address space is divided"
                );
                ready.met();
                return Ok(());
            }
            ready.unmet(&self.complaint());
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Looks again at what can not be used, for ever.
    pub async fn follow(&self) {
        let mut misfits = self.inner.misfits.subscribe();
        let mut backoff = self.backoff();
        loop {
            if misfits
                .wait_for(|misfits| !misfits.is_empty())
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(backoff.next_wait()).await;
            let wanted: BTreeSet<VSwitchId> = misfits.borrow().keys().cloned().collect();
            if let Err(error) = self.look(&wanted).await {
                info!(%error, "vSwitches that do not fit can not be looked at");
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::try_new(self.inner.backoff).unwrap_or_default()
    }

    /// The status for those who come while no vSwitch can be used; nothing if one can, or none was looked at.
    pub fn refusal(&self) -> Option<Status> {
        if !self.inner.specs.borrow().is_empty() {
            return None;
        }
        let reason = self.inner.misfits.borrow().values().next()?.fault.reason;
        let refusal = Refusal::new(Code::Unavailable, reason.as_str_name(), self.complaint());
        Some(refusal.into_status())
    }

    /// Why there is no shard, by vSwitch.
    fn complaint(&self) -> String {
        let misfits = self.inner.misfits.borrow();
        let texts: BTreeSet<&str> = misfits
            .values()
            .map(|misfit| misfit.fault.message.as_str())
            .collect();
        texts.into_iter().collect::<Vec<_>>().join("; ")
    }

    /// None of `wanted` could be looked at.
    fn blame(&self, wanted: &BTreeSet<VSwitchId>, error: &CloudError) {
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let message = format!("vSwitches {}: {}", names.join(", "), error.words());
        for (zone, vswitches) in &self.inner.eni_conf.vswitches {
            for id in vswitches.iter().filter(|id| wanted.contains(*id)) {
                self.misfit(id, zone, error.reason(), message.clone());
            }
        }
    }

    fn misfit(&self, id: &VSwitchId, zone: &ZoneId, reason: Reason, message: String) {
        self.inner.misfits.send_if_modified(|misfits| {
            let known = misfits.get(id).map(|misfit| &misfit.fault);
            if known.is_some_and(|fault| fault.reason == reason && fault.message == message) {
                return false;
            }
            warn!(vswitch = %id, reason = reason.as_str_name(), message, "a vSwitch can not be used");
            let fault = Fault::new(reason, message, false, &self.inner.metrics);
            let zone = zone.clone();
            misfits.insert(id.clone(), Misfit { zone, fault });
            true
        });
    }

    /// Asks the cloud about `wanted` and takes in what fits.
    async fn look(&self, wanted: &BTreeSet<VSwitchId>) -> Result<(), CloudError> {
        let ids: Vec<VSwitchId> = wanted.iter().cloned().collect();
        let found = self.inner.cloud.vswitches(&ids).await?;
        for (zone, vswitches) in &self.inner.eni_conf.vswitches {
            for id in vswitches.iter().filter(|id| wanted.contains(*id)) {
                let fact = found.iter().find(|fact| fact.id == *id);
                match self.shards(id, zone, fact) {
                    Ok((vpc, specs)) => self.take(id, vpc, specs),
                    Err(why) => self.misfit(id, zone, Reason::VswitchInvalid, why),
                }
            }
        }
        Ok(())
    }

    fn take(&self, id: &VSwitchId, vpc: String, specs: Vec<ShardSpec>) {
        let vpcs = &self.inner.vpcs;
        vpcs.send_modify(|vpcs| drop(vpcs.insert(id.clone(), vpc)));
        self.inner.specs.send_modify(|all| {
            all.extend(specs.into_iter().map(|spec| (spec.id().clone(), spec)));
        });
        let mended = &self.inner.misfits;
        if mended.send_if_modified(|misfits| misfits.remove(id).is_some()) {
            info!(vswitch = %id, "a vSwitch can be used after all");
        }
    }

    /// The shards of a vSwitch and its VPC, or why there are none.
    fn shards(
        &self,
        id: &VSwitchId,
        zone: &ZoneId,
        fact: Option<&CloudVSwitch>,
    ) -> Result<(String, Vec<ShardSpec>), String> {
        let Inner {
            config, eni_conf, ..
        } = &*self.inner;
        let Some(fact) = fact else {
            return Err(format!(
                "eni_conf key vswitches: the cloud knows no vSwitch {id}"
            ));
        };
        if fact.zone != *zone {
            return Err(format!(
                "eni_conf key vswitches: vSwitch {id} is in zone {}, not in {zone}",
                fact.zone
            ));
        }
        let dual = eni_conf.stack.has_v6();
        if dual && fact.ipv6.is_none() {
            return Err(format!(
                "eni_conf key ip_stack: dual is wanted, but vSwitch {id} has no IPv6 range"
            ));
        }
        let spec = VSwitchSpec {
            id: fact.id.clone(),
            zone: fact.zone.clone(),
            v4: fact.ipv4,
            v6: fact.ipv6.filter(|_| dual),
            mode: match config.mode(&fact.id) {
                VSwitchMode::Shared => Mode::Shared,
                VSwitchMode::Exclusive => Mode::Exclusive,
            },
            timing: spec::Timing {
                cooldown: Timing::ms(config.timing.cooldown),
                foreign_ttl: Timing::ms(config.timing.foreign),
            },
        };
        let shards = shards_of_vswitch(&spec, config.cluster.shard_prefix_len)
            .map_err(|error| format!("vSwitch {id}: {error}"))?;
        Ok((fact.vpc.clone(), shards.into_iter().collect()))
    }
}
