//! Stories of node sessions: grants, growth, shrinking, refusals.

use std::collections::BTreeSet;

use mesh::identity::Identity;
use proto::ipam::v1 as wire;
use proto::ipam::v1::node_command::Body as Command;
use tonic::Code;

use crate::agent::{Agent, Holding, hello};
use crate::cluster::{Cluster, PATIENCE, ZONE};

// I2, I11: what a node is told it may use is on its ENI by the cloud's word, both families alike.
#[tokio::test]
async fn cold_node_gets_a_full_eni_of_both_families() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("vsw-a.0", 4).await;
    agent
        .until("an ENI", |agent| {
            agent.v4().len() == 6 && agent.v6().len() == 6
        })
        .await;

    let welcome = agent.welcome.clone().unwrap();
    assert_eq!((welcome.max_pods, welcome.addresses_per_eni), (12, 6));
    assert!(welcome.ipv4 && welcome.ipv6);
    let enis = cluster.gateway.world().ours();
    let [eni] = enis.as_slice() else {
        panic!("{enis:?}")
    };
    assert_eq!(
        (eni.instance_id.as_str(), eni.status.as_str()),
        ("i-a", "InUse")
    );
    assert_eq!(eni.security_group_ids, ["sg-pod"]);
    assert_eq!(eni.tags["terway.io/cluster"], "c1");
    assert!(
        eni.tags["terway.io/op"].starts_with("vsw-a.0/"),
        "{:?}",
        eni.tags
    );
    assert_eq!(
        eni.ipv4.iter().cloned().collect::<BTreeSet<_>>(),
        agent.v4()
    );
    assert_eq!(
        eni.ipv6.iter().cloned().collect::<BTreeSet<_>>(),
        agent.v6()
    );
    let attached = agent.heard.iter().find_map(|command| match &command.body {
        Some(Command::EniAttached(attached)) => Some(attached.clone()),
        _ => None,
    });
    let attached = attached.unwrap();
    assert_eq!(attached.mac, eni.mac);
    assert_eq!(
        (attached.ipv4_cidr.as_str(), attached.ipv4_gateway.as_str()),
        ("10.1.0.0/24", "10.1.0.253")
    );
    assert_eq!(attached.ipv6_gateway, "2001:db8:1:0:ffff:ffff:ffff:fff7");
    assert_eq!(attached.primary_ip, eni.primary_ip);
}

// I10: never more ENIs than the type allows, whatever is wanted; the node is told why.
#[tokio::test]
async fn node_that_wants_more_grows_to_its_limit() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 6).await;
    agent.until("one ENI", |agent| agent.v4().len() == 6).await;

    agent.want("vsw-a.0", 7).await;
    agent
        .until("two ENIs", |agent| agent.v4().len() == 12)
        .await;
    agent.want("vsw-a.1", 1).await;
    agent
        .until("the limit", |agent| {
            agent.reason("vsw-a.1") == "REASON_ENI_LIMIT"
        })
        .await;

    assert_eq!(cluster.gateway.world().ours().len(), 2);
}

// I10: two shards that plan for one node at the same time share its places.
#[tokio::test]
async fn shards_share_the_places_of_an_instance() {
    let cluster = Cluster::new(4, 4).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    for shard in ["vsw-a.0", "vsw-a.1", "vsw-b.0", "vsw-b.1"] {
        agent.want(shard, 12).await;
    }
    agent
        .until("three ENIs", |agent| agent.enis().len() == 3)
        .await;
    agent
        .until("a limit everywhere", |agent| {
            let shards = ["vsw-a.0", "vsw-a.1", "vsw-b.0", "vsw-b.1"];
            shards
                .iter()
                .filter(|shard| agent.reason(shard) == "REASON_ENI_LIMIT")
                .count()
                >= 3
        })
        .await;

    assert_eq!(cluster.gateway.world().ours().len(), 3);
    let mut places: Vec<u32> = cluster
        .dump(&replica)
        .await
        .iter()
        .flat_map(|dump| &dump.enis)
        .map(|eni| eni.quota_index)
        .collect();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2]);
}

