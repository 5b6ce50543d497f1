//! The replicas of a store as each of them sees them, and the tasks that keep the view fresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::cloud::ZoneId;
use types::op::ShardId;

use super::claims::Turns;
use super::session::Session;
use super::{Advert, Member, MembershipError, Ownership, Plan, ShardEntry, Timing};
use crate::log::keys::Keys;
use crate::log::kv::{Compare, KeyValue, Kv, KvError, Op, Txn, TxnReply};
use crate::log::{Owner, Replica, shards};

/// Tries to write the map when others write it too.
const MAP_TRIES: u32 = 8;

/// A failed renewal is tried again after this fraction of the usual time.
const RENEW_AGAIN: u32 = 4;

pub(super) struct Inner {
    kv: Arc<dyn Kv>,
    keys: Keys,
    pub(super) advert: Advert,
    timing: Timing,
    pub(super) session: Session,
    draining: AtomicBool,
    pub(super) ownership: watch::Sender<Ownership>,
    pub(super) plan: watch::Sender<Plan>,
    /// Held over a whole read, so that an older picture never replaces a newer one.
    view: Mutex<View>,
}

#[derive(Default)]
struct View {
    turns: Turns,
    again: Option<Instant>,
}

/// The value of `mem/<replica>`.
#[derive(Serialize, Deserialize)]
struct Card {
    replica: Replica,
    zone: Option<ZoneId>,
    capacity: u32,
    draining: bool,
}

/// The value of `map`.
#[derive(Default, Serialize, Deserialize)]
struct Map {
    shards: Vec<ShardEntry>,
}

impl Inner {
    pub(super) async fn join(
        kv: Arc<dyn Kv>,
        keys: Keys,
        advert: Advert,
        timing: Timing,
    ) -> Result<Arc<Self>, MembershipError> {
        let session = Session::open(
            &*kv,
            advert.id.clone(),
            advert.address.clone(),
            timing.session_ttl,
            timing.stop_after,
        )
        .await
        .map_err(unavailable)?;
        let inner = Arc::new(Self {
            kv,
            keys,
            advert,
            timing,
            session,
            draining: AtomicBool::new(false),
            ownership: watch::Sender::new(Ownership::default()),
            plan: watch::Sender::new(Plan::default()),
            view: Mutex::default(),
        });
        inner.announce().await?;
        inner.refresh().await?;
        Ok(inner)
    }

    pub(super) fn start(self: &Arc<Self>, tasks: &mesh::tasks::Tasks) {
        let renewer = Arc::clone(self);
        let stopping = tasks.stopping();
        tasks.spawn(
            "ipam session",
            async move { renewer.renew_loop(stopping).await },
        );
        let reader = Arc::clone(self);
        let stopping = tasks.stopping();
        tasks.spawn("ipam membership", async move {
            reader.read_loop(stopping).await;
        });
    }

