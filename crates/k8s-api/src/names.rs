//! Annotation, label and resource names. They are Terway's, so that existing manifests work unchanged.

/// Extended resource: an ENI of the pod's own.
pub const WHOLE_ENI: &str = "aliyun/eni";
/// Pod annotation: egress limit in bytes per second with a suffix of 1024s.
pub const EGRESS_BANDWIDTH: &str = "k8s.aliyun.com/egress-bandwidth";
/// Pod annotation: ingress limit in bytes per second with a suffix of 1024s.
pub const INGRESS_BANDWIDTH: &str = "k8s.aliyun.com/ingress-bandwidth";
/// Node annotation: how many pods can have an address of an ENI.
pub const MAX_AVAILABLE_IP: &str = "k8s.aliyun.com/max-available-ip";
/// Node and pod label: leave this object to another network plug-in.
pub const IGNORE_BY_TERWAY: &str = "k8s.aliyun.com/ignore-by-terway";
/// Tag that names the cluster an ENI was made for.
pub const CLUSTER_TAG: &str = "ack.aliyun.com";
/// Tag that names who made an ENI.
pub const CREATOR_TAG: &str = "creator";
/// Value of [`CREATOR_TAG`] on our ENIs.
pub const CREATOR: &str = "terway-mesh";
