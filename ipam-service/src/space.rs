//! The address space: the configured vSwitches, as the cloud describes them, divided into shards.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use ipam_core::spec::{self, Mode, ShardSpec, VSwitchSpec, shards_of_vswitch};
use k8s_api::eni_conf::EniConf;
use mesh::backoff::Backoff;
use proto::types::v1::Reason;
use tracing::{info, warn};
use types::cloud::VSwitchId;
use types::op::ShardId;

use crate::cloud::{Cloud, CloudError, CloudVSwitch};
use crate::config::{Config, Timing, VSwitchMode};
use crate::routing::all_vswitches;

/// All shards of the configured vSwitches, by the cloud's word. Waits for a gateway that is not there yet.
///
/// # Errors
/// A vSwitch that is unknown, in another zone, without IPv6, or too small; each is named.
pub async fn specs(
    config: &Config,
    eni_conf: &EniConf,
    cloud: &Cloud,
) -> anyhow::Result<BTreeMap<ShardId, ShardSpec>> {
    let wanted: Vec<VSwitchId> = all_vswitches(&eni_conf.vswitches).into_iter().collect();
    if wanted.is_empty() {
        bail!("eni_conf key vswitches: no vSwitch is given");
    }
    for vswitch in config.vswitch.keys() {
        if !wanted.contains(vswitch) {
            bail!("vswitch.{vswitch}: eni_conf does not use this vSwitch");
        }
    }
    let found = describe(cloud, &wanted).await?;
    let mut specs = BTreeMap::new();
    for (zone, vswitches) in &eni_conf.vswitches {
        for id in vswitches {
            let Some(fact) = found.iter().find(|fact| fact.id == *id) else {
                bail!("eni_conf key vswitches: the cloud knows no vSwitch {id}");
            };
            if fact.zone != *zone {
                bail!(
                    "eni_conf key vswitches: {id} is in zone {}, not in {zone}",
                    fact.zone
                );
            }
            for spec in shards_of_vswitch(
                &vswitch_spec(config, eni_conf, fact)?,
                config.cluster.shard_prefix_len,
            )? {
                specs.insert(spec.id().clone(), spec);
            }
        }
    }
    info!(
        vswitches = wanted.len(),
        shards = specs.len(),
        "the address space is divided"
    );
    Ok(specs)
}

fn vswitch_spec(
    config: &Config,
    eni_conf: &EniConf,
    fact: &CloudVSwitch,
) -> anyhow::Result<VSwitchSpec> {
    let dual = eni_conf.stack.has_v6();
    if dual && fact.ipv6.is_none() {
        bail!(
            "eni_conf key ip_stack: dual is wanted, but vSwitch {} has no IPv6 range",
            fact.id
        );
    }
    Ok(VSwitchSpec {
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
    })
}

/// Asks until there is an answer; a refusal is final.
async fn describe(cloud: &Cloud, wanted: &[VSwitchId]) -> anyhow::Result<Vec<CloudVSwitch>> {
    let mut backoff = Backoff::default();
    loop {
        match cloud.vswitches(wanted).await {
            Ok(found) => return Ok(found),
            Err(error @ CloudError::Refused { .. })
                if error.reason() == Reason::CloudInvalid || error.reason() == Reason::BadField =>
            {
                return Err(error).context("describe the vSwitches");
            }
            Err(error) => {
                warn!(%error, "the vSwitches can not be described yet");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}
