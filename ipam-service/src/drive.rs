//! Carries out what a shard has decided: cloud calls for its open operations, until the cloud's word is known.
//!
//! An operation is the same after a restart as before: its next call follows from the shard alone, and a repeated
//! call has the same key. So there is no special path for recovery: whatever is open is driven. A call without a
//! known outcome is repeated for ever, with growing pauses; an operation ends by its outcome alone (I8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ipam_core::record::Record;
use ipam_core::step::{Call, Outcome, Step, next_step, on_outcome};
use mesh::backoff::{Backoff, Params};
use mesh::telemetry::set_parent;
use proto::cloud::v1::Priority;
use proto::types::v1::Reason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};
use types::cloud::ClusterId;
use types::op::Seq;

use crate::cloud::{
    CREATOR, CallKey, Cloud, CloudEni, CloudError, CreateEni, TAG_AUTHORITY, TAG_CLUSTER,
    TAG_CREATOR, TAG_INSTANCE, TAG_OP,
};
use crate::demand::Block;
use crate::fault::{Fault, is_for_people};
use crate::metrics::{CallResult, Metrics};
use crate::owned::Owned;
use crate::owner::ProposeError;

/// Failures in a row after which a cloud that can not be reached is a fault, and no passing trouble.
const AWAY: u32 = 3;

/// What all drivers of a replica have in common.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The gateway.
    pub cloud: Cloud,
    /// Whose ENIs.
    pub cluster: ClusterId,
    /// Tags that the operator wants on ENIs.
    pub eni_tags: BTreeMap<String, String>,
    /// Operations at once, per shard.
    pub operations: usize,
    /// Pauses between repeats.
    pub backoff: Params,
    /// How long the cloud is left alone after it said that there is no room.
    pub blocked: Duration,
    /// Counters.
    pub metrics: Metrics,
}

