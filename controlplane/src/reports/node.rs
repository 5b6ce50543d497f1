//! What nodes say of themselves: conditions, capacity, and that they can serve.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_api::{names, provider};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint as NodeTaint};
use kube::api::{Patch, PatchParams};
use prost::Message as _;
use proto::control::v1::ReportNodeRequest;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::Taint;
use crate::kubernetes::{self, Kubernetes};
use crate::metrics::Outcome;
use crate::nodes::Nodes;
use crate::phase::{Board, Said};
use crate::reports::{Caller, Unwritten, bad_field, component, cut, mismatch, unknown_node, word};

/// Conditions in one report.
const CONDITIONS_MAX: usize = 16;
/// Longest message of a condition, in bytes.
const MESSAGE_MAX: usize = 1_024;
/// A report that says the same is not looked at again for this long; conditions have a heartbeat.
const REFRESH: Duration = Duration::from_mins(5);
/// How often a write is tried that another one was quicker than.
const TRIES: usize = 3;
/// Reports that are remembered; beyond, all are forgotten and written once more.
const REMEMBERED: usize = 65_536;

/// Conditions that are Kubernetes' own, and nobody else's.
const NOT_OURS: [&str; 5] = [
    "Ready",
    "MemoryPressure",
    "DiskPressure",
    "PIDPressure",
    "NetworkUnavailable",
];

/// The last report of one component of one node that was written.
#[derive(Debug, Clone)]
struct Written {
    hash: u64,
    at: Instant,
    /// The Node object: a new one of the same name knows nothing of it.
    uid: Box<str>,
}

/// Writes what nodes say of themselves.
#[derive(Debug)]
pub struct Statements {
    kubernetes: Kubernetes,
    nodes: Nodes,
    board: Board,
    taint: Option<Taint>,
    written: Mutex<HashMap<(String, &'static str), Written>>,
}

impl Statements {
    /// Writes through `kubernetes`, and tells `board` who leaves.
    pub fn new(kubernetes: Kubernetes, nodes: Nodes, board: Board, taint: Option<Taint>) -> Self {
        Self {
            kubernetes,
            nodes,
            board,
            taint,
            written: Mutex::default(),
        }
    }

    fn written(&self) -> MutexGuard<'_, HashMap<(String, &'static str), Written>> {
        // What is guarded is plain data: a panic leaves it usable.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn take(
        &self,
        caller: &Caller,
        report: ReportNodeRequest,
    ) -> Result<Outcome, Unwritten> {
        let component = component(&report.component)?;
        check(&report)?;
        if report.instance_id != caller.instance {
            return Err(mismatch(format!(
                "the report is about {}, the caller is {}",
                report.instance_id, caller.instance
            )));
        }
        let said = Said {
            left: report.left,
            waits_for: report.waits_for.iter().map(|what| cut(what, 256)).collect(),
        };
        let key = (caller.instance.clone(), component);
        let hash = hash(&report);
        let known = self.written().get(&key).cloned();
        let fresh = known.is_some_and(|written| {
            written.hash == hash
                && written.at.elapsed() < REFRESH
                && self.nodes.now().uid_of(&report.node_name) == Some(&written.uid)
        });
        if fresh {
            // The name was checked when it was written.
            self.board.note(&report.node_name, component, said);
            return Ok(Outcome::Same);
        }
        let uid = self.write(caller, &report, component).await?;
        self.board.note(&report.node_name, component, said);
        let mut written = self.written();
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let at = Instant::now();
        written.insert(key, Written { hash, at, uid });
        Ok(Outcome::Written)
    }

