//! Whether kernel, agent stores, shard log and simulated cloud hold the same addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ecs_sim::dump::SimDump;
use proto::ipam::v1::ShardDump;
use proto::node::v1::{Binding, DumpNodeResponse};
use types::pod::PodKey;

use crate::kernel::KernelView;

/// Everything that an audit compares, looked at within a moment.
#[derive(Debug)]
pub struct AuditInputs {
    /// The nodes.
    pub nodes: Vec<NodeInputs>,
    /// All shards of all replicas.
    pub shards: Vec<ShardDump>,
    /// The cloud's own truth.
    pub cloud: SimDump,
}

/// One node's part.
#[derive(Debug)]
pub struct NodeInputs {
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: String,
    /// What its agent's store holds.
    pub store: DumpNodeResponse,
    /// Its kernel.
    pub kernel: KernelView,
    /// The kernels of its pods.
    pub pods: BTreeMap<PodKey, KernelView>,
}

/// An address on an ENI.
type Held = (String, IpAddr);

/// What was compared, and what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Pods whose addresses were compared in all four places.
    pub pods: usize,
    /// Addresses of ENIs that were compared in three.
    pub addresses: usize,
    /// One sentence per difference.
    pub differences: Vec<String>,
}

impl Agreement {
    fn expect_equal<T: Ord + fmt::Debug>(
        &mut self,
        what: &str,
        left: (&str, &BTreeSet<T>),
        right: (&str, &BTreeSet<T>),
    ) {
        for (here, there) in [(left, right), (right, left)] {
            for item in here.1.difference(there.1) {
                let line = format!("{what}: {item:?} is in {} and not in {}", here.0, there.0);
                self.differences.push(line);
            }
        }
    }
}

/// Compares.
pub fn compare(inputs: &AuditInputs) -> Agreement {
    let mut agreement = Agreement::default();
    let mut users: BTreeMap<IpAddr, String> = BTreeMap::new();
    for node in &inputs.nodes {
        let cloud = in_cloud(inputs, node);
        let log = in_log(inputs, node);
        let store = in_store(node);
        agreement.addresses += cloud.len();
        let name = node.name.as_str();
        agreement.expect_equal(name, ("the shard log", &log), ("the cloud", &cloud));
        agreement.expect_equal(name, ("the shard log", &log), ("the agent's store", &store));
        compare_pods(node, &store, &mut agreement);
        for binding in &node.store.bindings {
            for ip in addresses(binding) {
                let user = pod_key(binding).to_string();
                if let Some(other) = users.insert(ip, user.clone()) {
                    let line = format!("{ip} belongs to {other} and to {user}");
                    agreement.differences.push(line);
                }
            }
        }
    }
    agreement
}

fn compare_pods(node: &NodeInputs, store: &BTreeSet<Held>, agreement: &mut Agreement) {
    let mut bound = BTreeSet::new();
    for binding in &node.store.bindings {
        let key = pod_key(binding);
        let ours = addresses(binding);
        for ip in &ours {
            if !store.contains(&(binding.eni_id.clone(), *ip)) {
                let line = format!("{key} has {ip}, which its node does not hold");
                agreement.differences.push(line);
            }
        }
        match node.pods.get(&key) {
            Some(kernel) => {
                let seen = kernel.addresses_of(crate::plugin::IFNAME);
                let what = key.to_string();
                agreement.expect_equal(&what, ("the agent's store", &ours), ("its kernel", &seen));
                agreement.pods += 1;
            }
            None => agreement.differences.push(format!(
                "{key} is bound on {} and does not exist",
                node.name
            )),
        }
        bound.extend(ours);
    }
    for key in node.pods.keys() {
        if !node.store.bindings.iter().any(|b| pod_key(b) == *key) {
            let line = format!("{key} runs on {} and its agent has no binding", node.name);
            agreement.differences.push(line);
        }
    }
    let routed = node.kernel.routed_to("cali");
    agreement.expect_equal(
        &node.name,
        ("the agent's bindings", &bound),
        ("the node's routes", &routed),
    );
}

fn in_cloud(inputs: &AuditInputs, node: &NodeInputs) -> BTreeSet<Held> {
    let enis = inputs.cloud.enis.iter().filter(|eni| {
        eni.kind == "Secondary"
            && eni.status == "InUse"
            && eni
                .instance
                .as_ref()
                .is_some_and(|i| i.as_str() == node.instance)
    });
    enis.flat_map(|eni| {
        let v4 = eni.ipv4.iter().map(|ip| IpAddr::V4(*ip));
        let v6 = eni.ipv6.iter().map(|ip| IpAddr::V6(*ip));
        v4.chain(v6)
            .map(|ip| (eni.id.to_string(), ip))
            .collect::<Vec<_>>()
    })
    .collect()
}

fn in_log(inputs: &AuditInputs, node: &NodeInputs) -> BTreeSet<Held> {
    let mut held = BTreeSet::new();
    for shard in &inputs.shards {
        let mine = |eni: &str| {
            shard
                .enis
                .iter()
                .any(|e| e.eni_id == eni && e.instance_id == node.instance)
        };
        for slot in shard.slots.iter().filter(|slot| slot.state == "held") {
            if let Ok(ip) = slot.ip.parse()
                && mine(&slot.eni_id)
            {
                held.insert((slot.eni_id.clone(), ip));
            }
        }
    }
    held
}