// I6, I7: what a node gives back leaves the cloud, rests, and is free again.
#[tokio::test]
async fn node_that_wants_nothing_gives_its_eni_back() {
    let mut cluster = Cluster::new(3, 6).await;
    cluster.shrink_after = 0;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent.until("an ENI", |agent| agent.v4().len() == 6).await;

    agent.want("vsw-a.0", 0).await;
    agent
        .until("nothing", |agent| agent.enis().is_empty())
        .await;

    cluster
        .until_dump(&replica, "all is free", |dumps| {
            dumps.iter().all(|dump| {
                dump.enis.is_empty()
                    && dump.open_ops.is_empty()
                    && dump.slots.iter().all(|s| s.state == "reserved")
            })
        })
        .await;
    assert!(cluster.gateway.world().ours().is_empty());
    agent.want("vsw-a.0", 4).await;
    agent
        .until("another ENI", |agent| agent.v4().len() == 6)
        .await;
}

// I2: an address that a sandbox uses stays; the others go.
#[tokio::test]
async fn addresses_in_use_stay_when_a_node_shrinks() {
    let mut cluster = Cluster::new(3, 6).await;
    cluster.shrink_after = 0;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 6).await;
    agent
        .until("an ENI", |agent| {
            agent.v4().len() == 6 && agent.v6().len() == 6
        })
        .await;
    let bound: BTreeSet<String> = [
        agent.v4().last().unwrap().clone(),
        agent.v6().last().unwrap().clone(),
    ]
    .into();
    agent.holding.bound.clone_from(&bound);

    agent.want("vsw-a.0", 1).await;
    agent
        .until("few addresses", |agent| {
            agent.v4().len() <= 2 && agent.v6().len() <= 2
        })
        .await;

    assert!(
        bound
            .iter()
            .all(|ip| agent.v4().contains(ip) || agent.v6().contains(ip)),
        "{:?}",
        agent.holding
    );
    cluster
        .until_dump(&replica, "the rest left the cloud", |dumps| {
            let world = cluster.gateway.world();
            let on_eni = world.ours().iter().map(|eni| eni.ipv4.len()).sum::<usize>();
            on_eni <= 2 && dumps.iter().all(|dump| dump.open_ops.is_empty())
        })
        .await;
    let left: BTreeSet<String> = cluster.gateway.world().addresses().into_iter().collect();
    assert!(bound.is_subset(&left), "{bound:?} {left:?}");
}

// I4: a node that comes back with what it holds is told nothing new; one that lost its store is told all.
#[tokio::test]
async fn node_that_comes_back_hears_what_it_lacks() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent
        .until("an ENI", |agent| {
            agent.v4().len() == 6 && agent.v6().len() == 6
        })
        .await;
    let holding = agent.holding.clone();
    drop(agent);

    let mut same = Agent::rejoin(&cluster, &replica, "i-a", holding.clone()).await;
    // Something that is answered after the inventory was looked at.
    same.want("vsw-b.0", 4).await;
    same.until("the answer of another shard", |agent| {
        agent.v4().len() == 12
    })
    .await;
    let told: Vec<_> = same
        .heard
        .iter()
        .filter(|command| matches!(&command.body, Some(Command::EniAttached(a)) if a.shard == "vsw-a.0"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
    drop(same);

    let mut empty = Agent::rejoin(&cluster, &replica, "i-a", Holding::default()).await;
    empty.say_inventory("vsw-a.0").await;
    empty
        .until("all of it", |agent| agent.v4().len() == 6)
        .await;
    assert_eq!(empty.holding.enis, holding.enis);
}

// I2: a node that claims what is another's is told to let go of it.
#[tokio::test]
async fn address_that_is_not_the_nodes_is_asked_back() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut owner = Agent::join(&cluster, &replica, "i-a").await;
    owner.want("vsw-a.0", 4).await;
    owner.until("an ENI", |agent| agent.v4().len() == 6).await;

    let mut thief = Agent::rejoin(&cluster, &replica, "i-b", owner.holding.clone()).await;
    thief
        .until("nothing", |agent| {
            agent.v4().is_empty() && agent.enis().is_empty()
        })
        .await;

    assert_eq!(cluster.gateway.world().ours().len(), 1);
}

