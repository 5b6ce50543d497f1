//! Annotations of pods.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use proto::control::v1::AnnotatePodRequest;
use serde_json::{Map, Value, json};

use crate::kubernetes::Kubernetes;
use crate::metrics::Outcome;
use crate::nodes::Nodes;
use crate::reports::{Caller, Unwritten, bad_field, mismatch, unknown_node, unknown_pod};

/// What names of annotations begin with.
const PREFIX: &str = "k8s.aliyun.com/";
/// Annotations in one call.
const ANNOTATIONS_MAX: usize = 32;
/// Longest value, in bytes.
const VALUE_MAX: usize = 8 << 10;
/// Pods whose node is remembered.
const REMEMBERED: usize = 16_384;

/// Who is allowed to speak of a pod: which node it is bound to never changes.
#[derive(Debug, Default)]
struct Bound {
    node: HashMap<String, Box<str>>,
    order: VecDeque<String>,
}

/// Pods and the nodes that they are bound to.
#[derive(Debug)]
pub struct Bindings {
    kubernetes: Kubernetes,
    nodes: Nodes,
    bound: Mutex<Bound>,
}

impl Bindings {
    /// Knows nobody yet.
    pub fn new(kubernetes: Kubernetes, nodes: Nodes) -> Self {
        Self {
            kubernetes,
            nodes,
            bound: Mutex::default(),
        }
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        // What is guarded is plain data: a panic leaves it usable.
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the pod was bound to the caller's node, asking the API server only for the first time.
    pub(crate) async fn check(
        &self,
        caller: &Caller,
        (namespace, name, uid): (&str, &str, &str),
    ) -> Result<(), Unwritten> {
        let known = self.bound().node.get(uid).cloned();
        match known {
            Some(node) => self.is_callers(caller, &node),
            None => self.read(caller, (namespace, name, uid)).await.map(drop),
        }
    }

    /// Reads the pod, if it is that one and on the caller's node.
    pub(crate) async fn read(
        &self,
        caller: &Caller,
        (namespace, name, uid): (&str, &str, &str),
    ) -> Result<Pod, Unwritten> {
        for (field, text) in [
            ("pod.namespace", namespace),
            ("pod.name", name),
            ("pod.uid", uid),
        ] {
            if !is_name(text) {
                return Err(bad_field(field, "is no name"));
            }
        }
        let pods = self.kubernetes.pods(namespace);
        let get = self.kubernetes.ask("read a pod", pods.get_opt(name));
        let pod = get.await?;
        let pod = pod.ok_or_else(|| unknown_pod(format!("pod {namespace}/{name} is gone")))?;
        if pod.metadata.uid.as_deref() != Some(uid) {
            return Err(unknown_pod(format!(
                "pod {namespace}/{name} is another one now"
            )));
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let node = node.ok_or_else(|| mismatch(format!("pod {namespace}/{name} is on no node")))?;
        self.is_callers(caller, node)?;
        let mut bound = self.bound();
        if bound.node.insert(uid.to_owned(), node.into()).is_none() {
            bound.order.push_back(uid.to_owned());
        }
        while bound.order.len() > REMEMBERED
            && let Some(oldest) = bound.order.pop_front()
        {
            bound.node.remove(&oldest);
        }
        drop(bound);
        Ok(pod)
    }

    fn is_callers(&self, caller: &Caller, node: &str) -> Result<(), Unwritten> {
        let picture = self.nodes.now();
        match picture.instance_of(node) {
            Some(instance) if instance == caller.instance => Ok(()),
            Some(_) => Err(mismatch(format!("the pod is not on {}", caller.instance))),
            // The node may be so young that we have not heard of it.
            None => Err(unknown_node(&caller.instance)),
        }
    }
}

/// A name that can stand in a path.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(letter) && text != "." && text != ".."
}

/// Writes annotations.
#[derive(Debug)]
pub struct Pods {
    kubernetes: Kubernetes,
    bindings: Bindings,
}

impl Pods {
    /// Writes through `kubernetes`.
    pub fn new(kubernetes: Kubernetes, nodes: Nodes) -> Self {
        Self {
            bindings: Bindings::new(kubernetes.clone(), nodes),
            kubernetes,
        }
    }

