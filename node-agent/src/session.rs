//! Sessions with ipam replicas: one per owner of a shard that serves this node.
//!
//! A session is level-triggered too: it compares what the ledger holds and the targets say with what it has told the
//! replica, so a message that was lost with a connection is told again on the next.

pub mod decode;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh::causes;
use mesh::tasks::Tasks;
use mesh::telemetry::{current_traceparent, set_parent};
use proto::ipam::v1::node_ipam_client::NodeIpamClient;
use proto::ipam::v1::{
    EniReady, EniRemoved, EniUsage, HeldEni, Hello, Inventory, NodeCommand, NodeMessage, RevokeAck,
    Target, node_command, node_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;
use types::cloud::{ClusterId, EniId, InstanceId};
use types::op::ShardId;

use crate::capacity::Capacity;
use crate::dial::{Dial, pauses};
use crate::ledger::{Ledger, LedgerError, View};
use crate::target::{Route, Targets, Want};
use crate::uplinks::{Uplinks, texts};
use decode::BadMessage;

/// Messages that may wait for the network.
const OUTGOING: usize = 64;
/// Time for the replica to welcome us.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Everything is told again this often, should the two sides have come apart.
const RETELL: Duration = Duration::from_secs(30);
/// Wait before a shard is asked for again from a replica that did not own it.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Longest silence between two attempts, in milliseconds.
const MAX_PAUSE_MS: u64 = 3_000;

/// Who we are, for the greeting.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// Our cluster.
    pub cluster: ClusterId,
    /// Kubernetes name of the node, for people.
    pub node_name: String,
    /// Our instance.
    pub instance: InstanceId,
    /// The present boot.
    pub boot_id: String,
}

/// What every session needs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Makes channels with our identity.
    pub dial: Dial,
    /// Who we are.
    pub greeting: Greeting,
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// ENIs in the kernel.
    pub uplinks: Uplinks,
    /// What we want.
    pub targets: Targets,
    /// The node's shards and their owners.
    pub routes: watch::Receiver<Vec<Route>>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{}", .0.message())]
    Refused(Status),
    #[error("no welcome within {WELCOME_TIMEOUT:?}")]
    NotWelcomed,
    #[error("the replica ended it")]
    Closed,
    #[error("the replica drains: {0}")]
    Drained(String),
    #[error(transparent)]
    BadMessage(#[from] BadMessage),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Ended {
    /// The machine-readable reason of a refusal.
    fn reason(&self) -> Option<String> {
        match self {
            Self::Refused(status) => mesh::status::reason(status),
            Self::NotWelcomed
            | Self::Closed
            | Self::Drained(_)
            | Self::BadMessage(_)
            | Self::Ledger(_) => None,
        }
    }
}

