//! The addresses of a vSwitch: which are taken, by whom, and which one is next.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use types::address::{RESERVED_V4_BACK, RESERVED_V4_FRONT, RESERVED_V6, is_reserved};
use types::cloud::EniId;

use crate::refusal::Refusal;

/// IPv4 addresses of a vSwitch.
#[derive(Debug)]
pub struct Range4 {
    net: Ipv4Net,
    taken: BTreeMap<Ipv4Addr, EniId>,
    /// The address handed out last, so that a freed one does not come back at once.
    cursor: u32,
}

/// IPv6 addresses of a vSwitch.
#[derive(Debug)]
pub struct Range6 {
    net: Ipv6Net,
    taken: BTreeMap<Ipv6Addr, EniId>,
    cursor: u128,
}

fn outside() -> Refusal {
    Refusal::forbidden(
        "InvalidVSwitchId.IpInvalid",
        "The specified IpAddress is not valid in VSwitch CIDR block.",
    )
}

fn assigned() -> Refusal {
    Refusal::forbidden(
        "InvalidIp.IpAssigned",
        "The specified IP address is in use.",
    )
}

fn exhausted() -> Refusal {
    Refusal::forbidden(
        "InvalidVSwitchId.IpNotEnough",
        "The specified VSwitch does not have enough IP addresses.",
    )
}

impl Range4 {
    /// An empty range.
    pub fn new(net: Ipv4Net) -> Self {
        Self {
            net,
            taken: BTreeMap::new(),
            cursor: u32::from(net.network()),
        }
    }

    fn first(&self) -> u32 {
        u32::from(self.net.network()).saturating_add(RESERVED_V4_FRONT)
    }

    fn last(&self) -> u32 {
        u32::from(self.net.broadcast()).saturating_sub(RESERVED_V4_BACK)
    }

    /// Addresses that can still be taken.
    pub fn available(&self) -> u64 {
        let usable = u64::from(self.last().saturating_sub(self.first())).saturating_add(1);
        usable.saturating_sub(u64::try_from(self.taken.len()).unwrap_or(u64::MAX))
    }

    /// Whether `ip` could be taken.
    ///
    /// # Errors
    /// Out of the range or kept by the cloud; taken.
    pub fn check(&self, ip: Ipv4Addr) -> Result<(), Refusal> {
        if is_reserved(IpNet::V4(self.net), IpAddr::V4(ip)) {
            return Err(outside());
        }
        if self.taken.contains_key(&ip) {
            return Err(assigned());
        }
        Ok(())
    }

    /// Chooses `count` free addresses that are not in `besides`, without taking them.
    ///
    /// # Errors
    /// `InvalidVSwitchId.IpNotEnough`.
    pub fn choose(&self, count: usize, besides: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>, Refusal> {
        let (first, last) = (self.first(), self.last());
        let after = self.cursor.saturating_add(1).clamp(first, last);
        let found: Vec<_> = (after..=last)
            .chain(first..after)
            .map(Ipv4Addr::from)
            .filter(|ip| !self.taken.contains_key(ip) && !besides.contains(ip))
            .take(count)
            .collect();
        if found.len() < count {
            return Err(exhausted());
        }
        Ok(found)
    }

    /// Gives the addresses to the ENI. They were checked or chosen before.
    pub fn take(&mut self, ips: &[Ipv4Addr], eni: &EniId) {
        for ip in ips {
            self.taken.insert(*ip, eni.clone());
            self.cursor = u32::from(*ip);
        }
    }

    /// Frees the addresses.
    pub fn release(&mut self, ips: &[Ipv4Addr]) {
        for ip in ips {
            self.taken.remove(ip);
        }
    }
}

impl Range6 {
    /// An empty range.
    pub fn new(net: Ipv6Net) -> Self {
        Self {
            net,
            taken: BTreeMap::new(),
            cursor: u128::from(net.network()),
        }
    }

