//! Proofs that the checks can fail: what must break does break, and nothing else.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail};
use ecs_api::model::eni::AttachNetworkInterface;
use fabric::namespace::Namespace;
use fabric::shell;
use types::cloud::{EniId, InstanceId};

use crate::agreement::pod_key;
use crate::cluster::{Cluster, Host};
use crate::pods::Pod;
use crate::reachability::{Matrix, Place, all_pairs};

/// How long a connection may take that should work; and how long one is tried that should not.
const DIAL_LIMIT: Duration = Duration::from_millis(1_500);
/// How long a datagram within this machine may take.
const DATAGRAM_LIMIT: Duration = Duration::from_millis(500);
/// How long a node may take to use a link that came back.
const HEAL_LIMIT: Duration = Duration::from_secs(45);
/// Time between two looks whether it does.
const HEAL_LOOK: Duration = Duration::from_millis(250);
/// An address of the hosts' vSwitch that nobody has.
const NOBODYS: [u8; 4] = [10, 0, 0, 222];

/// What detaching an ENI broke.
#[derive(Debug, Clone)]
pub struct DetachControl {
    /// The ENI.
    pub eni: String,
    /// Who has addresses on it.
    pub expected: BTreeSet<String>,
    /// Who could not be reached any more.
    pub broken: BTreeSet<String>,
    /// Whether everybody was reached again after it was attached again; `None` if that was not tried.
    pub healed: Option<bool>,
}

impl DetachControl {
    /// Whether exactly the expected broke.
    pub fn holds(&self) -> bool {
        !self.expected.is_empty() && self.expected == self.broken && self.healed != Some(false)
    }
}

/// Detaches the ENI of a pod behind everybody's back and looks who is gone, as seen from other instances. With
/// `heal` it is attached again afterwards.
pub async fn detach(cluster: &Cluster, pods: &[Pod], heal: bool) -> anyhow::Result<DetachControl> {
    let victim = pods.first().context("there are no pods")?;
    let node = victim.node;
    let dump = cluster.node_dump(node).await?;
    let eni = dump.bindings.iter().find(|b| pod_key(b) == victim.key);
    let eni = eni.context("the pod is not bound")?.eni_id.clone();
    let on_eni = dump.bindings.iter().filter(|b| b.eni_id == eni);
    let expected = on_eni.map(|b| pod_key(b).to_string()).collect();
    let id: EniId = eni.parse()?;
    let detached = cluster.sim().detach_behind_back(&id).await;
    if let Err(refusal) = detached {
        bail!("detach {eni}: {refusal:?}");
    }
    // Pods beside the victims reach them without the VPC, so only other instances tell.
    let lookers: Vec<Place> = pods
        .iter()
        .filter(|pod| pod.node != node)
        .map(Pod::place)
        .chain(cluster.plain_hosts().iter().map(Host::place))
        .collect();
    let everybody: Vec<Place> = pods
        .iter()
        .map(Pod::place)
        .chain(cluster.plain_hosts().iter().map(Host::place))
        .collect();
    let matrix = all_pairs(&lookers, &everybody, DIAL_LIMIT).await?;
    let broken = unreachable(&matrix);
    let mut healed = None;
    if heal {
        let instance = cluster.node(node)?.instance.clone();
        healed = Some(attach_again(cluster, &id, &instance, &lookers, &everybody).await?);
    }
    Ok(DetachControl {
        eni,
        expected,
        broken,
        healed,
    })
}

/// Places that nobody could reach at all, at any of their addresses, or that somebody missed.
fn unreachable(matrix: &Matrix) -> BTreeSet<String> {
    matrix
        .failures()
        .into_iter()
        .map(|a| a.to.clone())
        .collect()
}

async fn attach_again(
    cluster: &Cluster,
    eni: &EniId,
    instance: &InstanceId,
    lookers: &[Place],
    everybody: &[Place],
) -> anyhow::Result<bool> {
    cluster
        .sim()
        .call(&AttachNetworkInterface {
            eni: eni.clone(),
            instance: instance.clone(),
            trunk: None,
        })
        .await?;
    let deadline = tokio::time::Instant::now() + HEAL_LIMIT;
    let mut look = tokio::time::interval(HEAL_LOOK);
    loop {
        look.tick().await;
        let matrix = all_pairs(lookers, everybody, DIAL_LIMIT).await?;
        if matrix.failures().is_empty() {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// What came of datagrams with a source that their sender does not own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoofControl {
    /// Whether one arrived with the filter on.
    pub arrived_checked: bool,
    /// By how much the filter's counter grew.
    pub dropped: u64,
    /// Whether one arrived with the filter off.
    pub arrived_unchecked: bool,
}

impl SpoofControl {
    /// Whether the filter, and nothing else, stops them.
    pub fn holds(&self) -> bool {
        !self.arrived_checked && self.dropped > 0 && self.arrived_unchecked
    }
}

/// Sends from a plain host to a pod with a source that nobody owns, with the filter on, then off. The filter is on
/// again afterwards.
pub async fn spoof(cluster: &Cluster, pods: &[Pod]) -> anyhow::Result<SpoofControl> {
    let host = cluster
        .plain_hosts()
        .first()
        .context("there is no plain host")?;
    let target = pods.first().context("there are no pods")?;
    let ip = target
        .address(true)
        .context("the pod has no IPv4 address")?;
    let script = format!("address replace {}/32 dev lo\n", nobody());
    shell::ip_batch(&host.namespace, &script).await?;
    let fabric = cluster.fabric();
    let before = fabric.spoof_drops().await?;
    let arrived_checked = send(&host.namespace, &target.netns, ip).await?;
    let dropped = fabric.spoof_drops().await? - before;
    fabric.set_source_check(false).await?;
    let arrived_unchecked = send(&host.namespace, &target.netns, ip).await;
    fabric.set_source_check(true).await?;
    let script = format!("address del {}/32 dev lo\n", nobody());
    shell::ip_batch(&host.namespace, &script).await?;
    Ok(SpoofControl {
        arrived_checked,
        dropped,
        arrived_unchecked: arrived_unchecked?,
    })
}

fn nobody() -> IpAddr {
    IpAddr::from(NOBODYS)
}

/// Whether a datagram from [`NOBODYS`] arrives.
async fn send(from: &Namespace, to: &Namespace, ip: IpAddr) -> anyhow::Result<bool> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let receiver = to.enter_async(move || UdpSocket::bind(any)).await??;
    receiver.set_read_timeout(Some(DATAGRAM_LIMIT))?;
    let target = SocketAddr::new(ip, receiver.local_addr()?.port());
    let source = SocketAddr::new(nobody(), 0);
    let sent = from.enter_async(move || UdpSocket::bind(source)?.send_to(b"spoofed", target));
    sent.await??;
    let heard = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 16];
        receiver.recv_from(&mut buffer)
    });
    Ok(heard
        .await?
        .is_ok_and(|(_, source)| source.ip() == nobody()))
}
