//! A real API server, held to the contract, and asked what only a real one does.

use cluster::documents::{DocumentKey, Documents, Wanted};
use cluster::health::{Phase as Fares, Reason};
use cluster::object::{Phase, Seen, Which};
use cluster::pods::Pods;
use cluster::server::Server;
use serde_json::{Value, json};

use crate::bare::{Admin, Bare, programs};
use crate::contract::{self, World, for_each_case, global, pod, policy};
use crate::reader::{Reader, Run, picture, while_running};
use crate::server::quick;

struct Kubernetes {
    admin: Admin,
    server: Server,
}

impl Kubernetes {
    async fn clear(&self) {
        self.admin.clear("/api/v1/namespaces/contract/pods").await;
        let policies = "/apis/networking.k8s.io/v1/namespaces/contract/networkpolicies";
        self.admin.clear(policies).await;
        self.admin
            .clear("/apis/crd.projectcalico.org/v1/globalnetworkpolicies")
            .await;
    }
}

impl World for Kubernetes {
    async fn put(&mut self, object: Value) {
        self.admin.put(&object).await;
    }

    async fn delete(&mut self, object: &Value) {
        self.admin.delete(object).await;
    }

    async fn documents(&self, wanted: Wanted) -> (Run, Documents) {
        let (source, documents) = self.server.documents(wanted);
        (Box::new(|drain| Box::pin(source.run(drain))), documents)
    }

    async fn pods(&self, node: &str) -> (Run, Pods) {
        let (source, pods) = self.server.pods(node);
        (Box::new(|drain| Box::pin(source.run(drain))), pods)
    }
}

fn everything(_: &str, _: &str) -> bool {
    true
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "contract", "labels": {"l": "x"}}})
}

async fn server_of(bare: &Bare, user: &str) -> Server {
    let file = bare.kubeconfig(user);
    Server::connect(Some(&file)).await.unwrap().at(quick())
}

/// One server for all, since it takes its time to start.
#[tokio::test]
async fn real_server_keeps_the_contract() {
    let Some(programs) = programs() else { return };
    let mut bare = Bare::start(programs).await;
    let admin = bare.admin().await;
    admin.put(&namespace()).await;

    refuses_who_may_do_nothing(&bare).await;
    finds_a_kind_that_is_defined_later(&bare, &admin).await;
    keeps_all_while_the_server_is_away(&mut bare, &admin).await;
    keeps_of_a_pod_what_is_looked_at(&bare, &admin).await;
    follows_one_object_that_is_all_it_may_read(&bare, &admin).await;

    let server = server_of(&bare, "admin").await;
    let mut world = Kubernetes { admin, server };
    macro_rules! one_by_one {
        ($($case:ident)*) => {$(
            world.clear().await;
            println!("{}", stringify!($case));
            contract::$case(&mut world).await;
        )*};
    }
    for_each_case!(one_by_one);
}

async fn refuses_who_may_do_nothing(bare: &Bare) {
    let (source, documents) = server_of(bare, "nobody").await.documents(everything);
    let mut health = source.health();
    let mut reader = Reader::new(documents);

    while_running(Box::new(|drain| Box::pin(source.run(drain))), async {
        let all = |health: &cluster::health::Health| {
            health.resources.values().all(|r| r.trouble.is_some())
        };
        let health = health.wait_for(all).await.unwrap().clone();
        assert!(
            health
                .troubles()
                .all(|(_, trouble)| trouble.reason == Reason::Forbidden)
        );
        let complaint = health.complaint().unwrap();
        assert!(
            complaint.contains("networkpolicies.networking.k8s.io"),
            "{complaint}"
        );
        assert!(!health.synced());
        assert!(reader.is_silent());
    })
    .await;
}

async fn finds_a_kind_that_is_defined_later(bare: &Bare, admin: &Admin) {
    let (source, documents) = server_of(bare, "admin").await.documents(everything);
    let health = source.health();
    let mut reader = Reader::new(documents);

    while_running(Box::new(|drain| Box::pin(source.run(drain))), async {
        reader.synced().await;
        let calico = "globalnetworkpolicies.crd.projectcalico.org";
        assert_eq!(health.borrow().resources[calico].phase, Fares::Absent);
        assert!(reader.names().contains(&"contract"), "{:?}", reader.names());
        admin.define_calico().await;
        admin.put(&global("a", "x")).await;
        reader.until(|r| r.label("a") == Some("x")).await;
        admin.delete(&global("a", "x")).await;
        reader.until(|r| r.label("a").is_none()).await;
    })
    .await;
}