    /// Whether `ip` could be taken.
    ///
    /// # Errors
    /// Out of the range or kept by the cloud; taken.
    pub fn check(&self, ip: Ipv6Addr) -> Result<(), Refusal> {
        if is_reserved(IpNet::V6(self.net), IpAddr::V6(ip)) {
            return Err(outside());
        }
        if self.taken.contains_key(&ip) {
            return Err(assigned());
        }
        Ok(())
    }

    /// Chooses `count` free addresses that are not in `besides`, without taking them.
    ///
    /// # Errors
    /// `InvalidVSwitchId.IpNotEnough`.
    pub fn choose(&self, count: usize, besides: &[Ipv6Addr]) -> Result<Vec<Ipv6Addr>, Refusal> {
        let first = u128::from(self.net.network()).saturating_add(RESERVED_V6);
        let last = u128::from(self.net.broadcast()).saturating_sub(RESERVED_V6);
        let after = self.cursor.saturating_add(1).clamp(first, last);
        let found: Vec<_> = (after..=last)
            .chain(first..after)
            .map(Ipv6Addr::from)
            .filter(|ip| !self.taken.contains_key(ip) && !besides.contains(ip))
            .take(count)
            .collect();
        if found.len() < count {
            return Err(exhausted());
        }
        Ok(found)
    }

    /// Gives the addresses to the ENI. They were checked or chosen before.
    pub fn take(&mut self, ips: &[Ipv6Addr], eni: &EniId) {
        for ip in ips {
            self.taken.insert(*ip, eni.clone());
            self.cursor = u128::from(*ip);
        }
    }

    /// Frees the addresses.
    pub fn release(&mut self, ips: &[Ipv6Addr]) {
        for ip in ips {
            self.taken.remove(ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eni() -> EniId {
        "eni-a".parse().unwrap()
    }

    #[test]
    fn range_of_a_slash_29_gives_four_addresses_and_is_then_exhausted() {
        let mut range = Range4::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(range.available(), 4);

        let ips = range.choose(4, &[]).unwrap();
        range.take(&ips, &eni());

        assert_eq!(range.available(), 0);
        let refusal = range.choose(1, &[]).unwrap_err();
        assert_eq!(refusal.code, "InvalidVSwitchId.IpNotEnough");
        assert_eq!(refusal.status, http::StatusCode::FORBIDDEN);
    }

    #[test]
    fn range_keeps_its_reserved_addresses() {
        let range = Range4::new("10.0.0.0/24".parse().unwrap());

        for last in [0, 253, 254, 255] {
            let refusal = range.check(Ipv4Addr::new(10, 0, 0, last)).unwrap_err();
            assert_eq!(refusal.code, "InvalidVSwitchId.IpInvalid", "{last}");
        }
        assert_eq!(range.check(Ipv4Addr::new(10, 0, 0, 1)), Ok(()));
        assert_eq!(range.check(Ipv4Addr::new(10, 0, 0, 252)), Ok(()));
    }

    #[test]
    fn freed_address_is_not_the_next_one_chosen() {
        let mut range = Range4::new("10.0.0.0/24".parse().unwrap());
        let first = range.choose(1, &[]).unwrap();
        range.take(&first, &eni());
        range.release(&first);

        assert_ne!(range.choose(1, &[]).unwrap(), first);
    }

    #[test]
    fn v6_range_keeps_nine_at_either_end() {
        let range = Range6::new("2001:db8::/64".parse().unwrap());

        assert!(range.check("2001:db8::8".parse().unwrap()).is_err());
        assert!(range.check("2001:db8::9".parse().unwrap()).is_ok());
        assert!(
            range
                .check("2001:db8::ffff:ffff:ffff:fff7".parse().unwrap())
                .is_err()
        );
        assert!(
            range
                .check("2001:db8::ffff:ffff:ffff:fff6".parse().unwrap())
                .is_ok()
        );
    }
}
