//! One look at conntrack.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh::crash_point;
use nft_wire::conntrack::{self, End, Filter, Mark, Ports};
use policy_core::flow::{Flow, Protocol};
use tokio::runtime::Handle as Runtime;

use super::RevokeError;
use super::port::{Flows, FlowsError};
use crate::enforcer;
use crate::scope::Scope;

/// Flows that the enforcer judges at a time: it has other work.
const AT_ONCE: usize = 256;

/// Up to so many addresses the kernel filters. Each takes two dumps, and a filtered dump costs about a quarter of a
/// whole one.
const FILTERED: usize = 1;

/// A look.
pub(super) struct Pass<'a> {
    pub(super) scope: &'a Scope,
    pub(super) bit: u32,
    pub(super) runtime: &'a Runtime,
    pub(super) enforcer: &'a enforcer::Handle,
}

impl Pass<'_> {
    /// Judges and marks. Says how many flows were cut, and how many live again.
    pub(super) fn run(&self, flows: &mut dyn Flows) -> Result<(u64, u64), RevokeError> {
        let node = flows.node_addresses();
        let local = self
            .runtime
            .block_on(self.enforcer.look(|core| core.engine.local_addresses()))?;
        // The first question also says which addresses are the node's own.
        self.judge(&[], Some(node))?;
        let mut batch = Vec::with_capacity(AT_ONCE);
        let mut changes = Vec::new();
        let mut failed = None;
        for filter in filters(self.scope) {
            flows.dump(&filter, &mut |entry| {
                let flow = judged(entry);
                let concerns = local.contains(&flow.source) || local.contains(&flow.destination);
                if failed.is_some() || !concerns || !self.scope.holds(&flow) {
                    return;
                }
                batch.push(*entry);
                if batch.len() >= AT_ONCE {
                    failed = self.compare(&mut batch, &mut changes).err();
                }
            })?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.compare(&mut batch, &mut changes)?;
        if changes.is_empty() {
            return Ok((0, 0));
        }
        crash_point!("policy.revoke.before_mark");
        flows.mark(&changes)?;
        crash_point!("policy.revoke.after_mark");
        let revoked = changes.iter().filter(|(_, mark)| mark.value != 0).count();
        let restored = changes.len().saturating_sub(revoked);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok((count(revoked), count(restored)))
    }

    /// Compares the marks of a batch with its verdicts.
    fn compare(
        &self,
        batch: &mut Vec<conntrack::Flow>,
        changes: &mut Vec<(conntrack::Flow, Mark)>,
    ) -> Result<(), RevokeError> {
        let flows: Vec<Flow> = batch.iter().map(judged).collect();
        let allowed = self.judge(&flows, None)?;
        for (entry, allowed) in batch.drain(..).zip(allowed) {
            let is_cut = entry.mark & self.bit != 0;
            if is_cut == allowed {
                let value = if allowed { 0 } else { self.bit };
                let mask = self.bit;
                changes.push((entry, Mark { value, mask }));
            }
        }
        Ok(())
    }

    fn judge(&self, flows: &[Flow], node: Option<Vec<IpAddr>>) -> Result<Vec<bool>, RevokeError> {
        let asked = self.enforcer.judge(flows.to_vec(), node);
        Ok(self.runtime.block_on(asked)?)
    }
}

/// Which dumps show all flows of a scope.
fn filters(scope: &Scope) -> Vec<Filter> {
    if scope.everything || scope.addresses.len() > FILTERED {
        return vec![Filter::default()];
    }
    let ends = [End::OriginalSource, End::ReplySource];
    scope
        .addresses
        .iter()
        .flat_map(|ip| ends.map(|end| (end, *ip)))
        .map(|address| Filter {
            address: Some(address),
            ..Filter::default()
        })
        .collect()
}

/// The flow as policy sees it: the source before any translation on the way out, the destination after the
/// translation of a Service.
fn judged(entry: &conntrack::Flow) -> Flow {
    Flow {
        source: entry.original.source,
        destination: entry.reply.source,
        protocol: Protocol(entry.original.protocol),
        port: match entry.reply.ports {
            Ports::Ports { source, .. } => source,
            Ports::Icmp { .. } | Ports::None => 0,
        },
    }
}

/// Deletes the entries with one of these addresses at an end. Says how many there were.
pub(super) fn delete(
    flows: &mut dyn Flows,
    addresses: &BTreeSet<IpAddr>,
) -> Result<usize, FlowsError> {
    let mut found = Vec::new();
    let ends = |entry: &conntrack::Flow| {
        [
            entry.original.source,
            entry.original.destination,
            entry.reply.source,
            entry.reply.destination,
        ]
    };
    flows.dump(&Filter::default(), &mut |entry| {
        if ends(entry).iter().any(|ip| addresses.contains(ip)) {
            found.push(*entry);
        }
    })?;
    if !found.is_empty() {
        flows.delete(&found)?;
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use nft_wire::conntrack::Tuple;

    use super::*;

    fn tuple(source: &str, destination: &str, ports: (u16, u16)) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            ports: Ports::Ports {
                source: ports.0,
                destination: ports.1,
            },
        }
    }

    #[test]
    fn flow_through_a_service_is_judged_by_pod_address_and_pod_port() {
        let entry = conntrack::Flow {
            original: tuple("10.0.0.1", "172.16.0.1", (40_000, 80)),
            reply: tuple("10.0.0.2", "10.0.0.1", (8080, 40_000)),
            mark: 0,
            status: 0,
            id: 1,
            zone: 0,
        };

        let flow = judged(&entry);

        assert_eq!(flow.source.to_string(), "10.0.0.1");
        assert_eq!(flow.destination.to_string(), "10.0.0.2");
        assert_eq!(flow.port, 8080);
    }

    #[test]
    fn one_address_is_filtered_by_the_kernel_and_many_are_not() {
        let one = Scope {
            addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
            ..Scope::default()
        };
        let mut two = one.clone();
        two.addresses.insert("10.0.0.2".parse().unwrap());

        assert_eq!(filters(&one).len(), 2);
        assert_eq!(filters(&two), [Filter::default()]);
        assert_eq!(filters(&Scope::everything()), [Filter::default()]);
    }
}
