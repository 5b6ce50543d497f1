//! A real etcd for tests: started once, shared, stopped when its last user is done.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ipam_service::log::etcd::endpoint::Security;
use ipam_service::log::etcd::{EtcdKv, Settings};
use ipam_service::log::kv::{Kv, Op, Txn};
use tempfile::TempDir;

pub(crate) mod proxy;

/// A member that runs alone.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    /// Removed after the process has ended: fields are dropped in this order, after `drop`.
    _data: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; the test that needed it has failed then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server that all tests of this process share.
static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// The shared server; starts it if nobody uses it at the moment.
pub(crate) fn shared() -> Arc<Server> {
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(Server::start());
    *shared = Arc::downgrade(&server);
    server
}

impl Server {
    /// Starts one on free ports. Panics if etcd is not installed: a store that is not tested is a
    /// failure, not a skip.
    pub(crate) fn start() -> Self {
        Self::start_with(&[], "http")
    }

    /// Starts one with further options, its client port speaking `scheme`.
    pub(crate) fn start_with(options: &[&str], scheme: &str) -> Self {
        let ports = free_ports(2);
        let peer = format!("http://127.0.0.1:{}", ports[1]);
        Self::spawn(
            "test",
            scheme,
            ports[0],
            &peer,
            &format!("test={peer}"),
            options,
        )
    }

    /// Starts three that are one cluster.
    pub(crate) fn start_three() -> Vec<Self> {
        let ports = free_ports(6);
        let (clients, peers) = ports.split_at(3);
        let peers: Vec<_> = peers
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect();
        let names = ["m0", "m1", "m2"];
        let all: Vec<_> = names
            .iter()
            .zip(&peers)
            .map(|(name, peer)| format!("{name}={peer}"))
            .collect();
        let all = all.join(",");
        let member = |at: usize| Self::spawn(names[at], "http", clients[at], &peers[at], &all, &[]);
        (0..3).map(member).collect()
    }

    fn spawn(name: &str, scheme: &str, port: u16, peer: &str, all: &str, options: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let client = format!("{scheme}://127.0.0.1:{port}");
        let child = Command::new("etcd")
            .args(["--name", name])
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
            ])
            .args(["--initial-cluster", all])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd must be installed for these tests: apt-get install etcd-server");
        Self {
            child,
            port,
            _data: data,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    // All are held until all are known, so that they differ.
    let held: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

/// A plain client of these endpoints.
pub(crate) async fn client(endpoints: Vec<String>) -> EtcdKv {
    let settings = Settings {
        endpoints,
        security: Security::Insecure,
    };
    EtcdKv::new(&settings).await.unwrap()
}

/// Waits until it answers.
pub(crate) async fn until_ready(kv: &dyn Kv) {
    until("etcd answers", async || {
        kv.txn(Txn::read(vec![Op::Get("x".to_owned())]))
            .await
            .is_ok()
    })
    .await;
}

/// Looks again and again until `level` holds; panics after half a minute.
pub(crate) async fn until(what: &str, level: impl AsyncFn() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let all = async {
        loop {
            look.tick().await;
            if level().await {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), all).await;
    assert!(in_time.is_ok(), "not within 30 s: {what}");
}
