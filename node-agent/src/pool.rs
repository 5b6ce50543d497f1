//! The node's addresses: which ENI has them, who uses them, which one goes next. Pure; `now` is an argument.
//!
//! Invariant I3: an address is bound to at most one attachment. The pool is the memory of the
//! [`crate::ledger`], which makes every change durable before anybody hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use datapath::desired::node_side;
use serde::{Deserialize, Serialize};
use types::address::{Family, MacAddr, Stack};
use types::cloud::{EniId, VSwitchId};
use types::op::{Generation, ShardId};
use types::pod::{AttachmentKey, PodKey};
use types::time::Tick;

/// An ENI that ipam gave to this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniRecord {
    /// The shard that owns its addresses.
    pub shard: ShardId,
    /// The ENI.
    pub eni: EniId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// IPv4 range of the vSwitch.
    pub ipv4_cidr: ipnet::Ipv4Net,
    /// IPv4 gateway of the vSwitch.
    pub ipv4_gateway: std::net::Ipv4Addr,
    /// IPv6 range and gateway of the vSwitch, with dual stack.
    pub ipv6: Option<(ipnet::Ipv6Net, std::net::Ipv6Addr)>,
    /// Its primary address, which also serves a pod.
    pub primary: IpAddr,
    /// Granted addresses with the generation of the grant.
    pub addresses: BTreeMap<IpAddr, Generation>,
    /// One pod gets it for itself, and no other pod is served by it.
    #[serde(default)]
    pub whole: bool,
}

/// One sandbox interface and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Sandbox and interface name.
    pub attachment: AttachmentKey,
    /// The pod, for people and names.
    pub pod: PodKey,
    /// UID of the pod, as far as the runtime told.
    pub pod_uid: String,
    /// Path of the network namespace.
    pub netns: String,
    /// Host-side link.
    pub host_link: String,
    /// MTU of the pod's link in bytes.
    pub mtu: u32,
    /// The ENI the addresses are on.
    pub eni: EniId,
    /// IPv4 address.
    pub ipv4: std::net::Ipv4Addr,
    /// IPv6 address, with dual stack.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// Boot in which the sandbox was made.
    pub boot_id: String,
    /// The sandbox has the ENI for itself: its link is in the sandbox.
    #[serde(default)]
    pub whole: bool,
}

impl Binding {
    /// What policy knows the sandbox by: each link with its name on the node, which is empty for a link that is in the
    /// sandbox alone.
    pub fn parts(&self) -> Vec<(AttachmentKey, String)> {
        if !self.whole {
            return vec![(self.attachment.clone(), self.host_link.clone())];
        }
        vec![
            (self.attachment.clone(), String::new()),
            (node_side(&self.attachment), self.host_link.clone()),
        ]
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.ipv4)).chain(self.ipv6.map(IpAddr::V6))
    }
}

/// What somebody asks the pool to bind.
#[derive(Debug, Clone)]
pub struct BindRequest {
    /// Sandbox and interface name.
    pub attachment: AttachmentKey,
    /// The pod.
    pub pod: PodKey,
    /// UID of the pod.
    pub pod_uid: String,
    /// Path of the network namespace.
    pub netns: String,
    /// Host-side link.
    pub host_link: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The present boot.
    pub boot_id: String,
    /// Whether an ENI is wanted, instead of addresses of a shared one.
    pub whole: bool,
}

/// No pair of addresses is free on any ready ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no free address on this node")]
pub struct Empty;

#[derive(Debug, Clone)]
struct Eni {
    record: EniRecord,
    /// The link is there and configured. Not durable: after a restart it is found out again.
    ready: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Pool {
    stack: Stack,
    /// How long a freed address rests before another sandbox of this node gets it.
    reuse_after: Duration,
    enis: BTreeMap<EniId, Eni>,
    bindings: BTreeMap<AttachmentKey, Binding>,
    bound: BTreeMap<IpAddr, AttachmentKey>,
    freed: BTreeMap<IpAddr, Tick>,
    /// Highest generation under which an address was revoked: older grants are late messages.
    revoked: BTreeMap<IpAddr, Generation>,
    /// Which pod had an ENI for itself last. Not durable: after a restart its addresses rest before any pod has them.
    last_users: BTreeMap<EniId, (PodKey, String)>,
}

/// What one shard's addresses amount to, in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Pods that the granted addresses can serve, bound ones included.
    pub pods: u32,
    /// Of these, on ENIs whose link is ready.
    pub ready: u32,
    /// Bound pods.
    pub bound: u32,
}

impl Pool {
    /// An empty pool.
    pub fn new(stack: Stack, reuse_after: Duration) -> Self {
        Self {
            stack,
            reuse_after,
            enis: BTreeMap::new(),
            bindings: BTreeMap::new(),
            bound: BTreeMap::new(),
            freed: BTreeMap::new(),
            revoked: BTreeMap::new(),
            last_users: BTreeMap::new(),
        }
    }

