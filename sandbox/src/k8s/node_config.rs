//! Configuration of what runs on a node.

use serde_json::{Value, json};

use crate::k8s::node::{CNI_BIN, CNI_CONF, NodePlan};

/// Address of the cluster's DNS, from the network of Services.
pub const DNS: &str = "172.16.0.10";
/// Domain of names in the cluster.
pub const DOMAIN: &str = "cluster.local";
/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "terway-mesh/test-pause:1";
/// Where containerd tells its metrics, on its node's loopback.
pub const CONTAINERD_METRICS: u16 = 1338;

/// `providerID` of a node, as Alibaba Cloud's controller writes it.
pub fn provider_id(plan: &NodePlan) -> String {
    format!("{}.{}", plan.region, plan.instance)
}

/// Labels that kubelet gives its node.
pub fn labels(plan: &NodePlan) -> String {
    [
        format!("topology.kubernetes.io/region={}", plan.region),
        format!("topology.kubernetes.io/zone={}", plan.zone),
        format!("node.kubernetes.io/instance-type={}", plan.instance_type),
    ]
    .join(",")
}

/// kubelet's file.
pub fn kubelet(plan: &NodePlan, groups: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "providerID": provider_id(plan),
        "clusterDNS": [DNS],
        "clusterDomain": DOMAIN,
        "resolvConf": "/etc/resolv.conf",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "podLogsDir": "/var/log/pods",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        // The groups of a node that is no machine of its own.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": groups,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        // Images were imported and can not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": false,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "maxPods": 110,
    })
}

/// kube-proxy's file.
pub fn kube_proxy(plan: &NodePlan) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": plan.name,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        // Pods have addresses of the VPC; what comes from anywhere else to a Service's address is masqueraded.
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": {"interfaceNamePrefix": "cali"},
        // Settings of the whole machine, which a namespace can not change.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "metricsBindAddress": "127.0.0.1:10249",
    })
}

/// containerd's file.
pub fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]

[grpc]
address = "/run/containerd/containerd.sock"

[metrics]
address = "127.0.0.1:{CONTAINERD_METRICS}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Machines without CAP_SYS_RESOURCE can not lower it.
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN}"
conf_dir = "{CNI_CONF}"
max_conf_num = 1
"#
    )
}