impl Driver {
    /// Drives a shard until it is not owned here any more or `stop` is cancelled.
    pub async fn run(self, owned: Arc<Owned>, stop: CancellationToken) {
        let ended = owned.handle.ended().clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = stop.cancelled() => {}
            () = self.drive(&owned) => {}
        }
    }

    async fn drive(&self, owned: &Owned) {
        self.fence(owned).await;
        let mut views = owned.handle.watch();
        let mut running = FuturesUnordered::new();
        let mut ops = BTreeSet::new();
        loop {
            let view = views.borrow_and_update().clone();
            for (op, _) in view.shard.open_ops() {
                if ops.len() >= self.operations {
                    break;
                }
                if ops.insert(op) {
                    running.push(self.operate(owned, op));
                }
            }
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(done) = running.next() => {
                    ops.remove(&done);
                }
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::try_new(self.backoff).unwrap_or_default()
    }

    /// Makes the gateway drop what earlier owners queued; nothing is driven before.
    async fn fence(&self, owned: &Owned) {
        let mut backoff = self.backoff();
        loop {
            match self.cloud.fence(owned.id(), owned.handle.epoch()).await {
                Ok(in_flight) => {
                    mesh::crash_point!("ipam.fence.after_call");
                    if !in_flight.is_empty() {
                        info!(shard = %owned.id(), ?in_flight, "calls of an earlier owner are under way");
                    }
                    return;
                }
                Err(error) => {
                    warn!(shard = %owned.id(), %error, "the gateway can not be fenced yet");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Drives one operation to its end.
    async fn operate(&self, owned: &Owned, op: Seq) -> Seq {
        let mut backoff = self.backoff();
        loop {
            let shard = owned.handle.view().shard;
            let Some(step) = next_step(&shard, op) else {
                return op;
            };
            let wait = match self.take(owned, &step, backoff.failures()).await {
                Taken::Moved => {
                    backoff.reset();
                    continue;
                }
                Taken::Over => return op,
                Taken::Again(at_least) => {
                    let wait = backoff.next_wait();
                    at_least.map_or(wait, |at_least| wait.max(at_least))
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn take(&self, owned: &Owned, step: &Step, failures: u32) -> Taken {
        let span = tracing::info_span!(
            "ipam.call",
            shard = %owned.id(),
            op = step.op.0,
            call = name(&step.call),
        );
        set_parent(&span, &owned.traces.of_op(step.op));
        let Answered {
            outcome,
            wait,
            told,
        } = self.call(owned, step).instrument(span.clone()).await;
        self.note(owned, step, &outcome, told.as_ref(), failures);
        if outcome == Outcome::Retry {
            return Taken::Again(wait);
        }
        self.block(owned, step, &outcome, told);
        let held =
            tracing::info_span!(parent: &span, "ipam.held", shard = %owned.id(), op = step.op.0);
        let proposed = {
            let (step, outcome) = (step.clone(), outcome.clone());
            owned
                .handle
                .propose(Box::new(move |shard, at| {
                    on_outcome(shard, &step, &outcome, at)
                }))
                .instrument(held)
                .await
        };
        match proposed {
            Ok(committed) if committed.records.is_empty() => Taken::Again(None),
            Ok(committed) => {
                if committed
                    .records
                    .iter()
                    .any(|record| matches!(record, Record::Aborted { .. }))
                {
                    debug!(shard = %owned.id(), op = step.op.0, ?outcome, "addresses were given up");
                }
                Taken::Moved
            }
            Err(ProposeError::NotOwner) => Taken::Over,
            Err(error @ (ProposeError::Invalid(_) | ProposeError::PlaceTaken { .. })) => {
                warn!(shard = %owned.id(), op = step.op.0, %error, "an outcome can not be written");
                Taken::Again(None)
            }
            Err(
                ProposeError::Stale(_) | ProposeError::Unavailable(_) | ProposeError::Overloaded,
            ) => Taken::Again(None),
        }
    }

    async fn call(&self, owned: &Owned, step: &Step) -> Answered {
        let key = CallKey {
            shard: owned.id().clone(),
            epoch: owned.handle.epoch(),
            sequence: step.key,
        };
        let priority = priority(owned, step);
        let result = match &step.call {
            Call::Create {
                instance,
                primary,
                ipv4,
                ipv6,
                security_groups,
            } => {
                mesh::crash_point!("ipam.create.before_call");
                let request = CreateEni {
                    vswitch: owned.id().vswitch.clone(),
                    security_groups: security_groups.clone(),
                    primary: *primary,
                    ipv4: ipv4.clone(),
                    ipv6: ipv6.clone(),
                    tags: self.tags(owned, step, instance.as_str()),
                };
                let created = self.cloud.create(&key, priority, &request).await;
                mesh::crash_point!("ipam.create.after_call");
                created.map(|eni| Outcome::Created {
                    id: eni.id,
                    mac: eni.mac,
                    addresses: eni.addresses,
                })
            }
            Call::Assign { eni, ipv4, ipv6 } => {
                mesh::crash_point!("ipam.assign.before_call");
                let assigned = self.cloud.assign(&key, priority, eni, ipv4, ipv6).await;
                mesh::crash_point!("ipam.assign.after_call");
                assigned.map(|eni| Outcome::Assigned {
                    addresses: eni.addresses,
                })
            }
            Call::Attach { eni, instance } => {
                mesh::crash_point!("ipam.attach.before_call");
                let attached = self.cloud.attach(&key, priority, eni, instance).await;
                mesh::crash_point!("ipam.attach.after_call");
                attached.map(|eni| after_attach(eni, instance.as_str()))
            }
            Call::Unassign { eni, ipv4, ipv6 } => {
                mesh::crash_point!("ipam.unassign.before_call");
                let unassigned = self.cloud.unassign(&key, priority, eni, ipv4, ipv6).await;
                mesh::crash_point!("ipam.unassign.after_call");
                unassigned.map(|eni| Outcome::Unassigned {
                    addresses: eni.addresses,
                })
            }
            Call::Detach { eni, instance } => {
                mesh::crash_point!("ipam.detach.before_call");
                let detached = self.cloud.detach(&key, priority, eni, instance).await;
                mesh::crash_point!("ipam.detach.after_call");
                detached.map(|()| Outcome::Detached)
            }
            Call::Delete { eni } => {
                mesh::crash_point!("ipam.delete.before_call");
                let deleted = self.cloud.delete(&key, priority, eni).await;
                mesh::crash_point!("ipam.delete.after_call");
                deleted.map(|()| Outcome::Deleted)
            }
        };
        let (outcome, wait, told) = match result {
            Ok(outcome) => (outcome, None, None),
            Err(error) => {
                let outcome = outcome_of(&error);
                info!(
                    shard = %owned.id(), op = step.op.0, call = name(&step.call), %error, ?outcome,
                    "a cloud call did not succeed"
                );
                let told = (error.reason(), describe(owned, step, &error));
                (outcome, error.retry_after(), Some(told))
            }
        };
        self.metrics.call(name(&step.call), result_of(&outcome));
        Answered {
            outcome,
            wait,
            told,
        }
    }

    /// Tells what a person must mend, and that it is mended.
    fn note(
        &self,
        owned: &Owned,
        step: &Step,
        outcome: &Outcome,
        told: Option<&(Reason, String)>,
        failures: u32,
    ) {
        if !is_growing(&step.call) {
            return;
        }
        let shard = owned.handle.view().shard;
        let Some(instance) = shard.eni(step.eni).map(|eni| eni.instance.clone()) else {
            return;
        };
        let Some((reason, message)) = told else {
            owned
                .faults
                .send_if_modified(|faults| faults.mend(&instance));
            return;
        };
        let passing = *reason == Reason::CloudUnavailable && failures < AWAY;
        if !is_for_people(*reason) || passing {
            return;
        }
        let begun = *outcome == Outcome::Retry;
        let fault = Fault::new(*reason, message.clone(), begun, &self.metrics);
        owned
            .faults
            .send_if_modified(|faults| faults.meet(&instance, fault));
    }

    fn tags(&self, owned: &Owned, step: &Step, instance: &str) -> BTreeMap<String, String> {
        let mut tags = self.eni_tags.clone();
        // The operation, not the call: all calls of a bring-up find the ENI by the same tag.
        let op = format!("{}/{}", owned.id(), step.op);
        tags.extend([
            (TAG_CREATOR.to_owned(), CREATOR.to_owned()),
            (TAG_CLUSTER.to_owned(), self.cluster.to_string()),
            (TAG_AUTHORITY.to_owned(), self.cloud.authority().to_owned()),
            (TAG_OP.to_owned(), op),
            (TAG_INSTANCE.to_owned(), instance.to_owned()),
        ]);
        tags
    }

    /// Keeps the planner from asking the cloud again for what it just refused.
    fn block(&self, owned: &Owned, step: &Step, outcome: &Outcome, told: Option<(Reason, String)>) {
        if !is_growing(&step.call) {
            return;
        }
        let attaching = matches!(step.call, Call::Attach { .. });
        let (reason, message, per_instance) = match outcome {
            Outcome::Exhausted => (
                Reason::VswitchExhausted,
                "the cloud says that the vSwitch has no free address",
                false,
            ),
            Outcome::EniLimit => (
                Reason::EniLimit,
                "the cloud allows the instance no further ENI",
                true,
            ),
            Outcome::AddressLimit => (
                Reason::AddressLimit,
                "the cloud allows the ENI no further address",
                true,
            ),
            Outcome::Refused => {
                let of_groups = told
                    .as_ref()
                    .is_some_and(|(reason, _)| *reason == Reason::SecurityGroupInvalid);
                (
                    Reason::CloudInvalid,
                    "the cloud refuses the request as such",
                    // The groups may be those of the instance itself.
                    attaching || of_groups,
                )
            }
            Outcome::NotFound => (
                Reason::NotFound,
                "the cloud does not know an object of the request",
                true,
            ),
            Outcome::Created { .. }
            | Outcome::Attached { .. }
            | Outcome::Assigned { .. }
            | Outcome::Unassigned { .. }
            | Outcome::Detached
            | Outcome::Deleted
            | Outcome::AddressInUse { .. }
            | Outcome::Retry => return,
        };
        // The cloud's own words name the objects.
        let (reason, message) = told.unwrap_or_else(|| (reason, message.to_owned()));
        let block = Block {
            reason,
            message,
            until: Instant::now() + self.blocked,
        };
        let instance = owned
            .handle
            .view()
            .shard
            .eni(step.eni)
            .map(|eni| eni.instance.clone());
        owned.blocks.send_modify(|blocks| match instance {
            Some(instance) if per_instance => {
                blocks.instances.insert(instance, block);
            }
            Some(_) | None => blocks.shard = Some(block),
        });
    }
}

/// A call, answered or not.
struct Answered {
    outcome: Outcome,
    /// When to repeat it at the earliest.
    wait: Option<Duration>,
    /// What a failure said.
    told: Option<(Reason, String)>,
}

/// A failed call for people: where, for whom, why.
fn describe(owned: &Owned, step: &Step, error: &CloudError) -> String {
    let shard = owned.handle.view().shard;
    let instance = shard
        .eni(step.eni)
        .map(|eni| format!(", instance {}", eni.instance))
        .unwrap_or_default();
    format!(
        "vSwitch {}{instance}: {}",
        owned.id().vswitch,
        error.words()
    )
}

/// Whether the call brings something; the others take something away.
fn is_growing(call: &Call) -> bool {
    match call {
        Call::Create { .. } | Call::Assign { .. } | Call::Attach { .. } => true,
        Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. } => false,
    }
}

enum Taken {
    /// The operation went on.
    Moved,
    /// The shard is not ours any more.
    Over,
    /// The step must be repeated, not before this.
    Again(Option<Duration>),
}

fn after_attach(eni: CloudEni, instance: &str) -> Outcome {
    if eni.status == "InUse"
        && eni
            .instance
            .as_ref()
            .is_some_and(|i| i.as_str() == instance)
    {
        Outcome::Attached {
            addresses: eni.addresses,
        }
    } else {
        // The gateway answers when it is attached; anything else is looked at again.
        Outcome::Retry
    }
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::Create { .. } => "create",
        Call::Assign { .. } => "assign",
        Call::Attach { .. } => "attach",
        Call::Unassign { .. } => "unassign",
        Call::Detach { .. } => "detach",
        Call::Delete { .. } => "delete",
    }
}

fn priority(owned: &Owned, step: &Step) -> Priority {
    match &step.call {
        Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. } => Priority::Release,
        Call::Create { .. } | Call::Assign { .. } | Call::Attach { .. } => {
            let view = owned.handle.view();
            let urgent = view.shard.eni(step.eni).is_some_and(|eni| {
                owned
                    .demand
                    .borrow()
                    .get(&eni.instance)
                    .is_some_and(|demand| demand.urgent)
            });
            if urgent {
                Priority::PodWaiting
            } else {
                Priority::Refill
            }
        }
    }
}

/// What a failed call means for its operation.
fn outcome_of(error: &CloudError) -> Outcome {
    let CloudError::Refused {
        reason, address, ..
    } = error
    else {
        return Outcome::Retry;
    };
    match reason {
        Reason::VswitchExhausted => Outcome::Exhausted,
        Reason::EniLimit => Outcome::EniLimit,
        Reason::AddressLimit => Outcome::AddressLimit,
        Reason::AddressInUse => Outcome::AddressInUse { address: *address },
        Reason::NotFound | Reason::NodeUnknown => Outcome::NotFound,
        Reason::CloudInvalid
        | Reason::BadField
        | Reason::SecurityGroupFull
        | Reason::VswitchInvalid
        | Reason::SecurityGroupInvalid => Outcome::Refused,
        // Either it passes, or a person must act; the operation waits.
        Reason::Unspecified
        | Reason::NotOwner
        | Reason::EpochStale
        | Reason::StateConflict
        | Reason::CloudThrottled
        | Reason::CloudForbidden
        | Reason::CloudCredentials
        | Reason::CloudUnavailable
        | Reason::OutcomeUnknown
        | Reason::IdentityMismatch
        | Reason::StoreUnavailable
        | Reason::Overloaded
        | Reason::PoolEmpty
        | Reason::PodUnknown
        | Reason::Busy
        | Reason::KernelDrift
        | Reason::NetnsGone
        | Reason::NotReady => Outcome::Retry,
    }
}

fn result_of(outcome: &Outcome) -> CallResult {
    match outcome {
        Outcome::Created { .. }
        | Outcome::Attached { .. }
        | Outcome::Assigned { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Detached
        | Outcome::Deleted => CallResult::Done,
        Outcome::AddressInUse { .. }
        | Outcome::Exhausted
        | Outcome::EniLimit
        | Outcome::AddressLimit
        | Outcome::NotFound
        | Outcome::Refused => CallResult::Refused,
        Outcome::Retry => CallResult::Retried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: Reason) -> CloudError {
        CloudError::Refused {
            reason,
            message: String::new(),
            address: None,
            retry_after: None,
        }
    }

    // I8: what is not known or may pass is never taken for a refusal.
    #[test]
    fn outcome_of_an_unknown_answer_is_to_repeat() {
        for error in [
            CloudError::Unknown("lost".to_owned()),
            CloudError::NotSent("down".to_owned()),
            CloudError::Malformed("?".to_owned()),
            refused(Reason::CloudThrottled),
            refused(Reason::StateConflict),
            refused(Reason::CloudForbidden),
        ] {
            assert_eq!(outcome_of(&error), Outcome::Retry, "{error}");
        }
        assert_eq!(
            outcome_of(&refused(Reason::VswitchExhausted)),
            Outcome::Exhausted
        );
    }
}
