//! The configuration files of the services, by the options and the plan.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

use crate::layout::{CLUSTER, Layout, REGION, host_port};
use crate::options::{ClusterOptions, Latency, PolicyFeed, Service, Store};
use crate::run_dir::RunDir;

/// Ports of cloud-gateway.
pub const GATEWAY_GRPC: u16 = 7201;
/// Health and metrics of cloud-gateway.
pub const GATEWAY_HEALTH: u16 = 7202;
const GATEWAY_ADMIN: u16 = 7203;
/// Health and metrics of a node-agent.
pub const AGENT_HEALTH: u16 = 7402;
const AGENT_ADMIN: u16 = 7403;
/// Health and metrics of a policy agent.
pub const POLICY_HEALTH: u16 = 7405;
const POLICY_ADMIN: u16 = 7406;
/// Port of the relay of policy.
pub const RELAY_GRPC: u16 = 7401;
/// Health and metrics of the relay of policy.
pub const RELAY_HEALTH: u16 = 7408;
const RELAY_ADMIN: u16 = 7409;
/// Rest of an address on its node, shorter than in a cluster: pods of the sandbox come and go by the hundred.
const REUSE_AFTER_MS: u64 = 200;
/// etcd's port for clients.
pub const ETCD_CLIENT: u16 = 2379;
const ETCD_PEER: u16 = 2380;

/// Port of an ipam replica; each has ten numbers of its own.
pub fn ipam_grpc(replica: usize) -> u16 {
    ipam_port(replica, 1)
}

/// Health and metrics of an ipam replica.
pub fn ipam_health(replica: usize) -> u16 {
    ipam_port(replica, 2)
}

fn ipam_port(replica: usize, which: u16) -> u16 {
    let replica = u16::try_from(replica).unwrap_or(1);
    7290 + 10 * replica + which
}

/// The boot id of a node at its first start.
pub fn boot_id(node: usize) -> String {
    format!("boot-{node}-1")
}

/// What the files are made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The options.
    pub options: &'a ClusterOptions,
    /// The plan.
    pub layout: &'a Layout,
    /// The folder.
    pub run: &'a RunDir,
    /// Address of the instance on which the central services run.
    pub services_ip: Ipv4Addr,
}

