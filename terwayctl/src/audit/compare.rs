//! Finds where the four disagree. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::audit::picture::{Node, Picture};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// I3, I1: an address is bound to two sandboxes.
    BoundTwice,
    /// I1: two shards have the same address in use.
    TwoOwners,
    /// I2: a sandbox uses an address that no shard holds for that ENI.
    BoundNotHeld,
    /// I2: an agent has an address that no shard holds for that ENI.
    GrantedNotHeld,
    /// An agent has an address under another generation than the shard.
    GenerationDiffers,
    /// I7: a shard holds an address for a node whose agent does not have it.
    HeldNotGranted,
    /// I2: a shard holds an address that the cloud does not have on that ENI.
    HeldNotInCloud,
    /// I7: the cloud has an address on an ENI of ours that its shard does not hold.
    CloudNotHeld,
    /// I7: the cloud has an ENI of ours that no shard knows.
    EniUnknown,
    /// A shard has an ENI that the cloud does not have.
    EniMissing,
    /// The cloud has an ENI attached to another instance than its shard says.
    EniElsewhere,
    /// An ENI has another hardware address in the cloud, shard or agent.
    MacDiffers,
    /// An agent has an ENI whose link is not there.
    LinkMissing,
    /// The kernel lacks something that a sandbox needs.
    KernelDrift,
    /// The kernel has something of ours that belongs to no sandbox.
    KernelOrphan,
    /// I7: a sandbox is gone and its addresses are still bound.
    SandboxGone,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::BoundTwice,
        Self::TwoOwners,
        Self::BoundNotHeld,
        Self::GrantedNotHeld,
        Self::GenerationDiffers,
        Self::HeldNotGranted,
        Self::HeldNotInCloud,
        Self::CloudNotHeld,
        Self::EniUnknown,
        Self::EniMissing,
        Self::EniElsewhere,
        Self::MacDiffers,
        Self::LinkMissing,
        Self::KernelDrift,
        Self::KernelOrphan,
        Self::SandboxGone,
    ];
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// The address, ENI or sandbox it is about.
    pub subject: String,
    /// Who says what.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}", self.kind, self.subject, self.detail)
    }
}

/// Collects findings.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, kind: Kind, subject: impl fmt::Display, detail: impl Into<String>) {
        self.0.push(Finding {
            kind,
            subject: subject.to_string(),
            detail: detail.into(),
        });
    }
}

/// All findings, sorted. Work under way (intents, revocations, ENIs between two states) is no finding.
pub fn compare(picture: &Picture) -> Vec<Finding> {
    let mut findings = Findings::default();
    addresses(picture, &mut findings);
    shards_and_cloud(picture, &mut findings);
    cloud_and_shards(picture, &mut findings);
    shards_and_nodes(picture, &mut findings);
    for (name, node) in &picture.nodes {
        agent_and_shards(picture, name, node, &mut findings);
        agent_and_kernel(name, node, &mut findings);
    }
    findings.0.sort();
    findings.0
}

fn addresses(picture: &Picture, findings: &mut Findings) {
    let mut bound: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (name, node) in &picture.nodes {
        for (attachment, binding) in &node.bindings {
            for ip in &binding.addresses {
                let here = format!("{name} {attachment}");
                if let Some(other) = bound.insert(*ip, here.clone()) {
                    findings.add(Kind::BoundTwice, ip, format!("by {other} and {here}"));
                }
            }
        }
    }
    let mut owned: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (id, shard) in &picture.shards {
        for ip in shard
            .slots
            .iter()
            .filter(|(_, s)| s.held())
            .map(|(ip, _)| ip)
        {
            if let Some(other) = owned.insert(*ip, id) {
                findings.add(Kind::TwoOwners, ip, format!("held in {other} and {id}"));
            }
        }
    }
}

fn shards_and_cloud(picture: &Picture, findings: &mut Findings) {
    for (id, shard) in &picture.shards {
        for (eni, known) in shard.enis.iter().filter(|(_, e)| e.state == "attached") {
            let Some(cloud) = picture.cloud.get(eni) else {
                findings.add(
                    Kind::EniMissing,
                    eni,
                    format!("attached in {id}, not in the cloud"),
                );
                continue;
            };
            if cloud.instance != known.instance {
                let detail = format!("{id} says {}, cloud {:?}", known.instance, cloud.instance);
                findings.add(Kind::EniElsewhere, eni, detail);
            }
            if cloud.mac != known.mac {
                let detail = format!("{id} says {}, cloud {}", known.mac, cloud.mac);
                findings.add(Kind::MacDiffers, eni, detail);
            }
        }
        for (ip, slot) in shard.slots.iter().filter(|(_, s)| s.held()) {
            let has = picture
                .cloud
                .get(&slot.eni)
                .is_some_and(|e| e.addresses.contains(ip));
            if !has {
                let detail = format!("held in {id} on {}, where the cloud has it not", slot.eni);
                findings.add(Kind::HeldNotInCloud, ip, detail);
            }
        }
    }
}

