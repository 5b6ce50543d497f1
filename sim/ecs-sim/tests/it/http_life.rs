//! The whole life of an ENI over real sockets, and the admin port.

use std::time::Duration;

use bytes::Bytes;
use ecs_api::fault::FaultClass;
use ecs_api::model::address::{AssignIpv6Addresses, UnassignPrivateIpAddresses};
use ecs_api::model::eni::{
    CreateNetworkInterface, CreatedEni, DeleteNetworkInterface, DescribeNetworkInterfaces,
    DetachNetworkInterface, Eni, EniStatus,
};
use ecs_api::model::{Pick, Request};
use ecs_api::reply::{ReplyError, decode};
use ecs_api::request::{Endpoint, build};
use ecs_api::sign::{Credentials, Scheme};
use ecs_sim::config::Latency;
use ecs_sim::dump::SimDump;
use ecs_sim::faults::{Effect, Fault};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use types::cloud::EniId;

use crate::world::{World, attach, create_in};

struct Server {
    world: World,
    openapi: String,
    admin: String,
    client: Client<HttpConnector, Full<Bytes>>,
    _tasks: JoinSet<()>,
}

async fn listen(tasks: &mut JoinSet<()>, router: axum::Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    at
}

impl Server {
    async fn new() -> Self {
        let world = World::new().await;
        let mut tasks = JoinSet::new();
        let openapi = listen(&mut tasks, world.sim.openapi_router()).await;
        let admin = listen(&mut tasks, world.sim.admin_router()).await;
        Self {
            world,
            openapi,
            admin,
            client: Client::builder(TokioExecutor::new()).build_http(),
            _tasks: tasks,
        }
    }

    /// The reply; `Err(None)` when the connection closed without one.
    async fn ask<R: Request>(
        &self,
        request: &R,
        scheme: Scheme,
    ) -> Result<R::Reply, Option<ReplyError>> {
        let endpoint = Endpoint {
            scheme: "http".to_owned(),
            authority: self.openapi.clone(),
            region: "cn-hangzhou".parse().unwrap(),
        };
        let credentials = Credentials::lasting("testid", "testsecret");
        let request = build(
            request,
            &endpoint,
            &credentials,
            &self.world.stamp(),
            scheme,
        )
        .unwrap();
        let response = self
            .client
            .request(request.map(Full::new))
            .await
            .map_err(|_| None)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| None)?.to_bytes();
        let answer = decode::<R>(head.status, &head.headers, &body).map_err(Some)?;
        assert!(!answer.request_id.is_empty());
        Ok(answer.reply)
    }

    async fn describe(&self, eni: &EniId, scheme: Scheme) -> Option<Eni> {
        let request = DescribeNetworkInterfaces {
            enis: vec![eni.clone()],
            ..DescribeNetworkInterfaces::default()
        };
        self.ask(&request, scheme).await.unwrap().enis.pop()
    }

    /// Asks until the ENI is in the status, as clients of the real service do.
    async fn wait(&self, eni: &EniId, scheme: Scheme, wanted: Option<EniStatus>) {
        let poll = async {
            while self.describe(eni, scheme).await.map(|eni| eni.status) != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), poll)
            .await
            .unwrap();
    }

    async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.admin));
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                body.to_string()
            }
            None => String::new(),
        };
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = self.client.request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[rstest]
#[case(Scheme::V1)]
#[case(Scheme::V3)]
#[tokio::test]
async fn eni_lives_from_create_to_delete_over_http(#[case] scheme: Scheme) {
    let server = Server::new().await;
    server.world.sim.set_latency(Latency::fast());
    let instance = server.world.instance("i-a", "vsw-h").await.id;
    let create = CreateNetworkInterface {
        ipv4: Pick::Count(4),
        ..create_in("vsw-h")
    };
    let CreatedEni::Made(eni) = server.ask(&create, scheme).await.unwrap() else {
        panic!("not made");
    };
    server
        .ask(&attach(&eni.id, &instance), scheme)
        .await
        .unwrap();
    server.wait(&eni.id, scheme, Some(EniStatus::InUse)).await;
    let assign = AssignIpv6Addresses {
        eni: eni.id.clone(),
        ipv6: Pick::Count(5),
        client_token: None,
    };
    assert_eq!(server.ask(&assign, scheme).await.unwrap().ipv6.len(), 5);
    let unassign = UnassignPrivateIpAddresses {
        eni: eni.id.clone(),
        ipv4: eni.ipv4[1..].to_vec(),
    };
    server.ask(&unassign, scheme).await.unwrap();
    let row = server.describe(&eni.id, scheme).await.unwrap();
    assert_eq!((row.ipv4.len(), row.ipv6.len()), (1, 5));
    let detach = DetachNetworkInterface {
        eni: eni.id.clone(),
        instance,
        trunk: None,
    };
    server.ask(&detach, scheme).await.unwrap();
    server
        .wait(&eni.id, scheme, Some(EniStatus::Available))
        .await;
    let delete = DeleteNetworkInterface {
        eni: eni.id.clone(),
    };
    server.ask(&delete, scheme).await.unwrap();
    server.wait(&eni.id, scheme, None).await;

    let Err(Some(ReplyError::Fault(fault))) = server.ask(&delete, scheme).await else {
        panic!("not refused");
    };
    assert_eq!(fault.class, FaultClass::EniAbsent);
    assert_eq!(server.world.available("vsw-h"), 251);
}

