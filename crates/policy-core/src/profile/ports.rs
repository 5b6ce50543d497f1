//! Conditions on protocol and destination port, without names.

use crate::flow::Protocol;

/// Which protocols and ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortSet {
    /// No condition: protocols without ports as well. The other fields are empty then.
    pub every: bool,
    /// Protocols of which every port counts; sorted.
    pub protocols: Vec<Protocol>,
    /// Protocol, first and last port: sorted, disjoint, not touching, and of no protocol that stands above.
    pub ranges: Vec<(Protocol, u16, u16)>,
}

/// The protocols that have ports, as policies name them.
const WITH_PORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

impl PortSet {
    /// No condition.
    pub const fn every() -> Self {
        Self {
            every: true,
            protocols: Vec::new(),
            ranges: Vec::new(),
        }
    }

    /// Of whole protocols and ranges in any order.
    pub fn of(
        protocols: impl IntoIterator<Item = Protocol>,
        ranges: impl IntoIterator<Item = (Protocol, u16, u16)>,
    ) -> Self {
        let mut protocols: Vec<Protocol> = protocols.into_iter().collect();
        let mut sorted: Vec<(Protocol, u16, u16)> =
            ranges.into_iter().filter(|r| r.1 <= r.2).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(Protocol, u16, u16)> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if last.0 == range.0 && range.1 <= last.2.saturating_add(1) => {
                    last.2 = last.2.max(range.2);
                }
                _ => merged.push(range),
            }
        }
        protocols.extend(
            merged
                .iter()
                .filter(|r| (r.1, r.2) == (0, u16::MAX))
                .map(|r| r.0),
        );
        protocols.sort_unstable();
        protocols.dedup();
        merged.retain(|r| !protocols.contains(&r.0));
        Self {
            every: false,
            protocols,
            ranges: merged,
        }
    }

    /// Whether nothing meets it.
    pub const fn is_empty(&self) -> bool {
        !self.every && self.protocols.is_empty() && self.ranges.is_empty()
    }

    /// Whether a protocol and port meet it.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.every
            || self.protocols.contains(&protocol)
            || (protocol.has_ports()
                && self
                    .ranges
                    .iter()
                    .any(|r| r.0 == protocol && r.1 <= port && port <= r.2))
    }

    /// What meets this one and not the other. "Every" on the left counts as the three protocols with ports.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        if other.every {
            return Self::default();
        }
        let mut whole: Vec<Protocol> = if self.every {
            WITH_PORTS.to_vec()
        } else {
            self.protocols.clone()
        };
        whole.retain(|p| !other.protocols.contains(p));
        let (cut, whole): (Vec<Protocol>, Vec<Protocol>) = whole
            .into_iter()
            .partition(|p| other.ranges.iter().any(|r| r.0 == *p));
        let mut left: Vec<(Protocol, u16, u16)> =
            cut.into_iter().map(|p| (p, 0, u16::MAX)).collect();
        left.extend(
            self.ranges
                .iter()
                .filter(|r| !other.protocols.contains(&r.0)),
        );
        for hole in &other.ranges {
            left = left.into_iter().flat_map(|r| subtract(r, *hole)).collect();
        }
        Self::of(whole, left)
    }
}

/// Up to two pieces of a range around a hole.
fn subtract(
    range: (Protocol, u16, u16),
    hole: (Protocol, u16, u16),
) -> impl Iterator<Item = (Protocol, u16, u16)> {
    let (protocol, first, last) = range;
    let apart = hole.0 != protocol || hole.2 < first || hole.1 > last;
    let whole = apart.then_some(range);
    let below = (!apart && hole.1 > first).then(|| (protocol, first, hole.1 - 1));
    let above = (!apart && hole.2 < last).then(|| (protocol, hole.2 + 1, last));
    whole.into_iter().chain(below).chain(above)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Protocol = Protocol::TCP;
    const U: Protocol = Protocol::UDP;

    #[test]
    fn ranges_that_touch_are_merged_and_whole_protocols_swallow_theirs() {
        let set = PortSet::of([U], [(T, 80, 90), (T, 91, 95), (U, 53, 53), (T, 9, 3)]);
        assert_eq!(set.ranges, [(T, 80, 95)]);
        assert_eq!(set.protocols, [U]);
        assert_eq!(PortSet::of([], [(T, 0, u16::MAX)]), PortSet::of([T], []));
    }

    // D2
    #[test]
    fn end_port_is_included_and_may_equal_the_first() {
        let set = PortSet::of([], [(T, 80, 81), (U, 53, 53)]);
        assert!(set.contains(T, 81) && !set.contains(T, 82) && !set.contains(T, 79));
        assert!(set.contains(U, 53) && !set.contains(U, 54));
    }

    // D7
    #[test]
    fn one_protocol_says_nothing_of_another() {
        let set = PortSet::of([Protocol::SCTP], []);
        assert!(set.contains(Protocol::SCTP, 7) && !set.contains(T, 7));
    }

    #[test]
    fn difference_cuts_holes_into_whole_protocols() {
        let set = PortSet::of([T, U], []).minus(&PortSet::of([U], [(T, 80, 90)]));
        assert_eq!(set, PortSet::of([], [(T, 0, 79), (T, 91, u16::MAX)]));
        let all = PortSet::every().minus(&PortSet::of([], [(T, 0, 0)]));
        assert!(!all.contains(T, 0) && all.contains(T, 1) && all.contains(U, 0));
        assert!(!all.contains(Protocol::ICMP, 0));
    }
}
