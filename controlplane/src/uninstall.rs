//! The uninstallation's own process: says that nodes are to leave, and waits until they have.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::config::Config;
use crate::kubernetes::{Failure, Kubernetes};
use crate::phase::{LEFT, PHASE, STATE, WAITS_FOR};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long rights that were just made may take to be in force.
const RIGHTS: Duration = Duration::from_secs(20);

/// Does it.
///
/// # Errors
/// On the deadline, naming who was waited for; when there is no ConfigMap of the phase, or we may not change it.
pub async fn run(kubernetes: Kubernetes, config: &Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let deadline = started + Duration::from_millis(config.uninstall.timeout_ms);
    let place = &config.cluster.phase;
    let maps = kubernetes.config_maps(&place.namespace);
    // What an earlier attempt left there is not the answer to this one.
    let change = json!({"data": {PHASE: "leave", STATE: null, LEFT: null, WAITS_FOR: null}});
    loop {
        let params = PatchParams::default();
        let change = Patch::Merge(&change);
        let patched = maps.patch(&place.name, &params, &change);
        match kubernetes.ask("say that nodes are to leave", patched).await {
            Ok(_) => break,
            // The Job's rights were made a moment ago.
            Err(failure) if failure.is_forbidden() && started.elapsed() < RIGHTS => {
                tracing::warn!(%failure, "nodes are not told to leave yet");
                tokio::time::sleep(LOOK).await;
            }
            Err(failure @ Failure::Refused { .. }) => {
                return Err(failure).with_context(|| format!("ConfigMap {place}"));
            }
            Err(failure @ Failure::Away { .. }) if Instant::now() + LOOK > deadline => {
                return Err(failure).context("nodes were not told to leave");
            }
            Err(failure) => {
                tracing::warn!(%failure, "nodes are not told to leave yet");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
    tracing::info!(%place, "nodes are told to leave");
    let mut last = None;
    loop {
        let get = kubernetes.ask("read the phase", maps.get(&place.name));
        match get.await {
            Ok(map) => {
                let found = Found::of(&map);
                if found.phase != "leave" {
                    bail!(
                        "somebody lets the nodes serve again: the phase is {:?}",
                        found.phase
                    );
                }
                if found.state == "left" {
                    tracing::info!("all nodes have left");
                    return Ok(());
                }
                if last.as_ref() != Some(&found) {
                    tracing::info!(waits_for = found.waits_for, "waiting");
                    last = Some(found);
                }
            }
            Err(failure) => tracing::warn!(%failure, "the phase can not be read"),
        }
        if Instant::now() + LOOK > deadline {
            let waits = last.map(|found| found.waits_for).unwrap_or_default();
            if waits.is_empty() {
                bail!("nodes have not left in time, and no control plane says who is waited for");
            }
            bail!(
                "nodes have not left in time; waited for:\n{}",
                waits.trim_end()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    phase: String,
    state: String,
    waits_for: String,
}

impl Found {
    fn of(map: &ConfigMap) -> Self {
        let text = |key: &str| {
            let data = map.data.as_ref().and_then(|data| data.get(key));
            data.cloned().unwrap_or_default()
        };
        Self {
            phase: text(PHASE),
            state: text(STATE),
            waits_for: text(WAITS_FOR),
        }
    }
}
