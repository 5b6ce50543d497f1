use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use cluster::documents::{Change, DocumentKey};
use mesh::authz;
use mesh::ca::{Authority, Leaf};
use mesh::client;
use mesh::drain::Drain;
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Address, Bound, Params};
use mesh::tls::{TlsConfig, TlsMaterial};
use policy_core::object::ObjectKey;
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use tonic::service::Routes;

use super::*;
use crate::relay::client::WatchError;
use crate::relay::server::Server;
use crate::relay::source::{Limits, Source};
use crate::relay::wire;

const DAY: Duration = Duration::from_hours(24);
/// Longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_mins(1);

/// A certificate authority, and tasks that end with the test.
struct Site {
    authority: Authority,
    dir: TempDir,
    tasks: Tasks,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

impl Site {
    fn new() -> Self {
        mesh::tls::install_provider();
        Self {
            authority: Authority::new(DAY).unwrap(),
            dir: tempfile::tempdir().unwrap(),
            tasks: Tasks::new(Drain::new()),
        }
    }

    fn tls(&self, identity: &Identity) -> TlsMaterial {
        let dir = self
            .dir
            .path()
            .join(identity.to_string().replace(['/', ':'], "_"));
        let issued = self.authority.issue(&Leaf::new(identity, DAY)).unwrap();
        issued.write(&dir).unwrap();
        TlsMaterial::load(&TlsConfig::in_dir(&dir)).unwrap()
    }

    fn client(&self, identity: &Identity) -> Client {
        Client {
            tls: self.tls(identity),
            params: client::Params::default(),
            cluster: "c1".to_owned(),
            node_name: "n1".to_owned(),
        }
    }

    fn node(&self) -> Client {
        self.client(&Identity::node("c1", "i-1"))
    }

    async fn feed(&self, relay: SocketAddr, fallback: Option<Fallback>) -> Feed {
        let relays = Relays {
            targets: vec![relay.to_string()],
            client: self.node(),
            fallback,
        };
        open(Origin::Relays(relays), &self.tasks, &Registry::new())
            .await
            .unwrap()
    }
}

/// A relay on a port of its own.
struct Running {
    source: Source,
    address: SocketAddr,
    tasks: Tasks,
}

impl Running {
    async fn end(self) {
        self.tasks.drain().stop();
        assert!(self.tasks.wait(PATIENCE).await);
    }
}

async fn relay(site: &Site, source: Source, at: &str) -> Running {
    relay_as(site, source, at, &Identity::relay("r1")).await
}

async fn relay_as(site: &Site, source: Source, at: &str, identity: &Identity) -> Running {
    let tasks = Tasks::new(Drain::new());
    let bound = Bound::tcp(at.parse().unwrap(), site.tls(identity), Params::default());
    let bound = bound.await.unwrap();
    let Address::Tcp(address) = bound.address().clone() else {
        panic!("a unix socket")
    };
    let server = Server::new(source.clone(), "c1", 8, &tasks);
    let metrics = RpcMetrics::register(&Registry::new());
    bound.serve(Routes::new(server), authz::TABLE, &metrics, &tasks);
    Running {
        source,
        address,
        tasks,
    }
}

fn document(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn source_with(names: &[&str]) -> Source {
    let source = Source::new(Limits::default());
    let all: Vec<_> = names.iter().map(|n| Change::Upsert(document(n))).collect();
    source.publish(&all, 0);
    source.set_synced();
    source
}

/// What a reader of a feed knows.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    names: BTreeSet<String>,
    sequence: u64,
    synced: bool,
}

impl View {
    fn take(&mut self, batch: Batch) {
        for event in batch.events {
            match event {
                Event::Upsert(object) => {
                    self.names.insert(name(&wire::key_of(&object)));
                }
                Event::Delete(key) => {
                    self.names.remove(&name(&key));
                }
            }
        }
        (self.sequence, self.synced) = (batch.sequence, batch.synced);
    }

