//! Asks cloud, shards, agents and kernels.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use datapath::desired::{PodDesired, WholeDesired};
use datapath::error::DatapathError;
use datapath::kernel::Datapath;
use datapath::plan;
use mesh::client::{Channel, Params};
use mesh::identity::IdentityKind;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use proto::cloud::v1::DescribeEnisRequest;
use proto::cloud::v1::cloud_client::CloudClient;
use proto::ipam::v1::admin_client::AdminClient;
use proto::ipam::v1::{DumpShardsRequest, ShardDump};
use proto::node::v1::inspect_client::InspectClient;
use proto::node::v1::{DumpNodeRequest, DumpNodeResponse};
use types::pod::AttachmentKey;

use crate::audit::picture::{Binding, CloudEni, Node, NodeEni, Picture, Shard, ShardEni, Slot};

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Largest answer of a gateway: a list of some 20,000 ENIs with 100 addresses each.
const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `host:port` of a gateway.
    pub gateway: String,
    /// `host:port` of every ipam replica.
    pub ipam: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodeSource>,
    /// Tags that mark an ENI as ours.
    pub tags: BTreeMap<String, String>,
}

/// A node's doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSource {
    /// Its name.
    pub name: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The node's network namespace; none for the one we are in.
    pub netns: Option<PathBuf>,
}

/// Asks everybody.
///
/// # Errors
/// Whoever did not answer, by name: an audit of a part would find what is not there.
pub async fn collect(sources: &Sources, tls: &TlsMaterial) -> Result<Picture> {
    let mut picture = Picture {
        cloud: cloud(sources, tls).await.context("gateway")?,
        ..Picture::default()
    };
    for replica in &sources.ipam {
        let dumps = shards(replica, tls)
            .await
            .with_context(|| format!("ipam {replica}"))?;
        picture.shards.extend(dumps);
    }
    for source in &sources.nodes {
        let node = node(source)
            .await
            .with_context(|| format!("node {}", source.name))?;
        picture.nodes.insert(source.name.clone(), node);
    }
    Ok(picture)
}

fn channel(target: &str, tls: &TlsMaterial, kind: IdentityKind) -> Result<Channel> {
    let channel = Channel::tcp(target, tls.clone(), Expect::Kind(kind), &Params::default())?;
    Ok(channel.with_deadline(DEADLINE))
}

async fn cloud(sources: &Sources, tls: &TlsMaterial) -> Result<BTreeMap<String, CloudEni>> {
    let channel = channel(&sources.gateway, tls, IdentityKind::Gateway)?;
    let tags = sources.tags.clone().into_iter().collect();
    let request = DescribeEnisRequest {
        tags,
        ..DescribeEnisRequest::default()
    };
    let answer = CloudClient::new(channel)
        .max_decoding_message_size(ANSWER_MAX_BYTES)
        .describe_enis(request)
        .await
        .map_err(|e| said(&e))?;
    let mut enis = BTreeMap::new();
    for eni in answer.into_inner().enis {
        let addresses = eni.ipv4.iter().chain(&eni.ipv6).map(|ip| address(ip));
        let known = CloudEni {
            instance: eni.instance_id,
            mac: eni.mac,
            status: eni.status,
            addresses: addresses.collect::<Result<_>>()?,
        };
        enis.insert(eni.id, known);
    }
    Ok(enis)
}

async fn shards(replica: &str, tls: &TlsMaterial) -> Result<BTreeMap<String, Shard>> {
    let channel = channel(replica, tls, IdentityKind::Ipam)?.without_deadline();
    let mut ipam = AdminClient::new(channel);
    let asked = ipam.dump_shards(DumpShardsRequest::default());
    let mut dumps = tokio::time::timeout(DEADLINE, asked)
        .await?
        .map_err(|e| said(&e))?
        .into_inner();
    let mut all = BTreeMap::new();
    while let Some(dump) = tokio::time::timeout(DEADLINE, dumps.message())
        .await?
        .map_err(|e| said(&e))?
    {
        all.insert(dump.shard.clone(), shard(dump)?);
    }
    Ok(all)
}

fn shard(dump: ShardDump) -> Result<Shard> {
    let mut shard = Shard {
        open_ops: dump.open_ops.len(),
        ..Shard::default()
    };
    for slot in dump.slots {
        let known = Slot {
            state: slot.state,
            eni: slot.eni_id,
            generation: slot.generation,
        };
        shard.slots.insert(address(&slot.ip)?, known);
    }
    for eni in dump.enis.into_iter().filter(|e| !e.eni_id.is_empty()) {
        let known = ShardEni {
            state: eni.state,
            instance: eni.instance_id,
            mac: eni.mac,
        };
        shard.enis.insert(eni.eni_id, known);
    }
    Ok(shard)
}

async fn node(source: &NodeSource) -> Result<Node> {
    let channel = Channel::unix(&source.socket, &Params::default());
    let answer = InspectClient::new(channel)
        .dump_node(DumpNodeRequest {})
        .await
        .map_err(|e| said(&e))?;
    let dump = answer.into_inner();
    let kernel = match &source.netns {
        Some(path) => Datapath::open_at(path)?,
        None => Datapath::open()?,
    };
    let mut node = stored(&dump)?;
    let mut desired = Vec::new();
    let mut wholes = Vec::new();
    for binding in &dump.bindings {
        if binding.whole {
            let pod = wanted_whole(binding, &dump)?;
            let key = pod.attachment.to_string();
            if let Some(known) = node.bindings.get_mut(&key) {
                look_whole(&kernel, &pod, known).await?;
            }
            wholes.push(pod);
            continue;
        }
        let pod = wanted(binding, &dump)?;
        let key = pod.attachment.to_string();
        if let Some(known) = node.bindings.get_mut(&key) {
            look(&kernel, &pod, known).await?;
        }
        desired.push(pod);
    }
    let observed = kernel.observe_host().await?;
    let orphans = plan::orphans(&observed, &desired, &wholes);
    node.orphans
        .extend(orphans.links.iter().map(|(_, name)| format!("link {name}")));
    node.orphans
        .extend(orphans.rules.iter().map(|rule| format!("{rule:?}")));
    Ok(node)
}