    /// Sets the families that pods get, as ipam said. Bindings stay as they are.
    pub fn set_stack(&mut self, stack: Stack) {
        self.stack = stack;
    }

    /// Families that pods get.
    pub fn stack(&self) -> Stack {
        self.stack
    }

    /// Takes in an ENI, or further addresses of one that is known. Returns whether anything changed.
    ///
    /// An address whose generation is not newer than its last revocation is left out: its grant is a late message.
    pub fn attach(&mut self, record: EniRecord) -> bool {
        let EniRecord { eni, addresses, .. } = record.clone();
        let entry = self.enis.entry(eni.clone());
        let known = matches!(entry, std::collections::btree_map::Entry::Occupied(_));
        let slot = entry.or_insert_with(|| Eni {
            record: EniRecord {
                addresses: BTreeMap::new(),
                ..record.clone()
            },
            ready: false,
        });
        let mut changed = !known;
        if known {
            let addresses = std::mem::take(&mut slot.record.addresses);
            let merged = EniRecord {
                addresses,
                ..record
            };
            changed |= merged != slot.record && merged.addresses.is_empty();
            slot.record = merged;
        }
        self.grant(&eni, addresses) | changed
    }

    /// Adds addresses to a known ENI. Returns whether anything changed.
    pub fn grant(&mut self, eni: &EniId, addresses: BTreeMap<IpAddr, Generation>) -> bool {
        let Some(slot) = self.enis.get_mut(eni) else {
            return false;
        };
        let mut changed = false;
        for (ip, generation) in addresses {
            if self
                .revoked
                .get(&ip)
                .is_some_and(|gone| *gone >= generation)
            {
                continue;
            }
            let old = slot.record.addresses.insert(ip, generation);
            match old {
                Some(old) if old >= generation => {
                    slot.record.addresses.insert(ip, old);
                }
                Some(_) | None => changed = true,
            }
        }
        changed
    }

    /// Marks the ENI's link as there and configured.
    pub fn set_ready(&mut self, eni: &EniId, ready: bool) {
        if let Some(slot) = self.enis.get_mut(eni) {
            slot.ready = ready;
        }
    }

