//! What keeps nodes from what they want and a person must mend, by name, for as long as it lasts.
//!
//! A fault is a level, like everything that a shard's tasks tell each other: it is set when the cloud refuses, and ends
//! when the same node's next call succeeds, or when nobody has met it for a while. Its gauge follows by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::types::v1::Reason;
use tokio::time::Instant;
use types::cloud::InstanceId;

use crate::metrics::{Metrics, Shown};

/// A fault.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What programs decide by.
    pub reason: Reason,
    /// For people: names the objects. That of the first time, so that a repeat is no news.
    pub message: String,
    /// What was wanted is begun and goes on by itself once the fault is mended. Otherwise it was given up, and is
    /// begun anew after a while.
    pub begun: bool,
    /// When it was met first; wall time, milliseconds since 1970.
    pub since_ms: u64,
    /// How often it was met.
    pub times: u64,
    last: Instant,
    _shown: Arc<Shown>,
}

impl Fault {
    /// A fault that was just met.
    pub fn new(reason: Reason, message: String, begun: bool, metrics: &Metrics) -> Self {
        Self {
            reason,
            message,
            begun,
            since_ms: mesh::clock::wall_ms(),
            times: 1,
            last: Instant::now(),
            _shown: Arc::new(metrics.show_fault(reason)),
        }
    }

    /// As the admin port shows it.
    pub fn row(&self, whose: &str, who: &str) -> serde_json::Value {
        serde_json::json!({
            whose: who,
            "reason": self.reason.as_str_name(),
            "message": self.message,
            "begun": self.begun,
            "since_ms": self.since_ms,
            "times": self.times,
        })
    }
}

/// Faults of a shard, by the node that meets them.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    by_instance: BTreeMap<InstanceId, Fault>,
}

impl Faults {
    /// Notes that `instance` met a fault. Whether it is news.
    pub fn meet(&mut self, instance: &InstanceId, fault: Fault) -> bool {
        if let Some(known) = self.by_instance.get_mut(instance)
            && known.reason == fault.reason
            && known.begun == fault.begun
        {
            known.times = known.times.saturating_add(1);
            known.last = fault.last;
            return false;
        }
        self.by_instance.insert(instance.clone(), fault);
        true
    }

    /// Notes that a call for `instance` succeeded. Whether it is news.
    pub fn mend(&mut self, instance: &InstanceId) -> bool {
        self.by_instance.remove(instance).is_some()
    }

    /// Forgets what nobody met for `age`. Whether there was any.
    pub fn forget(&mut self, age: Duration) -> bool {
        let before = self.by_instance.len();
        self.by_instance
            .retain(|_, fault| fault.last.elapsed() < age);
        self.by_instance.len() != before
    }

    /// The fault that a node meets.
    pub fn of(&self, instance: &InstanceId) -> Option<&Fault> {
        self.by_instance.get(instance)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&InstanceId, &Fault)> {
        self.by_instance.iter()
    }
}

/// Whether a person must do something about it. The rest passes, or is the way of things.
pub fn is_for_people(reason: Reason) -> bool {
    match reason {
        Reason::VswitchExhausted
        | Reason::EniLimit
        | Reason::AddressLimit
        | Reason::CloudForbidden
        | Reason::CloudCredentials
        | Reason::CloudInvalid
        | Reason::CloudUnavailable
        | Reason::SecurityGroupFull
        | Reason::SecurityGroupInvalid
        | Reason::VswitchInvalid
        | Reason::NotFound
        | Reason::BadField => true,
        Reason::Unspecified
        | Reason::NotOwner
        | Reason::EpochStale
        | Reason::AddressInUse
        | Reason::StateConflict
        | Reason::CloudThrottled
        | Reason::OutcomeUnknown
        | Reason::IdentityMismatch
        | Reason::NodeUnknown
        | Reason::StoreUnavailable
        | Reason::Overloaded
        | Reason::PoolEmpty
        | Reason::PodUnknown
        | Reason::Busy
        | Reason::KernelDrift
        | Reason::NetnsGone
        | Reason::NotReady => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> InstanceId {
        "i-a".parse().unwrap()
    }

    fn gauge(registry: &mesh::metrics::Registry, reason: Reason) -> String {
        let name = format!("terway_ipam_faults{{reason=\"{}\"}} ", reason.as_str_name());
        let text = registry.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_default().to_owned()
    }

    #[test]
    fn gauge_follows_faults_that_change_end_or_are_dropped_with_their_shard() {
        let registry = mesh::metrics::Registry::new();
        let metrics = Metrics::default();
        metrics.register(&registry);
        let fault = |reason| Fault::new(reason, "why".to_owned(), false, &metrics);
        let mut faults = Faults::default();

        assert!(faults.meet(&instance(), fault(Reason::CloudForbidden)));
        assert!(!faults.meet(&instance(), fault(Reason::CloudForbidden)));
        assert_eq!(gauge(&registry, Reason::CloudForbidden), "1");
        assert!(faults.meet(&instance(), fault(Reason::VswitchInvalid)));
        assert_eq!(gauge(&registry, Reason::CloudForbidden), "0");
        assert_eq!(gauge(&registry, Reason::VswitchInvalid), "1");
        assert!(faults.mend(&instance()));
        assert_eq!(gauge(&registry, Reason::VswitchInvalid), "0");

        faults.meet(&instance(), fault(Reason::EniLimit));
        drop(faults);
        assert_eq!(gauge(&registry, Reason::EniLimit), "0");
    }

    #[test]
    fn fault_that_nobody_meets_any_more_is_forgotten() {
        let mut faults = Faults::default();
        let fault = Fault::new(
            Reason::CloudForbidden,
            String::new(),
            true,
            &Metrics::default(),
        );
        faults.meet(&instance(), fault);

        assert!(!faults.forget(Duration::from_hours(1)));
        assert!(faults.forget(Duration::ZERO));
    }
}