fn cloud_and_shards(picture: &Picture, findings: &mut Findings) {
    for (eni, cloud) in &picture.cloud {
        let shard = picture.shards.values().find(|s| s.enis.contains_key(eni));
        let Some(shard) = shard else {
            // An ENI whose create is not recorded yet belongs to an open operation of some shard.
            if picture.shards.values().all(|s| s.open_ops == 0) {
                let detail = format!("{} in the cloud, in no shard", cloud.status);
                findings.add(Kind::EniUnknown, eni, detail);
            }
            continue;
        };
        let settled = shard.enis.get(eni).is_some_and(|e| e.state == "attached");
        for ip in cloud.addresses.iter().filter(|_| settled) {
            let known = shard
                .slots
                .get(ip)
                .is_some_and(|s| s.held() || s.in_motion());
            if !known {
                let state = shard.slots.get(ip).map_or("free", |s| s.state.as_str());
                findings.add(
                    Kind::CloudNotHeld,
                    ip,
                    format!("on {eni}, in its shard {state}"),
                );
            }
        }
    }
}

fn shards_and_nodes(picture: &Picture, findings: &mut Findings) {
    for (id, shard) in &picture.shards {
        for (ip, slot) in shard.slots.iter().filter(|(_, s)| s.state == "held") {
            let Some(eni) = shard.enis.get(&slot.eni) else {
                continue;
            };
            let Some((name, node)) = picture
                .nodes
                .iter()
                .find(|(_, n)| n.instance == eni.instance)
            else {
                continue;
            };
            match node.enis.get(&slot.eni).and_then(|e| e.addresses.get(ip)) {
                None => {
                    let detail = format!("held in {id} for {name}, whose agent has it not");
                    findings.add(Kind::HeldNotGranted, ip, detail);
                }
                Some(generation) if *generation != slot.generation => {
                    let detail = format!("{id} says {}, {name} {generation}", slot.generation);
                    findings.add(Kind::GenerationDiffers, ip, detail);
                }
                Some(_) => {}
            }
        }
    }
}

fn agent_and_shards(picture: &Picture, name: &str, node: &Node, findings: &mut Findings) {
    let held = |eni: &str, ip: &IpAddr| {
        picture
            .shards
            .values()
            .any(|s| s.slots.get(ip).is_some_and(|x| x.held() && x.eni == eni))
    };
    for (id, eni) in &node.enis {
        for ip in eni.addresses.keys().filter(|ip| !held(id, ip)) {
            findings.add(Kind::GrantedNotHeld, ip, format!("{name} has it on {id}"));
        }
        let shard = picture.shards.get(&eni.shard).and_then(|s| s.enis.get(id));
        if let Some(known) = shard.filter(|known| known.mac != eni.mac) {
            let detail = format!("{} says {}, {name} {}", eni.shard, known.mac, eni.mac);
            findings.add(Kind::MacDiffers, id, detail);
        }
    }
    for (attachment, binding) in &node.bindings {
        for ip in binding
            .addresses
            .iter()
            .filter(|ip| !held(&binding.eni, ip))
        {
            let detail = format!(
                "{name} {attachment} ({}) uses it on {}",
                binding.pod, binding.eni
            );
            findings.add(Kind::BoundNotHeld, ip, detail);
        }
    }
}

fn agent_and_kernel(name: &str, node: &Node, findings: &mut Findings) {
    for (id, eni) in node.enis.iter().filter(|(_, e)| !e.ready) {
        findings.add(
            Kind::LinkMissing,
            id,
            format!("{name} has no link with {}", eni.mac),
        );
    }
    for (attachment, binding) in &node.bindings {
        let subject = format!("{name} {attachment}");
        if binding.netns_gone {
            let detail = format!("{} is bound and its namespace is gone", binding.pod);
            findings.add(Kind::SandboxGone, &subject, detail);
        }
        for what in &binding.drift {
            findings.add(Kind::KernelDrift, &subject, what.clone());
        }
    }
    for orphan in &node.orphans {
        findings.add(Kind::KernelOrphan, name, orphan.clone());
    }
}

#[cfg(test)]
mod tests;