    async fn renew_loop(&self, stopping: CancellationToken) {
        let mut pause = self.timing.renew_every;
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match self.renew().await {
                Ok(()) => self.timing.renew_every,
                Err(err) => {
                    tracing::warn!(error = %err, live = self.session.is_live(Instant::now()), "session not renewed");
                    self.timing.renew_every / RENEW_AGAIN
                }
            };
        }
    }

    async fn renew(&self) -> Result<(), MembershipError> {
        match self.session.renew(&*self.kv).await {
            Ok(()) => return Ok(()),
            Err(KvError::SessionEnded) => {}
            Err(err) => return Err(unavailable(err)),
        }
        tracing::warn!("the session ended; everything owned is lost, a new one is opened");
        self.session
            .reopen(&*self.kv, self.timing.session_ttl)
            .await
            .map_err(unavailable)?;
        self.announce().await?;
        self.refresh().await
    }

    async fn read_loop(&self, stopping: CancellationToken) {
        loop {
            let turn = Instant::now() + self.timing.poll_every;
            let again = self.view.lock().await.again;
            let wake = again.map_or(turn, |again| again.min(turn));
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = tokio::time::sleep_until(wake) => {}
            }
            if let Err(err) = self.refresh().await {
                tracing::warn!(error = %err, "members and owners not read");
                // A turn that is due already must not make this loop spin on a store that is down.
                self.view.lock().await.again = None;
            }
        }
    }

    /// Writes the card of this replica under the present session.
    async fn announce(&self) -> Result<(), MembershipError> {
        let me = self.session.me();
        let card = Card {
            replica: me.clone(),
            zone: self.advert.zone.clone(),
            capacity: self.advert.capacity.max(1),
            draining: self.draining.load(Ordering::Relaxed),
        };
        let put = Op::Put {
            key: self.keys.member(&me.id),
            value: to_json(&card)?,
            session: Some(me.session),
        };
        let txn = Txn {
            then: vec![put],
            ..Txn::default()
        };
        self.kv.txn(txn).await.map_err(unavailable)?;
        Ok(())
    }

    pub(super) async fn refresh(&self) -> Result<(), MembershipError> {
        let mut view = self.view.lock().await;
        let reads = vec![
            Op::prefix(&self.keys.member_all()),
            Op::prefix(&self.keys.own_all()),
            Op::Get(self.keys.map()),
        ];
        let reply = self.kv.txn(Txn::read(reads)).await.map_err(unavailable)?;
        let seen = self.picture(&reply)?;
        let me = self.session.me();
        if let Some(card) = seen.members.get(&me.id)
            && card.replica.session != me.session
        {
            tracing::error!(replica = %me.id, "another process uses the name of this replica");
        }

        let step = self.chance();
        let next = view
            .turns
            .next(Instant::now(), &seen, &me.id, &self.timing, |_| step);
        view.again = next.again;
        self.ownership.send_if_modified(|old| {
            let changed = old.members != seen.members
                || old.shards != seen.shards
                || old.owners != seen.owners
                || old.version == 0;
            if changed {
                *old = seen;
            }
            changed
        });
        self.plan.send_if_modified(|old| {
            let changed = *old != next.plan;
            if changed {
                *old = next.plan;
            }
            changed
        });
        Ok(())
    }

    /// The same for the life of a session: a turn that moved at each look would never come.
    fn chance(&self) -> u8 {
        let me = self.session.me();
        let mut hash = crc32c::crc32c(me.id.as_str().as_bytes());
        hash = crc32c::crc32c_append(hash, &me.session.0.to_le_bytes());
        hash.to_le_bytes().first().copied().unwrap_or(0)
    }

    fn picture(&self, reply: &TxnReply) -> Result<Ownership, MembershipError> {
        let mut seen = Ownership {
            version: reply.revision,
            ..Ownership::default()
        };
        let [members, owners, map] = &*reply.reads else {
            return Err(MembershipError::Unavailable("reads are missing".to_owned()));
        };
        for found in members {
            let card: Card = from_json(found)?;
            let member = Member {
                replica: card.replica,
                zone: card.zone,
                capacity: card.capacity,
                draining: card.draining,
            };
            seen.members.insert(member.replica.id.clone(), member);
        }
        for found in owners {
            if let Some((shard, owner)) = self.owner(found)? {
                seen.owners.insert(shard, owner);
            }
        }
        if let Some(found) = map.first() {
            let map: Map = from_json(found)?;
            seen.shards = by_id(map.shards);
        }
        Ok(seen)
    }

    fn owner(&self, found: &KeyValue) -> Result<Option<(ShardId, Owner)>, MembershipError> {
        let corrupt = |why: String| MembershipError::Corrupt {
            key: found.key.clone(),
            why,
        };
        let name = found
            .key
            .strip_prefix(&self.keys.own_all())
            .unwrap_or_default();
        let shard = name.parse().map_err(|err| corrupt(format!("{err}")))?;
        let owner = shards::read_owner(Some(found)).map_err(corrupt)?;
        Ok(owner.map(|owner| (shard, owner)))
    }

    pub(super) async fn ensure_map(&self, entries: &[ShardEntry]) -> Result<(), MembershipError> {
        for _ in 0..MAP_TRIES {
            let key = self.keys.map();
            let read = Txn::read(vec![Op::Get(key.clone())]);
            let reply = self.kv.txn(read).await.map_err(unavailable)?;
            let found = reply.reads.first().and_then(|found| found.first());
            let revision = found.map_or(0, |found| found.mod_revision);
            let mut shards = match found {
                Some(found) => by_id(from_json::<Map>(found)?.shards),
                None => BTreeMap::new(),
            };
            if !merge(&mut shards, entries)? {
                return self.refresh().await;
            }
            let map = Map {
                shards: shards.into_values().collect(),
            };
            let txn = Txn {
                when: vec![Compare::ModRevision(key.clone(), revision)],
                then: vec![Op::Put {
                    key,
                    value: to_json(&map)?,
                    session: None,
                }],
                otherwise: Vec::new(),
            };
            match self.kv.txn(txn).await {
                // Written or not, the next reading tells.
                Ok(_) | Err(KvError::Unknown(_)) => {}
                Err(err) => return Err(unavailable(err)),
            }
        }
        Err(MembershipError::Unavailable(
            "the shard map was changed by others all the time".to_owned(),
        ))
    }

    pub(super) async fn drain(&self) -> Result<(), MembershipError> {
        self.draining.store(true, Ordering::Relaxed);
        self.announce().await?;
        self.refresh().await
    }

    pub(super) async fn leave(&self) -> Result<(), MembershipError> {
        let session = self.session.me().session;
        self.kv.close_session(session).await.map_err(unavailable)
    }
}