#[tokio::test]
async fn lost_answer_closes_the_connection_after_the_effect() {
    let server = Server::new().await;
    let action = ecs_api::action::Action::CreateNetworkInterface;
    server
        .world
        .sim
        .inject_fault(Fault::on(action, Effect::LoseAnswer).times(1));

    let answer = server.ask(&create_in("vsw-h"), Scheme::V3).await;

    assert!(matches!(answer, Err(None)), "{answer:?}");
    assert_eq!(server.world.sim.dump().enis.len(), 1);
}

#[tokio::test]
async fn admin_port_injects_lists_and_removes_faults() {
    let server = Server::new().await;
    let fault = json!({
        "action": "CreateNetworkInterface",
        "effect": {"kind": "throttle"},
        "times": 1,
    });

    let (status, id) = server.admin("POST", "/faults", Some(fault.clone())).await;
    assert_eq!(status, 200);
    let (_, listed) = server.admin("GET", "/faults", None).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["fault"]["effect"]["kind"], "throttle");
    assert_eq!(
        server
            .admin("DELETE", &format!("/faults/{id}"), None)
            .await
            .0,
        200
    );
    assert_eq!(
        server
            .admin("DELETE", &format!("/faults/{id}"), None)
            .await
            .0,
        404
    );

    server.admin("POST", "/faults", Some(fault)).await;
    assert_eq!(
        server.world.code(&create_in("vsw-h")).await,
        "Throttling.User"
    );
    assert_eq!(server.world.code(&create_in("vsw-h")).await, "ok");
}

#[tokio::test]
async fn admin_port_refuses_what_it_does_not_know() {
    let server = Server::new().await;
    let unknown_key = json!({"effect": {"kind": "throttle"}, "tims": 1});
    let unknown_action = json!({"action": "Moon", "effect": {"kind": "throttle"}});

    let (status, text) = server.admin("POST", "/faults", Some(unknown_key)).await;
    assert_eq!(status, 422);
    assert!(text.contains("tims"), "{text}");
    assert_eq!(
        server
            .admin("POST", "/faults", Some(unknown_action))
            .await
            .0,
        404
    );
    assert_eq!(server.admin("PUT", "/latency/slow", None).await.0, 404);
    assert_eq!(server.admin("PUT", "/quotas/Moon/3", None).await.0, 404);
}

#[tokio::test]
async fn admin_port_changes_the_world() {
    let server = Server::new().await;
    let instance = json!({
        "id": "i-a", "instance_type": "ecs.g7.xlarge", "vswitch": "vsw-h", "security_groups": ["sg-a"],
    });
    assert_eq!(
        server.admin("POST", "/instances", Some(instance)).await.0,
        200
    );
    let foreign = json!({"vswitch": "vsw-h", "ip": "10.0.0.99"});
    assert_eq!(
        server
            .admin("POST", "/foreign", Some(foreign.clone()))
            .await
            .0,
        200
    );
    assert_eq!(server.admin("POST", "/foreign", Some(foreign)).await.0, 403);
    assert_eq!(
        server
            .admin("PUT", "/quotas/DescribeInstances/0", None)
            .await
            .0,
        200
    );
    assert_eq!(server.admin("PUT", "/latency/fast", None).await.0, 200);
    let eni = server
        .world
        .attached(&"i-a".parse().unwrap(), &create_in("vsw-h"))
        .await;
    assert_eq!(
        server
            .admin("POST", &format!("/detach/{eni}"), None)
            .await
            .0,
        200
    );

    let (status, text) = server.admin("GET", "/state", None).await;

    assert_eq!(status, 200);
    let dump: SimDump = serde_json::from_str(&text).unwrap();
    assert_eq!(dump, server.world.sim.dump());
    assert_eq!(dump.instances.len(), 1);
    let row = dump.enis.iter().find(|row| row.id == eni).unwrap();
    assert_eq!((row.status.as_str(), &row.instance), ("Available", &None));
    let (_, calls) = server.admin("GET", "/calls", None).await;
    assert!(calls.contains("AttachNetworkInterface"), "{calls}");
    assert_eq!(server.admin("DELETE", "/instances/i-a", None).await.0, 200);
    assert!(server.world.sim.dump().instances.is_empty());
}