    /// Reads until the feed is in sync and the reader knows exactly these.
    async fn until(&mut self, feed: &mut Feed, names: &[&str]) {
        let wanted: BTreeSet<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let read = async {
            while !self.synced || self.names != wanted {
                self.take(feed.next().await.unwrap());
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
        assert!(in_time, "wanted {wanted:?}, got {self:?}");
    }
}

fn name(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Namespace(name) => name.to_string(),
        other @ (ObjectKey::Pod(_)
        | ObjectKey::Node(_)
        | ObjectKey::ServiceAccount(..)
        | ObjectKey::Policy(_)) => format!("{other:?}"),
    }
}

fn write(dir: &Path, name: &str) {
    let text = document(name).to_string();
    std::fs::write(dir.join(format!("{name}.json")), text).unwrap();
}

#[tokio::test]
async fn folder_is_told_as_events() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a");
    write(dir.path(), "b");
    let place = Place::Folder(dir.path().to_owned());
    let mut feed = open(Origin::Direct(place), &site.tasks, &Registry::new())
        .await
        .unwrap();
    let mut view = View::default();

    view.until(&mut feed, &["a", "b"]).await;
    std::fs::remove_file(dir.path().join("a.json")).unwrap();
    view.until(&mut feed, &["b"]).await;

    assert_eq!(view.sequence, 2);
}

#[tokio::test]
async fn two_agents_of_a_relay_see_the_same_state() {
    let site = Site::new();
    let running = relay(&site, source_with(&["a", "b"]), "127.0.0.1:0").await;
    let (mut one, mut two) = (View::default(), View::default());
    let mut first = site.feed(running.address, None).await;
    one.until(&mut first, &["a", "b"]).await;

    running.source.publish(&[Change::Upsert(document("c"))], 0);
    let gone = DocumentKey::of(&document("a"));
    let sequence = running.source.publish(&[Change::Delete(gone)], 0);
    let mut second = site.feed(running.address, None).await;
    two.until(&mut second, &["b", "c"]).await;
    one.until(&mut first, &["b", "c"]).await;

    assert_eq!(one, two);
    assert_eq!(one.sequence, sequence);
}

#[tokio::test]
async fn frames_that_follow_each_other_are_told_in_fewer_batches_and_in_their_order() {
    let site = Site::new();
    let running = relay(&site, source_with(&[]), "127.0.0.1:0").await;
    let mut feed = site.feed(running.address, None).await;
    View::default().until(&mut feed, &[]).await;

    // Nobody else runs meanwhile: all frames are there before the first is read.
    let mut last = 0;
    for n in 0..300 {
        let name = format!("n{n}");
        last = running
            .source
            .publish(&[Change::Upsert(document(&name))], n);
    }
    let (mut told, mut batches, mut sequence) = (Vec::new(), 0, 0);
    while sequence < last {
        let batch = tokio::time::timeout(PATIENCE, feed.next())
            .await
            .unwrap()
            .unwrap();
        assert!(batch.sequence > sequence && batch.synced);
        (batches, sequence) = (batches + 1, batch.sequence);
        told.extend(batch.events.iter().map(|event| match event {
            Event::Upsert(object) => name(&wire::key_of(object)),
            Event::Delete(key) => panic!("{key:?} is told as deleted"),
        }));
    }

    assert_eq!(told, (0..300).map(|n| format!("n{n}")).collect::<Vec<_>>());
    assert!(batches < 150, "{batches} batches");
}

#[tokio::test]
async fn agent_that_comes_back_learns_what_vanished_meanwhile() {
    let site = Site::new();
    let running = relay(&site, source_with(&["a", "b"]), "127.0.0.1:0").await;
    let at = running.address;
    let mut feed = site.feed(at, None).await;
    let mut view = View::default();
    view.until(&mut feed, &["a", "b"]).await;
    let before = view.sequence;
    running.end().await;

    let _again = relay(&site, source_with(&["b", "c"]), &at.to_string()).await;
    view.until(&mut feed, &["b", "c"]).await;

    assert!(
        view.sequence >= before,
        "sequences fell: {before}, {}",
        view.sequence
    );
}

#[tokio::test]
async fn agent_reads_the_folder_while_no_relay_answers_and_the_relay_when_one_does() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a");
    write(dir.path(), "b");
    let running = relay(&site, source_with(&["z"]), "127.0.0.1:0").await;
    let at = running.address;
    running.end().await;
    let fallback = Fallback {
        place: Place::Folder(dir.path().to_owned()),
        after: Duration::from_millis(50),
    };
    let mut feed = site.feed(at, Some(fallback)).await;
    let mut view = View::default();
    view.until(&mut feed, &["a", "b"]).await;