    pub(crate) async fn annotate(
        &self,
        caller: &Caller,
        request: AnnotatePodRequest,
    ) -> Result<Outcome, Unwritten> {
        check(&request)?;
        let AnnotatePodRequest {
            namespace,
            name,
            uid,
            annotations,
        } = request;
        let pod = self
            .bindings
            .read(caller, (&namespace, &name, &uid))
            .await?;
        let there = pod.metadata.annotations.unwrap_or_default();
        let mut changes = Map::new();
        for (key, value) in annotations {
            let now = there.get(&key).map_or("", String::as_str);
            // An empty value is none; one that stands there is removed.
            if now != value || (value.is_empty() && there.contains_key(&key)) {
                let value = (!value.is_empty()).then_some(value);
                changes.insert(key, value.map_or(Value::Null, Value::String));
            }
        }
        if changes.is_empty() {
            return Ok(Outcome::Same);
        }
        // With the uid the API server refuses to change a successor of the same name.
        let patch = json!({"metadata": {"uid": uid, "annotations": changes}});
        let pods = self.kubernetes.pods(&namespace);
        let params = PatchParams::default();
        let patch = Patch::Merge(&patch);
        let patched = pods.patch(&name, &params, &patch);
        match self.kubernetes.ask("annotate a pod", patched).await {
            Ok(_) => Ok(Outcome::Written),
            Err(failure) if failure.is_missing() || failure.is_conflict() => Err(unknown_pod(
                format!("pod {namespace}/{name} is gone or another one now"),
            )),
            Err(failure) => Err(failure.into()),
        }
    }
}

fn check(request: &AnnotatePodRequest) -> Result<(), Unwritten> {
    let annotations = &request.annotations;
    if annotations.is_empty() || annotations.len() > ANNOTATIONS_MAX {
        let why = format!("has {}, not from 1 to {ANNOTATIONS_MAX}", annotations.len());
        return Err(bad_field("annotations", why));
    }
    for (key, value) in annotations {
        let name = key.strip_prefix(PREFIX).unwrap_or_default();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=63).contains(&name.len()) || !name.bytes().all(letter) {
            let why = format!("{key:?} is no name that begins with {PREFIX}");
            return Err(bad_field("annotations", why));
        }
        if value.len() > VALUE_MAX {
            let why = format!("{key} has more than {VALUE_MAX} bytes");
            return Err(bad_field("annotations", why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &str, value: &str) -> AnnotatePodRequest {
        AnnotatePodRequest {
            namespace: "n".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            annotations: [(key.to_owned(), value.to_owned())].into(),
        }
    }

    #[test]
    fn only_annotations_of_ours_can_be_asked_for() {
        assert!(check(&request("k8s.aliyun.com/pod-ips", "10.0.0.1")).is_ok());
        for key in [
            "",
            "k8s.aliyun.com/",
            "k8s.aliyun.com/a b",
            "k8s.aliyun.com/a/b",
            "aliyun.com/a",
            "kubernetes.io/k8s.aliyun.com/a",
        ] {
            assert!(check(&request(key, "x")).is_err(), "{key}");
        }
        let long = "x".repeat(VALUE_MAX + 1);
        assert!(check(&request("k8s.aliyun.com/a", &long)).is_err());
    }

    #[test]
    fn name_that_would_lead_elsewhere_is_no_name() {
        assert!(is_name("a-b.c"));
        for text in ["", ".", "..", "a/b", "a?b", "a%2fb", &"a".repeat(254)] {
            assert!(!is_name(text), "{text}");
        }
    }
}
