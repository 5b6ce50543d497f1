//! A cluster of three namespaces with three pods each, on two nodes.
//!
//! Namespace `x` is number 1, `y` 2, `z` 3; pod `a` is number 1, `b` 2, `c` 3. Pod `y/c` has the
//! addresses 10.2.0.3 and fd00:2::3. `a` and `b` are on node `n1`, `c` is on `n2`.

use std::net::IpAddr;

use policy_oracle::probe::{Decision, End, Probe, Protocol};
use policy_oracle::world::World;
use serde_json::{Value, json};

pub(crate) use Protocol::{Icmp, NeighbourDiscovery, Sctp, Tcp, Udp};

/// Documents of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Cluster(pub(crate) Vec<Value>);

/// The cluster without policies.
pub(crate) fn cluster() -> Cluster {
    let mut documents = vec![node("n1", "192.168.0.1"), node("n2", "192.168.0.2")];
    for (n, namespace) in (1..).zip(["x", "y", "z"]) {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"ns": namespace}},
        }));
        for (p, name) in (1..).zip(["a", "b", "c"]) {
            documents.push(pod(
                namespace,
                name,
                &[&format!("10.{n}.0.{p}"), &format!("fd00:{n}::{p}")],
            ));
        }
    }
    Cluster(documents)
}

pub(crate) fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"node": name}},
        "status": {"addresses": [
            {"type": "Hostname", "address": name},
            {"type": "InternalIP", "address": address},
        ]},
    })
}

pub(crate) fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"pod": name}},
        "spec": {
            "nodeName": if name == "c" { "n2" } else { "n1" },
            "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 80},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}],
        },
        "status": {"phase": "Running", "podIPs": ips},
    })
}

/// A NetworkPolicy called `p`.
pub(crate) fn policy(namespace: &str, spec: Value) -> Value {
    named_policy(namespace, "p", spec)
}

pub(crate) fn named_policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// A ClusterNetworkPolicy.
pub(crate) fn cnp(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// Calico's GlobalNetworkPolicy.
pub(crate) fn gnp(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// `x/a`, `x/a/6` (its IPv6 address), `node:n1`, or an address.
pub(crate) fn end(text: &str) -> End {
    if let Some(name) = text.strip_prefix("node:") {
        let number = name.trim_start_matches('n');
        return End::node(name, format!("192.168.0.{number}").parse().unwrap());
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (namespace, name, six) = match parts.as_slice() {
        [address] => return End::Address(address.parse().unwrap()),
        [namespace, name] => (*namespace, *name, false),
        [namespace, name, "6"] => (*namespace, *name, true),
        _ => panic!("{text}"),
    };
    let n = "?xyz".find(namespace).unwrap();
    let p = "?abc".find(name).unwrap_or(9);
    let address: IpAddr = if six {
        format!("fd00:{n}::{p}").parse().unwrap()
    } else {
        format!("10.{n}.0.{p}").parse().unwrap()
    };
    End::pod(namespace, name, address)
}

impl Cluster {
    pub(crate) fn with(mut self, document: Value) -> Self {
        self.0.push(document);
        self
    }

    /// The same with every document of that kind, namespace and name changed.
    pub(crate) fn edit(
        mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        edit: impl Fn(&mut Value),
    ) -> Self {
        let mut seen = false;
        for document in &mut self.0 {
            let metadata = &document["metadata"];
            if document["kind"] == kind
                && metadata["name"] == name
                && metadata["namespace"].as_str().unwrap_or_default() == namespace
            {
                edit(document);
                seen = true;
            }
        }
        assert!(seen, "no {kind} {namespace}/{name}");
        self
    }

    pub(crate) fn without(mut self, kind: &str, name: &str) -> Self {
        self.0
            .retain(|d| d["kind"] != kind || d["metadata"]["name"] != name);
        self
    }

    pub(crate) fn world(&self) -> World {
        World::from_documents(self.0.clone())
    }

    pub(crate) fn decide(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Decision {
        self.world()
            .decide(&Probe::new(end(from), end(to), protocol, port))
    }

    pub(crate) fn allows(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
        self.decide(from, to, protocol, port).allowed
    }

    /// TCP port 80.
    pub(crate) fn opens(&self, from: &str, to: &str) -> bool {
        self.allows(from, to, Tcp, 80)
    }

    /// Everybody of `from` who reaches `to` on TCP port 80, as written.
    pub(crate) fn openers<'a>(&self, from: &'a str, to: &str) -> String {
        from.split(' ')
            .filter(|source: &&'a str| self.opens(source, to))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Everybody of `to` whom `from` reaches on TCP port 80, as written.
    pub(crate) fn reached<'a>(&self, from: &str, to: &'a str) -> String {
        to.split(' ')
            .filter(|destination: &&'a str| self.opens(from, destination))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// All pods.
pub(crate) const PODS: &str = "x/a x/b x/c y/a y/b y/c z/a z/b z/c";