fn by_id(entries: Vec<ShardEntry>) -> BTreeMap<ShardId, ShardEntry> {
    entries
        .into_iter()
        .map(|entry| (entry.shard.clone(), entry))
        .collect()
}

/// Adds what is missing; whether anything was.
fn merge(
    shards: &mut BTreeMap<ShardId, ShardEntry>,
    entries: &[ShardEntry],
) -> Result<bool, MembershipError> {
    let mut added = false;
    for entry in entries {
        match shards.get(&entry.shard) {
            None => {
                shards.insert(entry.shard.clone(), entry.clone());
                added = true;
            }
            Some(there) if there == entry => {}
            Some(_) => {
                return Err(MembershipError::OtherRanges {
                    shard: entry.shard.clone(),
                });
            }
        }
    }
    Ok(added)
}

fn to_json<T: Serialize>(value: &T) -> Result<Bytes, MembershipError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|err| MembershipError::Unavailable(format!("cannot be written: {err}")))
}

fn from_json<'a, T: Deserialize<'a>>(found: &'a KeyValue) -> Result<T, MembershipError> {
    serde_json::from_slice(&found.value).map_err(|err| MembershipError::Corrupt {
        key: found.key.clone(),
        why: err.to_string(),
    })
}

fn unavailable(err: impl std::fmt::Display) -> MembershipError {
    MembershipError::Unavailable(err.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, block: &str) -> ShardEntry {
        ShardEntry {
            shard: name.parse().unwrap(),
            zone: "z".parse().unwrap(),
            ipv4: Some(block.parse().unwrap()),
            ipv6: None,
        }
    }

    #[test]
    fn merge_adds_what_is_missing_only() {
        let mut shards = by_id(vec![entry("vsw-a.0", "10.0.0.0/20")]);

        assert_eq!(
            merge(&mut shards, &[entry("vsw-a.0", "10.0.0.0/20")]),
            Ok(false)
        );
        assert_eq!(
            merge(&mut shards, &[entry("vsw-a.1", "10.0.16.0/20")]),
            Ok(true)
        );
        assert_eq!(shards.len(), 2);
    }

    #[test]
    fn merge_of_other_ranges_is_refused_with_the_shards_name() {
        let mut shards = by_id(vec![entry("vsw-a.0", "10.0.0.0/20")]);

        let err = merge(&mut shards, &[entry("vsw-a.0", "10.0.0.0/21")]).unwrap_err();

        assert!(err.to_string().contains("vsw-a.0"));
    }
}
