//! Compares a shard's books with the cloud, and heals what differs (I7).
//!
//! Whatever is freed is seen twice first, with an age between the two looks: a list of the cloud may be stale, and
//! an operation may be under way. What is ours is told by its tags alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam_core::eni::{EniKey, EniState};
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use ipam_core::slot::{SlotSet, SlotState};
use proto::cloud::v1::Priority;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::cloud::{EniId, InstanceId};
use types::op::Seq;
use types::time::Tick;

use crate::cloud::{
    CREATOR, CallKey, Cloud, CloudEni, CloudError, EniFilter, TAG_AUTHORITY, TAG_CREATOR, TAG_OP,
};
use crate::facts::{Facts, FactsError, NodeFacts};
use crate::metrics::Metrics;
use crate::owned::Owned;
use crate::sighting::Sightings;
use crate::vacated;

/// What all reconcilers of a replica have in common.
#[derive(Debug, Clone)]
pub struct Reconciler {
    /// The gateway.
    pub cloud: Cloud,
    /// Facts of nodes.
    pub facts: Arc<Facts>,
    /// Time between two comparisons.
    pub every: Duration,
    /// Least time between the two sightings that an act needs.
    pub age: Duration,
    /// Counters.
    pub metrics: Metrics,
}

#[derive(Debug)]
struct Memory {
    orphans: Sightings<EniId>,
    strays: Sightings<(EniId, IpAddr)>,
    lost: Sightings<EniKey>,
    absent: Sightings<IpAddr>,
    gone: Sightings<InstanceId>,
    facts: BTreeMap<InstanceId, Arc<NodeFacts>>,
}

