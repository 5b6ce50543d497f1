//! Replicas that die between any two steps: the next one ends what was begun, once.

use std::collections::BTreeSet;

use crate::agent::{Agent, Holding};
use crate::cloud::Side;
use crate::cluster::Cluster;

fn distinct(addresses: &[String]) -> bool {
    addresses.iter().collect::<BTreeSet<_>>().len() == addresses.len()
}

// I4, I8: an ENI that was on its way when the replica died is finished by the next one: one ENI, no address twice.
#[tokio::test]
async fn bring_up_survives_a_crash_around_each_call() {
    for spot in [
        ("create", Side::Before),
        ("create", Side::After),
        ("attach", Side::Before),
        ("attach", Side::After),
    ] {
        let cluster = Cluster::new(3, 6).await;
        let first = cluster.start("r0").await;
        let mut agent = Agent::join(&cluster, &first, "i-a").await;
        cluster.gateway.close(spot);
        agent.want("vsw-a.0", 4).await;
        cluster.gateway.until_reached().await;
        drop(agent);
        first.crash().await;
        cluster.gateway.open();

        let second = cluster.start("r0").await;
        let mut agent = Agent::rejoin(&cluster, &second, "i-a", Holding::default()).await;
        agent.say_inventory("vsw-a.0").await;
        agent
            .until("an ENI", |agent| {
                agent.v4().len() == 6 && agent.v6().len() == 6
            })
            .await;

        assert_eq!(cluster.gateway.world().ours().len(), 1, "{spot:?}");
        assert!(distinct(&cluster.gateway.world().addresses()), "{spot:?}");
    }
}

// I8: the same for an ENI on its way out.
#[tokio::test]
async fn removal_survives_a_crash_around_each_call() {
    for spot in [
        ("detach", Side::Before),
        ("detach", Side::After),
        ("delete", Side::Before),
        ("delete", Side::After),
    ] {
        let mut cluster = Cluster::new(3, 6).await;
        cluster.shrink_after = 0;
        let first = cluster.start("r0").await;
        let mut agent = Agent::join(&cluster, &first, "i-a").await;
        agent.want("vsw-a.0", 4).await;
        agent.until("an ENI", |agent| agent.v4().len() == 6).await;
        cluster.gateway.close(spot);
        agent.want("vsw-a.0", 0).await;
        agent
            .until("nothing", |agent| agent.enis().is_empty())
            .await;
        cluster.gateway.until_reached().await;
        first.crash().await;
        cluster.gateway.open();

        let second = cluster.start("r0").await;
        cluster
            .until_dump(&second, "all is free", |dumps| {
                dumps.iter().all(|dump| {
                    dump.enis.is_empty() && dump.slots.iter().all(|s| s.state == "reserved")
                })
            })
            .await;

        assert!(cluster.gateway.world().ours().is_empty(), "{spot:?}");
    }
}

// I4: a call whose answer is lost is repeated with the same key, until its outcome is known.
#[tokio::test]
async fn lost_answers_lead_to_one_eni() {
    let mut cluster = Cluster::new(3, 16).await;
    cluster.shrink_after = 300;
    for call in ["create", "attach", "assign", "detach", "delete", "unassign"] {
        cluster.gateway.world().lose.insert(call, 2);
    }
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("vsw-a.0", 14).await;
    agent
        .until("a full ENI", |agent| {
            agent.v4().len() == 16 && agent.v6().len() == 16
        })
        .await;
    assert_eq!(cluster.gateway.world().ours().len(), 1);
    assert!(distinct(&cluster.gateway.world().addresses()));
    agent.want("vsw-a.0", 0).await;
    agent
        .until("nothing", |agent| agent.enis().is_empty())
        .await;

    cluster
        .until_dump(&replica, "no ENI", |dumps| {
            dumps.iter().all(|dump| dump.enis.is_empty())
        })
        .await;
    assert!(cluster.gateway.world().ours().is_empty());
}

// I1, I9: the first life of a replica that was thought dead can write and call nothing any more.
#[tokio::test]
async fn owner_that_was_replaced_is_fenced() {
    let cluster = Cluster::new(3, 6).await;
    let first = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &first, "i-a").await;
    cluster.gateway.close(("create", Side::Before));
    agent.want("vsw-a.0", 4).await;
    cluster.gateway.until_reached().await;

    let second = cluster.start("r0").await;
    let mut fresh = Agent::rejoin(&cluster, &second, "i-a", Holding::default()).await;
    fresh.say_inventory("vsw-a.0").await;
    cluster.gateway.open();
    fresh.until("an ENI", |agent| agent.v4().len() == 6).await;
    agent.want("vsw-a.0", 12).await;

    let mut owned = first.running.replica.watch();
    let lost = owned.wait_for(|owned| !owned.keys().any(|shard| shard.to_string() == "vsw-a.0"));
    tokio::time::timeout(crate::cluster::PATIENCE, lost)
        .await
        .expect("the first life is fenced")
        .unwrap();
    assert_eq!(cluster.gateway.world().ours().len(), 1);
    assert!(distinct(&cluster.gateway.world().addresses()));
}

// I7: a replica that goes gives its shards to the one that stays, and the node's addresses stay.
#[tokio::test]
async fn shards_move_to_the_replica_that_stays() {
    let cluster = Cluster::new(3, 6).await;
    let first = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &first, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent
        .until("an ENI", |agent| {
            agent.v4().len() == 6 && agent.v6().len() == 6
        })
        .await;
    let holding = agent.holding.clone();

    let second = cluster.try_start("r1").await.unwrap();
    first.running.replica.give_up().await;
    let mut owned = second.running.replica.watch();
    let all = owned.wait_for(|owned| owned.len() == 8);
    tokio::time::timeout(crate::cluster::PATIENCE, all)
        .await
        .expect("all shards move")
        .unwrap();
    let mut agent = Agent::rejoin(&cluster, &second, "i-a", holding.clone()).await;
    agent.want("vsw-a.0", 7).await;
    agent
        .until("growth by the new owner", |agent| agent.v4().len() == 12)
        .await;

    assert!(
        holding
            .enis
            .keys()
            .all(|key| agent.holding.enis.contains_key(key))
    );
    assert!(distinct(&cluster.gateway.world().addresses()));
}
