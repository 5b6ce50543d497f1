//! Nodes that are gone for good: their ENIs and addresses come back with proof, never by silence.
//!
//! The proof has two halves. That the Node object is gone is said by the caller of `Nodes/NodeGone`; that the instance
//! is gone too, or that an ENI is attached to it no more, is said by the cloud, twice with an age in between: one list
//! of the cloud may be stale. What is proved goes the way of all ENIs: intent, cloud, end, rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipam_core::eni::EniState;
use ipam_core::record::Record;
use proto::cloud::v1::Priority;
use tokio::time::Instant;
use tracing::{info, warn};
use types::cloud::{EniId, InstanceId};

use crate::cloud::{Cloud, CloudError, EniFilter};
use crate::metrics::Metrics;
use crate::owned::Owned;
use crate::replica::Replica;
use crate::session::registry::Registry;
use crate::sighting::Sightings;
use crate::vacated::take_back;

/// What stands in a replica's books of a node whose object is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its ENIs.
    pub enis: u32,
    /// Why not all is done; empty when there is nothing left.
    pub waits_for: String,
}

impl Standing {
    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        self.enis == 0
    }
}

/// One thing that the cloud may say: the whole instance is gone, or this ENI is attached to it no more.
type Proof = Option<EniId>;

/// See the module. Clones share what was seen.
#[derive(Debug, Clone)]
pub struct GoneNodes {
    replica: Replica,
    cloud: Cloud,
    sessions: Registry,
    age: Duration,
    metrics: Metrics,
    /// By instance; of those alone that the replica's shards have ENIs of.
    seen: Arc<Mutex<BTreeMap<InstanceId, Sightings<Proof>>>>,
}

