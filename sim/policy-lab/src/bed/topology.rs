//! Nodes, the router between them, a host beyond it, and pods: each a network namespace.
//!
//! What Terway puts on a node (rules 512 and 2048, a route per pod address, fixed neighbours) is put there by
//! [`datapath`], as node-agent would. Pods come from a pool of namespaces, because making one takes the kernel
//! longer than probing a whole world.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use datapath::desired::{EniDesired, HostDesired, PodDesired, PodTeardown};
use datapath::kernel::Datapath;
use datapath::names;
use fabric::namespace::{self, Namespace};
use fabric::shell;
use types::address::MacAddr;
use types::pod::{AttachmentKey, PodKey};

/// The router's address at each node, as a vSwitch's gateway.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 253);
/// The router's IPv6 address at each node.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd0f, 0xffff, 0, 0, 0, 0, 0, 0xfffd);

/// A node of the bed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name in documents.
    pub name: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A pod of the bed; one with `host_network` has no namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodSpec {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`.
    pub uid: String,
    /// Index of its node.
    pub node: usize,
    /// At most one address of each family.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl PodSpec {
    /// Both addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A node that stands.
#[derive(Debug)]
pub struct Node {
    /// What it was made from.
    pub spec: NodeSpec,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its kernel.
    pub datapath: Datapath,
    /// Routing table of its ENI.
    table: u32,
}

/// A pod that stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What it was made from.
    pub spec: PodSpec,
    /// Its namespace.
    pub namespace: Namespace,
    /// What the datapath made.
    pub desired: PodDesired,
}

/// All namespaces of a bed. They go when it is dropped.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The router that plays the VPC.
    pub router: Namespace,
    /// A host beyond the router, no node and no pod.
    pub outside: Namespace,
    /// Its addresses.
    pub outside_addresses: Vec<IpAddr>,
    pods: BTreeMap<PodKey, Standing>,
    /// Node to which the router sends each pod address that was ever in use.
    routed: BTreeMap<IpAddr, usize>,
    spare: Vec<Namespace>,
    made: usize,
    sandboxes: u64,
}

impl Drop for Topology {
    fn drop(&mut self) {
        for namespace in namespace::with_prefix(&self.prefix) {
            if let Err(error) = namespace.delete() {
                tracing::warn!(%error, namespace = namespace.name(), "namespace stays");
            }
        }
    }
}

fn eni_mac(node: usize) -> MacAddr {
    MacAddr([
        0x02,
        0x16,
        0x3e,
        0,
        0,
        u8::try_from(node).unwrap_or(u8::MAX),
    ])
}

fn router_mac(node: usize) -> MacAddr {
    MacAddr([
        0x02,
        0x16,
        0x3e,
        1,
        0,
        u8::try_from(node).unwrap_or(u8::MAX),
    ])
}

fn host_settings() -> HostDesired {
    HostDesired {
        v6: true,
        veth_prefixes: vec![names::DEFAULT_VETH_PREFIX.to_owned()],
        node_addresses: Vec::new(),
    }
}

impl Topology {
    /// Builds the nodes, the router and the host beyond it.
    ///
    /// # Errors
    /// What the kernel or `ip` refused. Needs root.
    pub async fn create(nodes: &[NodeSpec], outside: &[IpAddr]) -> anyhow::Result<Self> {
        namespace::remove_orphans()?;
        let prefix = namespace::run_prefix();
        let named = |part: &str| Namespace::named(format!("{prefix}{part}"));
        let mut topology = Self {
            nodes: Vec::new(),
            router: named("r"),
            outside: named("o"),
            outside_addresses: outside.to_vec(),
            pods: BTreeMap::new(),
            routed: BTreeMap::new(),
            spare: Vec::new(),
            made: 0,
            sandboxes: 0,
            prefix,
        };
        topology.create_router().await?;
        for (index, spec) in nodes.iter().enumerate() {
            let node = topology.create_node(index, spec).await?;
            topology.nodes.push(node);
        }
        Ok(topology)
    }

    async fn create_router(&self) -> anyhow::Result<()> {
        Namespace::create(self.router.name())?;
        Namespace::create(self.outside.name())?;
        for namespace in [&self.router, &self.outside] {
            let settings = [
                ("ipv4/ip_forward", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/forwarding", "1"),
            ];
            let settings = settings.map(|(key, value)| (key.to_owned(), value));
            namespace.set_sysctls(settings.to_vec()).await?;
        }
        let mut script = format!(
            "link add out0 address {mac} type veth peer name eth0 address {far} netns {outside}\nlink set out0 up\n",
            mac = router_mac(200),
            far = eni_mac(200),
            outside = self.outside.name(),
        );
        for address in &self.outside_addresses {
            writeln!(script, "route replace {address} dev out0")?;
            writeln!(
                script,
                "neigh replace {address} lladdr {} dev out0 nud permanent",
                eni_mac(200)
            )?;
        }
        shell::ip_batch(&self.router, &script).await?;
        let mut script = "link set eth0 up\n".to_owned();
        for address in &self.outside_addresses {
            let word = if address.is_ipv6() { " nodad" } else { "" };
            writeln!(script, "addr add {address} dev eth0{word}")?;
        }
        script.push_str(&default_routes("eth0", router_mac(200))?);
        shell::ip_batch(&self.outside, &script).await?;
        Ok(())
    }

    async fn create_node(&self, index: usize, spec: &NodeSpec) -> anyhow::Result<Node> {
        let namespace = Namespace::create(format!("{}n{index}", self.prefix))?;
        let mac = eni_mac(index);
        let mut script = format!(
            "link add vpc{index} address {} type veth peer name eth0 address {mac} netns {}\nlink set vpc{index} up\n",
            router_mac(index),
            namespace.name(),
        );
        script.push_str(&assignments(index, [spec.v4.into(), spec.v6.into()])?);
        shell::ip_batch(&self.router, &script).await?;
        let datapath = Datapath::open_at(&namespace.path())?;
        datapath.ensure_host(&host_settings()).await?;
        let eni = EniDesired {
            mac,
            v4_gateway: Some(GATEWAY_V4),
            v6_gateway: Some(GATEWAY_V6),
            node_v4: Some(spec.v4),
            node_v6: Some(spec.v6),
            mtu: 1500,
        };
        let state = datapath.ensure_eni(&eni).await?;
        shell::ip_batch(&namespace, &default_routes("eth0", router_mac(index))?).await?;
        Ok(Node {
            spec: spec.clone(),
            namespace,
            datapath,
            table: state.table,
        })
    }

    /// The pods that stand, by name.
    pub const fn pods(&self) -> &BTreeMap<PodKey, Standing> {
        &self.pods
    }

    /// A node by its number.
    ///
    /// # Errors
    /// The bed has fewer nodes.
    pub fn node(&self, index: usize) -> anyhow::Result<&Node> {
        self.nodes
            .get(index)
            .with_context(|| format!("the bed has no node {index}"))
    }

    /// What [`Self::raise`] will make of a pod: a new sandbox in a namespace of the pool, without a link yet.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn sandbox(&mut self, spec: &PodSpec) -> anyhow::Result<Standing> {
        let namespace = if let Some(spare) = self.spare.pop() {
            spare
        } else {
            let name = format!("{}p{}", self.prefix, self.made);
            self.made = self.made.saturating_add(1);
            Namespace::create(name)?
        };
        self.sandboxes = self.sandboxes.saturating_add(1);
        let sandbox = format!("{}s{}", self.prefix, self.sandboxes);
        let desired = PodDesired {
            attachment: AttachmentKey::new(sandbox, "eth0")?,
            host_link: names::host_link("", &spec.key, "eth0")?,
            netns: namespace.path(),
            mtu: 1500,
            v4: spec.v4,
            v6: spec.v6,
            table: self.node(spec.node)?.table,
        };
        Ok(Standing {
            spec: spec.clone(),
            namespace,
            desired,
        })
    }

    /// Gives a sandbox its link, addresses and rules, and the VPC its routes.
    ///
    /// # Errors
    /// What the datapath or `ip` refused.
    pub async fn raise(&mut self, pod: Standing) -> anyhow::Result<()> {
        let number = pod.spec.node;
        let moved = |at: &IpAddr| self.routed.get(at) != Some(&number);
        let moved: Vec<IpAddr> = pod.spec.addresses().filter(moved).collect();
        if !moved.is_empty() {
            let script = assignments(number, moved.iter().copied())?;
            shell::ip_batch(&self.router, &script).await?;
            self.routed.extend(moved.into_iter().map(|at| (at, number)));
        }
        let node = self.node(number)?;
        node.datapath
            .setup_pod(&pod.desired)
            .await
            .with_context(|| format!("set up {}", pod.spec.key))?;
        self.pods.insert(pod.spec.key.clone(), pod);
        Ok(())
    }

    /// Takes a pod's link and rules away; its namespace goes back to the pool. What it was, if it stood.
    ///
    /// # Errors
    /// What the datapath refused.
    pub async fn fell(&mut self, key: &PodKey) -> anyhow::Result<Option<Standing>> {
        let Some(pod) = self.pods.remove(key) else {
            return Ok(None);
        };
        let teardown = PodTeardown {
            attachment: pod.desired.attachment.clone(),
            host_link: pod.desired.host_link.clone(),
            addresses: pod.spec.addresses().collect(),
        };
        let node = self.node(pod.spec.node)?;
        node.datapath.teardown_pod(&teardown).await?;
        self.spare.push(pod.namespace.clone());
        Ok(Some(pod))
    }
}

/// Lines for a default route to the router, whose hardware address is known beforehand.
fn default_routes(link: &str, mac: MacAddr) -> anyhow::Result<String> {
    let mut script = String::new();
    for gateway in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] {
        writeln!(
            script,
            "neigh replace {gateway} lladdr {mac} dev {link} nud permanent"
        )?;
        writeln!(
            script,
            "route replace default via {gateway} dev {link} onlink"
        )?;
    }
    Ok(script)
}

/// Lines that send traffic for the addresses to a node's ENI.
fn assignments(node: usize, addresses: impl IntoIterator<Item = IpAddr>) -> anyhow::Result<String> {
    let mut script = String::new();
    for address in addresses {
        let mac = eni_mac(node);
        writeln!(script, "route replace {address} dev vpc{node}")?;
        writeln!(
            script,
            "neigh replace {address} lladdr {mac} dev vpc{node} nud permanent"
        )?;
    }
    Ok(script)
}
