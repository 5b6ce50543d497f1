//! What pods are told through their objects: Terway's events about addresses, and the annotation that Felix reads.
//!
//! Said to the control plane behind the back of the ADD, which never waits for it.

use std::time::Duration;

use cluster::pods::Pods as Feed;
use cluster::reports::{Reports, Tone};
use proto::control::v1::{AnnotatePodRequest, PodObject};
use types::pod::PodKey;

use crate::pool::Binding;

/// Terway's: the addresses of a pod before its status has them, separated by commas.
const POD_IPS: &str = "k8s.aliyun.com/pod-ips";
/// Terway's reasons.
const SUCCEED: &str = "AllocIPSucceed";
const FAILED: &str = "AllocIPFailed";

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Announcer {
    /// Where it is said; nowhere without a control plane.
    pub reports: Option<Reports>,
    /// Who knows uids when the runtime does not say them.
    pub feed: Feed,
}

impl Announcer {
    /// A pod has got its addresses.
    pub fn added(&self, binding: &Binding, took: Duration) {
        let Some(reports) = &self.reports else { return };
        let pod = self.object(&binding.pod, &binding.pod_uid);
        let ips: Vec<String> = binding.addresses().map(|ip| ip.to_string()).collect();
        reports.annotate(AnnotatePodRequest {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            annotations: [(POD_IPS.to_owned(), ips.join(","))].into(),
        });
        let message = format!("Alloc IP {} took {took:?}", ips.join(","));
        reports.pod_event(pod, Tone::Normal, SUCCEED, message);
    }

    /// A pod has not got its addresses.
    pub fn failed(&self, pod: &PodKey, uid: &str, why: String) {
        let Some(reports) = &self.reports else { return };
        reports.pod_event(self.object(pod, uid), Tone::Warning, FAILED, why);
    }

    fn object(&self, pod: &PodKey, uid: &str) -> PodObject {
        let known = self.feed.snapshot();
        // What the API server says counts: a static pod's mirror has another uid than the runtime knows.
        let known = known.get(pod).map(|pod| pod.uid.as_str());
        let uid = known.filter(|known| !known.is_empty()).unwrap_or(uid);
        PodObject {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: uid.to_owned(),
        }
    }
}
