//! Certificates: which are accepted, which are not, and what a reload changes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::ca::{Issued, Leaf, Purpose};
use mesh::client::{Outcome, outcome};
use mesh::clock;
use mesh::drain::Drain;
use mesh::identity::{Identity, IdentityKind};
use mesh::server::Params;
use mesh::tasks::Tasks;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsError, TlsMaterial};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;

use crate::site::{DAY, DOOR, PATIENCE, Site, call, channel, open, start};

fn node() -> Identity {
    Identity::node("c1", "i-1")
}

fn gateway() -> Identity {
    Identity::gateway("g1")
}

fn ago(span: Duration) -> SystemTime {
    clock::wall() - span
}

/// Certificates that nobody may accept, each with its name.
fn bad_certificates(site: &Site, identity: &Identity) -> Vec<(&'static str, Issued)> {
    let leaf = || Leaf::new(identity, DAY);
    let other_side = if *identity == gateway() {
        Purpose::Client
    } else {
        Purpose::Server
    };
    let twice = [identity.to_string(), Identity::gateway("g2").to_string()];
    let elsewhere = ["spiffe://elsewhere.local/gateway/g1".to_owned()];
    let odd = ["https://terway.local/gateway/g1".to_owned()];
    vec![
        ("expired", site.issue(&leaf().valid(ago(2 * DAY), ago(DAY)))),
        (
            "not yet valid",
            site.issue(&leaf().valid(clock::wall() + DAY, clock::wall() + 2 * DAY)),
        ),
        ("foreign CA", Site::new().issue(&leaf())),
        ("no URI", site.issue(&leaf().uris([]).host("terway.local"))),
        ("two URIs", site.issue(&leaf().uris(twice))),
        ("wrong trust domain", site.issue(&leaf().uris(elsewhere))),
        ("URI that is no identity", site.issue(&leaf().uris(odd))),
        ("wrong purpose", site.issue(&leaf().purpose(other_side))),
    ]
}

/// A client that believes anybody and shows what it is told to show.
pub(crate) fn careless_client(
    shown: Option<&Issued>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless));
    let mut config = match shown {
        Some(issued) => builder
            .with_client_auth_cert(chain(issued), key(issued))
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A server that asks nobody who they are and shows what it is told to show.
fn careless_server(shown: &Issued) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(chain(shown), key(shown))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn chain(issued: &Issued) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()]
}

fn key(issued: &Issued) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(issued.key.expose().as_bytes()).unwrap()
}

#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
        ]
    }
}

/// Shakes hands in memory; what each side says of it.
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Result<(), String>, Result<(), String>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("gateway").unwrap();
    let connect = async {
        let connected = TlsConnector::from(client).connect(name, near).await;
        connected.map(drop).map_err(|error| error.to_string())
    };
    let accept = async {
        let accepted = TlsAcceptor::from(server).accept(far).await;
        accepted.map(drop).map_err(|error| error.to_string())
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(connect, accept) })
        .await
        .unwrap()
}

#[tokio::test]
async fn server_accepts_a_client_with_one_good_identity() {
    let site = Site::new();
    let server = site.material(&gateway()).server_config();
    let good = site.issue(&Leaf::new(&node(), DAY));

    let (_, accepted) = handshake(careless_client(Some(&good), &TLS13), server).await;

    assert_eq!(accepted, Ok(()));
}

#[tokio::test]
async fn server_refuses_every_bad_client_certificate() {
    let site = Site::new();
    let server = site.material(&gateway()).server_config();

    for (what, bad) in bad_certificates(&site, &node()) {
        let client = careless_client(Some(&bad), &TLS13);
        let (_, accepted) = handshake(client, Arc::clone(&server)).await;

        assert!(accepted.is_err(), "{what} was accepted");
    }
}

#[tokio::test]
async fn server_refuses_a_client_without_certificate() {
    let site = Site::new();
    let server = site.material(&gateway()).server_config();

    let (_, accepted) = handshake(careless_client(None, &TLS13), server).await;

    assert!(accepted.unwrap_err().contains("no certificates"));
}

#[tokio::test]
async fn server_refuses_tls_1_2() {
    let site = Site::new();
    let server = site.material(&gateway()).server_config();
    let good = site.issue(&Leaf::new(&node(), DAY));

    let (_, accepted) = handshake(careless_client(Some(&good), &TLS12), server).await;

    let why = accepted.unwrap_err();
    assert!(why.contains("peer is incompatible"), "{why}");
}

#[tokio::test]
async fn client_accepts_a_server_of_the_expected_kind() {
    let site = Site::new();
    let expect = Expect::Kind(IdentityKind::Gateway);
    let client = site.material(&node()).client_config(&expect).unwrap();
    let good = site.issue(&Leaf::new(&gateway(), DAY));

    let (connected, _) = handshake(client, careless_server(&good)).await;

    assert_eq!(connected, Ok(()));
}

