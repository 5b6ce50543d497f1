//! The service behind its door: mTLS, the authorization table, deadlines.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_sim::faults::{Effect, Fault};
use mesh::authz::TABLE;
use mesh::ca::Authority;
use mesh::client::{Channel, Params as ClientParams};
use mesh::identity::{Identity, IdentityKind};
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Address, Bound};
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::cloud::v1::cloud_client::CloudClient;
use proto::cloud::v1::cloud_server::CloudServer;
use proto::cloud::v1::{AttachEniRequest, DescribeVSwitchesRequest};
use tonic::service::Routes;
use tonic::{Code, Request};

use crate::world::{INSTANCE, VSWITCH, World, issue, new_eni, op, reason, texts};

/// Opens the door; answers `host:port`.
async fn open(world: &World) -> String {
    let tls = TlsMaterial::load(&world.config.tls).unwrap();
    let port = Bound::tcp("127.0.0.1:0".parse().unwrap(), tls, world.config.server)
        .await
        .unwrap();
    let address = port.address().clone();
    let routes = Routes::new(CloudServer::new(world.gateway.api.clone()));
    let metrics = RpcMetrics::register(&world.registry);
    port.serve(routes, TABLE, &metrics, &world.tasks);
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(_) => unreachable!(),
    }
}

fn client(
    world: &World,
    target: &str,
    ca: &Authority,
    identity: &Identity,
) -> CloudClient<Channel> {
    let dir = world.dir.path().join(identity.kind().name());
    issue(ca, identity, &dir);
    let tls = TlsMaterial::load(&TlsConfig::in_dir(&dir)).unwrap();
    let expect = Expect::Kind(IdentityKind::Gateway);
    CloudClient::new(Channel::tcp(target, tls, expect, &ClientParams::default()).unwrap())
}

#[tokio::test]
async fn ipam_replica_works_through_the_door() {
    let world = World::new().await;
    let target = open(&world).await;
    let mut client = client(&world, &target, &world.ca, &Identity::ipam("r-1"));

    let made = client.create_eni(new_eni(1, "10.0.0.10")).await.unwrap();
    let made = made.into_inner();
    let eni = made.eni.unwrap();
    let attached = client
        .attach_eni(AttachEniRequest {
            op: Some(op(2, 1)),
            eni_id: eni.id.clone(),
            instance_id: INSTANCE.to_owned(),
            ..AttachEniRequest::default()
        })
        .await
        .unwrap();

    assert_eq!(made.request_id.len(), 36);
    assert_eq!(attached.into_inner().eni.unwrap().status, "InUse");
    let text = world.registry.encode();
    for metric in [
        "terway_cloud_requests_total{action=\"CreateNetworkInterface\",code=\"OK\"} 1",
        "terway_gateway_describe_merged_ids_count",
        "terway_gateway_queue_depth{action=\"AttachNetworkInterface\"} 0",
    ] {
        assert!(text.contains(metric), "{metric}: {text}");
    }
}

// Done means 7: refused for a node, and with a foreign CA.
#[tokio::test]
async fn callers_that_are_no_ipam_replica_are_refused() {
    let world = World::new().await;
    let target = open(&world).await;
    let mut node = client(&world, &target, &world.ca, &Identity::node("c-1", INSTANCE));
    let foreign_ca = Authority::new(Duration::from_hours(1)).unwrap();
    let mut foreign = client(&world, &target, &foreign_ca, &Identity::ipam("r-1"));

    let node = node.create_eni(new_eni(1, "10.0.0.10")).await.unwrap_err();
    let foreign = foreign
        .create_eni(new_eni(1, "10.0.0.10"))
        .await
        .unwrap_err();

    assert_eq!(node.code(), Code::PermissionDenied);
    assert_eq!(reason(&node), "REASON_IDENTITY_MISMATCH");
    assert_eq!(foreign.code(), Code::Unavailable);
    assert_eq!(world.total(Action::CreateNetworkInterface), 0);
}

#[tokio::test]
async fn person_may_look_and_not_change() {
    let world = World::new().await;
    let target = open(&world).await;
    let mut admin = client(&world, &target, &world.ca, &Identity::admin("anna"));

    let looked = admin
        .describe_v_switches(DescribeVSwitchesRequest {
            vswitch_ids: texts(&[VSWITCH]),
        })
        .await;
    let changed = admin.create_eni(new_eni(1, "10.0.0.10")).await;

    assert!(looked.is_ok());
    assert_eq!(changed.unwrap_err().code(), Code::PermissionDenied);
}

// The caller hears from the gateway itself, with a reason, before its own deadline is over.
#[tokio::test]
async fn deadline_of_the_caller_ends_in_a_reason() {
    let world = World::new().await;
    let target = open(&world).await;
    let mut client = client(&world, &target, &world.ca, &Identity::ipam("r-1"));
    // The handshake must not count.
    let look = DescribeVSwitchesRequest {
        vswitch_ids: texts(&[VSWITCH]),
    };
    client.describe_v_switches(look).await.unwrap();
    let slow = Effect::Delay { ms: 8_000 };
    world
        .sim
        .inject_fault(Fault::on(Action::CreateNetworkInterface, slow));
    let mut request = Request::new(new_eni(1, "10.0.0.10"));
    request.set_timeout(Duration::from_millis(1_500));

    let status = client.create_eni(request).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_OUTCOME_UNKNOWN");
}
