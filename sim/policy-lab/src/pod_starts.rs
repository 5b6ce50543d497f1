//! Pods that start under fire: no packet before their policy, and no answer lost after the gate.
//!
//! Each pod's address is shot at from the same node and from another one before its link exists, and its receiver
//! listens before it has an address. When the gate has answered, the one peer that is allowed asks at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use fabric::namespace::Namespace;
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::bed::enforcer::Kind;
use crate::bed::topology::{PodSpec, Standing};
use crate::bed::{Bed, Plan};
use crate::never_open::scene::{addresses, nodes, only_v4, only_v6, pod};
use crate::stream::{Route, Stream};

/// Where the neighbour on the same node shoots at.
const PORT: u16 = 9_000;
/// Where the one on another node shoots at.
const FAR_PORT: u16 = 9_001;
/// Where the allowed peer asks.
const ASK: u16 = 9_002;
/// Denied datagrams in a second, per stream.
const RATE: u64 = 10_000;
/// Questions after the gate has answered, per family.
const QUESTIONS: u64 = 3;
/// How long a question may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many addresses are used in turn: successors get them while they are still warm.
const ADDRESSES: u16 = 16;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Pods started.
    pub starts: u64,
    /// Denied packets that were sent while they started and shortly after.
    pub denied_sent: u64,
    /// Denied packets that arrived; 0 is the only good number.
    pub denied_delivered: u64,
    /// Questions of the allowed peer.
    pub asked: u64,
    /// Questions whose answer did not come back; 0 is the only good number.
    pub lost: u64,
    /// How long raising a link with the gate took, in milliseconds, sorted.
    pub start_ms: Vec<f64>,
    /// How long everything took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// The time that this share (0 to 1) of the starts took at most, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.start_ms.len().saturating_sub(1);
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        let at = (f64::from(last) * share).round();
        let found = (0..=last).find(|i| f64::from(*i) >= at);
        found
            .and_then(|i| self.start_ms.get(usize::try_from(i).ok()?).copied())
            .unwrap_or(0.0)
    }
}

/// Starts that many pods, one after the other.
///
/// # Errors
/// The bed or an agent failed; what leaked or was lost is no error but in the report.
pub async fn run(count: u64) -> anyhow::Result<Report> {
    let plan = Plan {
        nodes: nodes(),
        outside: Vec::new(),
        ports: vec![PORT],
        enforcer: Kind::Agents(json!({})),
    };
    let mut bed = Bed::create(plan).await?;
    let base = base();
    bed.show(&base).await?;
    let mut report = Report::default();
    let started = Instant::now();
    for number in 0..count {
        start(&mut bed, &base, number, &mut report)
            .await
            .with_context(|| format!("start {number}: {report:?}"))?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    report.start_ms.sort_by(f64::total_cmp);
    Ok(report)
}

/// Everything but the pods that start.
fn base() -> Vec<Value> {
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "one-peer"},
        "spec": {
            "podSelector": {"matchExpressions": [
                {"key": "pod", "operator": "NotIn", "values": ["caller", "enemy", "stranger"]},
            ]},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "caller"}}}]}],
        },
    });
    vec![
        space,
        policy,
        pod("caller", 0, 10),
        pod("enemy", 0, 11),
        pod("stranger", 1, 12),
    ]
}

async fn start(
    bed: &mut Bed,
    base: &[Value],
    number: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let slot = u16::try_from(number % u64::from(ADDRESSES))?;
    let slot = slot.saturating_add(256);
    let name = format!("guest{number}");
    let [v4, v6] = addresses(0, slot);
    let spec = PodSpec {
        key: PodKey::new("x", name.as_str()),
        uid: format!("u-{name}"),
        node: 0,
        v4: only_v4(v4),
        v6: only_v6(v6),
    };
    let sandbox = bed.topology.sandbox(&spec)?;
    let streams = [("enemy", v4, PORT), ("stranger", v6, FAR_PORT)]
        .map(|(from, to, port)| shoot(bed, from, &sandbox, SocketAddr::new(to, port)))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut documents = base.to_vec();
    documents.push(pod(&name, 0, slot));
    let begun = Instant::now();
    // The object is sometimes known before the link is made and sometimes not.
    if number.is_multiple_of(2) {
        bed.enforcer().publish(&documents).await?;
        bed.start_sandbox(sandbox.clone()).await?;
    } else {
        bed.start_unknown(sandbox.clone(), &documents).await?;
    }
    report
        .start_ms
        .push(begun.elapsed().as_secs_f64() * 1_000.0);
    for to in [v4, v6] {
        let caller = end(bed, "caller")?;
        let (asked, lost) = ask(caller, &sandbox.namespace, to)?;
        report.asked = report.asked.saturating_add(asked);
        report.lost = report.lost.saturating_add(lost);
    }
    for stream in streams {
        let count = stream.finish()?;
        report.denied_sent = report.denied_sent.saturating_add(count.sent);
        report.denied_delivered = report.denied_delivered.saturating_add(count.received);
    }
    report.starts = report.starts.saturating_add(1);
    bed.stop_pod(&spec.key).await?;
    bed.enforcer().publish(base).await
}

fn end<'a>(bed: &'a Bed, name: &str) -> anyhow::Result<&'a Standing> {
    let key = PodKey::new("x", name);
    bed.pods()
        .get(&key)
        .with_context(|| format!("{key} does not stand"))
}

fn shoot(bed: &Bed, from: &str, to: &Standing, at: SocketAddr) -> anyhow::Result<Stream> {
    let sender = end(bed, from)?;
    let source = sender
        .spec
        .addresses()
        .find(|a| a.is_ipv6() == at.is_ipv6());
    Stream::start(&Route {
        sender: sender.namespace.clone(),
        source: source.context("the sender lacks a family")?,
        receiver: to.namespace.clone(),
        destination: at,
        rate: RATE,
    })
}

/// Questions and answers between two pods: how many were asked, and how many came to nothing.
fn ask(caller: &Standing, guest: &Namespace, to: IpAddr) -> anyhow::Result<(u64, u64)> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let server = guest.enter(move || UdpSocket::bind((any, ASK)))??;
    let client = caller
        .namespace
        .enter(move || UdpSocket::bind((any, 0)))??;
    server.set_read_timeout(Some(PATIENCE))?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut lost = 0_u64;
    let mut buffer = [0; 16];
    for question in 0..QUESTIONS {
        client.send_to(&question.to_be_bytes(), (to, ASK))?;
        let answered = server.recv_from(&mut buffer).is_ok_and(|(length, peer)| {
            let bytes = buffer.get(..length).unwrap_or_default();
            server.send_to(bytes, peer).is_ok()
        }) && client.recv(&mut buffer).is_ok();
        if !answered {
            lost = lost.saturating_add(1);
        }
    }
    Ok((QUESTIONS, lost))
}