    async fn write(
        &self,
        caller: &Caller,
        report: &ReportNodeRequest,
        component: &'static str,
    ) -> Result<Box<str>, Unwritten> {
        let name = &report.node_name;
        let nodes = self.kubernetes.nodes();
        let params = PatchParams::default();
        for _ in 0..TRIES {
            let get = self.kubernetes.ask("read a node", nodes.get_opt(name));
            let node = get.await?.ok_or_else(|| unknown_node(&caller.instance))?;
            let provider = node.spec.as_ref().and_then(|s| s.provider_id.as_deref());
            match provider.map(provider::instance_of) {
                Some(Some(instance)) if instance == caller.instance => {}
                // Its id is written by the cloud's controller, perhaps after the node has come.
                None => return Err(unknown_node(&caller.instance)),
                Some(_) => {
                    return Err(mismatch(format!("Node {name} is not {}", caller.instance)));
                }
            }
            let uid = node.metadata.uid.clone().unwrap_or_default().into();
            if let Some(patch) = conditions(&node, report) {
                let patch = Patch::Strategic(&patch);
                let patched = nodes.patch_status(name, &params, &patch);
                self.kubernetes.ask("write conditions", patched).await?;
            }
            let Some(patch) = self.changes(&node, report, component) else {
                return Ok(uid);
            };
            let patch = Patch::Merge(&patch);
            let patched = nodes.patch(name, &params, &patch);
            match self.kubernetes.ask("change a node", patched).await {
                Ok(_) => return Ok(uid),
                // Somebody changed its taints meanwhile: look again.
                Err(failure) if failure.is_conflict() => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Unwritten::Later(tonic::Status::aborted(format!(
            "Node {name} changes all the time"
        ))))
    }

    /// What is to change besides the status: the start-up taint and the capacity. Only node-agent knows of both.
    fn changes(
        &self,
        node: &Node,
        report: &ReportNodeRequest,
        component: &'static str,
    ) -> Option<Value> {
        if component != "node-agent" {
            return None;
        }
        let mut patch = json!({});
        let capacity = report.pod_capacity.to_string();
        let annotations = node.metadata.annotations.as_ref();
        let there = annotations.and_then(|all| all.get(names::MAX_AVAILABLE_IP));
        if report.pod_capacity > 0 && there != Some(&capacity) {
            patch["metadata"] = json!({"annotations": {names::MAX_AVAILABLE_IP: capacity}});
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        if let (true, Some(ours), Some(taints)) = (report.serving, &self.taint, taints) {
            let rest: Vec<&NodeTaint> = taints.iter().filter(|taint| !is(ours, taint)).collect();
            if rest.len() < taints.len() {
                // A merge replaces the whole list, so nobody may have changed it in between.
                patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
                patch["spec"] = json!({"taints": rest});
            }
        }
        patch
            .as_object()
            .is_some_and(|patch| !patch.is_empty())
            .then_some(patch)
    }
}

fn is(ours: &Taint, taint: &NodeTaint) -> bool {
    taint.key == ours.key
        && taint.effect == ours.effect
        && taint.value.as_deref().unwrap_or_default() == ours.value
}

fn hash(report: &ReportNodeRequest) -> u64 {
    let mut hasher = DefaultHasher::new();
    report.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

fn check(report: &ReportNodeRequest) -> Result<(), Unwritten> {
    if report.conditions.len() > CONDITIONS_MAX {
        let why = format!("are more than {CONDITIONS_MAX}");
        return Err(bad_field("conditions", why));
    }
    for condition in &report.conditions {
        word("conditions.type", &condition.r#type)?;
        word("conditions.reason", &condition.reason)?;
        if NOT_OURS.contains(&condition.r#type.as_str()) {
            let why = format!("{} is kubelet's", condition.r#type);
            return Err(bad_field("conditions.type", why));
        }
    }
    if report.waits_for.len() > 1_024 {
        return Err(bad_field("waits_for", "are more than 1024"));
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if !(1..=253).contains(&report.node_name.len()) || !report.node_name.bytes().all(letter) {
        return Err(bad_field("node_name", "is no name"));
    }
    Ok(())
}

/// The patch of the status that says so; nothing when it stands there and is young.
fn conditions(node: &Node, report: &ReportNodeRequest) -> Option<Value> {
    let there = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let there: &[NodeCondition] = there.map(Vec::as_slice).unwrap_or_default();
    let now = kubernetes::now();
    let mut changes = Vec::new();
    for condition in &report.conditions {
        let status = if condition.status { "True" } else { "False" };
        let message = cut(&condition.message, MESSAGE_MAX);
        let old = there.iter().find(|old| old.type_ == condition.r#type);
        let same = old.filter(|old| old.status == status);
        let young = same.is_some_and(|old| {
            let beat = old.last_heartbeat_time.as_ref();
            let age = beat.map(|beat| now.duration_since(beat.0));
            let young = age.is_some_and(|age| age.unsigned_abs() < REFRESH / 2);
            young
                && old.reason.as_deref() == Some(&condition.reason)
                && old.message.as_deref() == Some(&message)
        });
        if young {
            continue;
        }
        let since = same.and_then(|old| old.last_transition_time.as_ref());
        changes.push(json!({
            "type": condition.r#type,
            "status": status,
            "reason": condition.reason,
            "message": message,
            "lastHeartbeatTime": seconds(now),
            "lastTransitionTime": seconds(since.map_or(now, |since| since.0)),
        }));
    }
    (!changes.is_empty()).then(|| json!({"status": {"conditions": changes}}))
}

/// Times of objects have whole seconds.
fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use proto::control::v1::NodeCondition as Wire;

    use super::*;

    fn report(status: bool) -> ReportNodeRequest {
        ReportNodeRequest {
            node_name: "n1".to_owned(),
            instance_id: "i-1".to_owned(),
            component: "node-agent".to_owned(),
            conditions: vec![Wire {
                r#type: "SufficientIP".to_owned(),
                status,
                reason: "SufficientIP".to_owned(),
                message: "enough".to_owned(),
            }],
            ..ReportNodeRequest::default()
        }
    }

    fn node(status: &str, heartbeat: &str) -> Node {
        let condition = json!({"type": "SufficientIP", "status": status, "reason": "SufficientIP",
            "message": "enough", "lastHeartbeatTime": heartbeat,
            "lastTransitionTime": "2020-01-01T00:00:00Z"});
        serde_json::from_value(json!({"metadata": {"name": "n1"},
            "status": {"conditions": [condition]}}))
        .unwrap()
    }

    #[test]
    fn condition_that_stands_there_is_not_written_until_its_heartbeat_is_old() {
        let now = seconds(kubernetes::now());

        assert_eq!(conditions(&node("True", &now), &report(true)), None);
        let patch = conditions(&node("True", "2021-01-01T00:00:00Z"), &report(true)).unwrap();
        let written = &patch["status"]["conditions"][0];
        // It has not changed.
        assert_eq!(written["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_ne!(written["lastHeartbeatTime"], "2021-01-01T00:00:00Z");
    }

    #[test]
    fn condition_that_changes_has_a_new_transition() {
        let now = seconds(kubernetes::now());

        let patch = conditions(&node("True", &now), &report(false)).unwrap();

        let written = &patch["status"]["conditions"][0];
        assert_eq!(written["status"], "False");
        assert_ne!(written["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }

    #[test]
    fn conditions_of_kubelet_are_refused() {
        let mut bad = report(true);
        bad.conditions[0].r#type = "Ready".to_owned();

        assert!(check(&report(true)).is_ok() && check(&bad).is_err());
    }

    #[test]
    fn taint_is_ours_with_its_value_and_effect() {
        let ours: Taint = "a=b:NoSchedule".parse().unwrap();
        let taint = |value: &str, effect: &str| NodeTaint {
            key: "a".to_owned(),
            value: Some(value.to_owned()),
            effect: effect.to_owned(),
            time_added: None,
        };

        assert!(is(&ours, &taint("b", "NoSchedule")));
        assert!(!is(&ours, &taint("c", "NoSchedule")) && !is(&ours, &taint("b", "NoExecute")));
    }
}