    let again = relay(&site, source_with(&["b", "c"]), &at.to_string()).await;
    view.until(&mut feed, &["b", "c"]).await;
    again.end().await;

    view.until(&mut feed, &["a", "b"]).await;
}

#[tokio::test]
async fn relay_that_is_not_in_sync_sends_nothing_yet() {
    let site = Site::new();
    let running = relay(&site, Source::new(Limits::default()), "127.0.0.1:0").await;
    let mut feed = site.feed(running.address, None).await;
    running.source.publish(&[Change::Upsert(document("a"))], 0);
    assert_eq!(feed.try_next(), None);

    running.source.set_synced();

    View::default().until(&mut feed, &["a"]).await;
}

#[tokio::test]
async fn stream_that_is_not_read_is_cut_off_and_a_new_one_has_everything() {
    let site = Site::new();
    let source = Source::new(Limits {
        log: 1 << 20,
        ..Limits::default()
    });
    source.set_synced();
    let running = relay(&site, source.clone(), "127.0.0.1:0").await;
    let client = site.node();
    let mut slow = client.watch(&running.address.to_string()).await.unwrap();
    let long = "x".repeat(64 << 10);

    // Far more than connection, queue and log hold together.
    for n in 0..200 {
        let document = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "a", "name": "p"},
            "spec": {"podSelector": {"matchLabels": {"n": n.to_string(), "long": long}}},
        });
        source.publish(&[Change::Upsert(document)], 0);
        tokio::task::yield_now().await;
    }
    let mut newest = 0;
    let end = loop {
        match tokio::time::timeout(PATIENCE, slow.next()).await.unwrap() {
            Ok(Some(frame)) => newest = frame.sequence,
            other => break other,
        }
    };
    let mut again = client.watch(&running.address.to_string()).await.unwrap();
    let first = again.next().await.unwrap().unwrap();

    assert!(
        newest < source.head().sequence,
        "the slow reader got everything"
    );
    let cut = matches!(
        &end,
        Err(WatchError::Status(status)) if status.code() == Code::Aborted
    );
    assert!(cut || matches!(end, Ok(None)), "{end:?}");
    assert_eq!(
        (first.sequence, first.changes.len()),
        (source.head().sequence, 1)
    );
}

#[tokio::test]
async fn only_nodes_of_the_relays_cluster_may_read() {
    let site = Site::new();
    let running = relay(&site, source_with(&["a"]), "127.0.0.1:0").await;
    let at = running.address.to_string();
    for stranger in [
        Identity::node("c2", "i-1"),
        Identity::ipam("r1"),
        Identity::admin("jane"),
        Identity::relay("r2"),
    ] {
        let refused = site.client(&stranger).watch(&at).await.unwrap_err();

        let denied = matches!(
            &refused,
            WatchError::Status(status) if status.code() == Code::PermissionDenied
        );
        assert!(denied, "{stranger}: {refused:?}");
    }
    let mut other = site.node();
    other.cluster = "c2".to_owned();
    assert!(other.watch(&at).await.is_err());
}

#[tokio::test]
async fn agent_does_not_believe_a_relay_without_a_relays_name() {
    let site = Site::new();
    let identity = Identity::node("c1", "i-9");
    let running = relay_as(&site, source_with(&["a"]), "127.0.0.1:0", &identity).await;

    let refused = site.node().watch(&running.address.to_string()).await;

    assert!(refused.is_err());
}

#[test]
fn frame_with_an_unknown_change_is_read_without_it() {
    // A field that this version does not know.
    let frame = wire::frame(1, true, vec![Bytes::from_static(&[0x92, 0x03, 0x00])], 0);

    let read = wire::Frame::decode(frame).unwrap();

    let mut pool = wire::Pool::default();
    let read = read.changes.into_iter();
    let events: Vec<_> = read.map(|change| wire::decode(change, &mut pool)).collect();
    assert_eq!(events, [Ok(None)]);
}
