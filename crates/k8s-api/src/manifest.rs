//! The part of a Pod manifest that a pod network needs.

use std::collections::BTreeMap;

use serde::Deserialize;
use types::pod::PodKey;

/// A pod as the network sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`; empty in hand-written manifests.
    pub uid: String,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: String,
    /// `spec.hostNetwork`: the pod has the node's network and needs nothing from us.
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`: the pod needs no address any more.
    pub finished: bool,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// A container asks for [`crate::names::WHOLE_ENI`]: the pod gets an ENI of its own.
    pub whole_eni: bool,
}

impl Pod {
    /// Whether the pod has, or will have, an address of ours.
    pub fn needs_address(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Whether the pod has, or will have, an ENI of its own.
    pub fn needs_whole_eni(&self) -> bool {
        self.whole_eni && self.needs_address()
    }
}

/// A document that can not be read as a Kubernetes object.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A field is absent.
    #[error("field {field} is missing")]
    Missing {
        /// Path of the field, such as `metadata.name`.
        field: &'static str,
    },
    /// The document does not have the shape of its kind.
    #[error("not a valid {kind}: {why}")]
    Shape {
        /// The kind.
        kind: &'static str,
        /// What the parser said.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct RawPod {
    #[serde(default)]
    metadata: RawMeta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Debug, Default, Deserialize)]
struct RawMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<RawContainer>>,
    init_containers: Option<Vec<RawContainer>>,
}

#[derive(Debug, Default, Deserialize)]
struct RawContainer {
    resources: Option<RawResources>,
}

#[derive(Debug, Default, Deserialize)]
struct RawResources {
    limits: Option<BTreeMap<String, serde_json::Value>>,
    requests: Option<BTreeMap<String, serde_json::Value>>,
}

impl RawResources {
    /// Whether any of the resource is asked for. Quantities are text or numbers; extended ones are whole numbers.
    fn asks_for(&self, resource: &str) -> bool {
        let asked = |all: &Option<BTreeMap<String, serde_json::Value>>| {
            let quantity = all.as_ref().and_then(|all| all.get(resource));
            quantity.is_some_and(|quantity| match quantity.as_str() {
                Some(text) => !matches!(text, "" | "0"),
                None => quantity.as_u64().is_some_and(|count| count > 0),
            })
        };
        asked(&self.limits) || asked(&self.requests)
    }
}

#[derive(Debug, Default, Deserialize)]
struct RawStatus {
    phase: Option<String>,
}

/// Reads one document of kind Pod. Fields that the network does not need are passed over.
///
/// # Errors
/// [`ManifestError`] naming the field.
pub fn pod(document: serde_json::Value) -> Result<Pod, ManifestError> {
    let raw: RawPod = serde_json::from_value(document).map_err(|e| ManifestError::Shape {
        kind: "Pod",
        why: e.to_string(),
    })?;
    let name = raw
        .metadata
        .name
        .filter(|n| !n.is_empty())
        .ok_or(ManifestError::Missing {
            field: "metadata.name",
        })?;
    let namespace = raw.metadata.namespace.unwrap_or_else(|| "default".into());
    let whole_eni = [&raw.spec.containers, &raw.spec.init_containers]
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|container| container.resources.as_ref())
        .any(|resources| resources.asks_for(crate::names::WHOLE_ENI));
    Ok(Pod {
        key: PodKey::new(namespace, name),
        uid: raw.metadata.uid.unwrap_or_default(),
        node: raw.spec.node_name.unwrap_or_default(),
        host_network: raw.spec.host_network.unwrap_or_default(),
        finished: matches!(raw.status.phase.as_deref(), Some("Succeeded" | "Failed")),
        annotations: raw.metadata.annotations.unwrap_or_default(),
        labels: raw.metadata.labels.unwrap_or_default(),
        whole_eni,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_without_namespace_is_in_default() {
        let pod = pod(json!({"kind": "Pod", "metadata": {"name": "a"}})).unwrap();

        assert_eq!(pod.key, PodKey::new("default", "a"));
        assert!(pod.needs_address());
    }

    #[test]
    fn pod_without_name_is_refused_naming_the_field() {
        let err = pod(json!({"kind": "Pod", "metadata": {}})).unwrap_err();

        assert_eq!(err.to_string(), "field metadata.name is missing");
    }

    #[test]
    fn pod_on_the_host_network_needs_no_address() {
        let pod = pod(json!({
            "metadata": {"name": "a"}, "spec": {"hostNetwork": true, "containers": []},
        }))
        .unwrap();

        assert!(!pod.needs_address());
    }

    #[test]
    fn pod_with_an_eni_among_its_limits_needs_one_of_its_own() {
        let wants = |containers: serde_json::Value| {
            let document = json!({"metadata": {"name": "a"}, "spec": containers});
            pod(document).unwrap().needs_whole_eni()
        };
        let limits = |quantity: serde_json::Value| json!({"limits": {"aliyun/eni": quantity}});

        assert!(wants(
            json!({"containers": [{"name": "c"}, {"resources": limits(json!(1))}]})
        ));
        assert!(wants(
            json!({"containers": [{"resources": limits(json!("1"))}]})
        ));
        assert!(wants(
            json!({"initContainers": [{"resources": {"requests": {"aliyun/eni": "1"}}}]})
        ));
        assert!(!wants(
            json!({"containers": [{"resources": limits(json!("0"))}]})
        ));
        assert!(!wants(
            json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}]})
        ));
        assert!(!wants(
            json!({"containers": [{"resources": {}}], "initContainers": null})
        ));
        assert!(!wants(
            json!({"hostNetwork": true, "containers": [{"resources": limits(json!(1))}]})
        ));
    }

    #[test]
    fn pod_that_succeeded_needs_no_address() {
        let pod =
            pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}})).unwrap();

        assert!(!pod.needs_address());
    }
}
