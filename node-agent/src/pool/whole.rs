//! ENIs that pods have for themselves, as the pool knows them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::address::Family;
use types::cloud::EniId;
use types::time::Tick;

use super::{BindRequest, Binding, Empty, Eni, Pool};

impl Pool {
    /// Binds an ENI that no sandbox has.
    ///
    /// # Errors
    /// [`Empty`] when none is ready that has rested; one that the same pod had before need not rest.
    pub(super) fn bind_whole(
        &mut self,
        request: &BindRequest,
        now: Tick,
    ) -> Result<(Binding, bool), Empty> {
        let used: BTreeSet<&EniId> = self.bindings.values().map(|b| &b.eni).collect();
        let best = self
            .enis
            .values()
            .filter(|e| e.ready && e.record.whole && !used.contains(&e.record.eni))
            .find_map(|e| {
                let IpAddr::V4(ipv4) = Self::own(e, Family::V4)? else {
                    return None;
                };
                let ipv6 = if self.stack.has_v6() {
                    let IpAddr::V6(ipv6) = Self::own(e, Family::V6)? else {
                        return None;
                    };
                    Some(ipv6)
                } else {
                    None
                };
                let same = self
                    .last_users
                    .get(&e.record.eni)
                    .is_some_and(|(pod, uid)| *pod == request.pod && *uid == request.pod_uid);
                let rested = |ip: IpAddr| {
                    let freed = self.freed.get(&ip);
                    freed.is_none_or(|at| now.since(*at) >= self.reuse_after)
                };
                let usable = same || rested(ipv4.into()) && ipv6.is_none_or(|ip| rested(ip.into()));
                usable.then(|| (e.record.eni.clone(), ipv4, ipv6))
            });
        let (eni, ipv4, ipv6) = best.ok_or(Empty)?;
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
            whole: true,
        };
        self.insert(binding.clone());
        Ok((binding, true))
    }

    /// The granted address of a family.
    fn own(eni: &Eni, family: Family) -> Option<IpAddr> {
        let mut granted = eni.record.addresses.keys();
        granted.find(|ip| Family::of(**ip) == family).copied()
    }
}
