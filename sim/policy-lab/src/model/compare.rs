//! Verdicts of the machines, of the engines and of the oracle, side by side.

use policy_core::flow::{Direction, Flow, Protocol};
use policy_core::judge::Verdict;
use policy_oracle::probe as oracle;
use policy_oracle::world::World as Oracle;
use serde_json::Value;
use types::pod::PodKey;

use crate::machine::packet::Packet;
use crate::model::cluster::{Cluster, Trouble};
use crate::model::scenes;
use crate::model::tamper::Tamper;
use crate::random::dice::Dice;
use crate::random::probes::{self, Payload, Place, Probe};
use crate::random::shrink::shrink;

/// Probes of a world that are followed beyond their first packet.
const SCENES: usize = 8;

/// A disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The connection; `None` when something else than a verdict is wrong.
    pub probe: Option<Box<Probe>>,
    /// Both sides' reasons.
    pub text: String,
}

/// What came of a world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Probe decisions compared.
    pub cases: usize,
    /// Of those, denied by the oracle.
    pub denied: usize,
    /// Flows followed beyond their first packet.
    pub scenes: usize,
    /// Packets sent at every moment of every change.
    pub interleavings: usize,
    /// States compared with one made from scratch.
    pub states: usize,
}

/// The packet of a probe.
pub fn packet(probe: &Probe) -> Packet {
    let (source, destination) = (probe.source.address(), probe.destination.address());
    let with_port = |protocol, port| Packet::new(source, destination, protocol, 40_000, port);
    match probe.payload {
        Payload::Tcp(port) => with_port(6, port),
        Payload::Udp(port) => with_port(17, port),
        Payload::Sctp(port) => with_port(132, port),
        Payload::Echo => {
            let kind = if source.is_ipv4() { 8 } else { 128 };
            Packet::icmp(source, destination, kind, 7)
        }
        Payload::Neighbour(hops) => Packet::icmp(source, destination, 135, 0).with_hops(hops),
        Payload::Other(protocol) => with_port(protocol, 0),
    }
}

/// The oracle's question for a probe.
pub fn question(probe: &Probe) -> oracle::Probe {
    let end = |place: &Place| match place {
        Place::Pod {
            namespace,
            name,
            address,
            ..
        } => oracle::End::pod(namespace, name, *address),
        Place::Node { node, address } => oracle::End::node(node, *address),
        Place::Outside(address) => oracle::End::Address(*address),
    };
    let (protocol, port) = match probe.payload {
        Payload::Tcp(port) => (oracle::Protocol::Tcp, port),
        Payload::Udp(port) => (oracle::Protocol::Udp, port),
        Payload::Sctp(port) => (oracle::Protocol::Sctp, port),
        Payload::Neighbour(255) => (oracle::Protocol::NeighbourDiscovery, 0),
        // With another hop limit not from this link: an ICMPv6 message like any other.
        Payload::Echo | Payload::Neighbour(_) => (oracle::Protocol::Icmp, 0),
        Payload::Other(protocol) => (oracle::Protocol::Other(protocol), 0),
    };
    oracle::Probe::new(end(&probe.source), end(&probe.destination), protocol, port)
        .from_port(40_000)
}

/// Whether the machines let the probe through, and the chains it went through.
pub fn measured(cluster: &Cluster, probe: &Probe) -> (bool, String) {
    let packet = packet(probe);
    let mut trail = String::new();
    for (node, path) in cluster.ways(probe) {
        let (fate, walk) = node.machine.judge(&packet, &path);
        write_line(
            &mut trail,
            &format!("  {}: {path:?}: {:?}: {fate:?}", node.name, walk.trail),
        );
        if !fate.passed() {
            return (false, trail);
        }
    }
    (true, trail)
}

fn write_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// One direction as the engine of the pod's node judges it; `None` when the end is no pod.
fn judged(cluster: &Cluster, probe: &Probe, direction: Direction) -> Option<bool> {
    let (end, other) = match direction {
        Direction::Egress => (&probe.source, &probe.destination),
        Direction::Ingress => (&probe.destination, &probe.source),
    };
    let Place::Pod {
        namespace,
        name,
        node,
        ..
    } = end
    else {
        return None;
    };
    if probe.payload == Payload::Neighbour(255) {
        return None;
    }
    // Traffic of the node to its own pods is no matter of profiles.
    if direction == Direction::Ingress
        && matches!(other, Place::Node { node: far, .. } if far == node)
    {
        return None;
    }
    let packet = packet(probe);
    let flow = Flow {
        source: packet.source,
        destination: packet.destination,
        protocol: Protocol(packet.protocol),
        port: if Protocol(packet.protocol).has_ports() {
            packet.destination_port
        } else {
            0
        },
    };
    let engine = &cluster.node(node)?.engine;
    let verdict = engine.judge(&PodKey::new(namespace, name), direction, &flow);
    Some(verdict == Verdict::Allowed)
}

