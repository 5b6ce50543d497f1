//! What happens to flows beyond their first packet: answers, revocation, a full set of denied flows.

use policy_core::layout::Settings;
use policy_oracle::world::World as Oracle;

use crate::machine::Machine;
use crate::machine::conntrack::Tuple;
use crate::machine::packet::{ACK, Packet, Path, RST};
use crate::model::cluster::{Cluster, DENIED};
use crate::model::compare::{Tally, packet, question};
use crate::random::probes::{Payload, Probe};

/// Follows one probe; a text says what went wrong.
pub fn play(
    cluster: &Cluster,
    oracle: &Oracle,
    probe: &Probe,
    tally: &mut Tally,
) -> Option<String> {
    let (Payload::Tcp(_) | Payload::Udp(_)) = probe.payload else {
        return None;
    };
    tally.scenes += 1;
    let wrong = if oracle.decide(&question(probe)).allowed {
        revoked(cluster, probe)
    } else {
        flooded(cluster, oracle, probe)
    };
    wrong.map(|text| format!("{probe}: {text}"))
}

fn back(path: &Path) -> Path {
    match path {
        Path::Forward { from, to } => Path::forward(to, from),
        Path::Input { from } => Path::output(from),
        Path::Output { to } => Path::input(to),
    }
}

/// An allowed flow: its answer passes, nothing of it passes once it is marked, the kernel's own resets do, and all
/// of it passes again when the mark is cleared.
fn revoked(cluster: &Cluster, probe: &Probe) -> Option<String> {
    let first = packet(probe);
    let answer = first.reply();
    let bit = Settings::REVOKE_BIT;
    for (node, path) in cluster.ways(probe) {
        let mut machine = node.machine.clone();
        let answers = back(&path);
        for (what, packet, way) in [
            ("first packet", &first, &path),
            ("answer", &answer, &answers),
            (
                "packet after the answer",
                &first.clone().with_flags(ACK),
                &path,
            ),
        ] {
            if !machine.send(packet, way).passed() {
                return Some(format!(
                    "the {what} of an allowed flow did not pass {}",
                    node.name
                ));
            }
        }
        if !machine.conntrack.mark(&Tuple::of(&first), bit, bit) {
            return Some(format!("the flow is not known on {}", node.name));
        }
        for (what, packet, way) in [
            ("request", &first.clone().with_flags(ACK), &path),
            ("answer", &answer, &answers),
        ] {
            if machine.send(packet, way).passed() {
                return Some(format!("the {what} of a revoked flow passed {}", node.name));
            }
        }
        if first.protocol == 6
            && let Some(text) = resets(&mut machine, &first, &path)
        {
            return Some(format!("{text} on {}", node.name));
        }
        machine.conntrack.mark(&Tuple::of(&first), 0, bit);
        if !machine.send(&first.clone().with_flags(ACK), &path).passed() {
            return Some(format!(
                "an allowed flow did not come back on {}",
                node.name
            ));
        }
    }
    None
}

/// The resets that the node makes for a revoked flow go out to both ends.
fn resets(machine: &mut Machine, first: &Packet, path: &Path) -> Option<String> {
    let ends = [(path.from(), first.reply()), (path.to(), first.clone())];
    for (link, packet) in ends {
        let Some(link) = link else { continue };
        let reset = packet.with_flags(RST | ACK);
        if !machine.send(&reset, &Path::output(link)).passed() {
            return Some(format!("the reset of a revoked flow did not reach {link}"));
        }
    }
    None
}

/// Denied packets stay denied when the set that remembers them is full.
fn flooded(cluster: &Cluster, oracle: &Oracle, probe: &Probe) -> Option<String> {
    let limit = u16::try_from(DENIED).unwrap_or(u16::MAX) * 2;
    let ways = cluster.ways(probe);
    let mut machines: Vec<Machine> = ways.iter().map(|(node, _)| node.machine.clone()).collect();
    let mut sent = 0;
    for port in 20_000..20_000 + limit + 20 {
        let mut probe = probe.clone();
        probe.payload = match probe.payload {
            Payload::Tcp(_) => Payload::Tcp(port),
            Payload::Udp(_) => Payload::Udp(port),
            other @ (Payload::Sctp(_)
            | Payload::Echo
            | Payload::Neighbour(_)
            | Payload::Other(_)) => other,
        };
        if oracle.decide(&question(&probe)).allowed {
            continue;
        }
        sent += 1;
        let packet = packet(&probe);
        let through = ways
            .iter()
            .zip(&mut machines)
            .all(|((_, path), machine)| machine.send(&packet, path).passed());
        if through {
            return Some(format!(
                "denied packet number {sent} passed, to port {port}"
            ));
        }
        if sent >= limit {
            break;
        }
    }
    None
}
