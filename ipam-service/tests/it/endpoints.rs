//! Members of etcd that are dead, mute, or not who they should be.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ipam_service::log::etcd::endpoint::{Security, SettingsError};
use ipam_service::log::etcd::{EtcdKv, Settings};
use ipam_service::log::kv::{Kv, KvError, Op, Txn};
use mesh::ca::{Authority, Leaf};
use mesh::identity::Identity;
use mesh::tls::{TlsConfig, TlsMaterial};

use crate::etcd::{Server, client, shared, until_ready};

const DAY: Duration = Duration::from_hours(24);

fn read() -> Txn {
    Txn::read(vec![Op::Get("x".to_owned())])
}

fn write() -> Txn {
    Txn {
        then: vec![Op::Put {
            key: "/endpoints/x".to_owned(),
            value: Bytes::from_static(b"v"),
            session: None,
        }],
        ..Txn::default()
    }
}

#[tokio::test]
async fn dead_member_is_passed_over_by_reads_writes_and_sessions() {
    let server = shared();
    until_ready(&client(vec![server.url()]).await).await;
    // Port 9 is "discard": nobody listens there.
    let dead = "http://127.0.0.1:9".to_owned();

    let kv = client(vec![dead.clone(), server.url()]).await;
    kv.txn(write()).await.unwrap();
    let kv = client(vec![dead.clone(), server.url()]).await;
    kv.txn(read()).await.unwrap();
    let kv = client(vec![dead.clone(), server.url()]).await;
    let session = kv.open_session(Duration::from_secs(5)).await.unwrap();
    kv.renew_session(session).await.unwrap();
    kv.close_session(session).await.unwrap();

    assert_eq!(kv.renew_session(session).await, Err(KvError::SessionEnded));
    let alone = client(vec![dead]).await;
    let err = alone.txn(write()).await.unwrap_err();
    assert!(
        matches!(err, KvError::Unavailable(_)),
        "nothing was sent: {err}"
    );
}

#[tokio::test]
async fn mute_member_makes_one_write_unknown_and_is_then_passed_over() {
    let server = shared();
    until_ready(&client(vec![server.url()]).await).await;
    // The kernel takes the connection; nobody ever reads from it.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", mute.local_addr().unwrap());
    let kv = client(vec![url, server.url()]).await;

    let first = kv.txn(write()).await.unwrap_err();
    let second = kv.txn(write()).await;

    assert!(matches!(first, KvError::Unknown(_)), "{first}");
    assert!(second.is_ok(), "{second:?}");
}

/// Writes certificates of an identity, for this host, into a folder of that name.
fn issue(ca: &Authority, dir: &Path, identity: &Identity, host: &str) -> TlsConfig {
    std::fs::create_dir_all(dir).unwrap();
    ca.issue(&Leaf::new(identity, DAY).host(host))
        .unwrap()
        .write(dir)
        .unwrap();
    TlsConfig::in_dir(dir)
}

/// An etcd that wants certificates, and the authority of all.
fn secured(dir: &Path) -> (Server, Authority) {
    mesh::tls::install_provider();
    let ca = Authority::new(DAY).unwrap();
    let tls = issue(&ca, &dir.join("etcd"), &Identity::etcd("test"), "127.0.0.1");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, bundle) = (text(&tls.cert), text(&tls.key), text(&tls.ca));
    let options = [
        "--client-cert-auth",
        "--cert-file",
        &cert,
        "--key-file",
        &key,
        "--trusted-ca-file",
        &bundle,
    ];
    (Server::start_with(&options, "https"), ca)
}

async fn over_tls(url: String, tls: &TlsConfig) -> EtcdKv {
    let security = Security::MutualTls(TlsMaterial::load(tls).unwrap());
    EtcdKv::new(&Settings {
        endpoints: vec![url],
        security,
    })
    .await
    .unwrap()
}

// I12: the store is reached over mTLS, and its name is checked.
#[tokio::test]
async fn store_over_tls_serves_our_certificate_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ca) = secured(dir.path());
    let ours = issue(
        &ca,
        &dir.path().join("ipam"),
        &Identity::ipam("ipam-0"),
        "127.0.0.1",
    );
    let foreign = Authority::new(DAY).unwrap();
    let theirs = issue(
        &foreign,
        &dir.path().join("foreign"),
        &Identity::ipam("ipam-0"),
        "127.0.0.1",
    );

    let kv = over_tls(format!("https://127.0.0.1:{}", server.port), &ours).await;
    until_ready(&kv).await;
    kv.txn(write()).await.unwrap();
    let session = kv.open_session(Duration::from_secs(5)).await.unwrap();
    kv.renew_session(session).await.unwrap();

    let other_name = over_tls(format!("https://localhost:{}", server.port), &ours).await;
    let other_ca = over_tls(format!("https://127.0.0.1:{}", server.port), &theirs).await;
    let plain = client(vec![format!("http://127.0.0.1:{}", server.port)]).await;
    for (what, kv) in [("another name", other_name), ("a foreign CA", other_ca)] {
        let err = kv.txn(write()).await.unwrap_err();
        assert!(matches!(err, KvError::Unavailable(_)), "{what}: {err}");
    }
    assert!(plain.txn(write()).await.is_err());
}

#[tokio::test]
async fn plain_url_with_certificates_is_refused_with_the_url() {
    let dir = tempfile::tempdir().unwrap();
    mesh::tls::install_provider();
    let ca = Authority::new(DAY).unwrap();
    let tls = issue(
        &ca,
        &dir.path().join("ipam"),
        &Identity::ipam("ipam-0"),
        "127.0.0.1",
    );
    let security = Security::MutualTls(TlsMaterial::load(&tls).unwrap());
    let endpoints = vec!["http://127.0.0.1:2379".to_owned()];

    let err = EtcdKv::new(&Settings {
        endpoints,
        security,
    })
    .await
    .unwrap_err();

    let SettingsError::Endpoint { endpoint, .. } = err else {
        panic!("{err}")
    };
    assert_eq!(endpoint, "http://127.0.0.1:2379");
}