/// Compares one probe; the text is there when somebody disagrees.
pub fn one(
    cluster: &Cluster,
    oracle: &Oracle,
    probe: &Probe,
    tally: &mut Tally,
) -> Option<Mismatch> {
    let expected = oracle.decide(&question(probe));
    let (passed, trail) = measured(cluster, probe);
    let egress = judged(cluster, probe, Direction::Egress);
    let ingress = judged(cluster, probe, Direction::Ingress);
    tally.cases += 1;
    tally.denied += usize::from(!expected.allowed);
    let agree = passed == expected.allowed
        && egress.is_none_or(|allowed| allowed == expected.egress.allowed)
        && ingress.is_none_or(|allowed| allowed == expected.ingress.allowed);
    if agree {
        return None;
    }
    let mut text = format!("{probe}\n");
    write_line(&mut text, &format!(" oracle: allowed {}", expected.allowed));
    for (name, side) in [("egress", &expected.egress), ("ingress", &expected.ingress)] {
        write_line(
            &mut text,
            &format!("  {name}: {} {:?}", side.allowed, side.reasons),
        );
    }
    write_line(&mut text, &format!(" machine: passed {passed}"));
    text.push_str(&trail);
    write_line(
        &mut text,
        &format!(" engine.judge: egress {egress:?} ingress {ingress:?}"),
    );
    Some(Mismatch {
        probe: Some(Box::new(probe.clone())),
        text,
    })
}

/// Compares `count` random probes of a world.
///
/// # Errors
/// [`Mismatch`], the first one.
pub fn world(
    documents: &[Value],
    seed: u64,
    count: usize,
    tamper: &mut dyn Tamper,
    tally: &mut Tally,
) -> Result<(), Mismatch> {
    let cluster = Cluster::of(documents, tamper)?;
    let oracle = Oracle::from_documents(documents.iter().cloned());
    let mut dice = Dice::new(seed ^ 0x9b0b_e5ed);
    let places = probes::places(documents);
    let probes = probes::some(&mut dice, &places, count);
    for probe in &probes {
        if let Some(mismatch) = one(&cluster, &oracle, probe, tally) {
            return Err(mismatch);
        }
    }
    for probe in probes.iter().take(SCENES) {
        if let Some(text) = scenes::play(&cluster, &oracle, probe, tally) {
            return Err(Mismatch { probe: None, text });
        }
    }
    Ok(())
}

impl From<Box<Trouble>> for Mismatch {
    fn from(trouble: Box<Trouble>) -> Self {
        Self {
            probe: None,
            text: trouble.to_string(),
        }
    }
}

/// The smallest world that still fails, with both reasonings.
pub fn smallest(documents: &[Value], mismatch: &Mismatch, tamper: &mut dyn Tamper) -> String {
    let mut last = mismatch.text.clone();
    let small = shrink(documents, 2_000, &mut |now| {
        let again = fails(now, mismatch, tamper);
        if let Some(text) = &again {
            last.clone_from(text);
        }
        again.is_some()
    });
    let mut text = last;
    for document in &small {
        write_line(&mut text, &document.to_string());
    }
    text
}

fn fails(documents: &[Value], mismatch: &Mismatch, tamper: &mut dyn Tamper) -> Option<String> {
    match (Cluster::of(documents, tamper), &mismatch.probe) {
        (Err(trouble), None) => Some(trouble.to_string()),
        (Err(_), Some(_)) => None,
        (Ok(_), None) => {
            let seed = 1;
            world(documents, seed, 40, tamper, &mut Tally::default())
                .err()
                .filter(|again| again.probe.is_none())
                .map(|again| again.text)
        }
        (Ok(cluster), Some(probe)) => {
            // The ends must still be what they were.
            let places = probes::places(documents);
            let there =
                |place: &Place| matches!(place, Place::Outside(_)) || places.contains(place);
            if !there(&probe.source) || !there(&probe.destination) {
                return None;
            }
            let oracle = Oracle::from_documents(documents.iter().cloned());
            one(&cluster, &oracle, probe, &mut Tally::default()).map(|m| m.text)
        }
    }
}
