//! What one local pod should have in the kernel, and bringing the plans in line with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::key::Key;
use nft_wire::name::Name;
use types::pod::{AttachmentKey, PodKey};

use super::{Engine, Live};
use crate::adopt::Slot;
use crate::compile::Compiled;
use crate::flow::Direction;
use crate::index::{LocalPod, Subject};
use crate::judge::Sets;
use crate::layout::names::Table;
use crate::layout::rules::{hair_key, ip_key, link_key};
use crate::layout::spoof::spoof_chain;
use crate::plan::{Lead, Target};

/// What the plans know of one pod.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    pub(super) ips: Vec<IpAddr>,
    pub(super) slots: BTreeSet<(Target, Slot)>,
    /// Links with an anti-spoof chain, and the attachment that each was made for.
    pub(super) spoof: BTreeMap<Name, AttachmentKey>,
    pub(super) placements: Vec<Arc<LocalPod>>,
    pub(super) ingress: u64,
    pub(super) egress: u64,
    /// Its object is known.
    pub(super) known: bool,
}

impl Assignment {
    pub(super) const fn profile(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether nothing may pass because its object is not known.
    pub(super) const fn is_closed(&self) -> bool {
        !self.known
    }

    pub(super) fn is_in_namespace(&self) -> bool {
        self.placements.iter().any(|p| p.netns.is_some())
    }
}

/// The longest name of a link.
const LINK_MAX: usize = 15;

const fn by_family(ip: IpAddr, v4: Table, v6: Table) -> Table {
    if ip.is_ipv4() { v4 } else { v6 }
}

impl Engine {
    /// Looks at a pod again, and tells the plans.
    pub(super) fn refresh(&mut self, key: &PodKey) {
        let subject = self
            .index
            .subject(key)
            .filter(|s| s.pod.is_some() || !s.placements.is_empty());
        let Some(subject) = subject else {
            self.forget(key);
            return;
        };
        let ingress = self.compiler.profile(&subject, Direction::Ingress);
        let ingress = self.compiler.compile(ingress);
        let egress = self.compiler.profile(&subject, Direction::Egress);
        let egress = self.compiler.compile(egress);
        let wanted = self.slots(&subject, &ingress, &egress);
        let before = self.assigned.remove(key);
        let existed = before.is_some();
        let before = before.unwrap_or_default();

        for ((target, slot), lead) in &wanted {
            if let Some(plan) = self.plans.get_mut(target) {
                plan.set_slot(slot, key, Some(lead.clone()), &mut self.index);
            }
        }
        for (target, slot) in &before.slots {
            if !wanted.contains_key(&(target.clone(), slot.clone()))
                && let Some(plan) = self.plans.get_mut(target)
            {
                plan.set_slot(slot, key, None, &mut self.index);
            }
        }
        let spoof = self.spoof(&subject, &before);
        self.use_profile(&ingress);
        self.use_profile(&egress);
        if existed {
            self.leave_profile(before.ingress);
            self.leave_profile(before.egress);
        }
        self.move_addresses(key, &before.ips, &subject.ips);
        for placement in &before.placements {
            self.attached.remove(&placement.attachment);
        }
        for placement in &subject.placements {
            self.attached
                .insert(placement.attachment.clone(), key.clone());
        }
        self.assigned.insert(
            key.clone(),
            Assignment {
                ips: subject.ips,
                slots: wanted.into_keys().collect(),
                spoof,
                placements: subject.placements,
                ingress: ingress.id,
                egress: egress.id,
                known: subject.pod.is_some(),
            },
        );
    }

    fn forget(&mut self, key: &PodKey) {
        let Some(before) = self.assigned.remove(key) else {
            return;
        };
        for (target, slot) in &before.slots {
            if let Some(plan) = self.plans.get_mut(target) {
                plan.set_slot(slot, key, None, &mut self.index);
            }
        }
        if let Some(plan) = self.plans.get_mut(&Target::Host) {
            for link in before.spoof.keys() {
                plan.set_spoof(link, None, false);
            }
        }
        for placement in &before.placements {
            self.attached.remove(&placement.attachment);
        }
        self.leave_profile(before.ingress);
        self.leave_profile(before.egress);
        self.move_addresses(key, &before.ips, &[]);
    }

    fn use_profile(&mut self, compiled: &Arc<Compiled>) {
        let index = &mut self.index;
        let live = self.live.entry(compiled.id).or_insert_with(|| Live {
            sets: Sets::acquire(&compiled.profile, index),
            compiled: Arc::clone(compiled),
            users: 0,
        });
        live.users += 1;
    }

