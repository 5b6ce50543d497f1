//! Every RPC of the wire contract against a real server: nobody gets in who should not.

use mesh::authz::TABLE;
use mesh::ca::{Issued, Leaf};
use mesh::client::{self, Channel, Outcome, outcome};
use mesh::identity::{CallerKind, Identity, IdentityKind};
use mesh::server::Params;
use mesh::status;
use mesh::tls::Trust;
use mesh::tls::verify::Expect;
use prost::Message;
use prost_types::FileDescriptorSet;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tonic::Code;

use crate::handshake::careless_client;
use crate::site::{DAY, PATIENCE, Running, Site, call, start, start_open};

fn methods() -> Vec<String> {
    let set = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                methods.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    assert!(methods.len() >= 20, "{methods:?}");
    methods
}

fn everybody() -> [Identity; 7] {
    [
        Identity::node("c1", "i-1"),
        Identity::ipam("r1"),
        Identity::gateway("g1"),
        Identity::controller("c1"),
        Identity::relay("r1"),
        Identity::admin("jane"),
        Identity::etcd("e1"),
    ]
}

async fn server(site: &Site) -> Running {
    start(
        site.material(&Identity::gateway("g1")),
        TABLE,
        Params::default(),
    )
    .await
}

#[tokio::test]
async fn every_rpc_is_open_to_exactly_the_kinds_of_its_row() {
    let site = Site::new();
    let running = server(&site).await;

    for caller in everybody() {
        let channel = site.channel(running.address, &caller, IdentityKind::Gateway);
        for method in methods() {
            let row = mesh::authz::row(TABLE, &method).expect("an RPC without a row");
            let allowed = row.callers.contains(&CallerKind::Mesh(caller.kind()));

            let answer = call(&channel, &method).await;

            match answer {
                Ok(_) => assert!(allowed, "{caller} got into {method}"),
                Err(refused) => {
                    assert!(!allowed, "{caller} was kept out of {method}: {refused}");
                    assert_eq!(refused.code(), Code::PermissionDenied, "{method}");
                    let reason = status::reason(&refused);
                    assert_eq!(
                        reason.as_deref(),
                        Some(status::IDENTITY_MISMATCH),
                        "{method}"
                    );
                    assert_eq!(outcome(&refused), Outcome::Answered, "{method}");
                }
            }
        }
    }
    running.tasks.drain().stop();
}

#[tokio::test]
async fn every_rpc_is_refused_with_a_foreign_ca() {
    let site = Site::new();
    let running = server(&site).await;
    // It trusts our server, and shows a certificate that another authority signed.
    let foreign = Site::new();

    for caller in everybody() {
        let leaf = Leaf::new(&caller, DAY);
        let shown = foreign.issue(&leaf);
        for method in methods() {
            let error = raw_call(&running, Some(&shown), &method).await;
            assert!(
                error.is_some(),
                "{caller} of a foreign CA got into {method}"
            );
        }
    }
    assert!(
        !running
            .registry
            .encode()
            .contains("rpc_server_calls_total{"),
        "a call came through"
    );
    running.tasks.drain().stop();
}

#[tokio::test]
async fn every_rpc_is_refused_without_a_certificate() {
    let site = Site::new();
    let running = server(&site).await;

    for method in methods() {
        let error = raw_call(&running, None, &method).await;
        assert!(
            error.is_some(),
            "somebody without a certificate got into {method}"
        );
    }
    assert!(
        !running
            .registry
            .encode()
            .contains("rpc_server_calls_total{"),
        "a call came through"
    );
    running.tasks.drain().stop();
}

/// The one method that needs no certificate.
const ISSUE: &str = "/terway.control.v1.Certificates/Issue";

