//! Sets of addresses as disjoint ranges, per family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// First and last address of a run, both included. IPv4 addresses are counted in the low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// First.
    pub first: u128,
    /// Last; not less than `first`.
    pub last: u128,
}

/// Addresses of both families. Ranges are sorted, disjoint, and do not touch: equal sets are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blocks {
    /// IPv4.
    pub v4: Vec<Range>,
    /// IPv6.
    pub v6: Vec<Range>,
}

const LAST_V4: u128 = 0xffff_ffff;

/// Whether the address is IPv4, and its number.
fn number(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(v4) => (true, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (false, u128::from(v6)),
    }
}

impl Range {
    /// The whole family.
    pub const fn whole(v4: bool) -> Self {
        Self {
            first: 0,
            last: if v4 { LAST_V4 } else { u128::MAX },
        }
    }

    /// Its ends as addresses.
    pub fn ends(self, v4: bool) -> (IpAddr, IpAddr) {
        (address(v4, self.first), address(v4, self.last))
    }
}

fn address(v4: bool, number: u128) -> IpAddr {
    if v4 {
        // The upper bits of an IPv4 number are zero by construction.
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}

/// Sorts, merges what overlaps or touches.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => out.push(range),
        }
    }
    out
}

/// What is in `from` and not in `out`; both merged.
fn without(from: &[Range], out: &[Range]) -> Vec<Range> {
    let mut result = Vec::new();
    for range in from {
        // `None`: nothing is left of the range.
        let mut first = Some(range.first);
        for hole in out
            .iter()
            .filter(|h| h.last >= range.first && h.first <= range.last)
        {
            let Some(start) = first else { break };
            if hole.first > start {
                result.push(Range {
                    first: start,
                    last: hole.first - 1,
                });
            }
            first = (hole.last < range.last).then(|| hole.last + 1);
        }
        if let Some(first) = first {
            result.push(Range {
                first,
                last: range.last,
            });
        }
    }
    result
}

impl Blocks {
    /// The union of networks.
    pub fn of<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut blocks = Self::default();
        for net in nets {
            let (v4, first) = number(net.network());
            let (_, last) = number(net.broadcast());
            let range = Range { first, last };
            if v4 {
                blocks.v4.push(range);
            } else {
                blocks.v6.push(range);
            }
        }
        blocks.canonical()
    }

    /// Every address of both families.
    pub fn everything() -> Self {
        Self {
            v4: vec![Range::whole(true)],
            v6: vec![Range::whole(false)],
        }
    }

    fn canonical(self) -> Self {
        Self {
            v4: merged(self.v4),
            v6: merged(self.v6),
        }
    }

    /// What is in one of the two.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.v4.extend(other.v4);
        self.v6.extend(other.v6);
        self.canonical()
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            v4: without(&self.v4, &other.v4),
            v6: without(&self.v6, &other.v6),
        }
    }

    /// The ranges of a family.
    pub fn family(&self, v4: bool) -> &[Range] {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// Whether a family is in it whole.
    pub fn is_whole(&self, v4: bool) -> bool {
        self.family(v4) == [Range::whole(v4)]
    }

    /// Whether the address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (v4, number) = number(ip);
        let ranges = self.family(v4);
        let after = ranges.partition_point(|r| r.first <= number);
        after
            .checked_sub(1)
            .and_then(|at| ranges.get(at))
            .is_some_and(|r| number <= r.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(nets: &[&str]) -> Blocks {
        let nets: Vec<IpNet> = nets.iter().map(|n| n.parse().unwrap()).collect();
        Blocks::of(&nets)
    }

    // C3
    #[test]
    fn overlapping_networks_become_disjoint_ranges() {
        let all = blocks(&["10.0.0.0/24", "10.0.0.128/25", "10.0.1.0/24", "fd00::/64"]);
        assert_eq!(all.v4.len(), 1);
        assert_eq!(all.v6.len(), 1);
        assert!(all.contains("10.0.1.255".parse().unwrap()));
        assert!(!all.contains("10.0.2.0".parse().unwrap()));
    }

    // C3
    #[test]
    fn networks_of_one_family_hold_nothing_of_the_other() {
        let v4 = blocks(&["0.0.0.0/0"]);
        assert!(v4.is_whole(true));
        assert!(!v4.contains("::1".parse().unwrap()));
    }

    #[test]
    fn holes_at_both_ends_and_in_the_middle_are_cut_out() {
        let left = blocks(&["10.0.0.0/24"]).minus(&blocks(&[
            "10.0.0.0/26",
            "10.0.0.128/32",
            "10.0.0.192/26",
        ]));
        let inside = |last: u8| left.contains(IpAddr::from([10, 0, 0, last]));
        assert_eq!(left.v4.len(), 2);
        assert!(!inside(63) && inside(64) && inside(127) && !inside(128) && inside(129));
        assert!(inside(191) && !inside(192));
    }

    // C3
    #[test]
    fn exception_equal_to_the_network_leaves_nothing() {
        let whole = blocks(&["::/0"]);
        assert_eq!(whole.minus(&whole), Blocks::default());
        let v4 = blocks(&["0.0.0.0/0"]);
        assert_eq!(v4.minus(&v4), Blocks::default());
    }
}
