//! Stories of sessions whose node wants ENIs for pods of their own.

use std::collections::BTreeSet;

use proto::ipam::v1::EniAttached;
use proto::ipam::v1::node_command::Body as Command;

use crate::agent::Agent;
use crate::cluster::{Cluster, PATIENCE};

fn attached(agent: &Agent) -> Vec<EniAttached> {
    let heard = agent.heard.iter();
    heard
        .filter_map(|command| match &command.body {
            Some(Command::EniAttached(attached)) => Some(attached.clone()),
            _ => None,
        })
        .collect()
}

// I2, I4, I10: one address of each family, marked as one pod's; said again it is the same; beside the pool's.
#[tokio::test]
async fn node_gets_a_whole_eni_beside_its_pool_and_gives_it_back() {
    let cluster = Cluster::new(3, 6).await;
    let replica = cluster.start("r0").await;
    let mut agent = Agent::join(&cluster, &replica, "i-a").await;

    agent.wholes = 1;
    for _ in 0..3 {
        agent.want("vsw-a.0", 6).await;
    }
    agent
        .until("both ENIs", |agent| {
            agent.v4().len() == 7 && agent.v6().len() == 7
        })
        .await;

    let told = attached(&agent);
    let whole: Vec<_> = told.iter().filter(|eni| eni.whole).collect();
    let [eni] = whole.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!((told.len(), eni.addresses.len()), (2, 2));
    let dumps = cluster.dump(&replica).await;
    let marked: Vec<_> = dumps.iter().flat_map(|dump| &dump.enis).collect();
    assert_eq!(marked.iter().filter(|eni| eni.whole).count(), 1);
    let places: BTreeSet<u32> = marked.iter().map(|eni| eni.quota_index).collect();
    assert_eq!(places, BTreeSet::from([0, 1]));

    // In use it stays, whatever is wanted.
    let own: BTreeSet<String> = eni.addresses.iter().map(|a| a.ip.clone()).collect();
    agent.holding.bound.clone_from(&own);
    agent.wholes = 0;
    agent.want("vsw-a.0", 6).await;
    // Something that is answered after that was looked at.
    agent.want("vsw-a.1", 1).await;
    agent
        .until("the limit", |agent| {
            agent.reason("vsw-a.1") == "REASON_ENI_LIMIT"
        })
        .await;
    assert!(
        own.iter()
            .all(|ip| agent.v4().contains(ip) || agent.v6().contains(ip))
    );

    agent.holding.bound.clear();
    agent.want("vsw-a.1", 0).await;
    agent.want("vsw-a.0", 6).await;
    agent
        .until("one ENI", |agent| agent.enis().len() == 1)
        .await;
    let gone = async {
        let mut every = tokio::time::interval(std::time::Duration::from_millis(20));
        while cluster.gateway.world().ours().len() != 1 {
            every.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the ENI leaves the cloud");
    assert_eq!((agent.v4().len(), agent.v6().len()), (6, 6));
}