impl Inputs<'_> {
    /// The file of cloud-gateway.
    pub fn gateway(&self, credentials: &Path, openapi: &str) -> Value {
        json!({
            "listen": {"grpc": any(GATEWAY_GRPC)},
            "tls": self.tls(Service::Gateway),
            "cloud": {
                "region": REGION,
                "endpoint": openapi,
                "vpc_endpoint": openapi,
            },
            "credentials": {"dir": credentials},
            "readback": self.readback(),
            "service": self.service(Service::Gateway, GATEWAY_HEALTH, GATEWAY_ADMIN),
        })
    }

    /// The file of an ipam replica.
    pub fn ipam(&self, replica: usize) -> Value {
        let service = Service::Ipam(replica);
        let mut store = json!({
            "kind": self.options.store.name(),
            "path": self.run.root().join(service.to_string()).join("ipam.redb"),
        });
        if self.options.store == Store::Etcd
            && let Some(store) = store.as_object_mut()
        {
            let endpoint = format!("https://{}", host_port(self.services_ip, ETCD_CLIENT));
            store.insert("endpoints".to_owned(), json!([endpoint]));
        }
        let exclusive: serde_json::Map<String, Value> = self
            .layout
            .zones
            .iter()
            .flat_map(|zone| &zone.pods)
            .map(|v| (v.id.to_string(), json!({"mode": "exclusive"})))
            .collect();
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        json!({
            "listen": {
                "grpc": any(ipam_grpc(replica)),
                "advertise": host_port(self.services_ip, ipam_grpc(replica)),
            },
            "tls": self.tls(service),
            "store": store,
            "cloud": {"gateways": [host_port(self.services_ip, GATEWAY_GRPC)]},
            "cluster": {
                "id": CLUSTER,
                "eni_conf": self.run.eni_conf(),
                "shard_prefix_len": self.options.shard_prefix,
            },
            "replica": {"zone": self.layout.zones.first().map(|z| z.id.clone())},
            "vswitch": exclusive,
            "timing": {
                "cooldown": millis(self.options.cooldown),
                "shrink_after": 2_000,
                "tick": 200,
                "plan_every": 2_000,
                "retry_max": 2_000,
                "session_ttl": 4_000,
                "membership_poll": 200,
            },
            "service": self.service(service, ipam_health(replica), ipam_port(replica, 3)),
        })
    }

    /// The file of a node-agent.
    pub fn agent(&self, node: usize, node_name: &str) -> Value {
        let service = Service::Agent(node);
        let folder = self.run.root().join(service.to_string());
        let replicas = 1..=self.options.ipam_replicas;
        let ipam: Vec<_> = replicas
            .map(|n| host_port(self.services_ip, ipam_grpc(n)))
            .collect();
        json!({
            "node": {
                "name": node_name,
                "cluster": CLUSTER,
                "manifests": self.run.manifests(),
                "eni_conf": self.run.eni_conf(),
                "state_dir": folder,
                "socket": self.run.agent_socket(node),
                "boot_id": boot_id(node),
            },
            "ipam": {"replicas": ipam},
            "pool": {"reuse_after_ms": REUSE_AFTER_MS},
            "policy": {
                "enabled": self.options.policy.is_some(),
                "socket": self.run.policy_socket(node),
                "owner_socket": self.run.owner_socket(node),
            },
            "tls": self.tls(service),
            "service": self.service(service, AGENT_HEALTH, AGENT_ADMIN),
        })
    }

    /// The file of a policy agent.
    pub fn policy(&self, node: usize, node_name: &str) -> Value {
        let service = Service::Policy(node);
        let feed = match self.options.policy.unwrap_or_default() {
            PolicyFeed::Folder => json!({"manifests": self.run.manifests()}),
            PolicyFeed::Relay => json!({"relays": [host_port(self.services_ip, RELAY_GRPC)]}),
        };
        json!({
            "node": {
                "name": node_name,
                "cluster": CLUSTER,
                "state_dir": self.run.root().join(service.to_string()),
                "socket": self.run.policy_socket(node),
            },
            "feed": feed,
            // As in a cluster: Terway's own keys say whether policy is on, and without them it is.
            "policy": {
                "eni_config": self.run.eni_config(),
                "owner_socket": self.run.owner_socket(node),
            },
            "tls": self.tls(service),
            "service": self.service(service, POLICY_HEALTH, POLICY_ADMIN),
        })
    }

    /// The file of the relay of policy.
    pub fn relay(&self, host_name: &str) -> Value {
        let service = Service::Relay;
        json!({
            "mode": "relay",
            "node": {
                "name": host_name,
                "cluster": CLUSTER,
                "state_dir": self.run.root().join(service.to_string()),
            },
            "feed": {"manifests": self.run.manifests()},
            "relay": {"listen": any(RELAY_GRPC)},
            "felix_health": {"enabled": false},
            "tls": self.tls(service),
            "service": self.service(service, RELAY_HEALTH, RELAY_ADMIN),
        })
    }

    /// The command line of etcd.
    pub fn etcd(&self, tls: &Path) -> Vec<String> {
        let file = |name: &str| tls.join(name).display().to_string();
        let data = self.run.root().join(Service::Etcd.to_string()).join("data");
        let client = format!("https://{}", host_port(self.services_ip, ETCD_CLIENT));
        let peer = format!("https://{}", host_port(Ipv4Addr::LOCALHOST, ETCD_PEER));
        let mut args = vec![
            "--name=etcd-1".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=etcd-1={peer}"),
        ];
        for side in ["", "peer-"] {
            args.extend([
                format!("--{side}client-cert-auth"),
                format!("--{side}trusted-ca-file={}", file("ca.crt")),
                format!("--{side}cert-file={}", file("tls.crt")),
                format!("--{side}key-file={}", file("tls.key")),
            ]);
        }
        args
    }

    /// How often the gateway looks at a state that is to come; as often as the simulated cloud is quick.
    fn readback(&self) -> Value {
        match self.options.latency {
            Latency::Fast => json!({"tick_ms": 10, "first_ms": 10, "max_ms": 200}),
            Latency::Real => json!({}),
        }
    }

    /// What mesh configures in every service.
    fn service(&self, service: Service, health: u16, admin: u16) -> Value {
        json!({
            "telemetry": self.telemetry(service),
            "health": {"listen": any(health)},
            "admin": {"listen": loopback(admin)},
            "drain": drain(),
        })
    }

    fn tls(&self, service: Service) -> Value {
        let dir = self.run.root().join(service.to_string()).join("tls");
        let file = |name: &str| dir.join(name);
        json!({"ca": file("ca.crt"), "cert": file("tls.crt"), "key": file("tls.key")})
    }

    fn telemetry(&self, service: Service) -> Value {
        json!({"span_file": self.run.trace(service), "log_filter": "info"})
    }
}

/// Nobody waits long for a sandbox to end.
fn drain() -> Value {
    json!({"grace_ms": 2_000, "stop_ms": 1_000})
}

fn any(port: u16) -> String {
    host_port(Ipv4Addr::UNSPECIFIED, port)
}

fn loopback(port: u16) -> String {
    host_port(Ipv4Addr::LOCALHOST, port)
}
