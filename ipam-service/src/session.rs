//! One node's session: hears what the node holds and wants, tells it what it has.
//!
//! A session keeps a list of what the node has by its own word and by what was sent in this session, and sends what
//! differs from the committed shard whenever the shard changes. Nothing has to be replayed: a new session begins
//! with the node's list. What a node says of itself beyond that list is not believed; who it is stands in its
//! certificate, what it may have is asked of the cloud (I12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use ipam_core::inventory::{Difference, HeldEni, RevokeRequest, acknowledge, compare};
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use mesh::status::Refusal;
use mesh::telemetry::{set_parent, traceparent_of};
use proto::ipam::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{Instrument, Span, debug, info, warn};
use types::cloud::EniId;
use types::op::{Generation, Seq, ShardId};

use crate::convert;
use crate::demand::{NodeDemand, Shortfall};
use crate::facts::NodeFacts;
use crate::owned::Owned;
use crate::owner::{ProposeError, View};
use crate::replica::Replica;

pub mod registry;

/// How long a node may leave its queue full before the session ends.
const SLOW_NODE: Duration = Duration::from_secs(10);

/// How often an acknowledgement is written again when the store does not take it.
const ACK_TRIES: u32 = 20;

/// Commands to a node.
pub type Commands = mpsc::Sender<Result<wire::NodeCommand, Status>>;

/// Why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The node closed it.
    Closed,
    /// The node broke it, or its connection did.
    Broken(Status),
    /// The node sent what makes no sense.
    Refused(Status),
    /// A newer session of the same node took its place.
    Replaced,
    /// The replica goes away.
    Draining,
    /// The node does not take what it is sent.
    Slow,
}

/// A session after its Hello.
pub struct Session {
    replica: Replica,
    facts: Arc<NodeFacts>,
    id: u64,
    out: Commands,
    sequence: u64,
    shards: BTreeMap<ShardId, NodeShard>,
    events: StreamMap<ShardId, Events>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} of {})", self.id, self.facts.instance)
    }
}

type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

enum Event {
    View(View),
    Shortfall(Option<Shortfall>),
    Ended,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::View(_) => "View",
            Self::Shortfall(_) => "Shortfall",
            Self::Ended => "Ended",
        })
    }
}

/// What the node has in one shard, as far as this session knows.
#[derive(Debug)]
struct NodeShard {
    owned: Arc<Owned>,
    known: BTreeMap<EniId, BTreeMap<IpAddr, Generation>>,
    /// Revokes that were sent in this session.
    asked: BTreeSet<Seq>,
    shortfall: Option<Shortfall>,
}

impl NodeShard {
    fn held(&self) -> Vec<HeldEni> {
        self.known
            .iter()
            .map(|(id, addresses)| HeldEni {
                id: id.clone(),
                addresses: addresses
                    .iter()
                    .map(|(ip, generation)| (*ip, *generation))
                    .collect(),
            })
            .collect()
    }
}

impl Session {
    /// A session of the node with these facts; `id` is higher than that of every earlier one.
    pub fn new(replica: Replica, facts: Arc<NodeFacts>, id: u64, out: Commands) -> Self {
        Self {
            replica,
            facts,
            id,
            out,
            sequence: 0,
            shards: BTreeMap::new(),
            events: StreamMap::new(),
        }
    }

    /// Serves until either side ends it.
    pub async fn run<S>(
        mut self,
        mut messages: S,
        replaced: CancellationToken,
        draining: CancellationToken,
    ) -> SessionEnd
    where
        S: Stream<Item = Result<wire::NodeMessage, Status>> + Send + Unpin,
    {
        let end = self.serve(&mut messages, &replaced, &draining).await;
        self.withdraw();
        end
    }

