//! A cluster of three whose leader is killed while an owner appends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipam_service::log::keys::Keys;
use ipam_service::log::kv::Kv;
use ipam_service::log::shards::KvLog;
use ipam_service::log::{AppendError, Batch, Fence, Outcome, Replica, ShardLog};

use crate::etcd::{Server, client, until, until_ready};

/// Appends, settling what is unknown, as an owner does.
async fn append(log: &KvLog, fence: &mut Fence, batch: &Batch) {
    let mut unknown = false;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        if unknown {
            match log.resolve(fence, batch.id).await {
                Ok(Outcome::Committed(head)) => {
                    fence.head = head;
                    return;
                }
                Ok(Outcome::NotCommitted(head)) => {
                    fence.head = head;
                    unknown = false;
                }
                Err(AppendError::Unknown(_) | AppendError::Unavailable(_)) => {}
                Err(err) => panic!("{err}"),
            }
            continue;
        }
        match log.append(fence, batch).await {
            Ok(head) => {
                fence.head = head;
                return;
            }
            Err(AppendError::Unknown(_)) => unknown = true,
            Err(AppendError::Unavailable(_)) => {}
            Err(err) => panic!("{err}"),
        }
    }
}

async fn leader(members: &[Server]) -> Option<usize> {
    for (at, member) in members.iter().enumerate() {
        let mut client = etcd_client::Client::connect([member.url()], None)
            .await
            .ok()?;
        let status = client.status().await.ok()?;
        if status.leader() != 0 && status.header()?.member_id() == status.leader() {
            return Some(at);
        }
    }
    None
}

// I1, I9: a change of leader neither loses nor doubles a record, and the owner stays the owner.
#[tokio::test]
async fn killed_leader_of_etcd_neither_loses_nor_doubles_a_record() {
    let mut members = Server::start_three();
    let kv: Arc<dyn Kv> = Arc::new(client(members.iter().map(Server::url).collect()).await);
    until_ready(&*kv).await;
    until("there is a leader", async || {
        leader(&members).await.is_some()
    })
    .await;
    let log = KvLog::new(Arc::clone(&kv), Keys::new("/quorum/").unwrap());
    let me = Replica {
        id: "ipam-0".parse().unwrap(),
        address: "ipam-0:7301".to_owned(),
        session: kv.open_session(Duration::from_mins(1)).await.unwrap(),
    };
    let mut fence = log
        .claim(&"vsw-q.0".parse().unwrap(), &me)
        .await
        .unwrap()
        .fence;

    let batches: Vec<_> = (0..40_u8)
        .map(|n| Batch::new(vec![Bytes::from(vec![n])]))
        .collect();
    let all = async {
        for (at, batch) in batches.iter().enumerate() {
            if at == 20 {
                // Dropping it kills it.
                let leader = leader(&members).await.unwrap();
                drop(members.remove(leader));
            }
            append(&log, &mut fence, batch).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all)
        .await
        .expect("appends go on within a minute");

    let read = log.read(&fence.shard).await.unwrap();
    let data: Vec<_> = read.tail.into_iter().map(|r| r.data).collect();
    let written: Vec<_> = batches.into_iter().flat_map(|b| b.records).collect();
    assert_eq!(data, written);
    assert_eq!(read.owner.unwrap().epoch, fence.epoch);
}
