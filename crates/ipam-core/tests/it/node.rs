//! A node's durable store and its rules for grants and revokes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam_core::inventory::{HeldEni, RevokeRequest};
use types::cloud::EniId;
use types::op::{Generation, Seq};

/// What the owner sends. A message may be delivered late, twice, or never.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Grant {
        eni: EniId,
        addresses: Vec<(IpAddr, Generation)>,
    },
    Revoke(RevokeRequest),
}

/// What the node answers.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) revoke: Seq,
    pub(crate) accepted: Vec<IpAddr>,
    pub(crate) refused: Vec<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) want: u32,
    /// ENIs for pods of their own.
    pub(crate) wholes: u32,
    /// What it may use: ENI and generation.
    pub(crate) usable: BTreeMap<IpAddr, (EniId, Generation)>,
    /// The highest generation it gave up.
    given_up: BTreeMap<IpAddr, Generation>,
    pub(crate) bound: BTreeSet<IpAddr>,
}

impl Node {
    pub(crate) fn receive(&mut self, message: &Message) -> Option<Ack> {
        match message {
            Message::Grant { eni, addresses } => {
                for (ip, generation) in addresses {
                    let known = self
                        .usable
                        .get(ip)
                        .map(|(_, generation)| *generation)
                        .max(self.given_up.get(ip).copied());
                    if known.is_none_or(|known| known < *generation) {
                        self.usable.insert(*ip, (eni.clone(), *generation));
                    }
                }
                None
            }
            Message::Revoke(request) => Some(self.give_back(request)),
        }
    }

    fn give_back(&mut self, request: &RevokeRequest) -> Ack {
        let mut ack = Ack {
            revoke: request.revoke,
            accepted: Vec::new(),
            refused: Vec::new(),
        };
        for (ip, generation) in &request.addresses {
            let newer = self.usable.get(ip).is_some_and(|(_, own)| own > generation);
            if newer || self.bound.contains(ip) {
                ack.refused.push(*ip);
                continue;
            }
            self.usable.remove(ip);
            let given_up = self.given_up.entry(*ip).or_default();
            *given_up = (*given_up).max(*generation);
            ack.accepted.push(*ip);
        }
        ack
    }

    pub(crate) fn inventory(&self) -> Vec<HeldEni> {
        let mut enis: BTreeMap<EniId, Vec<(IpAddr, Generation)>> = BTreeMap::new();
        for (ip, (eni, generation)) in &self.usable {
            enis.entry(eni.clone())
                .or_default()
                .push((*ip, *generation));
        }
        enis.into_iter()
            .map(|(id, addresses)| HeldEni { id, addresses })
            .collect()
    }

    pub(crate) fn usage(&self) -> BTreeMap<EniId, BTreeSet<IpAddr>> {
        let mut usage: BTreeMap<EniId, BTreeSet<IpAddr>> = BTreeMap::new();
        for ip in &self.bound {
            if let Some((eni, _)) = self.usable.get(ip) {
                usage.entry(eni.clone()).or_default().insert(*ip);
            }
        }
        usage
    }

    /// Binds the `pick`-th idle address.
    pub(crate) fn bind(&mut self, pick: usize) {
        let idle: Vec<IpAddr> = self
            .usable
            .keys()
            .filter(|ip| !self.bound.contains(ip))
            .copied()
            .collect();
        if !idle.is_empty() {
            self.bound.insert(idle[pick % idle.len()]);
        }
    }

    pub(crate) fn unbind(&mut self, pick: usize) {
        let bound: Vec<IpAddr> = self.bound.iter().copied().collect();
        if !bound.is_empty() {
            self.bound.remove(&bound[pick % bound.len()]);
        }
    }

    /// The link of an ENI is gone, and so is every sandbox that used it. What was given up stays given up.
    pub(crate) fn forget(&mut self, eni: &EniId) {
        let gone: Vec<(IpAddr, Generation)> = self
            .usable
            .iter()
            .filter(|(_, (of, _))| of == eni)
            .map(|(ip, (_, generation))| (*ip, *generation))
            .collect();
        for (ip, generation) in gone {
            self.usable.remove(&ip);
            self.bound.remove(&ip);
            let given_up = self.given_up.entry(ip).or_default();
            *given_up = (*given_up).max(generation);
        }
    }
}