#[tokio::test]
async fn exhausted_vswitch_is_said_and_another_one_serves() {
    let cluster = Cluster::new(3, 6).await;
    cluster.gateway.world().exhausted.insert("vsw-a".to_owned());
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("vsw-a.0", 4).await;
    agent
        .until("exhausted", |agent| {
            agent.reason("vsw-a.0") == "REASON_VSWITCH_EXHAUSTED"
        })
        .await;
    assert!(agent.states["vsw-a.0"].retry_after_ms > 0);
    agent.want("vsw-b.2", 4).await;
    agent
        .until("an ENI elsewhere", |agent| agent.v4().len() == 6)
        .await;

    assert!(
        agent.v4().iter().all(|ip| ip.starts_with("10.2.0.")),
        "{:?}",
        agent.v4()
    );
    // Room again: the shard is asked anew after a while.
    cluster.gateway.world().exhausted.clear();
    agent
        .until("served by the first", |agent| agent.v4().len() == 12)
        .await;
    agent
        .until("no complaint", |agent| agent.reason("vsw-a.0").is_empty())
        .await;
}

// I1: in a shared vSwitch an address of somebody else costs one refused call, not a duplicate.
#[tokio::test]
async fn address_of_a_stranger_is_learnt() {
    let cluster = Cluster::new(3, 6).await;
    for ip in ["10.1.0.1", "10.1.0.3"] {
        cluster.gateway.world().add_stranger("vsw-a", ip);
    }
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("vsw-a.0", 4).await;
    agent.until("an ENI", |agent| agent.v4().len() == 6).await;

    assert!(!agent.v4().contains("10.1.0.1") && !agent.v4().contains("10.1.0.3"));
    let dumps = cluster.dump(&replica).await;
    let foreign: Vec<&str> = dumps
        .iter()
        .flat_map(|dump| &dump.slots)
        .filter(|slot| slot.state == "foreign")
        .map(|slot| slot.ip.as_str())
        .collect();
    assert_eq!(foreign, ["10.1.0.1", "10.1.0.3"]);
}

// I12.
#[tokio::test]
async fn node_that_says_it_is_another_is_refused() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let me = Identity::node("c1", "i-a");
    let refused = async |identity: &Identity, hello: wire::Hello| {
        let opened = Agent::open(&cluster, &replica, identity, hello, Holding::default()).await;
        opened.err().expect("refused")
    };

    let other_node = refused(&me, hello("i-b")).await;
    let other_cluster = refused(
        &me,
        wire::Hello {
            cluster: "c2".to_owned(),
            ..hello("i-a")
        },
    )
    .await;
    let foreign = refused(&Identity::node("c2", "i-a"), hello("i-a")).await;
    let no_node = refused(&Identity::gateway("g1"), hello("i-a")).await;

    for status in [other_node, other_cluster, foreign] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert_eq!(
            mesh::status::reason(&status).as_deref(),
            Some("REASON_IDENTITY_MISMATCH")
        );
    }
    assert_eq!(no_node.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn node_that_the_cloud_does_not_know_is_refused() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;

    let identity = Identity::node("c1", "i-ghost");
    let opened = Agent::open(
        &cluster,
        &replica,
        &identity,
        hello("i-ghost"),
        Holding::default(),
    )
    .await;

    let status = opened.err().expect("refused");
    assert_eq!(
        mesh::status::reason(&status).as_deref(),
        Some("REASON_NODE_UNKNOWN")
    );
    assert!(status.message().contains("i-ghost"));
}

#[tokio::test]
async fn newer_session_of_a_node_ends_the_older() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut older = Agent::join(&cluster, &replica, "i-a").await;

    let mut newer = Agent::join(&cluster, &replica, "i-a").await;

    assert_eq!(
        older.end().await.map(|status| status.code()),
        Some(Code::Aborted)
    );
    newer.want("vsw-a.0", 1).await;
    newer.until("an ENI", |agent| agent.v4().len() == 6).await;
}

#[tokio::test]
async fn malformed_message_ends_the_session_and_names_the_field() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("no-shard", 1).await;

    let status = agent.end().await.unwrap();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        mesh::status::metadata(&status, "field").as_deref(),
        Some("shard")
    );
}

#[tokio::test]
async fn shard_of_nobody_is_answered_with_not_owner() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.want("vsw-z.0", 1).await;

    agent
        .until("not owner", |agent| {
            let last = agent.heard.last().and_then(|command| command.body.clone());
            matches!(last, Some(Command::NotOwner(no)) if no.shard == "vsw-z.0")
        })
        .await;
}