impl Reconciler {
    /// Compares until the shard is not owned here any more or `stop` is cancelled.
    pub async fn run(self, owned: Arc<Owned>, stop: CancellationToken) {
        let ended = owned.handle.ended().clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = stop.cancelled() => {}
            () = self.reconcile(&owned) => {}
        }
    }

    async fn reconcile(&self, owned: &Owned) {
        let mut memory = Memory {
            orphans: Sightings::new(),
            strays: Sightings::new(),
            lost: Sightings::new(),
            absent: Sightings::new(),
            gone: Sightings::new(),
            facts: BTreeMap::new(),
        };
        let mut soon = true;
        loop {
            // The first look shortly after the claim: who takes addresses of a shared vSwitch is learnt before most.
            let wait = if soon {
                self.age.min(self.every)
            } else {
                self.every
            };
            soon = match self.look(owned, &mut memory).await {
                Ok(pending) => pending,
                Err(error) => {
                    warn!(shard = %owned.id(), %error, "books and cloud can not be compared now");
                    false
                }
            };
            tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
        }
    }

    /// One comparison; whether something was seen that needs a second look.
    async fn look(&self, owned: &Owned, memory: &mut Memory) -> Result<bool, CloudError> {
        let before = owned.handle.view().shard;
        let filter = EniFilter {
            vswitch: Some(owned.id().vswitch.clone()),
            ..EniFilter::default()
        };
        let enis = self.cloud.enis(&filter, Priority::Reconcile).await?;
        // What changed while the cloud was asked is looked at next time.
        let after = owned.handle.view().shard;
        let now = Instant::now();
        let picture = Picture {
            cloud: &enis,
            before: &before,
            after: &after,
        };
        self.foreign(owned, &picture).await;
        self.orphans(owned, &picture, memory, now).await;
        self.strays(owned, &picture, memory, now).await;
        self.lost(owned, &picture, memory, now).await;
        self.absent(owned, &picture, memory, now).await;
        self.gone(owned, &after, memory, now).await?;
        Ok(!(memory.orphans.is_empty()
            && memory.strays.is_empty()
            && memory.lost.is_empty()
            && memory.absent.is_empty()
            && memory.gone.is_empty()))
    }

    fn is_ours(&self, eni: &CloudEni) -> bool {
        eni.tags
            .get(TAG_CREATOR)
            .is_some_and(|creator| creator == CREATOR)
            && eni
                .tags
                .get(TAG_AUTHORITY)
                .is_some_and(|authority| authority == self.cloud.authority())
    }

    /// The shard and operation that an ENI of ours was made by.
    fn op_of(owned: &Owned, eni: &CloudEni) -> Option<Seq> {
        let (shard, op) = eni.tags.get(TAG_OP)?.rsplit_once('/')?;
        (shard == owned.id().to_string()).then(|| op.parse().ok().map(Seq))?
    }

    async fn propose(
        &self,
        owned: &Owned,
        decide: impl FnOnce(&Shard, Tick) -> Vec<Record> + Send + 'static,
    ) -> Option<Seq> {
        match owned.handle.propose(Box::new(decide)).await {
            Ok(committed) => (!committed.records.is_empty()).then_some(committed.first),
            Err(error) => {
                warn!(shard = %owned.id(), %error, "a difference was not written down");
                None
            }
        }
    }

    /// A key for a call that no record asks for: the number of a record that changes nothing but the time. No other
    /// call ever has it.
    async fn fresh_key(&self, owned: &Owned) -> Option<CallKey> {
        let tick = self.propose(owned, |_, now| vec![Record::Tick { at: now }]);
        let sequence = tick.await?;
        Some(CallKey {
            shard: owned.id().clone(),
            epoch: owned.handle.epoch(),
            sequence,
        })
    }

    /// Addresses of the shard that somebody else has: not tried for a while.
    async fn foreign(&self, owned: &Owned, picture: &Picture<'_>) {
        let taken: Vec<IpAddr> = picture
            .cloud
            .iter()
            .filter(|eni| !self.is_ours(eni))
            .flat_map(|eni| eni.addresses.iter().copied())
            .filter(|ip| picture.is_free(*ip))
            .collect();
        if taken.is_empty() {
            return;
        }
        let count = taken.len();
        let learnt = self.propose(owned, move |shard, now| foreign_record(shard, &taken, now));
        if learnt.await.is_some() {
            self.metrics.drift("foreign");
            info!(shard = %owned.id(), count, "addresses of others were learnt");
        }
    }

    /// ENIs by our tags that no shard knows: made by a call whose answer never came back.
    async fn orphans(
        &self,
        owned: &Owned,
        picture: &Picture<'_>,
        memory: &mut Memory,
        now: Instant,
    ) {
        let orphans: BTreeMap<EniId, (&CloudEni, Seq)> = picture
            .cloud
            .iter()
            .filter(|eni| self.is_ours(eni) && !eni.primary_of_instance)
            .filter_map(|eni| Some((eni, Self::op_of(owned, eni)?)))
            .filter(|(eni, op)| {
                let known =
                    |shard: &Shard| shard.eni(*op).is_some() || shard.eni_by_id(&eni.id).is_some();
                // An operation that is still to come is not an orphan either.
                !known(picture.before) && !known(picture.after) && *op <= picture.before.last_seq()
            })
            .map(|(eni, op)| (eni.id.clone(), (eni, op)))
            .collect();
        let due = memory
            .orphans
            .again(now, self.age, &orphans.keys().cloned().collect());
        for id in due {
            let Some((eni, op)) = orphans.get(&id) else {
                continue;
            };
            self.metrics.drift("orphan_eni");
            info!(shard = %owned.id(), eni = %id, op = op.0, "an ENI of ours is in no books: it is deleted");
            let deleted = match &eni.instance {
                Some(instance) => match self.fresh_key(owned).await {
                    Some(key) => {
                        let priority = Priority::Reconcile;
                        self.cloud.detach(&key, priority, &id, instance).await
                    }
                    None => continue,
                },
                None => Ok(()),
            };
            let deleted = match (deleted, self.fresh_key(owned).await) {
                (Ok(()), Some(key)) => self.cloud.delete(&key, Priority::Reconcile, &id).await,
                (Ok(()), None) => continue,
                (Err(error), _) => Err(error),
            };
            if let Err(error) = deleted {
                warn!(shard = %owned.id(), eni = %id, %error, "an orphan was not deleted yet");
            }
        }
    }

    /// Addresses on ENIs of ours that the books have elsewhere or nowhere.
    async fn strays(
        &self,
        owned: &Owned,
        picture: &Picture<'_>,
        memory: &mut Memory,
        now: Instant,
    ) {
        let mut strays = BTreeSet::new();
        for eni in picture.cloud.iter().filter(|eni| self.is_ours(eni)) {
            let Some((key, known)) = picture.after.eni_by_id(&eni.id) else {
                continue;
            };
            if known.state != EniState::Attached || picture.before.eni(key).is_none() {
                continue;
            }
            let free = eni.addresses.iter().filter(|ip| picture.is_idle(**ip));
            strays.extend(free.map(|ip| (eni.id.clone(), *ip)));
        }
        let due = memory.strays.again(now, self.age, &strays);
        let mut by_eni: BTreeMap<EniId, Vec<IpAddr>> = BTreeMap::new();
        for (eni, ip) in due {
            by_eni.entry(eni).or_default().push(ip);
        }
        for (eni, addresses) in by_eni {
            self.metrics.drift("stray_address");
            info!(shard = %owned.id(), %eni, count = addresses.len(), "addresses in no books are taken off");
            let wanted = addresses.clone();
            // The record keeps them from being granted, and its number is the call's key.
            let noted = self
                .propose(owned, move |shard, now| foreign_record(shard, &wanted, now))
                .await;
            let Some(sequence) = noted else { continue };
            let key = CallKey {
                shard: owned.id().clone(),
                epoch: owned.handle.epoch(),
                sequence,
            };
            let (ipv4, ipv6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
            if let Err(error) = self
                .cloud
                .unassign(&key, Priority::Reconcile, &eni, &ipv4, &ipv6)
                .await
            {
                warn!(shard = %owned.id(), %eni, %error, "stray addresses were not taken off yet");
            }
        }
    }

    /// Attached ENIs that the cloud does not know any more.
    async fn lost(&self, owned: &Owned, picture: &Picture<'_>, memory: &mut Memory, now: Instant) {
        let there: BTreeSet<&EniId> = picture.cloud.iter().map(|eni| &eni.id).collect();
        let missing = picture
            .steady()
            .filter(|(_, id)| !there.contains(id))
            .map(|(key, _)| key)
            .collect();
        for key in memory.lost.again(now, self.age, &missing) {
            self.metrics.drift("lost_eni");
            warn!(shard = %owned.id(), eni = key.0, "the cloud does not know an ENI of ours any more");
            self.propose(owned, move |shard, _| match shard.eni(key) {
                Some(eni) if eni.state == EniState::Attached && !eni.lost => {
                    vec![Record::EniLost { eni: key }]
                }
                Some(_) | None => Vec::new(),
            })
            .await;
        }
    }

    /// Granted addresses that are not on their ENI: the node is asked to stop using them.
    async fn absent(
        &self,
        owned: &Owned,
        picture: &Picture<'_>,
        memory: &mut Memory,
        now: Instant,
    ) {
        let on: BTreeMap<&EniId, &CloudEni> =
            picture.cloud.iter().map(|eni| (&eni.id, eni)).collect();
        let mut missing = BTreeSet::new();
        for (key, id) in picture.steady() {
            let Some(eni) = on.get(&id) else { continue };
            let granted = |shard: &Shard| -> BTreeSet<IpAddr> {
                shard
                    .grants_on(key)
                    .into_iter()
                    .map(|grant| grant.address)
                    .collect()
            };
            let both = granted(picture.before)
                .intersection(&granted(picture.after))
                .copied()
                .collect::<BTreeSet<_>>();
            missing.extend(both.into_iter().filter(|ip| !eni.addresses.contains(ip)));
        }
        let due = memory.absent.again(now, self.age, &missing);
        owned.absent.send_if_modified(|absent| {
            let changed = *absent != due;
            absent.clone_from(&due);
            changed
        });
        if due.is_empty() {
            return;
        }
        self.metrics.drift("absent_address");
        warn!(shard = %owned.id(), count = due.len(), "granted addresses are not on their ENIs");
        self.propose(owned, move |shard, _| {
            let mut by_eni: BTreeMap<EniKey, SlotSet> = BTreeMap::new();
            for slot in shard.slots_at(&due).iter() {
                if let Some(SlotState::Held { eni, .. }) = shard.slot(slot) {
                    by_eni.entry(*eni).or_default().insert(slot);
                }
            }
            by_eni
                .into_iter()
                .map(|(eni, slots)| Record::Revoke { eni, slots })
                .collect()
        })
        .await;
    }

    /// Instances that the cloud does not know any more: their addresses come back (with proof, never by silence).
    async fn gone(
        &self,
        owned: &Owned,
        shard: &Shard,
        memory: &mut Memory,
        now: Instant,
    ) -> Result<(), CloudError> {
        let instances: Vec<InstanceId> = shard.instances().into_iter().cloned().collect();
        let mut missing = BTreeSet::new();
        for instance in &instances {
            match self.facts.of(instance).await {
                Ok(facts) => {
                    memory.facts.insert(instance.clone(), facts);
                }
                Err(FactsError::Unknown(_)) => {
                    missing.insert(instance.clone());
                }
                Err(FactsError::Cloud(error)) => return Err(error),
            }
        }
        memory
            .facts
            .retain(|instance, _| instances.contains(instance));
        owned.demand.send_if_modified(|demand| {
            let before = demand.len();
            demand.retain(|instance, demand| !demand.gone || instances.contains(instance));
            demand.len() != before
        });
        for instance in memory.gone.again(now, self.age, &missing) {
            self.metrics.drift("gone_instance");
            info!(shard = %owned.id(), %instance, "the instance is gone: its addresses come back");
            vacated::take_back(owned, &instance, memory.facts.get(&instance).cloned()).await;
        }
        Ok(())
    }
}

