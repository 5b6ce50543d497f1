//! The kinds that can be asked for: where the API server has them, and what of them is kept.

use crate::server::shape::Shape;

/// One kind.
#[derive(Debug)]
pub(super) struct Kind {
    /// `kind`.
    pub(super) name: &'static str,
    /// As it stands in paths.
    pub(super) plural: &'static str,
    /// Where it is served.
    pub(super) place: Place,
    /// Where it is looked for when it is not there.
    pub(super) elsewhere: &'static [Place],
    /// Whether a cluster may lack it.
    pub(super) optional: bool,
    /// Whether metadata is all that anybody looks at.
    pub(super) metadata_only: bool,
    /// What is kept.
    pub(super) shape: Shape,
}

/// A group and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    group: &'static str,
    version: &'static str,
}

impl Place {
    const fn new(group: &'static str, version: &'static str) -> Self {
        Self { group, version }
    }

    /// `apiVersion` of objects from here.
    pub(super) fn api_version(self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Path of the collection: of all namespaces, or of one.
    pub(super) fn path(self, namespace: Option<&str>, plural: &str) -> String {
        let inside = namespace.map(|name| format!("namespaces/{name}/"));
        let inside = inside.unwrap_or_default();
        if self.group.is_empty() {
            format!("/api/{}/{inside}{plural}", self.version)
        } else {
            format!("/apis/{}/{}/{inside}{plural}", self.group, self.version)
        }
    }

    /// `resource.group` as RBAC rules name it.
    pub(super) fn resource(self, plural: &str) -> String {
        if self.group.is_empty() {
            plural.to_owned()
        } else {
            format!("{plural}.{}", self.group)
        }
    }
}

/// Annotations that mean something to us; the rest may be large (`last-applied-configuration`).
fn is_ours(annotation: &str) -> bool {
    let domain = annotation.split('/').next().unwrap_or_default();
    domain.ends_with("aliyun.com")
        || domain.ends_with("alibabacloud.com")
        || matches!(
            annotation,
            "kubernetes.io/ingress-bandwidth" | "kubernetes.io/egress-bandwidth"
        )
}

const META: Shape = Shape::Fields(&[
    ("name", Shape::All),
    ("namespace", Shape::All),
    ("uid", Shape::All),
    ("resourceVersion", Shape::All),
    ("deletionTimestamp", Shape::All),
    ("labels", Shape::All),
    ("annotations", Shape::Names(is_ours)),
]);

const METADATA: Shape = Shape::Fields(&[("metadata", META)]);

const PORTS: Shape = Shape::Each(&Shape::Fields(&[
    ("name", Shape::All),
    ("containerPort", Shape::All),
    ("protocol", Shape::All),
]));

/// Extended resources that mean something to us.
fn is_our_resource(name: &str) -> bool {
    name == k8s_api::names::WHOLE_ENI
}

const RESOURCES: Shape = Shape::Fields(&[
    ("limits", Shape::Names(is_our_resource)),
    ("requests", Shape::Names(is_our_resource)),
]);

const CONTAINERS: Shape = Shape::Each(&Shape::Fields(&[
    ("ports", PORTS),
    ("resources", RESOURCES),
    ("restartPolicy", Shape::All),
]));

const POD: Shape = Shape::Fields(&[
    ("metadata", META),
    (
        "spec",
        Shape::Fields(&[
            ("nodeName", Shape::All),
            ("hostNetwork", Shape::All),
            ("serviceAccountName", Shape::All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    (
        "status",
        Shape::Fields(&[
            ("phase", Shape::All),
            ("podIP", Shape::All),
            ("podIPs", Shape::All),
        ]),
    ),
]);

const NODE: Shape = Shape::Fields(&[
    ("metadata", META),
    ("spec", Shape::Fields(&[("providerID", Shape::All)])),
    ("status", Shape::Fields(&[("addresses", Shape::All)])),
]);

const WITH_DATA: Shape = Shape::Fields(&[("metadata", META), ("data", Shape::All)]);

const WITH_SPEC: Shape = Shape::Fields(&[("metadata", META), ("spec", Shape::All)]);

const CORE: Place = Place::new("", "v1");
const NETWORKING: Place = Place::new("networking.k8s.io", "v1");
const TIERS_1: Place = Place::new("policy.networking.k8s.io", "v1alpha1");
const TIERS_2: Place = Place::new("policy.networking.k8s.io", "v1alpha2");
const CALICO: Place = Place::new("crd.projectcalico.org", "v1");
/// The same objects through Calico's own API server, and newer installations without the other group.
const CALICO_3: &[Place] = &[Place::new("projectcalico.org", "v3")];
const ACK: Place = Place::new("network.alibabacloud.com", "v1beta1");
const ACK_OTHERS: &[Place] = &[
    Place::new("network.alibabacloud.com", "v1"),
    Place::new("network.alibabacloud.com", "v1alpha1"),
];

const fn built_in(name: &'static str, plural: &'static str, place: Place, shape: Shape) -> Kind {
    Kind {
        name,
        plural,
        place,
        elsewhere: &[],
        optional: false,
        metadata_only: false,
        shape,
    }
}

const fn by_metadata(name: &'static str, plural: &'static str) -> Kind {
    Kind {
        metadata_only: true,
        ..built_in(name, plural, CORE, METADATA)
    }
}

const fn custom(
    name: &'static str,
    plural: &'static str,
    place: Place,
    elsewhere: &'static [Place],
) -> Kind {
    Kind {
        elsewhere,
        optional: true,
        ..built_in(name, plural, place, WITH_SPEC)
    }
}

/// Pods.
pub(super) static PODS: Kind = built_in("Pod", "pods", CORE, POD);
/// Nodes.
pub(super) static NODES: Kind = built_in("Node", "nodes", CORE, NODE);
/// ConfigMaps: never all of them, only one by its name.
pub(super) static CONFIG_MAPS: Kind = built_in("ConfigMap", "configmaps", CORE, WITH_DATA);

static OTHERS: [Kind; 10] = [
    by_metadata("Namespace", "namespaces"),
    by_metadata("ServiceAccount", "serviceaccounts"),
    built_in("Node", "nodes", CORE, NODE),
    built_in("NetworkPolicy", "networkpolicies", NETWORKING, WITH_SPEC),
    custom(
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
        TIERS_2,
        &[],
    ),
    custom("AdminNetworkPolicy", "adminnetworkpolicies", TIERS_1, &[]),
    custom(
        "BaselineAdminNetworkPolicy",
        "baselineadminnetworkpolicies",
        TIERS_1,
        &[],
    ),
    custom(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        CALICO,
        CALICO_3,
    ),
    custom("NetworkPolicy", "networkpolicies", CALICO, CALICO_3),
    custom(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        ACK,
        ACK_OTHERS,
    ),
];

/// All kinds.
pub(super) fn all() -> impl Iterator<Item = &'static Kind> {
    // Pods last: what they are judged by is there when they come.
    OTHERS.iter().chain(std::iter::once(&PODS))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pod_keeps_what_its_readers_look_at() {
        let pod = json!({
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": "x"}], "ownerReferences": [{"kind": "Job"}],
                "labels": {"app": "a"},
                "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.1",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {
                "nodeName": "n1", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "env": [],
                    "resources": {"limits": {"cpu": "1", "aliyun/eni": "1"}},
                    "ports": [{"name": "web", "containerPort": 80, "hostPort": 8080}]}],
                "initContainers": [{"restartPolicy": "Always", "ports": []}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready"}]},
        });

        let expected = json!({
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "a"},
                "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.1"},
            },
            "spec": {
                "nodeName": "n1",
                "containers": [{"resources": {"limits": {"aliyun/eni": "1"}},
                    "ports": [{"name": "web", "containerPort": 80}]}],
                "initContainers": [{"restartPolicy": "Always", "ports": []}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        assert_eq!(PODS.shape.read(&pod.to_string()).unwrap(), expected);
    }

    #[test]
    fn namespaces_and_service_accounts_are_asked_for_by_metadata_alone() {
        let by_metadata: Vec<_> = all().filter(|k| k.metadata_only).map(|k| k.name).collect();

        assert_eq!(by_metadata, ["Namespace", "ServiceAccount"]);
    }

    #[test]
    fn paths_and_resources_are_those_of_the_group() {
        let calico = CALICO;

        assert_eq!(CORE.path(None, "pods"), "/api/v1/pods");
        assert_eq!(
            CORE.path(Some("n"), "configmaps"),
            "/api/v1/namespaces/n/configmaps"
        );
        assert_eq!(CORE.resource("pods"), "pods");
        assert_eq!(
            calico.path(None, "globalnetworkpolicies"),
            "/apis/crd.projectcalico.org/v1/globalnetworkpolicies"
        );
        assert_eq!(
            calico.resource("globalnetworkpolicies"),
            "globalnetworkpolicies.crd.projectcalico.org"
        );
        assert_eq!(calico.api_version(), "crd.projectcalico.org/v1");
    }
}