#[tokio::test]
async fn routes_follow_the_order_of_the_vswitches() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let channel = cluster.channel(&replica, &Identity::node("c1", "i-a"));
    let mut client = wire::routing_client::RoutingClient::new(channel);
    let ask = wire::WatchRoutesRequest {
        cluster: "c1".to_owned(),
        instance_id: "i-a".to_owned(),
    };
    let mut stream = client.watch_routes(ask).await.unwrap().into_inner();

    let wait = async {
        loop {
            let update = stream.message().await.unwrap().unwrap();
            if update.routes.len() == 8 && update.routes.iter().all(|route| route.owner == "r0") {
                return update;
            }
        }
    };
    let update = tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("a whole picture");

    let vswitches: Vec<&str> = update
        .routes
        .iter()
        .map(|route| route.vswitch_id.as_str())
        .collect();
    assert_eq!(vswitches, [["vsw-a"; 4], ["vsw-b"; 4]].concat());
    assert!(
        update
            .routes
            .iter()
            .all(|route| route.owner_address == replica.running.address.to_string())
    );
    assert!(update.routes.iter().all(|route| route.zone_id == ZONE));
    let other = wire::WatchRoutesRequest {
        cluster: "c1".to_owned(),
        instance_id: "i-b".to_owned(),
    };
    let status = client
        .watch_routes(other)
        .await
        .expect_err("I12: another node's routes");
    assert_eq!(status.code(), Code::PermissionDenied);
}

// I7: an instance that the cloud does not know any more gives its addresses back without an answer of its own.
#[tokio::test]
async fn addresses_of_a_gone_instance_come_back() {
    let mut cluster = Cluster::new(3, 6).await;
    cluster.extra =
        "timing.reconcile_every = 50\ntiming.reconcile_age = 20\ntiming.facts = 10".to_owned();
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent.until("an ENI", |agent| agent.v4().len() == 6).await;
    drop(agent);

    cluster.gateway.world().instances.remove("i-a");

    cluster
        .until_dump(&replica, "its addresses are free", |dumps| {
            dumps.iter().all(|dump| {
                dump.enis.is_empty() && dump.slots.iter().all(|s| s.state == "reserved")
            })
        })
        .await;
    assert!(cluster.gateway.world().ours().is_empty());
}

// I7: an ENI of ours in no books goes, one of somebody else stays.
#[tokio::test]
async fn orphan_of_ours_is_deleted_and_a_stranger_is_not() {
    let mut cluster = Cluster::new(3, 6).await;
    cluster.extra = "timing.reconcile_every = 50\ntiming.reconcile_age = 20".to_owned();
    cluster.gateway.world().add_stranger("vsw-a", "10.1.0.200");
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent.until("an ENI", |agent| agent.v4().len() == 6).await;
    {
        let mut world = cluster.gateway.world();
        let mut orphan = world.ours().remove(0);
        orphan.id = "eni-orphan".to_owned();
        orphan.status = "Available".to_owned();
        orphan.instance_id.clear();
        orphan.ipv4 = vec!["10.1.0.50".to_owned()];
        orphan.ipv6.clear();
        // Made by an operation that was given up: a record that is no ENI's.
        orphan
            .tags
            .insert("terway.io/op".to_owned(), "vsw-a.0/2".to_owned());
        world.enis.insert(orphan.id.clone(), orphan);
    }

    let gone = async {
        loop {
            if !cluster.gateway.world().enis.contains_key("eni-orphan") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the orphan is deleted");

    assert_eq!(cluster.gateway.world().ours().len(), 1);
    assert_eq!(cluster.gateway.world().enis.len(), 2);
}

// A cold ADD is one trace: the node's, through the call to the gateway, and back to the node.
#[tokio::test]
async fn trace_of_a_target_goes_to_the_cloud_and_back() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;
    let trace = "0af7651916cd43dd8448eb211c80319c";

    agent
        .want_traced("vsw-a.0", 4, &format!("00-{trace}-b7ad6b7169203331-01"))
        .await;
    agent.until("an ENI", |agent| agent.v4().len() == 6).await;

    assert!(
        cluster
            .gateway
            .world()
            .traces
            .iter()
            .all(|t| t.contains(trace))
    );
    assert_eq!(cluster.gateway.world().traces.len(), 1);
    let attached = agent
        .heard
        .iter()
        .find(|c| matches!(c.body, Some(Command::EniAttached(_))))
        .unwrap();
    assert!(
        attached.traceparent.contains(trace),
        "{:?}",
        attached.traceparent
    );
}