impl Sessions {
    /// Keeps a session with every owner until `drain` is cancelled.
    pub async fn run(mut self, tasks: Tasks, drain: CancellationToken) {
        let mut running: BTreeMap<String, CancellationToken> = BTreeMap::new();
        loop {
            let owners: BTreeSet<String> = self
                .routes
                .borrow_and_update()
                .iter()
                .filter(|r| !r.owner.is_empty())
                .map(|r| r.owner.clone())
                .collect();
            running.retain(|owner, stop| {
                let stays = owners.contains(owner);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for owner in owners {
                if running.contains_key(&owner) {
                    continue;
                }
                let stop = drain.child_token();
                running.insert(owner.clone(), stop.clone());
                drop(tasks.spawn_once("session", self.clone().keep(owner, stop)));
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                changed = self.routes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn keep(self, owner: String, stop: CancellationToken) {
        let mut backoff = pauses(50, MAX_PAUSE_MS);
        loop {
            let mut session = Session::new(&self, &owner);
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                ended = session.serve() => Some(ended),
            };
            self.targets.set_connected(&owner, false);
            let Some(ended) = ended else { return };
            if session.welcomed {
                backoff.reset();
            }
            self.targets
                .note_trouble(ended.reason(), format!("{owner}: {ended}"));
            match ended {
                Ended::Refused(_) | Ended::NotWelcomed | Ended::Closed | Ended::Drained(_) => {
                    tracing::info!(owner, why = %ended, "session ended");
                }
                Ended::BadMessage(_) | Ended::Ledger(_) => {
                    tracing::warn!(owner, why = %ended, "session ended");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }
}

/// What one session has told.
#[derive(Debug)]
struct Session<'a> {
    all: &'a Sessions,
    owner: &'a str,
    welcomed: bool,
    seq: u64,
    told_inventory: BTreeSet<ShardId>,
    told_ready: BTreeSet<EniId>,
    told_target: BTreeMap<ShardId, Target>,
    /// Shards that the replica said it does not own; asked again when the routes change, or after a while.
    not_owned: BTreeSet<ShardId>,
    /// When they are asked again.
    ask_again_at: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(all: &'a Sessions, owner: &'a str) -> Self {
        Self {
            all,
            owner,
            welcomed: false,
            seq: 0,
            told_inventory: BTreeSet::new(),
            told_ready: BTreeSet::new(),
            told_target: BTreeMap::new(),
            not_owned: BTreeSet::new(),
            ask_again_at: None,
        }
    }

    async fn serve(&mut self) -> Ended {
        match self.serve_to_the_end().await {
            Ok(()) => Ended::Closed,
            Err(ended) => ended,
        }
    }

    async fn serve_to_the_end(&mut self) -> Result<(), Ended> {
        let refused = Ended::Refused;
        let channel = self.all.dial.stream(self.owner).map_err(refused)?;
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let greeting = &self.all.greeting;
        let hello = Hello {
            cluster: greeting.cluster.to_string(),
            node_name: greeting.node_name.clone(),
            instance_id: greeting.instance.to_string(),
            boot_id: greeting.boot_id.clone(),
        };
        self.say(&outgoing, String::new(), node_message::Body::Hello(hello))
            .await?;
        let mut ipam = NodeIpamClient::new(channel);
        let opened = ipam.session(ReceiverStream::new(messages));
        let mut commands = tokio::time::timeout(WELCOME_TIMEOUT, opened)
            .await
            .map_err(|_| Ended::NotWelcomed)?
            .map_err(refused)?
            .into_inner();
        let first = tokio::time::timeout(WELCOME_TIMEOUT, commands.message())
            .await
            .map_err(|_| Ended::NotWelcomed)?
            .map_err(refused)?;
        self.welcome(first).await?;
        let mut wants = self.all.targets.wants();
        let mut view = self.all.ledger.watch();
        let mut routes = self.all.routes.clone();
        let mut retell = tokio::time::interval(RETELL);
        retell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        retell.reset();
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            let wanted = wants.borrow_and_update().clone();
            let mine = self.mine(&routes.borrow_and_update());
            self.tell(&outgoing, &now, &wanted, &mine).await?;
            tokio::select! {
                command = commands.message() => match command.map_err(refused)? {
                    Some(command) => self.obey(&outgoing, command).await?,
                    None => return Ok(()),
                },
                changed = view.changed() => changed.map_err(|_| LedgerError::Stopped)?,
                changed = wants.changed() => changed.map_err(|_| LedgerError::Stopped)?,
                changed = routes.changed() => {
                    changed.map_err(|_| LedgerError::Stopped)?;
                    self.not_owned.clear();
                }
                () = until(self.ask_again_at) => {
                    self.ask_again_at = None;
                    self.not_owned.clear();
                }
                _ = retell.tick() => {
                    self.told_inventory.clear();
                    self.told_target.clear();
                }
            }
        }
    }

    fn mine(&self, routes: &[Route]) -> BTreeSet<ShardId> {
        let owned = routes.iter().filter(|r| r.owner == self.owner);
        owned
            .map(|r| r.shard.clone())
            .filter(|s| !self.not_owned.contains(s))
            .collect()
    }

    async fn say(
        &mut self,
        outgoing: &mpsc::Sender<NodeMessage>,
        traceparent: String,
        body: node_message::Body,
    ) -> Result<(), Ended> {
        self.seq += 1;
        let message = NodeMessage {
            seq: self.seq,
            traceparent,
            body: Some(body),
        };
        outgoing.send(message).await.map_err(|_| Ended::Closed)
    }

    async fn welcome(&mut self, first: Option<NodeCommand>) -> Result<(), Ended> {
        let body = first.ok_or(Ended::Closed)?.body;
        let Some(node_command::Body::Welcome(welcome)) = body else {
            return Err(Ended::NotWelcomed);
        };
        let stack = decode::stack(&welcome)?;
        self.all.ledger.set_stack(stack).await?;
        self.all.targets.set_capacity(Capacity {
            max_pods: welcome.max_pods,
            per_eni: welcome.addresses_per_eni,
        });
        self.all.targets.set_connected(self.owner, true);
        self.welcomed = true;
        tracing::info!(
            replica = welcome.replica,
            zone = welcome.zone_id,
            instance_type = welcome.instance_type,
            max_pods = welcome.max_pods,
            "session"
        );
        Ok(())
    }

    /// Tells whatever the replica has not been told.
    async fn tell(
        &mut self,
        outgoing: &mpsc::Sender<NodeMessage>,
        view: &View,
        wanted: &BTreeMap<ShardId, Want>,
        mine: &BTreeSet<ShardId>,
    ) -> Result<(), Ended> {
        for shard in mine {
            if self.told_inventory.insert(shard.clone()) {
                let inventory = inventory(shard, view);
                self.say(
                    outgoing,
                    String::new(),
                    node_message::Body::Inventory(inventory),
                )
                .await?;
            }
        }
        for eni in view
            .enis
            .values()
            .filter(|e| mine.contains(&e.record.shard))
        {
            let id = &eni.record.eni;
            if !eni.ready {
                self.told_ready.remove(id);
            } else if self.told_ready.insert(id.clone()) {
                let shard = eni.record.shard.to_string();
                let ready = EniReady {
                    shard,
                    eni_id: id.to_string(),
                };
                self.say(outgoing, String::new(), node_message::Body::EniReady(ready))
                    .await?;
            }
        }
        for shard in mine {
            let Some(want) = wanted.get(shard) else {
                continue;
            };
            let target = target(shard, want, view);
            if self.told_target.get(shard) != Some(&target) {
                self.told_target.insert(shard.clone(), target.clone());
                let body = node_message::Body::Target(target);
                self.say(outgoing, want.traceparent.clone(), body).await?;
            }
        }
        Ok(())
    }

    async fn obey(
        &mut self,
        outgoing: &mpsc::Sender<NodeMessage>,
        command: NodeCommand,
    ) -> Result<(), Ended> {
        let span = tracing::info_span!("agent.command", ipam.command = decode::name(&command));
        set_parent(&span, &command.traceparent);
        let Some(body) = command.body else {
            return Ok(());
        };
        self.obey_body(outgoing, body).instrument(span).await
    }

    async fn obey_body(
        &mut self,
        outgoing: &mpsc::Sender<NodeMessage>,
        body: node_command::Body,
    ) -> Result<(), Ended> {
        let ledger = &self.all.ledger;
        match body {
            // A second welcome tells nothing new.
            node_command::Body::Welcome(_) => {}
            node_command::Body::EniAttached(attached) => {
                ledger.attach(decode::eni(&attached)?).await?;
                mesh::crash_point!("agent.eni.after_persist");
            }
            node_command::Body::Grant(grant) => {
                let eni = decode::id("eni_id", &grant.eni_id)?;
                ledger
                    .grant(eni, decode::granted(&grant.addresses)?)
                    .await?;
                mesh::crash_point!("agent.grant.after_persist");
            }
            node_command::Body::Revoke(revoke) => {
                let eni = decode::id("eni_id", &revoke.eni_id)?;
                let asked = decode::granted(&revoke.addresses)?;
                let (accepted, refused) = ledger.revoke(eni, asked).await?;
                mesh::crash_point!("agent.revoke.after_persist");
                let ack = RevokeAck {
                    shard: revoke.shard,
                    revoke_id: revoke.revoke_id,
                    accepted: texts(&accepted),
                    refused: texts(&refused),
                };
                let trace = current_traceparent().unwrap_or_default();
                self.say(outgoing, trace, node_message::Body::RevokeAck(ack))
                    .await?;
            }
            node_command::Body::RemoveEni(remove) => {
                let eni: EniId = decode::id("eni_id", &remove.eni_id)?;
                if self.remove_eni(&eni).await? {
                    let removed = EniRemoved {
                        shard: remove.shard,
                        eni_id: remove.eni_id,
                    };
                    let trace = current_traceparent().unwrap_or_default();
                    self.say(outgoing, trace, node_message::Body::EniRemoved(removed))
                        .await?;
                }
            }
            node_command::Body::ShardState(state) => {
                let shard: ShardId = decode::id("shard", &state.shard)?;
                let exhausted = decode::exhausted(&state);
                if let Some((why, _)) = &exhausted {
                    tracing::warn!(%shard, why, "shard can not give more");
                }
                self.all
                    .targets
                    .set_shortage(shard.clone(), decode::shortage(&state));
                self.all.targets.set_exhausted(shard, exhausted);
            }
            node_command::Body::NotOwner(not_owner) => {
                let shard: ShardId = decode::id("shard", &not_owner.shard)?;
                self.told_inventory.remove(&shard);
                self.told_target.remove(&shard);
                self.not_owned.insert(shard);
                // The replica may be about to claim it: the routes then stay as they are.
                self.ask_again_at = Some(Instant::now() + ASK_AGAIN);
            }
            node_command::Body::Drain(drain) => return Err(Ended::Drained(drain.why)),
        }
        Ok(())
    }

    /// Whether the ENI is gone from ledger and kernel now.
    async fn remove_eni(&mut self, eni: &EniId) -> Result<bool, Ended> {
        let view = self.all.ledger.view();
        let Some(known) = view.enis.get(eni) else {
            return Ok(true);
        };
        if !known.bound.is_empty() {
            tracing::warn!(eni.id = %eni, bound = known.bound.len(), "eni in use is not removed");
            return Ok(false);
        }
        if let Err(error) = self.all.uplinks.take_down(&known.record).await {
            tracing::warn!(eni.id = %eni, error = %causes::text(&error), "eni not taken down");
            return Ok(false);
        }
        mesh::crash_point!("agent.remove_eni.after_kernel");
        let gone = self.all.ledger.remove(eni.clone()).await?;
        mesh::crash_point!("agent.remove_eni.after_persist");
        self.told_ready.remove(eni);
        // A sandbox may have taken an address between the two; then the ENI stays.
        Ok(gone.is_some())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn inventory(shard: &ShardId, view: &View) -> Inventory {
    let enis = view.enis.values().filter(|e| e.record.shard == *shard);
    let enis = enis.map(|e| HeldEni {
        eni_id: e.record.eni.to_string(),
        ready: e.ready,
        addresses: decode::to_granted(&e.record.addresses),
    });
    Inventory {
        shard: shard.to_string(),
        enis: enis.collect(),
    }
}

fn target(shard: &ShardId, want: &Want, view: &View) -> Target {
    let enis = view.enis.values().filter(|e| e.record.shard == *shard);
    let usage = enis
        .map(|e| EniUsage {
            eni_id: e.record.eni.to_string(),
            bound: texts(&e.bound),
        })
        .collect();
    Target {
        shard: shard.to_string(),
        pods: want.pods,
        urgent: want.urgent,
        usage,
        whole_enis: want.wholes,
    }
}
