//! Stories of nodes whose Kubernetes object is gone: what they had comes back with the cloud's word alone.

use std::time::Duration;

use mesh::identity::Identity;
use proto::ipam::v1 as wire;
use proto::ipam::v1::node_command::Body as Command;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::cluster::{Cluster, PATIENCE, Replica};

async fn cluster() -> Cluster {
    let mut cluster = Cluster::new(4, 4).await;
    cluster.extra = "timing.reconcile_age = 50".to_owned();
    cluster
}

async fn ask_as(
    cluster: &Cluster,
    replica: &Replica,
    identity: &Identity,
    named: &str,
) -> Result<wire::NodeGoneResponse, Status> {
    let mut client = wire::nodes_client::NodesClient::new(cluster.channel(replica, identity));
    let request = wire::NodeGoneRequest {
        cluster: named.to_owned(),
        instance_id: "i-a".to_owned(),
    };
    Ok(client.node_gone(request).await?.into_inner())
}

async fn ask(cluster: &Cluster, replica: &Replica) -> wire::NodeGoneResponse {
    ask_as(cluster, replica, &Identity::controller("c1"), "c1")
        .await
        .unwrap()
}

/// Asks as a controller does, again and again, until `wanted`.
async fn until(
    cluster: &Cluster,
    replica: &Replica,
    what: &str,
    wanted: impl Fn(&wire::NodeGoneResponse) -> bool,
) -> wire::NodeGoneResponse {
    let mut last = None;
    let wait = async {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        loop {
            every.tick().await;
            let answer = ask(cluster, replica).await;
            if wanted(&answer) {
                return answer;
            }
            last = Some(answer);
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(answer) => answer,
        Err(late) => panic!("never: {what}: {last:?} ({late})"),
    }
}

/// A node with two ENIs in two shards.
async fn node(cluster: &Cluster, replica: &Replica) -> Agent {
    let mut agent = Agent::join(cluster, replica, "i-a").await;
    agent.want("vsw-a.0", 4).await;
    agent.want("vsw-b.1", 4).await;
    agent
        .until("two ENIs", |agent| {
            agent.v4().len() == 8 && agent.v6().len() == 8
        })
        .await;
    agent
}

// I2: neither a session nor a living instance loses anything.
#[tokio::test]
async fn node_without_an_object_keeps_all_while_its_instance_lives() {
    let cluster = cluster().await;
    let replica = cluster.start("r0").await;
    let agent = node(&cluster, &replica).await;

    let answer = ask(&cluster, &replica).await;
    assert_eq!((answer.done, answer.enis), (false, 2));
    assert!(answer.waits_for.contains("session"), "{answer:?}");

    let holding = agent.holding.clone();
    drop(agent);
    let lives =
        |answer: &wire::NodeGoneResponse| answer.waits_for == "the instance i-a still exists";
    until(&cluster, &replica, "the session is over", lives).await;
    // The cloud says the same as often as it is asked.
    let described = |cluster: &Cluster| cluster.gateway.world().calls["describe_enis"];
    let before = described(&cluster);
    until(&cluster, &replica, "many looks", |answer| {
        assert!(lives(answer), "{answer:?}");
        described(&cluster) > before + 5
    })
    .await;

    let mut back = Agent::rejoin(&cluster, &replica, "i-a", holding.clone()).await;
    back.want("vsw-a.0", 4).await;
    back.want("vsw-b.1", 4).await;
    // Something that is answered after all that was looked at.
    back.want("vsw-b.2", 4).await;
    back.until("a third ENI", |agent| agent.v4().len() == 12)
        .await;
    let lost = back.heard.iter().any(|command| {
        matches!(
            command.body,
            Some(Command::Revoke(_) | Command::RemoveEni(_))
        )
    });
    assert!(!lost, "{:?}", back.heard);
    for (eni, addresses) in &holding.enis {
        assert_eq!(back.holding.enis.get(eni), Some(addresses));
    }
    assert_eq!(cluster.gateway.world().ours().len(), 3);
}

// I6, I7: all of it comes back, and rests.
#[tokio::test]
async fn node_whose_instance_is_gone_gives_everything_back() {
    let cluster = cluster().await;
    let replica = cluster.start("r0").await;
    drop(node(&cluster, &replica).await);
    until(&cluster, &replica, "the session is over", |answer| {
        answer.waits_for.contains("still exists")
    })
    .await;

    cluster.gateway.world().instances.remove("i-a");
    let first = ask(&cluster, &replica).await;
    assert_eq!((first.done, first.enis), (false, 2));
    let done = until(&cluster, &replica, "nothing is left", |answer| answer.done).await;

    assert_eq!((done.enis, done.waits_for.as_str()), (0, ""));
    assert!(cluster.gateway.world().ours().is_empty());
    cluster
        .until_dump(&replica, "all is free", |dumps| {
            dumps.iter().all(|dump| {
                dump.enis.is_empty()
                    && dump.open_ops.is_empty()
                    && dump.slots.iter().all(|s| s.state == "reserved")
            })
        })
        .await;
}

// I2: what the cloud has detached comes back, what it has not stays.
#[tokio::test]
async fn eni_that_is_attached_no_more_comes_back_alone() {
    let cluster = cluster().await;
    let replica = cluster.start("r0").await;
    let agent = node(&cluster, &replica).await;
    let kept: Vec<String> = agent
        .holding
        .enis
        .keys()
        .filter(|(shard, _)| shard == "vsw-b.1")
        .map(|(_, eni)| eni.clone())
        .collect();
    drop(agent);
    {
        let mut world = cluster.gateway.world();
        for eni in world
            .enis
            .values_mut()
            .filter(|eni| !kept.contains(&eni.id))
        {
            eni.instance_id.clear();
            "Available".clone_into(&mut eni.status);
        }
    }

    let left = until(&cluster, &replica, "one is left", |answer| answer.enis == 1).await;

    assert!(
        !left.done && left.waits_for.contains("still exists"),
        "{left:?}"
    );
    let ours: Vec<String> = cluster
        .gateway
        .world()
        .ours()
        .iter()
        .map(|e| e.id.clone())
        .collect();
    assert_eq!(ours, kept);
}

#[tokio::test]
async fn node_that_never_had_anything_is_done_without_a_call() {
    let cluster = cluster().await;
    let replica = cluster.start("r0").await;

    let answer = ask(&cluster, &replica).await;

    assert_eq!(
        answer,
        wire::NodeGoneResponse {
            done: true,
            ..Default::default()
        }
    );
}

// I12.
#[tokio::test]
async fn controller_of_another_cluster_and_a_node_are_refused() {
    let cluster = cluster().await;
    let replica = cluster.start("r0").await;

    for (identity, named) in [
        (Identity::controller("c2"), "c2"),
        (Identity::controller("c1"), "c2"),
        (Identity::node("c1", "i-a"), "c1"),
        (Identity::admin("jane"), "c1"),
    ] {
        let refused = ask_as(&cluster, &replica, &identity, named)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{identity}");
    }
}