    fn leave_profile(&mut self, id: u64) {
        if let Some(live) = self.live.get_mut(&id) {
            live.users -= 1;
            if live.users == 0
                && let Some(live) = self.live.remove(&id)
            {
                live.sets.release(&mut self.index);
            }
        }
    }

    fn move_addresses(&mut self, key: &PodKey, before: &[IpAddr], after: &[IpAddr]) {
        for ip in before.iter().filter(|ip| !after.contains(ip)) {
            if let Some(pods) = self.addresses.get_mut(ip) {
                pods.remove(key);
                if pods.is_empty() {
                    self.addresses.remove(ip);
                    self.disturbance.gone.insert(*ip);
                }
            }
        }
        for ip in after {
            self.addresses.entry(*ip).or_default().insert(key.clone());
            self.disturbance.gone.remove(ip);
        }
    }

    /// Host-side links of a pod: those of its attachments, or the one that follows from its name.
    fn links(&self, subject: &Subject) -> Vec<Name> {
        let mut links: Vec<Name> = subject
            .placements
            .iter()
            .filter_map(|p| p.host_link.clone())
            .collect();
        if subject.placements.is_empty()
            && let Some(name) = self.settings.link_name
        {
            links.push(Name::from(name(&subject.key)));
        }
        links.retain(|link| !link.is_empty() && link.len() <= LINK_MAX);
        links
    }

    /// Every element of a pod.
    fn slots(
        &self,
        subject: &Subject,
        ingress: &Arc<Compiled>,
        egress: &Arc<Compiled>,
    ) -> BTreeMap<(Target, Slot), Lead> {
        let mut out = BTreeMap::new();
        let mut put = |target: &Target, table: Table, key: Key, lead: Lead| {
            out.insert((target.clone(), Slot { table, key }), lead);
        };
        let from = || Lead::Profile(Arc::clone(egress));
        let to = || Lead::Profile(Arc::clone(ingress));
        let links = self.links(subject);
        for link in &links {
            put(&Target::Host, Table::FromPod, link_key(link), from());
            put(&Target::Host, Table::ToPod, link_key(link), to());
            if subject.pod.is_some() {
                put(&Target::Host, Table::Hair, hair_key(link), Lead::Member);
            }
        }
        for ip in subject.ips.iter().filter(|_| !links.is_empty()) {
            let table = by_family(*ip, Table::FromIp4, Table::FromIp6);
            put(&Target::Host, table, ip_key(*ip), from());
            let table = by_family(*ip, Table::Pods4, Table::Pods6);
            put(&Target::Host, table, ip_key(*ip), Lead::Member);
        }
        for placement in &subject.placements {
            let Some(netns) = &placement.netns else {
                continue;
            };
            let target = Target::Namespace(Arc::clone(netns));
            let link = &placement.attachment.ifname;
            put(&target, Table::FromPod, link_key(link), from());
            put(&target, Table::ToPod, link_key(link), to());
            for ip in &self.node {
                let table = by_family(*ip, Table::Node4, Table::Node6);
                put(&target, table, ip_key(*ip), Lead::Member);
            }
        }
        out
    }

    /// Tells the plan which links have an anti-spoof chain.
    fn spoof(&mut self, subject: &Subject, before: &Assignment) -> BTreeMap<Name, AttachmentKey> {
        let mut out = BTreeMap::new();
        let opted_out = subject.pod.as_ref().is_some_and(|pod| pod.spoofs);
        let Some(plan) = self.plans.get_mut(&Target::Host) else {
            return out;
        };
        let placements = subject
            .placements
            .iter()
            .filter(|_| self.settings.anti_spoof && !opted_out);
        for placement in placements {
            let Some(link) = &placement.host_link else {
                continue;
            };
            let ips = if placement.ips.is_empty() {
                &subject.ips
            } else {
                &placement.ips
            };
            if ips.is_empty() || link.is_empty() || link.len() > LINK_MAX {
                continue;
            }
            let anew = before
                .spoof
                .get(link)
                .is_some_and(|a| *a != placement.attachment);
            let spec = spoof_chain(&self.settings, link, ips);
            plan.set_spoof(link, Some((subject.key.clone(), spec)), anew);
            out.insert(Arc::clone(link), placement.attachment.clone());
        }
        for link in before.spoof.keys().filter(|link| !out.contains_key(*link)) {
            plan.set_spoof(link, None, false);
        }
        out
    }
}
