//! A world over time: after each happening the state is that of a world made anew, and no packet that is denied before
//! and after gets through in between.

use std::collections::BTreeMap;

use policy_oracle::world::World as Oracle;
use serde_json::Value;

use crate::machine::Machine;
use crate::model::cluster::{Cluster, Node};
use crate::model::compare::{Mismatch, Tally, one, packet, question};
use crate::model::tamper::{Honest, Tamper};
use crate::random::dice::Dice;
use crate::random::events::Happening;
use crate::random::probes::{self, Place, Probe};

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looks {
    /// Compare the kernels' content with one made from scratch.
    pub content: bool,
    /// Send packets at every moment of every change.
    pub moments: bool,
    /// Probes after each round.
    pub probes: usize,
    /// Most happenings in one round.
    pub round: usize,
}

/// Plays the happenings from an empty cluster, round by round, and at the end deletes everything that is left.
///
/// # Errors
/// [`Mismatch`], the first one.
pub fn play(
    happenings: &[Happening],
    seed: u64,
    looks: Looks,
    tamper: &mut dyn Tamper,
    tally: &mut Tally,
) -> Result<(), Mismatch> {
    let mut dice = Dice::new(seed ^ 0x0123_4567);
    let mut cluster = Cluster::new();
    cluster.fill(&[], tamper)?;
    let bare = contents(&cluster);
    let mut rest = happenings;
    let mut number = 0;
    while !rest.is_empty() {
        let size = dice.between(1, looks.round.max(1)).min(rest.len());
        let (now, later) = rest.split_at(size);
        rest = later;
        number += size;
        round(&mut cluster, now, &mut dice, looks, tamper, tally).map_err(|mut mismatch| {
            mismatch.text = format!("at happening {number}, {:?}: {}", now.last(), mismatch.text);
            mismatch
        })?;
    }
    let mut left = cluster.documents.clone();
    dice.shuffle(&mut left);
    for document in left {
        cluster.happen(&Happening::Gone(document), tamper);
        if dice.chance(30) {
            cluster.settle(tamper)?;
        }
    }
    cluster.settle(tamper)?;
    differ("after everything was deleted", &bare, &contents(&cluster))
}

fn round(
    cluster: &mut Cluster,
    happenings: &[Happening],
    dice: &mut Dice,
    looks: Looks,
    tamper: &mut dyn Tamper,
    tally: &mut Tally,
) -> Result<(), Mismatch> {
    let documents = cluster.documents.clone();
    for happening in happenings {
        cluster.happen(happening, tamper);
    }
    let mut moments: BTreeMap<String, Vec<Vec<Machine>>> = BTreeMap::new();
    cluster.settle_seen(tamper, &mut |node: &Node, changes| {
        if looks.moments
            && let Ok(phases) = node.machine.phases(changes)
        {
            let mut seen = vec![node.machine.clone()];
            seen.extend(phases);
            moments.entry(node.name.clone()).or_default().push(seen);
        }
    })?;
    let oracle = Oracle::from_documents(cluster.documents.iter().cloned());
    let places = probes::places(&cluster.documents);
    let probes = probes::some(dice, &places, looks.probes);
    for probe in &probes {
        if let Some(mismatch) = one(cluster, &oracle, probe, tally) {
            return Err(mismatch);
        }
    }
    if looks.moments {
        let before = Oracle::from_documents(documents.iter().cloned());
        let places = probes::places(&documents);
        for probe in &probes {
            leak(cluster, (&before, &places), &oracle, probe, &moments, tally)?;
        }
    }
    if looks.content {
        tally.states += 1;
        let fresh = Cluster::of(&cluster.documents, &mut Honest)?;
        differ(
            "incremental and from scratch",
            &contents(&fresh),
            &contents(cluster),
        )?;
    }
    Ok(())
}

/// A direction that is denied before and after must be denied in every interleaving.
///
/// A packet meets at most one transaction on its way: the next one is sent when the kernel has answered, and a packet
/// that runs through a hook is done with it long before. Without this bound sets could only be replaced, never changed.
fn leak(
    cluster: &Cluster,
    (before, places): (&Oracle, &[Place]),
    after: &Oracle,
    probe: &Probe,
    moments: &BTreeMap<String, Vec<Vec<Machine>>>,
    tally: &mut Tally,
) -> Result<(), Mismatch> {
    let there = |place: &Place| matches!(place, Place::Outside(_)) || places.contains(place);
    if !there(&probe.source) || !there(&probe.destination) {
        return Ok(());
    }
    let (was, is) = (
        before.decide(&question(probe)),
        after.decide(&question(probe)),
    );
    let egress = !was.egress.allowed && !is.egress.allowed;
    let ingress = !was.ingress.allowed && !is.ingress.allowed;
    let packet = packet(probe);
    for (node, path) in cluster.ways(probe) {
        let guards = (egress && probe.source.node() == Some(node.name.as_str()))
            || (ingress && probe.destination.node() == Some(node.name.as_str()));
        let Some(transactions) = moments.get(&node.name).filter(|_| guards) else {
            continue;
        };
        tally.interleavings += 1;
        let passes = |phases: &Vec<Machine>| Machine::fates(&packet, &path, phases).contains(&true);
        if transactions.iter().any(passes) {
            let text = format!(
                "{probe}: denied before and after, and passed {} while it changed\n before: {was:?}\n after: {is:?}",
                node.name
            );
            return Err(Mismatch { probe: None, text });
        }
    }
    Ok(())
}

/// What all nodes' kernels hold.
pub fn contents(cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), node.content()))
        .collect()
}

fn differ(
    what: &str,
    wanted: &BTreeMap<String, Vec<String>>,
    found: &BTreeMap<String, Vec<String>>,
) -> Result<(), Mismatch> {
    for (node, wanted) in wanted {
        let empty = Vec::new();
        let found = found.get(node).unwrap_or(&empty);
        if wanted == found {
            continue;
        }
        let missing: Vec<&String> = wanted
            .iter()
            .filter(|line| !found.contains(line))
            .take(12)
            .collect();
        let surplus: Vec<&String> = found
            .iter()
            .filter(|line| !wanted.contains(line))
            .take(12)
            .collect();
        return Err(Mismatch {
            probe: None,
            text: format!("{what}: {node}: missing {missing:#?}, too many {surplus:#?}"),
        });
    }
    Ok(())
}

/// The shortest prefix and then the fewest happenings that still fail, and the text of the failure.
pub fn smallest(
    happenings: &[Happening],
    budget: usize,
    fails: &mut dyn FnMut(&[Happening]) -> Option<String>,
) -> (Vec<Happening>, String) {
    let mut now = happenings.to_vec();
    let mut text = String::new();
    let mut left = budget;
    let mut size = now.len().div_ceil(2).max(1);
    loop {
        let mut index = 0;
        while index < now.len() && left > 0 {
            let mut fewer = now.clone();
            fewer.drain(index..(index + size).min(now.len()));
            left -= 1;
            match fails(&fewer) {
                Some(why) => {
                    text = why;
                    now = fewer;
                }
                None => index += size,
            }
        }
        if size == 1 || left == 0 {
            return (now, text);
        }
        size = size.div_ceil(2);
    }
}

/// The documents that a history ends with.
pub fn final_documents(happenings: &[Happening]) -> Vec<Value> {
    let mut documents = Vec::new();
    for happening in happenings {
        crate::random::events::apply(&mut documents, happening);
    }
    documents
}