#[tokio::test]
async fn client_refuses_every_bad_server_certificate() {
    let site = Site::new();
    let expect = Expect::Kind(IdentityKind::Gateway);
    let client = site.material(&node()).client_config(&expect).unwrap();

    for (what, bad) in bad_certificates(&site, &gateway()) {
        let (connected, _) = handshake(Arc::clone(&client), careless_server(&bad)).await;

        assert!(connected.is_err(), "{what} was accepted");
    }
}

#[tokio::test]
async fn client_refuses_a_server_of_another_kind() {
    let site = Site::new();
    let another = careless_server(&site.issue(&Leaf::new(&Identity::gateway("g2"), DAY)));
    let client = site.material(&node());

    for expect in [
        Expect::Kind(IdentityKind::Ipam),
        Expect::Identity(gateway()),
    ] {
        let config = client.client_config(&expect).unwrap();
        let (connected, _) = handshake(config, Arc::clone(&another)).await;

        let why = connected.unwrap_err();
        assert!(why.contains("g2"), "{why}");
    }
}

#[tokio::test]
async fn client_that_expects_a_name_checks_the_name() {
    let site = Site::new();
    let etcd = Leaf::new(&Identity::etcd("e1"), DAY)
        .host("gateway")
        .host("10.0.0.1");
    let (named, unnamed) = (
        site.issue(&etcd),
        site.issue(&Leaf::new(&Identity::etcd("e1"), DAY).host("other")),
    );
    let expect = mesh::client::expect_name("gateway:2379").unwrap();
    let client = site
        .material(&Identity::ipam("r1"))
        .client_config(&expect)
        .unwrap();

    let (good, _) = handshake(Arc::clone(&client), careless_server(&named)).await;
    let (bad, _) = handshake(client, careless_server(&unnamed)).await;

    assert_eq!(good, Ok(()));
    assert!(bad.is_err());
}

fn load_error(config: &TlsConfig) -> TlsError {
    TlsMaterial::load(config).expect_err("material was loaded")
}

#[test]
fn material_that_cannot_serve_names_the_file_and_why() {
    let site = Site::new();
    let leaf = || Leaf::new(&node(), DAY);
    let load = |name: &str, issued: &Issued| load_error(&site.write(name, issued));

    let expired = load("a", &site.issue(&leaf().valid(ago(2 * DAY), ago(DAY))));
    assert!(matches!(expired, TlsError::Expired { .. }), "{expired}");
    assert!(expired.to_string().contains("a/tls.crt"), "{expired}");

    let early = load(
        "b",
        &site.issue(&leaf().valid(clock::wall() + DAY, clock::wall() + 2 * DAY)),
    );
    assert!(matches!(early, TlsError::NotYetValid { .. }), "{early}");

    let foreign = Issued {
        ca: Site::new().authority.certificate().to_owned(),
        ..site.issue(&leaf())
    };
    let foreign = load("c", &foreign);
    assert!(matches!(foreign, TlsError::Foreign { .. }), "{foreign}");
    assert!(foreign.to_string().contains("c/ca.crt"), "{foreign}");

    let mixed = Issued {
        key: site.issue(&leaf()).key,
        ..site.issue(&leaf())
    };
    let mixed = load("d", &mixed);
    assert!(matches!(mixed, TlsError::KeyMismatch { .. }), "{mixed}");
    assert!(mixed.to_string().contains("d/tls.key"), "{mixed}");

    let nameless = load("e", &site.issue(&leaf().uris([])));
    assert!(
        matches!(nameless, TlsError::NoIdentity { .. }),
        "{nameless}"
    );

    let one_sided = load("f", &site.issue(&leaf().purpose(Purpose::Client)));
    assert!(matches!(one_sided, TlsError::Unfit { .. }), "{one_sided}");

    let garbage = Issued {
        certificate: "garbage".to_owned(),
        ..site.issue(&leaf())
    };
    let garbage = load("g", &garbage);
    assert!(matches!(garbage, TlsError::Malformed { .. }), "{garbage}");

    let missing = load_error(&TlsConfig::in_dir(&site.dir.path().join("nowhere")));
    assert!(matches!(missing, TlsError::Unreadable { .. }), "{missing}");
    assert!(missing.to_string().contains("nowhere/ca.crt"), "{missing}");
}