#[tokio::test]
async fn open_server_lets_a_caller_without_certificate_ask_for_one_and_do_nothing_else() {
    let site = Site::new();
    let material = site.material(&Identity::controller("c1"));
    let running = start_open(material, TABLE).await;
    let trust = Trust::new(site.dir.path().join("ca.crt"));
    std::fs::write(site.dir.path().join("ca.crt"), site.authority.certificate()).unwrap();
    let expect = Expect::Kind(IdentityKind::Controller);
    let params = client::Params::default();
    let target = running.address.to_string();
    let ours = Channel::anonymous(&target, trust, expect, &params).unwrap();

    for method in methods() {
        let raw = raw_call(&running, None, &method).await;
        let answer = call(&ours, &method).await;
        if method == ISSUE {
            assert_eq!(raw, None, "{method}");
            answer.unwrap();
        } else {
            let raw = raw.unwrap_or_else(|| panic!("anybody got into {method}"));
            // PERMISSION_DENIED
            assert!(raw.contains("\"grpc-status\": \"7\""), "{method}: {raw}");
            let refused = answer.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{method}");
        }
    }
    running.tasks.drain().stop();
}

#[tokio::test]
async fn open_server_still_refuses_a_bad_certificate_and_knows_a_good_one() {
    let site = Site::new();
    let material = site.material(&Identity::controller("c1"));
    let running = start_open(material, TABLE).await;
    let node = Leaf::new(&Identity::node("c1", "i-1"), DAY);
    let (good, foreign) = (site.issue(&node), Site::new().issue(&node));

    let report = "/terway.control.v1.NodeReports/ReportNode";
    assert_eq!(raw_call(&running, Some(&good), report).await, None);
    assert!(raw_call(&running, Some(&foreign), ISSUE).await.is_some());
    running.tasks.drain().stop();
}

#[tokio::test]
async fn caller_that_trusts_another_authority_does_not_speak_to_the_open_server() {
    let site = Site::new();
    let running = start_open(site.material(&Identity::controller("c1")), TABLE).await;
    let bundle = site.dir.path().join("other.crt");
    std::fs::write(&bundle, Site::new().authority.certificate()).unwrap();
    let expect = Expect::Kind(IdentityKind::Controller);
    let params = client::Params::default();
    let target = running.address.to_string();
    let channel = Channel::anonymous(&target, Trust::new(bundle), expect, &params).unwrap();

    let refused = call(&channel, ISSUE).await.unwrap_err();

    assert_eq!(outcome(&refused), Outcome::NotSent, "{refused}");
    running.tasks.drain().stop();
}

#[tokio::test]
async fn raw_call_with_a_good_certificate_gets_through() {
    let site = Site::new();
    let running = server(&site).await;
    let leaf = Leaf::new(&Identity::ipam("r1"), DAY);
    let shown = site.issue(&leaf);

    let error = raw_call(&running, Some(&shown), "/terway.cloud.v1.Cloud/Fence").await;

    assert_eq!(error, None);
    running.tasks.drain().stop();
}

/// A call by a client that is none of ours: rustls and hyper alone. Says why it failed.
async fn raw_call(running: &Running, shown: Option<&Issued>, method: &str) -> Option<String> {
    let config = careless_client(shown, &TLS13);
    let attempt = async {
        let stream = tokio::net::TcpStream::connect(running.address).await?;
        let name = ServerName::try_from("gateway")?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await?;
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
        let body = http_body_util::Full::new(bytes::Bytes::from_static(&[0, 0, 0, 0, 0]));
        let request = http::Request::post(format!("http://gateway{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let refused = response
                .headers()
                .get("grpc-status")
                .is_some_and(|code| code != "0");
            if refused {
                return Err(format!("{:?}", response.headers()).into());
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        };
        tokio::select! {
            answer = answer => answer,
            ended = connection => Err(format!("connection ended: {ended:?}").into()),
        }
    };
    let ended: Result<(), Box<dyn std::error::Error + Send + Sync>> =
        tokio::time::timeout(PATIENCE, attempt)
            .await
            .expect("no answer at all");
    ended.err().map(|error| error.to_string())
}
