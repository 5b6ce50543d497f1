//! A small connection tracker: enough states for rules to tell new flows from known ones.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::machine::packet::Packet;

/// State bits as rules load them, in the order of the host.
///
/// Source: `NF_CT_STATE_BIT` of the kernel's `nf_conntrack_common.h`.
pub mod state {
    /// Belongs to no flow and can begin none.
    pub const INVALID: u32 = 1;
    /// Belongs to a flow that has seen both directions, or answers one.
    pub const ESTABLISHED: u32 = 2;
    /// Tells of a flow, such as an ICMP error.
    pub const RELATED: u32 = 4;
    /// Begins a flow, or repeats its beginning.
    pub const NEW: u32 = 8;
    /// Not looked at: neighbour discovery and multicast listener reports.
    pub const UNTRACKED: u32 = 64;
}

/// Addresses, protocol and ports of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// Source port or ICMP identifier.
    pub source_port: u16,
    /// Destination port; 0 for ICMP.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of a packet.
    pub fn of(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            source_port: packet.source_port,
            destination_port: if packet.is_icmp() {
                0
            } else {
                packet.destination_port
            },
        }
    }

    /// The other direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let (source_port, destination_port) = if matches!(self.protocol, 1 | 58) {
            (self.source_port, 0)
        } else {
            (self.destination_port, self.source_port)
        };
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port,
            destination_port,
        }
    }
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// As its first packet arrived.
    pub original: Tuple,
    /// As the answer arrives: the reverse of the original after translation.
    pub reply: Tuple,
    /// Whether an answer was seen.
    pub replied: bool,
    /// The mark.
    pub mark: u32,
}

/// What the tracker says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    /// Exactly one of [`state`]'s bits.
    pub state: u32,
    /// Whether it goes in the direction of the answer.
    pub reply: bool,
    /// The flow's mark; 0 for a new one.
    pub mark: u32,
    /// Which flow, if it is a known one.
    pub flow: Option<usize>,
}

/// All flows of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conntrack {
    flows: BTreeMap<usize, Entry>,
    next: usize,
}

impl Conntrack {
    /// What it says of the packet.
    pub fn look(&self, packet: &Packet) -> Sight {
        let tuple = Tuple::of(packet);
        if packet.protocol == 58 && matches!(packet.icmp_type(), 130..=137 | 143) {
            return Sight {
                state: state::UNTRACKED,
                reply: false,
                mark: 0,
                flow: None,
            };
        }
        for (id, entry) in &self.flows {
            let reply = entry.reply == tuple;
            if !reply && entry.original != tuple {
                continue;
            }
            let known = reply || entry.replied;
            return Sight {
                state: if known {
                    state::ESTABLISHED
                } else {
                    state::NEW
                },
                reply,
                mark: entry.mark,
                flow: Some(*id),
            };
        }
        if let Some(id) = self.told_of(packet) {
            return Sight {
                state: state::RELATED,
                reply: false,
                mark: self.flows.get(&id).map_or(0, |entry| entry.mark),
                flow: None,
            };
        }
        Sight {
            state: if Self::begins(packet) {
                state::NEW
            } else {
                state::INVALID
            },
            reply: false,
            mark: 0,
            flow: None,
        }
    }

    /// An ICMP error tells of a flow of the host that it is sent to.
    fn told_of(&self, packet: &Packet) -> Option<usize> {
        let error = matches!(
            (packet.protocol, packet.icmp_type()),
            (1, 3 | 11 | 12) | (58, 1..=4)
        );
        if !error {
            return None;
        }
        self.flows
            .iter()
            .find(|(_, entry)| {
                entry.original.source == packet.destination
                    || entry.reply.source == packet.destination
            })
            .map(|(id, _)| *id)
    }

    /// A flow by the number that [`Sight`] gave.
    pub fn flow(&self, id: usize) -> Option<&Entry> {
        self.flows.get(&id)
    }

    /// Sets the whole mark of a flow by the number that [`Sight`] gave.
    pub fn set_mark(&mut self, id: usize, mark: u32) {
        if let Some(entry) = self.flows.get_mut(&id) {
            entry.mark = mark;
        }
    }

    /// Stray answers begin no flow.
    fn begins(packet: &Packet) -> bool {
        match packet.protocol {
            1 => matches!(packet.icmp_type(), 8 | 13 | 15 | 17),
            58 => packet.icmp_type() == 128,
            _ => true,
        }
    }

    /// The packet has passed every hook: a new flow is confirmed, an answered one is established. `translated` is
    /// its destination after DNAT, if that happened.
    pub fn pass(&mut self, packet: &Packet, translated: Option<(IpAddr, u16)>) {
        let sight = self.look(packet);
        if let Some(id) = sight.flow {
            if sight.reply
                && let Some(entry) = self.flows.get_mut(&id)
            {
                entry.replied = true;
            }
            return;
        }
        if sight.state != state::NEW {
            return;
        }
        let original = Tuple::of(packet);
        let mut reply = original.reversed();
        if let Some((address, port)) = translated {
            reply.source = address;
            reply.source_port = port;
        }
        self.flows.insert(
            self.next,
            Entry {
                original,
                reply,
                replied: false,
                mark: 0,
            },
        );
        self.next += 1;
    }

    /// Every flow.
    pub fn flows(&self) -> impl Iterator<Item = &Entry> {
        self.flows.values()
    }

    /// Sets these bits in the mark of the flow with this original tuple. False when there is none.
    pub fn mark(&mut self, original: &Tuple, value: u32, bits: u32) -> bool {
        let Some(entry) = self.flows.values_mut().find(|e| e.original == *original) else {
            return false;
        };
        entry.mark = (entry.mark & !bits) | (value & bits);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conntrack_of_a_flow_is_new_until_answered_and_related_for_its_errors() {
        let packet = Packet::new(
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
            17,
            9,
            53,
        );
        let mut table = Conntrack::default();
        assert_eq!(table.look(&packet).state, state::NEW);
        assert_eq!(table.look(&packet.reply()).state, state::NEW);
        table.pass(&packet, None);
        assert_eq!(table.look(&packet).state, state::NEW);
        let reply = table.look(&packet.reply());
        assert!(reply.state == state::ESTABLISHED && reply.reply);
        table.pass(&packet.reply(), None);
        assert_eq!(table.look(&packet).state, state::ESTABLISHED);
        let error = Packet::icmp("10.9.9.9".parse().unwrap(), packet.source, 3, 0);
        assert_eq!(table.look(&error).state, state::RELATED);
        let tuple = Tuple::of(&packet);
        assert!(table.mark(&tuple, 0x0800_0000, 0x0800_0000));
        assert_eq!(table.look(&packet.reply()).mark, 0x0800_0000);
    }

    #[test]
    fn conntrack_of_a_translated_flow_knows_its_answer_by_the_real_address() {
        let packet = Packet::new(
            "10.0.0.1".parse().unwrap(),
            "172.16.0.1".parse().unwrap(),
            6,
            9,
            80,
        );
        let mut table = Conntrack::default();
        table.pass(&packet, Some(("10.0.0.2".parse().unwrap(), 8080)));
        let answer = Packet::new("10.0.0.2".parse().unwrap(), packet.source, 6, 8080, 9);
        assert!(table.look(&answer).reply);
    }
}