async fn keeps_all_while_the_server_is_away(bare: &mut Bare, admin: &Admin) {
    admin.put(&policy("stays", "x")).await;
    admin.put(&pod("p", "n1", "x")).await;
    let (source, documents) = server_of(bare, "admin").await.documents(everything);
    let (pods_source, mut pods) = server_of(bare, "admin").await.pods("n1");
    let mut health = source.health();
    let mut reader = Reader::new(documents);

    let run: Run = Box::new(|drain| {
        Box::pin(async move {
            tokio::join!(source.run(drain.clone()), pods_source.run(drain));
        })
    });
    while_running(run, async {
        reader.synced().await;
        picture(&mut pods, |set| set.len() == 1).await;
        bare.stop().await;
        let away =
            |health: &cluster::health::Health| health.resources.values().all(|r| r.failures > 5);
        health.wait_for(away).await.unwrap();
        assert!(reader.is_silent());
        bare.go_on().await;
        admin.put(&policy("new", "y")).await;
        reader.until(|r| r.label("new") == Some("y")).await;
        admin.put(&pod("q", "n1", "x")).await;
        picture(&mut pods, |set| set.len() == 2).await;
    })
    .await;

    assert_eq!(reader.label("stays"), Some("x"));
}

async fn keeps_of_a_pod_what_is_looked_at(bare: &Bare, admin: &Admin) {
    let mut sent = pod("trimmed", "n1", "x");
    sent["metadata"]["annotations"] = json!({"k8s.aliyun.com/pod-ips": "10.0.0.9", "other": "x"});
    sent["status"] = json!({"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    admin.put(&sent).await;
    let (source, documents) = server_of(bare, "admin").await.documents(everything);
    let mut reader = Reader::new(documents);

    while_running(
        Box::new(|drain| Box::pin(source.run(drain))),
        reader.synced(),
    )
    .await;

    let mut told = reader.state[&DocumentKey::of(&sent)].clone();
    let uid = told["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("uid")
        .unwrap();
    assert!(uid.is_string());
    assert_eq!(
        told,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "trimmed", "namespace": "contract", "labels": {"l": "x"},
                "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.9"}},
            "spec": {"nodeName": "n1", "containers": [{"resources": {}, "ports": [
                {"name": "web", "containerPort": 80, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]},
        })
    );
}

/// `nobody` may read one ConfigMap by its name, as a node's account may read the phase.
async fn follows_one_object_that_is_all_it_may_read(bare: &Bare, admin: &Admin) {
    admin
        .put(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "phase", "namespace": "contract"},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"],
                "resourceNames": ["phase"], "verbs": ["get", "list", "watch"]}],
        }))
        .await;
    admin
        .put(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "phase", "namespace": "contract"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "phase"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}],
        }))
        .await;
    let phase = |name: &str, phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "contract"}, "data": {"phase": phase},
        })
    };
    let which = |name: &str| Which::ConfigMap {
        namespace: "contract".to_owned(),
        name: name.to_owned(),
    };
    let server = server_of(bare, "nobody").await;
    let (source, mut seen) = server.object(which("phase"));
    let (other, others) = server.object(which("other"));
    let mut refused = other.health();
    let run: Run = Box::new(|drain| {
        Box::pin(async move {
            tokio::join!(source.run(drain.clone()), other.run(drain));
        })
    });

    while_running(run, async {
        seen.wait_for(|seen| *seen == Seen::Absent).await.unwrap();
        admin.put(&phase("other", "leave")).await;
        admin.put(&phase("phase", "leave")).await;
        let leave = |seen: &Seen| Phase::of(seen) == Phase::Leave;
        seen.wait_for(leave).await.unwrap();
        admin.put(&phase("phase", "serve")).await;
        let serve = |seen: &Seen| Phase::of(seen) == Phase::Serve;
        let there = seen.wait_for(serve).await.unwrap().clone();
        assert_eq!(there.text("/data/phase"), Some("serve"));
        admin.delete(&phase("phase", "serve")).await;
        seen.wait_for(|seen| *seen == Seen::Absent).await.unwrap();
        let forbidden = |health: &cluster::health::Health| {
            let mut troubles = health.troubles();
            troubles.any(|(_, trouble)| trouble.reason == Reason::Forbidden)
        };
        refused.wait_for(forbidden).await.unwrap();
        assert_eq!(*others.borrow(), Seen::Unknown);
    })
    .await;
}
