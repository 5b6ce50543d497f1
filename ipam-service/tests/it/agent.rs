//! A scripted node: keeps the rules of the session as a node-agent does, and shows what it holds.

use std::collections::{BTreeMap, BTreeSet};

use mesh::identity::Identity;
use proto::ipam::v1 as wire;
use proto::ipam::v1::node_command::Body as Command;
use proto::ipam::v1::node_message::Body as Message;
use proto::types::v1::GrantedAddress;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::cluster::{Cluster, PATIENCE, Replica};

/// What a node holds, as its durable store would.
#[derive(Debug, Default, Clone)]
pub(crate) struct Holding {
    /// By shard and ENI: address and generation.
    pub(crate) enis: BTreeMap<(String, String), BTreeMap<String, u64>>,
    /// In use by sandboxes.
    pub(crate) bound: BTreeSet<String>,
    /// Not granted any more by this or a later number.
    revoked: BTreeMap<String, u64>,
}

/// See the module.
pub(crate) struct Agent {
    pub(crate) holding: Holding,
    /// Newest state of each shard.
    pub(crate) states: BTreeMap<String, wire::ShardState>,
    pub(crate) welcome: Option<wire::Welcome>,
    /// Everything that was heard.
    pub(crate) heard: Vec<wire::NodeCommand>,
    out: mpsc::Sender<wire::NodeMessage>,
    commands: Streaming<wire::NodeCommand>,
    sequence: u64,
    /// ENIs for pods of their own, said with the next target.
    pub(crate) wholes: u32,
}

pub(crate) fn hello(instance: &str) -> wire::Hello {
    wire::Hello {
        cluster: "c1".to_owned(),
        node_name: format!("node-{instance}"),
        instance_id: instance.to_owned(),
        boot_id: "boot-1".to_owned(),
    }
}

impl Agent {
    /// Opens a session with a hello of one's choice.
    pub(crate) async fn open(
        cluster: &Cluster,
        replica: &Replica,
        identity: &Identity,
        hello: wire::Hello,
        holding: Holding,
    ) -> Result<Self, Status> {
        let channel = cluster.channel(replica, identity);
        let (out, messages) = mpsc::channel(64);
        let first = wire::NodeMessage {
            seq: 1,
            traceparent: String::new(),
            body: Some(Message::Hello(hello)),
        };
        out.send(first).await.unwrap();
        let mut client = wire::node_ipam_client::NodeIpamClient::new(channel);
        let commands = client
            .session(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self {
            holding,
            states: BTreeMap::new(),
            welcome: None,
            heard: Vec::new(),
            out,
            commands,
            sequence: 1,
            wholes: 0,
        })
    }

    /// Opens a session and hears the welcome.
    pub(crate) async fn join(cluster: &Cluster, replica: &Replica, instance: &str) -> Self {
        Self::rejoin(cluster, replica, instance, Holding::default()).await
    }

    /// Opens a session of a node that holds something, and says what.
    pub(crate) async fn rejoin(
        cluster: &Cluster,
        replica: &Replica,
        instance: &str,
        holding: Holding,
    ) -> Self {
        let identity = Identity::node("c1", instance);
        let mut agent = Self::open(cluster, replica, &identity, hello(instance), holding)
            .await
            .unwrap();
        agent
            .until("welcome", |agent| agent.welcome.is_some())
            .await;
        let shards: BTreeSet<String> = agent
            .holding
            .enis
            .keys()
            .map(|(shard, _)| shard.clone())
            .collect();
        for shard in shards {
            agent.say_inventory(&shard).await;
        }
        agent
    }

    pub(crate) async fn say(&mut self, traceparent: &str, body: Message) {
        self.sequence += 1;
        let message = wire::NodeMessage {
            seq: self.sequence,
            traceparent: traceparent.to_owned(),
            body: Some(body),
        };
        self.out.send(message).await.unwrap();
    }

    pub(crate) async fn say_inventory(&mut self, shard: &str) {
        let enis = self
            .holding
            .enis
            .iter()
            .filter(|((of, _), _)| of == shard)
            .map(|((_, eni), addresses)| wire::HeldEni {
                eni_id: eni.clone(),
                ready: true,
                addresses: granted(addresses),
            })
            .collect();
        self.say(
            "",
            Message::Inventory(wire::Inventory {
                shard: shard.to_owned(),
                enis,
            }),
        )
        .await;
    }

    pub(crate) async fn want(&mut self, shard: &str, pods: u32) {
        self.want_traced(shard, pods, "").await;
    }

    pub(crate) async fn want_traced(&mut self, shard: &str, pods: u32, traceparent: &str) {
        let usage = self
            .holding
            .enis
            .iter()
            .filter(|((of, _), _)| of == shard)
            .map(|((_, eni), addresses)| wire::EniUsage {
                eni_id: eni.clone(),
                bound: addresses
                    .keys()
                    .filter(|ip| self.holding.bound.contains(*ip))
                    .cloned()
                    .collect(),
            })
            .collect();
        let target = wire::Target {
            shard: shard.to_owned(),
            pods,
            urgent: true,
            usage,
            whole_enis: self.wholes,
        };
        self.say(traceparent, Message::Target(target)).await;
    }