    /// Gives addresses back that no sandbox uses. Returns those given back and those kept.
    ///
    /// An address granted under a newer generation than `asked` is kept: the request is late. An address
    /// that is not here counts as given back.
    pub fn revoke(
        &mut self,
        eni: &EniId,
        asked: &BTreeMap<IpAddr, Generation>,
    ) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for (ip, generation) in asked {
            let held = self
                .enis
                .get(eni)
                .and_then(|e| e.record.addresses.get(ip))
                .copied();
            let newer = held.is_some_and(|held| held > *generation);
            if self.bound.contains_key(ip) || newer {
                refused.push(*ip);
                continue;
            }
            if let Some(slot) = self.enis.get_mut(eni) {
                slot.record.addresses.remove(ip);
            }
            self.freed.remove(ip);
            let mark = self.revoked.entry(*ip).or_default();
            *mark = (*mark).max(*generation);
            accepted.push(*ip);
        }
        (accepted, refused)
    }

    /// Forgets an ENI that no sandbox uses. `None` when it is unknown or in use.
    pub fn remove(&mut self, eni: &EniId) -> Option<EniRecord> {
        if self.bindings.values().any(|b| b.eni == *eni) {
            return None;
        }
        let gone = self.enis.remove(eni)?.record;
        self.last_users.remove(eni);
        for ip in gone.addresses.keys() {
            self.freed.remove(ip);
        }
        Some(gone)
    }

    /// Binds a free pair of addresses of one ENI, the longest unused first; the same attachment gets the same answer.
    ///
    /// # Errors
    /// [`Empty`] when no ready ENI has a pair that rested long enough.
    pub fn bind(&mut self, request: &BindRequest, now: Tick) -> Result<(Binding, bool), Empty> {
        if let Some(binding) = self.bindings.get(&request.attachment) {
            return Ok((binding.clone(), false));
        }
        if request.whole {
            return self.bind_whole(request, now);
        }
        let best = self
            .enis
            .values()
            .filter(|e| e.ready && !e.record.whole)
            .filter_map(|e| {
                let (since4, IpAddr::V4(ipv4)) = self.idle(e, Family::V4, now)? else {
                    return None;
                };
                let (since, ipv6) = if self.stack.has_v6() {
                    let (since6, IpAddr::V6(ipv6)) = self.idle(e, Family::V6, now)? else {
                        return None;
                    };
                    (since4.max(since6), Some(ipv6))
                } else {
                    (since4, None)
                };
                Some((since, e.record.eni.clone(), ipv4, ipv6))
            })
            .min_by_key(|(since, ..)| *since);
        let (_, eni, ipv4, ipv6) = best.ok_or(Empty)?;
        let binding = Binding {
            attachment: request.attachment.clone(),
            pod: request.pod.clone(),
            pod_uid: request.pod_uid.clone(),
            netns: request.netns.clone(),
            host_link: request.host_link.clone(),
            mtu: request.mtu,
            eni,
            ipv4,
            ipv6,
            boot_id: request.boot_id.clone(),
            whole: false,
        };
        self.insert(binding.clone());
        Ok((binding, true))
    }

    /// Takes a binding in as it stands in the store.
    pub fn insert(&mut self, binding: Binding) {
        for ip in binding.addresses() {
            self.freed.remove(&ip);
            self.bound.insert(ip, binding.attachment.clone());
        }
        self.bindings.insert(binding.attachment.clone(), binding);
    }

    /// Frees the attachment's addresses; they rest for a while.
    pub fn unbind(&mut self, attachment: &AttachmentKey, now: Tick) -> Option<Binding> {
        let binding = self.bindings.remove(attachment)?;
        if binding.whole {
            let user = (binding.pod.clone(), binding.pod_uid.clone());
            self.last_users.insert(binding.eni.clone(), user);
        }
        for ip in binding.addresses() {
            self.bound.remove(&ip);
            self.freed.insert(ip, now);
        }
        Some(binding)
    }

    /// The longest unused address of a family that may be used now, and since when it is unused.
    fn idle(&self, eni: &Eni, family: Family, now: Tick) -> Option<(Tick, IpAddr)> {
        eni.record
            .addresses
            .keys()
            .filter(|ip| Family::of(**ip) == family && !self.bound.contains_key(*ip))
            .map(|ip| (self.freed.get(ip).copied(), *ip))
            .filter(|(freed, _)| freed.is_none_or(|at| now.since(at) >= self.reuse_after))
            .map(|(freed, ip)| (freed.unwrap_or_default(), ip))
            .min()
    }

    /// When resting addresses may be used again; those in the past have rested.
    pub fn rest_ends(&self) -> BTreeSet<Tick> {
        self.freed
            .values()
            .map(|at| at.after(self.reuse_after))
            .collect()
    }

    /// What each shard's addresses on shared ENIs amount to.
    pub fn holdings(&self) -> BTreeMap<ShardId, Holding> {
        let mut by_shard: BTreeMap<ShardId, Holding> = BTreeMap::new();
        for eni in self.enis.values().filter(|eni| !eni.record.whole) {
            let holding = by_shard.entry(eni.record.shard.clone()).or_default();
            let pods = self.pods_of(&eni.record);
            holding.pods += pods;
            if eni.ready {
                holding.ready += pods;
            }
        }
        for binding in self.bindings.values().filter(|binding| !binding.whole) {
            if let Some(eni) = self.enis.get(&binding.eni) {
                by_shard.entry(eni.record.shard.clone()).or_default().bound += 1;
            }
        }
        by_shard
    }

    fn pods_of(&self, record: &EniRecord) -> u32 {
        let count = |family| {
            let n = record
                .addresses
                .keys()
                .filter(|ip| Family::of(**ip) == family)
                .count();
            u32::try_from(n).unwrap_or(u32::MAX)
        };
        let v4 = count(Family::V4);
        if self.stack.has_v6() {
            v4.min(count(Family::V6))
        } else {
            v4
        }
    }

    /// Pods that could be bound now or after their addresses have rested.
    pub fn free(&self) -> u32 {
        self.holdings()
            .values()
            .map(|h| h.ready.saturating_sub(h.bound))
            .sum()
    }

    /// All ENIs with whether their link is ready.
    pub fn enis(&self) -> impl Iterator<Item = (&EniRecord, bool)> {
        self.enis.values().map(|e| (&e.record, e.ready))
    }

    /// One ENI with whether its link is ready.
    pub fn eni(&self, eni: &EniId) -> Option<(&EniRecord, bool)> {
        self.enis.get(eni).map(|e| (&e.record, e.ready))
    }

    /// All bindings.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// The binding of an attachment.
    pub fn binding(&self, attachment: &AttachmentKey) -> Option<&Binding> {
        self.bindings.get(attachment)
    }

    /// Bound addresses of an ENI.
    pub fn bound_on(&self, eni: &EniId) -> Vec<IpAddr> {
        let on_eni = self.bindings.values().filter(|b| b.eni == *eni);
        on_eni.flat_map(Binding::addresses).collect()
    }

    /// Addresses revoked, with the generation; durable, so that a late grant is known after a restart too.
    pub fn revocations(&self) -> &BTreeMap<IpAddr, Generation> {
        &self.revoked
    }

    /// Takes a resting address in as it stands in the store.
    pub fn insert_freed(&mut self, ip: IpAddr, at: Tick) {
        self.freed.insert(ip, at);
    }

    /// Takes a revocation in as it stands in the store.
    pub fn insert_revocation(&mut self, ip: IpAddr, generation: Generation) {
        self.revoked.insert(ip, generation);
    }
}

mod whole;

#[cfg(test)]
mod tests;