fn in_store(node: &NodeInputs) -> BTreeSet<Held> {
    let enis = node.store.enis.iter();
    enis.flat_map(|eni| {
        let ips = eni.addresses.iter().filter_map(|a| a.ip.parse().ok());
        ips.map(|ip| (eni.eni_id.clone(), ip)).collect::<Vec<_>>()
    })
    .collect()
}

/// The pod of a binding.
pub fn pod_key(binding: &Binding) -> PodKey {
    let pod = binding.pod.clone().unwrap_or_default();
    PodKey::new(pod.namespace, pod.name)
}

/// The addresses of a binding.
pub fn addresses(binding: &Binding) -> BTreeSet<IpAddr> {
    let texts = [&binding.ipv4, &binding.ipv6];
    texts
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::LinkView;
    use proto::ipam::v1::{EniDump, SlotDump};
    use proto::node::v1::{NodeEni, PodRef};
    use proto::types::v1::GrantedAddress;

    const IP: &str = "10.1.0.5";

    fn inputs() -> AuditInputs {
        let ip: IpAddr = IP.parse().unwrap();
        let binding = Binding {
            pod: Some(PodRef {
                namespace: "default".to_owned(),
                name: "a".to_owned(),
                uid: String::new(),
            }),
            eni_id: "eni-1".to_owned(),
            ipv4: IP.to_owned(),
            ..Binding::default()
        };
        let eni = NodeEni {
            eni_id: "eni-1".to_owned(),
            addresses: vec![GrantedAddress {
                ip: IP.to_owned(),
                generation: 1,
            }],
            ..NodeEni::default()
        };
        let pod_kernel = KernelView {
            links: vec![LinkView {
                name: "eth0".to_owned(),
                mac: String::new(),
                addresses: [ip].into(),
            }],
            host_routes: BTreeSet::new(),
        };
        let cloud = serde_json::json!({
            "region": "cn-hangzhou", "seed": 1, "vswitches": [], "instances": [], "calls": {},
            "enis": [{
                "id": "eni-1", "mac": "00:16:3e:00:00:01", "status": "InUse", "kind": "Secondary",
                "instance": "i-1", "vswitch": "vsw-1", "zone": "cn-hangzhou-h",
                "security_groups": [], "ipv4": [IP], "ipv6": [], "tags": {}, "foreign": false,
            }],
        });
        AuditInputs {
            nodes: vec![NodeInputs {
                name: "node-1".to_owned(),
                instance: "i-1".to_owned(),
                store: DumpNodeResponse {
                    enis: vec![eni],
                    bindings: vec![binding],
                    ..DumpNodeResponse::default()
                },
                kernel: KernelView {
                    links: vec![],
                    host_routes: [(ip, "cali123".to_owned())].into(),
                },
                pods: [(PodKey::new("default", "a"), pod_kernel)].into(),
            }],
            shards: vec![ShardDump {
                slots: vec![SlotDump {
                    ip: IP.to_owned(),
                    state: "held".to_owned(),
                    eni_id: "eni-1".to_owned(),
                    ..SlotDump::default()
                }],
                enis: vec![EniDump {
                    eni_id: "eni-1".to_owned(),
                    instance_id: "i-1".to_owned(),
                    ..EniDump::default()
                }],
                ..ShardDump::default()
            }],
            cloud: serde_json::from_value(cloud).unwrap(),
        }
    }

    #[test]
    fn same_addresses_everywhere_agree() {
        let agreement = compare(&inputs());

        assert_eq!(agreement.differences, Vec::<String>::new());
        assert_eq!((agreement.pods, agreement.addresses), (1, 1));
    }

    #[test]
    fn address_missing_in_one_place_is_named_each_time() {
        let spoilt: [fn(&mut AuditInputs); 5] = [
            |i| i.cloud.enis.clear(),
            |i| i.shards.clear(),
            |i| i.nodes[0].store.enis.clear(),
            |i| i.nodes[0].kernel.host_routes.clear(),
            |i| i.nodes[0].pods.clear(),
        ];
        for spoil in spoilt {
            let mut inputs = inputs();
            spoil(&mut inputs);

            let agreement = compare(&inputs);

            assert!(!agreement.differences.is_empty());
            let named = |d: &String| d.contains(IP) || d.contains("default/a");
            assert!(agreement.differences.iter().all(named), "{agreement:?}");
        }
    }

    // I1: an address has one user.
    #[test]
    fn address_bound_twice_is_found() {
        let mut inputs = inputs();
        let mut second = inputs.nodes[0].store.bindings[0].clone();
        second.pod.as_mut().unwrap().name = "b".to_owned();
        inputs.nodes[0].store.bindings.push(second);

        let agreement = compare(&inputs);

        let double = |d: &String| d.contains("default/a and to default/b");
        assert!(agreement.differences.iter().any(double), "{agreement:?}");
    }
}
