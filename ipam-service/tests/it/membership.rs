//! Membership on all stores: who claims, who takes over, who gives away.

use std::sync::Arc;
use std::time::Duration;

use ipam_service::log::keys::Keys;
use ipam_service::log::kv::Kv;
use ipam_service::log::memory::MemoryKv;
use ipam_service::log::redb::RedbKv;
use ipam_service::log::shards::KvLog;
use ipam_service::log::{Claim, ShardLog};
use ipam_service::membership::{Advert, Membership, MembershipError, Plan, ShardEntry, Timing};
use mesh::drain::Drain;
use mesh::tasks::Tasks;
use tokio::sync::watch;

use crate::etcd as server;

/// Short enough not to be waited for, long enough for a busy machine.
fn timing() -> Timing {
    Timing {
        session_ttl: Duration::from_secs(2),
        renew_every: Duration::from_millis(300),
        stop_after: Duration::from_secs(1),
        poll_every: Duration::from_millis(50),
        claim_step: Duration::from_millis(20),
        rebalance_after: Duration::from_millis(100),
    }
}

fn entries(count: u32) -> Vec<ShardEntry> {
    let entry = |index| ShardEntry {
        shard: format!("vsw-a.{index}").parse().unwrap(),
        zone: "z".parse().unwrap(),
        ipv4: Some(format!("10.0.{index}.0/24").parse().unwrap()),
        ipv6: None,
    };
    (0..count).map(entry).collect()
}