    async fn serve<S>(
        &mut self,
        messages: &mut S,
        replaced: &CancellationToken,
        draining: &CancellationToken,
    ) -> SessionEnd
    where
        S: Stream<Item = Result<wire::NodeMessage, Status>> + Send + Unpin,
    {
        let welcome = self.welcome();
        if let Err(end) = self.send(String::new(), welcome).await {
            return end;
        }
        loop {
            let done = tokio::select! {
                biased;
                () = replaced.cancelled() => return SessionEnd::Replaced,
                () = draining.cancelled() => {
                    let goodbye = wire::DrainSession { why: "the replica goes away".to_owned() };
                    // It ends either way.
                    drop(self.send(String::new(), wire::node_command::Body::Drain(goodbye)).await);
                    return SessionEnd::Draining;
                }
                message = messages.next() => match message {
                    None => return SessionEnd::Closed,
                    Some(Err(status)) => return SessionEnd::Broken(status),
                    Some(Ok(message)) => self.hear(message).await,
                },
                Some((shard, event)) = self.events.next() => self.tell(&shard, event).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn welcome(&self) -> wire::node_command::Body {
        wire::node_command::Body::Welcome(wire::Welcome {
            replica: self.replica.id().to_string(),
            instance_type: self.facts.instance_type.clone(),
            zone_id: self.facts.zone.to_string(),
            max_pods: self
                .facts
                .quota
                .secondary_enis()
                .saturating_mul(self.facts.pods_per_eni()),
            ipv4: true,
            ipv6: self.facts.stack.has_v6(),
            addresses_per_eni: self.facts.pods_per_eni(),
        })
    }

    async fn send(
        &mut self,
        traceparent: String,
        body: wire::node_command::Body,
    ) -> Result<(), SessionEnd> {
        self.sequence = self.sequence.saturating_add(1);
        let command = wire::NodeCommand {
            seq: self.sequence,
            traceparent,
            body: Some(body),
        };
        match self.out.send_timeout(Ok(command), SLOW_NODE).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(SessionEnd::Slow),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(SessionEnd::Closed),
        }
    }

    /// Forgets what the node wanted, unless a newer session has said it again.
    fn withdraw(&self) {
        for shard in self.shards.values() {
            shard.owned.demand.send_if_modified(|demand| {
                let own = demand
                    .get(&self.facts.instance)
                    .is_some_and(|d| d.session == self.id);
                if own {
                    demand.remove(&self.facts.instance);
                }
                own
            });
        }
    }

    async fn hear(&mut self, message: wire::NodeMessage) -> Result<(), SessionEnd> {
        use wire::node_message::Body;
        let Some(body) = message.body else {
            return Err(refuse(Refusal::bad_field("body", "is missing")));
        };
        match body {
            Body::Hello(_) => Err(refuse(Refusal::bad_field("hello", "comes once"))),
            Body::Inventory(inventory) => self.inventory(inventory).await,
            Body::Target(target) => {
                let span =
                    tracing::info_span!("ipam.target", shard = target.shard, pods = target.pods);
                set_parent(&span, &message.traceparent);
                let inside = span.clone();
                self.target(target, &span).instrument(inside).await
            }
            Body::EniReady(ready) => {
                debug!(instance = %self.facts.instance, eni = ready.eni_id, "an ENI is in use on its node");
                Ok(())
            }
            Body::RevokeAck(ack) => {
                let span = tracing::info_span!("ipam.revoke_ack", shard = ack.shard);
                set_parent(&span, &message.traceparent);
                self.revoke_ack(ack).instrument(span).await
            }
            Body::EniRemoved(removed) => {
                debug!(instance = %self.facts.instance, eni = removed.eni_id, "an ENI was forgotten by its node");
                Ok(())
            }
        }
    }

    /// The shard, if it is owned here; the node is told otherwise.
    async fn shard(&mut self, text: &str) -> Result<Option<ShardId>, SessionEnd> {
        let id: ShardId = text
            .parse()
            .map_err(|e| refuse(Refusal::bad_field("shard", e)))?;
        if self
            .shards
            .get(&id)
            .is_some_and(|shard| !shard.owned.handle.ended().is_cancelled())
        {
            return Ok(Some(id));
        }
        let Some(owned) = self.replica.owned(&id) else {
            self.forget(&id).await?;
            return Ok(None);
        };
        self.events
            .insert(id.clone(), events(&owned, self.facts.instance.clone()));
        self.shards.insert(
            id.clone(),
            NodeShard {
                owned,
                known: BTreeMap::new(),
                asked: BTreeSet::new(),
                shortfall: None,
            },
        );
        Ok(Some(id))
    }

    async fn forget(&mut self, id: &ShardId) -> Result<(), SessionEnd> {
        self.shards.remove(id);
        self.events.remove(id);
        let body = wire::node_command::Body::NotOwner(wire::NotOwner {
            shard: id.to_string(),
        });
        self.send(String::new(), body).await
    }

    async fn inventory(&mut self, inventory: wire::Inventory) -> Result<(), SessionEnd> {
        let known = convert::held_enis(&inventory).map_err(refuse)?;
        let Some(id) = self.shard(&inventory.shard).await? else {
            return Ok(());
        };
        let Some(shard) = self.shards.get_mut(&id) else {
            return Ok(());
        };
        shard.known = known;
        shard.asked.clear();
        let view = shard.owned.handle.view();
        self.show(&id, &view.shard).await
    }

    async fn target(&mut self, target: wire::Target, span: &Span) -> Result<(), SessionEnd> {
        let bound = convert::usage(&target).map_err(refuse)?;
        let Some(id) = self.shard(&target.shard).await? else {
            return Ok(());
        };
        let Some(shard) = self.shards.get(&id) else {
            return Ok(());
        };
        let most = self
            .facts
            .quota
            .secondary_enis()
            .saturating_mul(self.facts.pods_per_eni());
        let demand = NodeDemand {
            facts: Arc::clone(&self.facts),
            session: self.id,
            pods: target.pods.min(most),
            wholes: target.whole_enis.min(self.facts.quota.secondary_enis()),
            urgent: target.urgent,
            bound,
            traceparent: traceparent_of(span).unwrap_or_default(),
            gone: false,
        };
        shard.owned.demand.send_modify(|all| {
            all.insert(self.facts.instance.clone(), demand);
        });
        Ok(())
    }

    async fn revoke_ack(&mut self, ack: wire::RevokeAck) -> Result<(), SessionEnd> {
        let accepted = convert::addresses("accepted", &ack.accepted).map_err(refuse)?;
        let refused = convert::addresses("refused", &ack.refused).map_err(refuse)?;
        let Some(id) = self.shard(&ack.shard).await? else {
            return Ok(());
        };
        let Some(shard) = self.shards.get_mut(&id) else {
            return Ok(());
        };
        for addresses in shard.known.values_mut() {
            addresses.retain(|ip, _| !accepted.contains(ip));
        }
        let owned = Arc::clone(&shard.owned);
        let revoke = Seq(ack.revoke_id);
        for _ in 0..ACK_TRIES {
            let instance = self.facts.instance.clone();
            let (accepted, refused) = (accepted.clone(), refused.clone());
            let absent = owned.absent.borrow().clone();
            let decide = Box::new(move |shard: &Shard, _| {
                let acked = acknowledge(shard, &instance, revoke, &accepted, &refused);
                acked
                    .map(|acked| with_unassign(shard, acked, &absent))
                    .unwrap_or_default()
            });
            match owned.handle.propose(decide).await {
                Ok(_) | Err(ProposeError::NotOwner) => return Ok(()),
                Err(error) => {
                    warn!(shard = %id, %error, "an acknowledgement is written again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // The node says it again in its next session.
        Err(SessionEnd::Broken(convert::unavailable(
            "the store does not take an acknowledgement",
        )))
    }

    async fn tell(&mut self, id: &ShardId, event: Event) -> Result<(), SessionEnd> {
        match event {
            Event::View(view) => self.show(id, &view.shard).await,
            Event::Ended => self.forget(id).await,
            Event::Shortfall(now) => {
                let Some(shard) = self.shards.get_mut(id) else {
                    return Ok(());
                };
                if shard.shortfall == now {
                    return Ok(());
                }
                shard.shortfall.clone_from(&now);
                let state = convert::shard_state(id, now.as_ref());
                self.send(String::new(), wire::node_command::Body::ShardState(state))
                    .await
            }
        }
    }

    /// Sends what differs between the shard and what the node has.
    async fn show(&mut self, id: &ShardId, view: &Shard) -> Result<(), SessionEnd> {
        let Some(shard) = self.shards.get(id) else {
            return Ok(());
        };
        let Difference {
            attached,
            grants,
            revokes,
            removed,
        } = compare(view, &self.facts.instance, &shard.held());
        for key in attached {
            let Some(message) = convert::eni_attached(view, key) else {
                continue;
            };
            let trace = self.trace(id, key);
            self.note(id, &message.eni_id, &message.addresses);
            mesh::crash_point!("ipam.grant.before_send");
            self.send(trace, wire::node_command::Body::EniAttached(message))
                .await?;
        }
        for (key, grants) in grants {
            let Some(message) = convert::grant(view, key, &grants) else {
                continue;
            };
            let trace = self.trace(id, key);
            self.note(id, &message.eni_id, &message.addresses);
            mesh::crash_point!("ipam.grant.before_send");
            self.send(trace, wire::node_command::Body::Grant(message))
                .await?;
        }
        for revoke in revokes {
            if let Some(message) = self.revoke(id, &revoke) {
                mesh::crash_point!("ipam.revoke.before_send");
                self.send(String::new(), wire::node_command::Body::Revoke(message))
                    .await?;
            }
        }
        for eni in removed {
            if let Some(shard) = self.shards.get_mut(id) {
                shard.known.remove(&eni);
            }
            let message = wire::RemoveEni {
                shard: id.to_string(),
                eni_id: eni.to_string(),
            };
            self.send(String::new(), wire::node_command::Body::RemoveEni(message))
                .await?;
        }
        Ok(())
    }

    fn trace(&self, id: &ShardId, key: Seq) -> String {
        self.shards
            .get(id)
            .map(|shard| shard.owned.traces.of_eni(key))
            .unwrap_or_default()
    }

    fn note(&mut self, id: &ShardId, eni: &str, granted: &[proto::types::v1::GrantedAddress]) {
        let (Some(shard), Ok(eni)) = (self.shards.get_mut(id), eni.parse::<EniId>()) else {
            return;
        };
        let known = shard.known.entry(eni).or_default();
        for address in granted {
            if let Ok(ip) = address.ip.parse() {
                known.insert(ip, Seq(address.generation));
            }
        }
    }

    /// The message for a revoke that this session has not sent yet.
    fn revoke(&mut self, id: &ShardId, revoke: &RevokeRequest) -> Option<wire::Revoke> {
        let shard = self.shards.get_mut(id)?;
        if revoke.revoke == Seq(0) {
            // Never granted, or long gone: asked once, and not counted as the node's any more.
            let known = shard.known.get_mut(&revoke.eni)?;
            known.retain(|ip, _| !revoke.addresses.iter().any(|(stray, _)| stray == ip));
        } else if !shard.asked.insert(revoke.revoke) {
            return None;
        }
        info!(shard = %id, eni = %revoke.eni, revoke = revoke.revoke.0, count = revoke.addresses.len(), "addresses are asked back");
        Some(convert::revoke(id, revoke))
    }
}

fn refuse(why: impl Into<Status>) -> SessionEnd {
    SessionEnd::Refused(why.into())
}

/// Addresses that the cloud does not have on their ENI leave the books as soon as the node gave them up.
fn with_unassign(shard: &Shard, acked: Record, absent: &BTreeSet<IpAddr>) -> Vec<Record> {
    let Record::RevokeAcked { accepted, .. } = &acked else {
        return vec![acked];
    };
    let gone: ipam_core::slot::SlotSet = accepted
        .iter()
        .filter(|slot| {
            shard
                .spec()
                .address(*slot)
                .is_some_and(|ip| absent.contains(&ip))
        })
        .collect();
    let eni = gone.iter().next().and_then(|slot| shard.slot(slot)?.eni());
    let mut records = vec![acked];
    let Some(key) = eni else { return records };
    let idle = shard.op_on(key).is_none();
    if let (true, Some(eni)) = (idle, shard.eni(key)) {
        let slots: ipam_core::slot::SlotSet = gone
            .iter()
            .filter(|slot| {
                eni.slots.contains(*slot)
                    && !(slot.family == types::address::Family::V4 && slot.index == eni.primary)
            })
            .collect();
        if !slots.is_empty() && !eni.lost {
            records.push(Record::UnassignIntent { eni: key, slots });
        }
    }
    records
}

fn events(owned: &Arc<Owned>, instance: types::cloud::InstanceId) -> Events {
    let views = WatchStream::from_changes(owned.handle.watch()).map(Event::View);
    let shortfalls = WatchStream::new(owned.shortfalls.subscribe())
        .map(move |all| Event::Shortfall(all.get(&instance).cloned()));
    let ended = owned.handle.ended().clone();
    let ended = futures::stream::once(async move {
        ended.cancelled().await;
        Event::Ended
    });
    // The writer's end is an event of its own, so the ends of the others need none.
    Box::pin(futures::stream::select(
        futures::stream::select(views, shortfalls),
        ended,
    ))
}

/// Who the caller is, and whether its Hello says the same (I12).
///
/// # Errors
/// A status with `REASON_IDENTITY_MISMATCH` or `REASON_BAD_FIELD`.
pub fn check_hello(
    identity: &mesh::identity::Identity,
    hello: &wire::Hello,
    cluster: &types::cloud::ClusterId,
) -> Result<types::cloud::InstanceId, Status> {
    let instance = convert::own_instance(identity, &hello.cluster, &hello.instance_id, cluster)?;
    if hello.boot_id.is_empty() {
        return Err(Refusal::bad_field("boot_id", "is empty").into_status());
    }
    Ok(instance)
}

/// The status by which a stream ends.
pub fn status_of(end: &SessionEnd) -> Option<Status> {
    let (code, why) = match end {
        SessionEnd::Closed | SessionEnd::Draining => return None,
        SessionEnd::Broken(status) | SessionEnd::Refused(status) => return Some(status.clone()),
        SessionEnd::Replaced => (Code::Aborted, "a newer session of the node took its place"),
        SessionEnd::Slow => (
            Code::ResourceExhausted,
            "the node does not take what it is sent",
        ),
    };
    let reason = proto::types::v1::Reason::Unspecified;
    Some(Refusal::new(code, reason.as_str_name(), why).into_status())
}