/// The cloud's list between two states of the books.
struct Picture<'a> {
    cloud: &'a [CloudEni],
    before: &'a Shard,
    after: &'a Shard,
}

impl Picture<'_> {
    fn state(shard: &Shard, ip: IpAddr) -> Option<&SlotState> {
        shard.spec().slot(ip).and_then(|slot| shard.slot(slot))
    }

    /// Nobody's by the books, before and after.
    fn is_free(&self, ip: IpAddr) -> bool {
        let free = |shard| Self::state(shard, ip) == Some(&SlotState::Free);
        free(self.before) && free(self.after)
    }

    /// On no ENI by the books, before and after, and not resting.
    fn is_idle(&self, ip: IpAddr) -> bool {
        let idle = |shard| {
            matches!(
                Self::state(shard, ip),
                Some(SlotState::Free | SlotState::Foreign { .. })
            )
        };
        idle(self.before) && idle(self.after)
    }

    /// ENIs that were attached before and after.
    fn steady(&self) -> impl Iterator<Item = (EniKey, EniId)> + '_ {
        self.after.enis().filter_map(|(key, eni)| {
            let was = self.before.eni(key)?;
            let steady =
                |eni: &ipam_core::shard::eni::Eni| eni.state == EniState::Attached && !eni.lost;
            (steady(was) && steady(eni)).then(|| Some((key, eni.id.clone()?)))?
        })
    }
}

fn foreign_record(shard: &Shard, addresses: &[IpAddr], now: Tick) -> Vec<Record> {
    let slots: SlotSet = shard
        .slots_at(addresses)
        .iter()
        .filter(|slot| {
            matches!(
                shard.slot(*slot),
                Some(SlotState::Free | SlotState::Foreign { .. })
            )
        })
        .collect();
    if slots.is_empty() {
        return Vec::new();
    }
    let ttl = shard.spec().vswitch().timing.foreign_ttl.as_millis();
    let ttl_ms = u64::try_from(ttl).unwrap_or(u64::MAX);
    vec![Record::Foreign {
        slots,
        at: now,
        ttl_ms,
    }]
}
