//! What is known of a node by the cloud's word, never by its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use types::address::Stack;
use types::cloud::{InstanceId, SecurityGroupId, VSwitchId, ZoneId};
use types::quota::EniQuota;

use crate::cloud::{Cloud, CloudError, CloudInstance};

/// Facts of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its instance.
    pub instance: InstanceId,
    /// Its type.
    pub instance_type: String,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC; empty if the cloud did not say.
    pub vpc: String,
    /// The vSwitch of its primary ENI.
    pub vswitch: Option<VSwitchId>,
    /// What its type allows.
    pub quota: EniQuota,
    /// Families its pods get: those of the cluster, without IPv6 if the type has too few IPv6 addresses.
    pub stack: Stack,
    /// Security groups of its ENIs: the configured ones, else its own.
    pub security_groups: Vec<SecurityGroupId>,
}

impl NodeFacts {
    /// Addresses of a family that one further ENI brings.
    pub fn pods_per_eni(&self) -> u32 {
        if self.stack.has_v6() {
            self.quota.ipv4_per_eni.min(self.quota.ipv6_per_eni)
        } else {
            self.quota.ipv4_per_eni
        }
    }
}

/// Why there are no facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// The cloud knows no such instance.
    #[error("the cloud knows no instance {0}")]
    Unknown(InstanceId),
    /// The cloud could not be asked.
    #[error("facts of the instance can not be had")]
    Cloud(#[source] CloudError),
}

/// Facts of nodes, asked once in a while.
#[derive(Debug)]
pub struct Facts {
    cloud: Cloud,
    stack: Stack,
    security_groups: Vec<SecurityGroupId>,
    keep: Duration,
    known: Mutex<BTreeMap<InstanceId, (Instant, Arc<NodeFacts>)>>,
}

impl Facts {
    /// Facts by `cloud`, believed for `keep`; `security_groups` are those of `eni_conf`.
    pub fn new(
        cloud: Cloud,
        stack: Stack,
        security_groups: Vec<SecurityGroupId>,
        keep: Duration,
    ) -> Self {
        Self {
            cloud,
            stack,
            security_groups,
            keep,
            known: Mutex::default(),
        }
    }

    /// The facts of an instance.
    ///
    /// # Errors
    /// [`FactsError`].
    pub async fn of(&self, instance: &InstanceId) -> Result<Arc<NodeFacts>, FactsError> {
        if let Some(known) = self.remembered(instance) {
            return Ok(known);
        }
        let found = self
            .cloud
            .instances(std::slice::from_ref(instance))
            .await
            .map_err(FactsError::Cloud)?
            .into_iter()
            .find(|found| found.id == *instance)
            .ok_or_else(|| FactsError::Unknown(instance.clone()))?;
        let facts = Arc::new(self.facts(found));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|_, (until, _)| *until > now);
        known.insert(instance.clone(), (now + self.keep, Arc::clone(&facts)));
        Ok(facts)
    }

    fn remembered(&self, instance: &InstanceId) -> Option<Arc<NodeFacts>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, facts) = known.get(instance)?;
        (*until > Instant::now()).then(|| Arc::clone(facts))
    }

    fn facts(&self, found: CloudInstance) -> NodeFacts {
        let stack = if self.stack.has_v6() && !found.quota.supports_dual_stack() {
            tracing::warn!(
                instance = %found.id,
                instance_type = %found.instance_type,
                "the type has too few IPv6 addresses for dual stack: its pods get IPv4 alone"
            );
            Stack::Ipv4
        } else {
            self.stack
        };
        NodeFacts {
            instance: found.id,
            instance_type: found.instance_type.to_string(),
            zone: found.zone,
            vpc: found.vpc,
            vswitch: found.vswitch,
            quota: found.quota,
            stack,
            security_groups: if self.security_groups.is_empty() {
                found.security_groups
            } else {
                self.security_groups.clone()
            },
        }
    }
}