/// What the agent's store says.
fn stored(dump: &DumpNodeResponse) -> Result<Node> {
    let mut node = Node {
        instance: dump.instance_id.clone(),
        ..Node::default()
    };
    for eni in &dump.enis {
        let addresses = eni
            .addresses
            .iter()
            .map(|a| Ok((address(&a.ip)?, a.generation)));
        let known = NodeEni {
            shard: eni.shard.clone(),
            mac: eni.mac.clone(),
            ready: eni.ready,
            addresses: addresses.collect::<Result<_>>()?,
        };
        node.enis.insert(eni.eni_id.clone(), known);
    }
    for binding in &dump.bindings {
        let pod = binding.pod.clone().unwrap_or_default();
        let texts = [&binding.ipv4, &binding.ipv6];
        let addresses = texts
            .into_iter()
            .filter(|t| !t.is_empty())
            .map(|t| address(t));
        let known = Binding {
            pod: format!("{}/{}", pod.namespace, pod.name),
            eni: binding.eni_id.clone(),
            addresses: addresses.collect::<Result<_>>()?,
            ..Binding::default()
        };
        node.bindings
            .insert(attachment(binding)?.to_string(), known);
    }
    Ok(node)
}

fn attachment(binding: &proto::node::v1::Binding) -> Result<AttachmentKey> {
    let attachment = binding
        .attachment
        .clone()
        .context("a binding has no attachment")?;
    Ok(AttachmentKey::new(
        attachment.sandbox_id,
        attachment.ifname,
    )?)
}

/// What the kernel should hold for a binding.
fn wanted(binding: &proto::node::v1::Binding, dump: &DumpNodeResponse) -> Result<PodDesired> {
    let table = dump
        .enis
        .iter()
        .find(|e| e.eni_id == binding.eni_id)
        .map_or(0, |e| e.route_table);
    let v6 = match binding.ipv6.as_str() {
        "" => None,
        text => Some(text.parse().with_context(|| text.to_owned())?),
    };
    Ok(PodDesired {
        attachment: attachment(binding)?,
        host_link: binding.host_link.clone(),
        netns: PathBuf::from(&binding.netns),
        mtu: binding.mtu,
        v4: Some(binding.ipv4.parse().with_context(|| binding.ipv4.clone())?),
        v6,
        table,
    })
}

/// What is known here of a pod with an ENI of its own. Gateways and what lies behind the node are the agent's affair.
fn wanted_whole(
    binding: &proto::node::v1::Binding,
    dump: &DumpNodeResponse,
) -> Result<WholeDesired> {
    let eni = dump.enis.iter().find(|e| e.eni_id == binding.eni_id);
    let eni = eni.with_context(|| format!("{} is bound and not known", binding.eni_id))?;
    let v4 = binding.ipv4.parse().with_context(|| binding.ipv4.clone())?;
    let v6 = match binding.ipv6.as_str() {
        "" => None,
        text => Some(text.parse().with_context(|| text.to_owned())?),
    };
    Ok(WholeDesired {
        attachment: attachment(binding)?,
        host_link: binding.host_link.clone(),
        netns: PathBuf::from(&binding.netns),
        mac: eni.mac.parse().with_context(|| eni.mac.clone())?,
        mtu: binding.mtu,
        v4: (v4, Ipv4Addr::UNSPECIFIED),
        v6: v6.map(|ip| (ip, Ipv6Addr::UNSPECIFIED)),
        through_node: Vec::new(),
    })
}

/// Looks whether the pod has its ENI, with its addresses on it.
async fn look_whole(kernel: &Datapath, pod: &WholeDesired, known: &mut Binding) -> Result<()> {
    let inside = match kernel.observe_namespace(&pod.netns).await {
        Ok(inside) => inside,
        Err(DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. }) => {
            known.netns_gone = !Path::new(&pod.netns).exists();
            known
                .drift
                .push("the namespace can not be entered".to_owned());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let Some(link) = inside.link_by_mac(pod.mac) else {
        known.drift.push(format!("pod: no link has {}", pod.mac));
        return Ok(());
    };
    for ip in pod.addresses() {
        let mut on_link = inside.addresses.iter().filter(|a| a.link == link.index);
        if !on_link.any(|a| a.net.addr() == ip) {
            known
                .drift
                .push(format!("pod: address {ip} dev {}", link.name));
        }
    }
    Ok(())
}

async fn look(kernel: &Datapath, pod: &PodDesired, known: &mut Binding) -> Result<()> {
    match kernel.check_pod(pod).await {
        Ok(drift) => known.drift = drift.into_iter().map(|d| d.what).collect(),
        Err(DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. }) => {
            known.netns_gone = !Path::new(&pod.netns).exists();
            known
                .drift
                .push("the namespace can not be entered".to_owned());
        }
        Err(error @ DatapathError::InterfaceTaken { .. }) => known.drift.push(error.to_string()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse()
        .with_context(|| format!("{text:?} is not an address"))
}

fn said(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}