#[tokio::test]
async fn reload_replaces_identity_and_bundle_without_a_restart() {
    let old = Site::new();
    let new = Site::new();
    let config = old.write("gw", &old.issue(&Leaf::new(&gateway(), DAY)));
    let server = TlsMaterial::load(&config).unwrap();
    let running = start(server.clone(), DOOR, Params::default()).await;
    let knock = "/test.v1.Door/Knock";
    let before = old.channel(running.address, &node(), IdentityKind::Gateway);
    call(&before, knock).await.unwrap();

    assert!(!server.reload_now().unwrap(), "nothing had changed");
    let fresh = new.issue(&Leaf::new(&Identity::gateway("g2"), DAY));
    fresh.write(config.ca.parent().unwrap()).unwrap();
    assert!(server.reload_now().unwrap());

    assert_eq!(server.identity(), Identity::gateway("g2"));
    let after = new.channel(running.address, &node(), IdentityKind::Gateway);
    call(&after, knock).await.unwrap();
    let late = old.channel(running.address, &node(), IdentityKind::Gateway);
    assert_eq!(
        outcome(&call(&late, knock).await.unwrap_err()),
        Outcome::NotSent
    );
    // A connection that stands goes on.
    call(&before, knock).await.unwrap();
    running.tasks.drain().stop();
}

#[tokio::test]
async fn reload_of_garbage_keeps_what_works() {
    let site = Site::new();
    let config = site.write("gw", &site.issue(&Leaf::new(&gateway(), DAY)));
    let server = TlsMaterial::load(&config).unwrap();
    let running = start(server.clone(), DOOR, Params::default()).await;

    std::fs::write(&config.cert, "garbage").unwrap();
    let error = server.reload_now().unwrap_err();

    assert!(error.to_string().contains("tls.crt"), "{error}");
    assert_eq!(server.reload_failures(), 1);
    let channel = site.channel(running.address, &node(), IdentityKind::Gateway);
    call(&channel, "/test.v1.Door/Knock").await.unwrap();
    running.tasks.drain().stop();
}

#[tokio::test]
async fn watched_files_are_reloaded_by_themselves() {
    let site = Site::new();
    let config = site.write("gw", &site.issue(&Leaf::new(&gateway(), DAY)));
    let server = TlsMaterial::load(&config).unwrap();
    let tasks = Tasks::new(Drain::new());
    server.watch(Duration::from_millis(10), &tasks);

    let fresh = site.issue(&Leaf::new(&Identity::gateway("g2"), DAY));
    fresh.write(config.ca.parent().unwrap()).unwrap();

    let reloaded = async {
        let mut often = tokio::time::interval(Duration::from_millis(5));
        while server.identity() != Identity::gateway("g2") {
            often.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, reloaded)
        .await
        .expect("not reloaded");
    tasks.drain().stop();
    assert!(tasks.wait(PATIENCE).await);
}

#[tokio::test]
async fn connection_ends_with_its_callers_certificate() {
    let site = Site::new();
    let params = Params {
        expiry_grace_ms: 10,
        ..Params::default()
    };
    let running = start(site.material(&gateway()), DOOR, params).await;
    let until = clock::wall() + Duration::from_secs(3);
    let short = site.issue(&Leaf::new(&node(), DAY).valid(ago(DAY), until));
    let material = TlsMaterial::load(&site.write("short", &short)).unwrap();
    let channel = channel(running.address, material, IdentityKind::Gateway).without_deadline();
    let mut stream = open(&channel, "/test.v1.Door/Stream").await.unwrap();
    stream.message().await.unwrap();

    let end = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("stream lives on");

    assert!(end.is_err(), "{end:?}");
    let again = call(&channel, "/test.v1.Door/Knock").await.unwrap_err();
    assert_eq!(again.code(), Code::Unavailable, "{again}");
    running.tasks.drain().stop();
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let site = Site::new();
    let params = Params {
        handshakes_max: 1,
        handshake_ms: 100,
        ..Params::default()
    };
    let running = start(site.material(&gateway()), DOOR, params).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(
            tokio::net::TcpStream::connect(running.address)
                .await
                .unwrap(),
        );
    }

    let caller = site.channel(running.address, &node(), IdentityKind::Gateway);
    call(&caller, "/test.v1.Door/Knock").await.unwrap();

    let counted = "terway_rpc_server_handshake_failures_total{reason=\"Timeout\"} 3";
    let metrics = running.registry.encode();
    assert!(metrics.contains(counted), "{metrics}");
    running.tasks.drain().stop();
}

#[tokio::test]
async fn connection_beyond_the_bound_is_closed() {
    let site = Site::new();
    let params = Params {
        connections_max: 1,
        ..Params::default()
    };
    let running = start(site.material(&gateway()), DOOR, params).await;
    let first = site.channel(running.address, &node(), IdentityKind::Gateway);
    call(&first, "/test.v1.Door/Knock").await.unwrap();

    let second = site.channel(running.address, &node(), IdentityKind::Gateway);
    let refused = call(&second, "/test.v1.Door/Knock").await;

    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    call(&first, "/test.v1.Door/Knock").await.unwrap();
    running.tasks.drain().stop();
}