impl GoneNodes {
    /// Nothing was seen yet; the cloud must say the same twice, `age` apart.
    pub fn new(
        replica: Replica,
        cloud: Cloud,
        sessions: Registry,
        age: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            replica,
            cloud,
            sessions,
            age,
            metrics,
            seen: Arc::default(),
        }
    }

    /// Takes back what is proved to be nobody's, of a node whose object is gone. To be repeated until nothing is left.
    ///
    /// # Errors
    /// [`CloudError`] when the cloud can not be asked; nothing was done then.
    pub async fn release(&self, instance: &InstanceId) -> Result<Standing, CloudError> {
        let holders = self.holders(instance);
        if holders.is_empty() {
            return Ok(self.standing(instance, ""));
        }
        if self.sessions.has(instance) {
            self.forget(instance);
            return Ok(self.standing(instance, "a session of its agent is open"));
        }
        let lives = !self
            .cloud
            .instances(std::slice::from_ref(instance))
            .await?
            .is_empty();
        let proved = if lives {
            self.detached(instance, &holders).await?
        } else {
            BTreeSet::from([None])
        };
        let due = self.due(instance, &proved);
        // Whoever came back while the cloud was asked keeps what it has.
        if self.sessions.has(instance) {
            self.forget(instance);
            return Ok(self.standing(instance, "a session of its agent is open"));
        }
        for proof in &due {
            match proof {
                None => {
                    self.metrics.drift("gone_instance");
                    info!(%instance, "node and instance are gone: the addresses come back");
                    for owned in &holders {
                        take_back(owned, instance, None).await;
                    }
                }
                Some(eni) => {
                    self.metrics.drift("detached_eni");
                    info!(%instance, %eni, "the node is gone and the ENI is attached to it no more: it comes back");
                    for owned in &holders {
                        take_back_eni(owned, instance, eni).await;
                    }
                }
            }
        }
        let waits_for = if due.len() < proved.len() {
            format!(
                "the cloud to say once more, {:?} later, that it is so",
                self.age
            )
        } else if lives {
            format!("the instance {instance} still exists")
        } else {
            "its ENIs are being deleted".to_owned()
        };
        Ok(self.standing(instance, &waits_for))
    }

    /// Shards of this replica that have ENIs of the instance.
    fn holders(&self, instance: &InstanceId) -> Vec<Arc<Owned>> {
        let all = self.replica.all();
        all.into_iter()
            .filter(|owned| count(owned, instance) > 0)
            .collect()
    }

    fn standing(&self, instance: &InstanceId, waits_for: &str) -> Standing {
        let holders = self.holders(instance);
        let enis = holders.iter().map(|owned| count(owned, instance)).sum();
        let waits_for = if enis == 0 { "" } else { waits_for };
        Standing {
            enis,
            waits_for: waits_for.to_owned(),
        }
    }

    /// ENIs that the books have at the instance and the cloud has not.
    async fn detached(
        &self,
        instance: &InstanceId,
        holders: &[Arc<Owned>],
    ) -> Result<BTreeSet<Proof>, CloudError> {
        let ids: Vec<EniId> = holders
            .iter()
            .flat_map(|owned| {
                let shard = owned.handle.view().shard;
                let attached = shard
                    .enis_of(instance)
                    .filter(|(_, eni)| eni.state == EniState::Attached);
                attached
                    .filter_map(|(_, eni)| eni.id.clone())
                    .collect::<Vec<_>>()
            })
            .collect();
        if ids.is_empty() {
            return Ok(BTreeSet::new());
        }
        let filter = EniFilter {
            ids: ids.clone(),
            ..EniFilter::default()
        };
        let found = self.cloud.enis(&filter, Priority::Reconcile).await?;
        let there: BTreeSet<&EniId> = found
            .iter()
            .filter(|eni| eni.instance.as_ref() == Some(instance))
            .map(|eni| &eni.id)
            .collect();
        // One on its way is neither here nor there.
        let moving: BTreeSet<&EniId> = found
            .iter()
            .filter(|eni| !matches!(eni.status.as_str(), "Available" | "InUse"))
            .map(|eni| &eni.id)
            .collect();
        Ok(ids
            .iter()
            .filter(|id| !there.contains(id) && !moving.contains(id))
            .cloned()
            .map(Some)
            .collect())
    }

    /// What the cloud has said twice by now.
    fn due(&self, instance: &InstanceId, proved: &BTreeSet<Proof>) -> BTreeSet<Proof> {
        let held: BTreeSet<InstanceId> = self
            .replica
            .all()
            .iter()
            .flat_map(|owned| {
                let shard = owned.handle.view().shard;
                shard.instances().into_iter().cloned().collect::<Vec<_>>()
            })
            .collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|instance, _| held.contains(instance));
        let sightings = seen.entry(instance.clone()).or_insert_with(Sightings::new);
        let due = sightings.again(Instant::now(), self.age, proved);
        drop(seen);
        due
    }

    fn forget(&self, instance: &InstanceId) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(instance);
    }
}

fn count(owned: &Owned, instance: &InstanceId) -> u32 {
    let shard = owned.handle.view().shard;
    u32::try_from(shard.enis_of(instance).count()).unwrap_or(u32::MAX)
}

/// Takes back one ENI that is attached to nothing while the node's object is gone.
async fn take_back_eni(owned: &Owned, instance: &InstanceId, id: &EniId) {
    let (of, eni) = (instance.clone(), id.clone());
    let proposed = owned.handle.propose(Box::new(move |shard, _| {
        let found = shard.eni_by_id(&eni).filter(|(key, eni)| {
            eni.instance == of
                && eni.state == EniState::Attached
                // What is under way ends first; the caller comes again.
                && shard.op_on(*key).is_none()
        });
        found.map_or_else(Vec::new, |(key, _)| {
            vec![
                Record::EniDetached { eni: key },
                Record::DetachIntent { eni: key },
            ]
        })
    }));
    if let Err(error) = proposed.await {
        warn!(shard = %owned.id(), eni = %id, %error, "the end of an ENI was not written down");
    }
}