    /// Follows commands until `wanted` holds.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let wait = async {
            while !wanted(self) {
                let command = self.commands.message().await.expect("the session lives");
                self.follow(command.expect("the session goes on")).await;
            }
        };
        let result = tokio::time::timeout(PATIENCE, wait).await;
        assert!(
            result.is_ok(),
            "never: {what}: {:#?} {:#?}",
            self.holding,
            self.states
        );
    }

    /// The status by which the session ends.
    pub(crate) async fn end(&mut self) -> Option<Status> {
        let wait = async {
            loop {
                match self.commands.message().await {
                    Ok(Some(command)) => self.follow(command).await,
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the session ends")
    }

    async fn follow(&mut self, command: wire::NodeCommand) {
        self.heard.push(command.clone());
        match command.body.expect("a body") {
            Command::Welcome(welcome) => self.welcome = Some(welcome),
            Command::EniAttached(attached) => {
                let key = (attached.shard.clone(), attached.eni_id.clone());
                self.holding.enis.entry(key).or_default();
                self.take(&attached.shard, &attached.eni_id, &attached.addresses);
                let ready = wire::EniReady {
                    shard: attached.shard,
                    eni_id: attached.eni_id,
                };
                self.say("", Message::EniReady(ready)).await;
            }
            Command::Grant(grant) => self.take(&grant.shard, &grant.eni_id, &grant.addresses),
            Command::Revoke(revoke) => self.revoke(revoke).await,
            Command::RemoveEni(remove) => {
                let left = self
                    .holding
                    .enis
                    .remove(&(remove.shard.clone(), remove.eni_id.clone()));
                assert!(
                    left.unwrap_or_default()
                        .keys()
                        .all(|ip| !self.holding.bound.contains(ip)),
                    "an ENI with sandboxes was taken away"
                );
                let removed = wire::EniRemoved {
                    shard: remove.shard,
                    eni_id: remove.eni_id,
                };
                self.say("", Message::EniRemoved(removed)).await;
            }
            Command::ShardState(state) => {
                self.states.insert(state.shard.clone(), state);
            }
            Command::NotOwner(_) | Command::Drain(_) => {}
        }
    }

    fn take(&mut self, shard: &str, eni: &str, addresses: &[GrantedAddress]) {
        let held = self
            .holding
            .enis
            .entry((shard.to_owned(), eni.to_owned()))
            .or_default();
        for address in addresses {
            let revoked = self.holding.revoked.get(&address.ip).copied().unwrap_or(0);
            if address.generation > revoked {
                let known = held.entry(address.ip.clone()).or_default();
                *known = (*known).max(address.generation);
            }
        }
    }

    async fn revoke(&mut self, revoke: wire::Revoke) {
        let key = (revoke.shard.clone(), revoke.eni_id.clone());
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for address in &revoke.addresses {
            if self.holding.bound.contains(&address.ip) {
                refused.push(address.ip.clone());
                continue;
            }
            if let Some(held) = self.holding.enis.get_mut(&key) {
                held.remove(&address.ip);
            }
            self.holding
                .revoked
                .insert(address.ip.clone(), revoke.revoke_id);
            accepted.push(address.ip.clone());
        }
        let ack = wire::RevokeAck {
            shard: revoke.shard,
            revoke_id: revoke.revoke_id,
            accepted,
            refused,
        };
        self.say("", Message::RevokeAck(ack)).await;
    }

    /// IPv4 addresses that the node may use.
    pub(crate) fn v4(&self) -> BTreeSet<String> {
        let all = self.holding.enis.values().flat_map(BTreeMap::keys);
        all.filter(|ip| !ip.contains(':')).cloned().collect()
    }

    /// IPv6 addresses that the node may use.
    pub(crate) fn v6(&self) -> BTreeSet<String> {
        let all = self.holding.enis.values().flat_map(BTreeMap::keys);
        all.filter(|ip| ip.contains(':')).cloned().collect()
    }

    /// ENIs that the node has.
    pub(crate) fn enis(&self) -> BTreeSet<String> {
        self.holding
            .enis
            .keys()
            .map(|(_, eni)| eni.clone())
            .collect()
    }

    /// Why a shard gives no more; empty if it does.
    pub(crate) fn reason(&self, shard: &str) -> &'static str {
        self.states
            .get(shard)
            .map(wire::ShardState::reason)
            .filter(|reason| *reason != proto::types::v1::Reason::Unspecified)
            .map_or("", |reason| reason.as_str_name())
    }
}

fn granted(addresses: &BTreeMap<String, u64>) -> Vec<GrantedAddress> {
    addresses
        .iter()
        .map(|(ip, generation)| GrantedAddress {
            ip: ip.clone(),
            generation: *generation,
        })
        .collect()
}