/// A replica with its tasks.
struct Running {
    membership: Membership,
    log: KvLog,
    tasks: Tasks,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

async fn join(kv: &Arc<dyn Kv>, name: &str) -> Running {
    let keys = Keys::new("/members/").unwrap();
    let tasks = Tasks::new(Drain::new());
    let advert = Advert {
        id: name.parse().unwrap(),
        address: format!("{name}:7301"),
        zone: None,
        capacity: 1,
    };
    let membership = Membership::join(Arc::clone(kv), keys.clone(), advert, timing(), &tasks)
        .await
        .unwrap();
    Running {
        membership,
        log: KvLog::new(Arc::clone(kv), keys),
        tasks,
    }
}

/// Waits until `holds`, at most half a minute.
async fn until<T: std::fmt::Debug + Sync + Send>(
    what: &str,
    level: &mut watch::Receiver<T>,
    holds: impl FnMut(&T) -> bool,
) {
    let wait = tokio::time::timeout(Duration::from_secs(30), level.wait_for(holds)).await;
    assert!(wait.is_ok(), "not within 30 s: {what}");
}

/// Claims what the plan wants until all of `count` shards are owned here.
async fn claim_all(running: &Running, count: usize) -> Vec<Claim> {
    let mut plan = running.membership.plan();
    until("all shards may be claimed", &mut plan, |plan: &Plan| {
        plan.claim.len() == count
    })
    .await;
    let wanted = plan.borrow().claim.clone();
    let mut claims = Vec::new();
    for shard in wanted {
        claims.push(
            running
                .log
                .claim(&shard, &running.membership.me())
                .await
                .unwrap(),
        );
    }
    running.membership.refresh().await.unwrap();
    claims
}

async fn lone_replica_claims_everything(kv: Arc<dyn Kv>) {
    let one = join(&kv, "ipam-0").await;
    one.membership.ensure_map(&entries(4)).await.unwrap();

    claim_all(&one, 4).await;

    let seen = one.membership.ownership().borrow().clone();
    assert_eq!(seen.owners.len(), 4);
    assert!(
        seen.owners
            .values()
            .all(|o| o.replica == one.membership.me())
    );
    assert!(one.membership.is_live());
}

async fn map_with_other_ranges_is_refused(kv: Arc<dyn Kv>) {
    let one = join(&kv, "ipam-0").await;
    one.membership.ensure_map(&entries(2)).await.unwrap();
    one.membership.ensure_map(&entries(4)).await.unwrap();
    let mut other = entries(3);
    other[2].ipv4 = Some("10.9.0.0/24".parse().unwrap());

    let err = one.membership.ensure_map(&other).await.unwrap_err();

    let shard = other[2].shard.clone();
    assert_eq!(err, MembershipError::OtherRanges { shard });
    assert_eq!(one.membership.ownership().borrow().shards.len(), 4);
}

async fn shards_of_a_dead_replica_go_to_the_living(kv: Arc<dyn Kv>) {
    let one = join(&kv, "ipam-0").await;
    one.membership.ensure_map(&entries(3)).await.unwrap();
    claim_all(&one, 3).await;
    let two = join(&kv, "ipam-1").await;

    kv.close_session(one.membership.me().session).await.unwrap();
    // Its tasks end too: else it would come back with a new session.
    one.tasks.drain().stop();
    let claims = claim_all(&two, 3).await;

    assert_eq!(claims.len(), 3);
    let seen = two.membership.ownership().borrow().clone();
    assert!(
        seen.owners
            .values()
            .all(|o| o.replica.id.as_str() == "ipam-1")
    );
}

async fn replica_that_lost_its_session_comes_back_with_another(kv: Arc<dyn Kv>) {
    let one = join(&kv, "ipam-0").await;
    let before = one.membership.me();

    kv.close_session(before.session).await.unwrap();

    let id = before.id.clone();
    until("a new session", &mut one.membership.ownership(), |seen| {
        seen.members
            .get(&id)
            .is_some_and(|m| m.replica.session != before.session)
    })
    .await;
    assert_ne!(one.membership.me().session, before.session);
}

// R: rolling update without a gap.
async fn draining_replica_gives_its_shards_to_the_other(kv: Arc<dyn Kv>) {
    let one = join(&kv, "ipam-0").await;
    one.membership.ensure_map(&entries(3)).await.unwrap();
    let claims = claim_all(&one, 3).await;
    let two = join(&kv, "ipam-1").await;

    let mut plan = one.membership.plan();
    one.membership.refresh().await.unwrap();
    one.membership.drain().await.unwrap();
    until("everything is to be given away", &mut plan, |plan| {
        plan.give.len() == 3
    })
    .await;
    let give = plan.borrow().give.clone();
    for claim in claims {
        let to = give[&claim.fence.shard].clone().unwrap();
        one.log.transfer(&claim.fence, &to).await.unwrap();
    }
    one.membership.leave().await.unwrap();

    claim_all(&two, 3).await;
    let seen = two.membership.ownership().borrow().clone();
    assert_eq!(seen.members.len(), 1);
    assert!(
        seen.owners
            .values()
            .all(|o| o.replica == two.membership.me())
    );
}

macro_rules! on_every_store {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::$case(super::Arc::new(super::MemoryKv::new())).await;
            })*
        }

        mod redb {
            $(#[tokio::test]
            async fn $case() {
                let dir = tempfile::tempdir().unwrap();
                let kv = super::RedbKv::open(&dir.path().join("ipam.redb")).unwrap();
                super::$case(super::Arc::new(kv)).await;
            })*
        }

        mod etcd {
            $(#[tokio::test]
            async fn $case() {
                // One of its own: members are known below one prefix.
                let etcd = super::server::Server::start();
                let kv = super::server::client(vec![etcd.url()]).await;
                super::server::until_ready(&kv).await;
                super::$case(super::Arc::new(kv)).await;
            })*
        }
    };
}

on_every_store! {
    lone_replica_claims_everything
    map_with_other_ranges_is_refused
    shards_of_a_dead_replica_go_to_the_living
    replica_that_lost_its_session_comes_back_with_another
    draining_replica_gives_its_shards_to_the_other
}

// Only etcd counts time: the others end sessions with their process.
#[tokio::test]
async fn shards_of_a_silent_replica_are_free_after_the_session_has_run_out() {
    let etcd = server::shared();
    let kv: Arc<dyn Kv> = Arc::new(server::client(vec![etcd.url()]).await);
    server::until_ready(&*kv).await;
    let one = join(&kv, "ipam-0").await;
    one.membership.ensure_map(&entries(2)).await.unwrap();
    claim_all(&one, 2).await;
    let two = join(&kv, "ipam-1").await;

    one.tasks.drain().stop();
    claim_all(&two, 2).await;

    assert!(
        !one.membership.is_live(),
        "it must be silent before its shards are free"
    );
}
