//! Which nodes can start pods, and what keeps the others from it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::status::advice;
use crate::status::judge::{Area, Level, Line, count, duration, some_of};
use crate::status::objects::{Node, condition};
use crate::status::picture::{COMPONENT, NODE, Picture};

/// The condition that says whether pods can be started.
const READY: &str = "TerwayReady";
/// Terway's condition about addresses.
const SUFFICIENT_IP: &str = "SufficientIP";
/// Nodes speak every five minutes; one that did not for so many seconds is silent.
const SILENT: i64 = 15 * 60;
/// Events older than this are history, in seconds.
const RECENT: i64 = 10 * 60;
/// Nodes that are named in a line; the others are counted.
const NAMED: usize = 5;

/// What nodes have in common: level, name of the fault, words of one of them.
type Faults<'a> = BTreeMap<(Level, String), (Vec<&'a str>, &'a str)>;

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    let taken: BTreeSet<&str> = picture
        .pods
        .iter()
        .filter(|pod| {
            pod.metadata
                .labels
                .get(COMPONENT)
                .is_some_and(|c| c == NODE)
        })
        .map(|pod| pod.spec.node_name.as_str())
        .collect();
    let (ours, others): (Vec<&Node>, Vec<&Node>) = picture
        .nodes
        .iter()
        .partition(|node| taken.contains(node.metadata.name.as_str()));
    let mut faults = Faults::new();
    let mut serving = 0_usize;
    for node in &ours {
        serving += usize::from(of_node(picture.now, node, &mut faults));
    }
    if !ours.is_empty() || !others.is_empty() {
        let mut what = format!("{serving} of {} can start pods", ours.len());
        if !others.is_empty() {
            let names: Vec<&str> = others
                .iter()
                .map(|node| node.metadata.name.as_str())
                .collect();
            let left_out = format!(
                "; {} not taken part in: {}",
                others.len(),
                some_of(&names, NAMED)
            );
            what.push_str(&left_out);
        }
        lines.push(Line::good(Area::Nodes, "nodes", what));
    }
    let known: BTreeSet<String> = faults.keys().map(|(_, name)| name.clone()).collect();
    for ((level, name), (nodes, message)) in faults {
        let subject = format!("{}: {}", count(nodes.len(), "node"), some_of(&nodes, NAMED));
        lines.push(Line::fault(Area::Nodes, level, &name, subject, message));
    }
    events(picture, &known, lines);
}

/// Notes what is wrong with a node, and says whether it serves.
fn of_node<'a>(now: Timestamp, node: &'a Node, faults: &mut Faults<'a>) -> bool {
    let name = node.metadata.name.as_str();
    let mut tell = |level, fault: &str, message: &'a str| {
        let entry = faults.entry((level, fault.to_owned())).or_default();
        entry.0.push(name);
        entry.1 = message;
    };
    let Some(ready) = condition(&node.status.conditions, READY) else {
        tell(Level::Bad, "NotReported", "no condition TerwayReady");
        return false;
    };
    let age = ready
        .last_heartbeat_time
        .map(|said| now.duration_since(said).as_secs());
    if age.is_some_and(|age| age > SILENT) {
        tell(Level::Note, "Silent", "the condition TerwayReady is old");
    }
    let serves = ready.status == "True";
    let named = [READY, ""].contains(&ready.reason.as_str());
    if !serves {
        let fault = if named { "NotReady" } else { &ready.reason };
        tell(Level::Bad, fault, &ready.message);
    } else if !named {
        tell(Level::Note, &ready.reason, &ready.message);
    }
    let short = condition(&node.status.conditions, SUFFICIENT_IP);
    if let Some(short) = short.filter(|short| short.status == "False") {
        // The message names the cause, which may have its own advice.
        let fault = advice::named_in(&short.message).map_or("InsufficientIP", |advice| advice.name);
        if fault != ready.reason {
            tell(Level::Bad, fault, &short.message);
        }
    }
    serves
}

/// Recent warnings about nodes that no condition names any more.
fn events(picture: &Picture, known: &BTreeSet<String>, lines: &mut Vec<Line>) {
    let mut told: BTreeMap<&str, (BTreeSet<&str>, &str, i64)> = BTreeMap::new();
    for event in picture
        .events
        .iter()
        .filter(|event| event.involved_object.kind == "Node")
    {
        let Some(advice) = advice::of(&event.reason) else {
            continue;
        };
        // Kubernetes has a reason of that name for its own condition.
        let is_ours = !matches!(advice.name, "NotReady" | "Starting");
        let age = event
            .seen()
            .map(|seen| picture.now.duration_since(seen).as_secs());
        let Some(age) = age.filter(|age| is_ours && *age <= RECENT) else {
            continue;
        };
        if known.contains(advice.name) {
            continue;
        }
        let entry = told
            .entry(advice.name)
            .or_insert((BTreeSet::new(), "", age));
        entry.0.insert(&event.involved_object.name);
        if entry.1.is_empty() || age < entry.2 {
            (entry.1, entry.2) = (&event.message, age);
        }
    }
    for (name, (nodes, message, age)) in told {
        let nodes: Vec<&str> = nodes.into_iter().collect();
        let subject = format!("{}: {}", count(nodes.len(), "node"), some_of(&nodes, NAMED));
        let what = format!("{} ago: {message}", duration(age));
        lines.push(Line::fault(Area::Nodes, Level::Note, name, subject, what));
    }
}
