//! The idioms that our rules are made of.
//!
//! A [`Line`] is one rule in the making: conditions first, then what happens. It adds the guards that
//! expressions need (an address is loaded only behind a check of the IP version, a port only behind
//! one of the protocol) once per rule, as `nft` does.

mod load;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

pub use self::load::{Ip, Load};
use self::load::{ct, meta, network_field, transport_field};
use crate::expr::{CmpOp, CtKey, DynsetOp, Expr, MetaKey, Register, Reject};
use crate::key::ifname;
use crate::name::{Family, TableRef};
use crate::rule::Rule;
use crate::verdict::Verdict;

/// Conntrack state: belongs to a flow that was answered.
pub const STATE_ESTABLISHED: u32 = 2;
/// Conntrack state: an ICMP error, or a connection, of a flow that is known.
pub const STATE_RELATED: u32 = 4;
/// Conntrack state: not answered yet.
pub const STATE_NEW: u32 = 8;
/// Conntrack state: makes no sense to the tracker.
pub const STATE_INVALID: u32 = 1;

const NFPROTO_V4: u8 = 2;
const NFPROTO_V6: u8 = 10;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const PROTO_TCP: u8 = 6;
const PROTO_ICMPV6: u8 = 58;

/// One rule in the making.
#[derive(Debug, Clone)]
pub struct Line {
    family: Family,
    exprs: Vec<Expr>,
    version: Option<Ip>,
    protocol: Option<u8>,
}

impl Line {
    /// An empty rule for a table of `family`: guards differ between families.
    pub const fn new(family: Family) -> Self {
        Self {
            family,
            exprs: Vec::new(),
            version: None,
            protocol: None,
        }
    }

    /// Appends an expression as it is.
    #[must_use]
    pub fn with(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// Only packets of that IP version.
    #[must_use]
    pub fn version(mut self, ip: Ip) -> Self {
        if self.version == Some(ip) {
            return self;
        }
        self.version = Some(ip);
        match (self.family, ip) {
            // These families see one version only.
            (Family::Ipv4, Ip::V4) | (Family::Ipv6, Ip::V6) => self,
            (Family::Netdev | Family::Bridge, ip) => {
                let number = match ip {
                    Ip::V4 => ETHERTYPE_V4,
                    Ip::V6 => ETHERTYPE_V6,
                };
                self.compare(
                    meta(MetaKey::Protocol, Register::FIRST),
                    &number.to_be_bytes(),
                )
            }
            (_, ip) => {
                let number = match ip {
                    Ip::V4 => NFPROTO_V4,
                    Ip::V6 => NFPROTO_V6,
                };
                self.compare(meta(MetaKey::Nfproto, Register::FIRST), &[number])
            }
        }
    }

    /// Only packets of that transport protocol.
    #[must_use]
    pub fn protocol(mut self, number: u8) -> Self {
        if self.protocol == Some(number) {
            return self;
        }
        self.protocol = Some(number);
        self.compare(meta(MetaKey::L4proto, Register::FIRST), &[number])
    }

    /// Only packets that came in by the interface of that name.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.compare(meta(MetaKey::Iifname, Register::FIRST), &ifname(name))
    }

    /// Only packets that leave by the interface of that name.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.compare(meta(MetaKey::Oifname, Register::FIRST), &ifname(name))
    }

    /// Only packets that came in by an interface whose name begins so (`"cali*"`).
    #[must_use]
    pub fn iifname_prefix(self, prefix: &str) -> Self {
        self.compare(meta(MetaKey::Iifname, Register::FIRST), prefix.as_bytes())
    }

    /// Only packets that leave by an interface whose name begins so.
    #[must_use]
    pub fn oifname_prefix(self, prefix: &str) -> Self {
        self.compare(meta(MetaKey::Oifname, Register::FIRST), prefix.as_bytes())
    }

    /// Only packets that came in by the interface of that index; 0: made by this host.
    #[must_use]
    pub fn iif(self, index: u32) -> Self {
        self.compare(meta(MetaKey::Iif, Register::FIRST), &index.to_ne_bytes())
    }

    /// Only packets from that address.
    #[must_use]
    pub fn source(self, address: IpAddr) -> Self {
        self.value(Load::Source(Ip::of(address)), CmpOp::Eq, &octets(address))
    }

    /// Only packets to that address.
    #[must_use]
    pub fn destination(self, address: IpAddr) -> Self {
        self.value(
            Load::Destination(Ip::of(address)),
            CmpOp::Eq,
            &octets(address),
        )
    }

    /// Only packets from that prefix; `len` is at most 32 or 128, more counts as that.
    #[must_use]
    pub fn source_prefix(self, network: IpAddr, len: u8) -> Self {
        self.prefix(Load::Source(Ip::of(network)), network, len)
    }

    /// Only packets to that prefix.
    #[must_use]
    pub fn destination_prefix(self, network: IpAddr, len: u8) -> Self {
        self.prefix(Load::Destination(Ip::of(network)), network, len)
    }

    /// Only packets to that port; the protocol must have been checked.
    #[must_use]
    pub fn dport(self, port: u16) -> Self {
        self.value(Load::DestinationPort, CmpOp::Eq, &port.to_be_bytes())
    }

    /// Only packets to those ports; the protocol must have been checked.
    #[must_use]
    pub fn dports(self, ports: RangeInclusive<u16>) -> Self {
        self.with(Load::DestinationPort.into_register(Register::FIRST))
            .with(Expr::Range {
                inverted: false,
                from: Register::FIRST,
                low: ports.start().to_be_bytes().to_vec(),
                high: ports.end().to_be_bytes().to_vec(),
            })
    }

    /// Only packets whose key is in the set. The parts become a concatenation, in their order.
    #[must_use]
    pub fn member(self, parts: &[Load], set: &str) -> Self {
        self.lookup(parts, set, false)
    }

    /// Only packets whose key is not in the set.
    #[must_use]
    pub fn not_member(self, parts: &[Load], set: &str) -> Self {
        self.lookup(parts, set, true)
    }

    /// Takes the verdict that the map has for the key; on to the next rule without one.
    #[must_use]
    pub fn vmap(self, parts: &[Load], map: &str) -> Self {
        self.load(parts).with(Expr::Vmap {
            map: map.into(),
            from: Register::FIRST,
        })
    }

    /// Only packets of flows in one of the states, [`STATE_ESTABLISHED`] and its like.
    #[must_use]
    pub fn ct_state(self, any_of: u32) -> Self {
        let load = ct(CtKey::State, Register::FIRST);
        self.any_bit(load, any_of)
    }

    /// Only packets of flows that have any of the bits in their mark.
    #[must_use]
    pub fn ct_mark(self, any_of: u32) -> Self {
        let load = ct(CtKey::Mark, Register::FIRST);
        self.any_bit(load, any_of)
    }

    /// Only ICMPv6 of those types.
    #[must_use]
    pub fn icmpv6(self, types: RangeInclusive<u8>) -> Self {
        let line = self
            .version(Ip::V6)
            .protocol(PROTO_ICMPV6)
            .with(transport_field(0, 1, Register::FIRST));
        let from = Register::FIRST;
        let (low, high) = (vec![*types.start()], vec![*types.end()]);
        if low == high {
            let op = CmpOp::Eq;
            return line.with(Expr::Cmp {
                op,
                from,
                data: low,
            });
        }
        line.with(Expr::Range {
            inverted: false,
            from,
            low,
            high,
        })
    }

    /// Only IPv6 packets with that hop limit: 255 means that no router passed them on.
    #[must_use]
    pub fn hop_limit(self, limit: u8) -> Self {
        self.version(Ip::V6)
            .compare(network_field(7, 1, Register::FIRST), &[limit])
    }

    /// Only TCP packets with all bits of `flags` set (0x04 is reset).
    #[must_use]
    pub fn tcp_flags(self, flags: u8) -> Self {
        let line = self.protocol(PROTO_TCP);
        line.with(transport_field(13, 1, Register::FIRST))
            .with(Expr::Bitwise {
                from: Register::FIRST,
                to: Register::FIRST,
                mask: vec![flags],
                xor: vec![0],
            })
            .with(Expr::Cmp {
                op: CmpOp::Eq,
                from: Register::FIRST,
                data: vec![flags],
            })
    }

    /// Traces the packet from here on.
    #[must_use]
    pub fn trace(self) -> Self {
        self.with(Expr::Immediate {
            data: vec![1],
            to: Register::FIRST,
        })
        .with(Expr::MetaSet {
            key: MetaKey::Nftrace,
            from: Register::FIRST,
        })
    }

    /// Counts.
    #[must_use]
    pub fn counter(self) -> Self {
        self.with(Expr::Counter {
            packets: 0,
            bytes: 0,
        })
    }

    /// Adds the key to a dynamic set; where the set says that elements count, the packet is counted
    /// there. What comes behind in the rule is not reached when the set is full: the drop belongs into
    /// a rule of its own.
    #[must_use]
    pub fn record(self, parts: &[Load], set: &str) -> Self {
        self.load(parts).with(Expr::Dynset {
            set: set.into(),
            op: DynsetOp::Add,
            key: Register::FIRST,
            timeout: None,
            exprs: Vec::new(),
            inverted: false,
        })
    }

    /// Passes at most so many packets per unit.
    #[must_use]
    pub fn limit(self, rate: u64, unit: Duration, burst: u32) -> Self {
        self.with(Expr::Limit {
            rate,
            unit,
            burst,
            inverted: false,
        })
    }

    /// Accepts.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Drops.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Goes back to the calling chain.
    #[must_use]
    pub fn ret(self) -> Self {
        self.verdict(Verdict::Return)
    }

    /// Into a chain and back.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump(chain.into()))
    }

    /// Into a chain.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto(chain.into()))
    }

    /// A verdict.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with(Expr::Verdict(verdict))
    }

    /// Drops TCP packets and answers with a reset; others end the rule. Not legal in postrouting.
    #[must_use]
    pub fn reset(self) -> Self {
        self.protocol(PROTO_TCP)
            .with(Expr::Reject(Reject::TcpReset))
    }

    /// The expressions.
    pub fn exprs(self) -> Vec<Expr> {
        self.exprs
    }

    /// The rule.
    pub fn rule(self, table: &TableRef, chain: &str) -> Rule {
        Rule::new(table, chain, self.exprs)
    }

    /// The rule, with a comment.
    pub fn commented(self, table: &TableRef, chain: &str, comment: &str) -> Rule {
        let mut rule = self.rule(table, chain);
        rule.comment = Some(Arc::from(comment));
        rule
    }

    fn compare(self, load: Expr, data: &[u8]) -> Self {
        self.with(load).with(Expr::Cmp {
            op: CmpOp::Eq,
            from: Register::FIRST,
            data: data.to_vec(),
        })
    }

    fn guard(self, load: Load) -> Self {
        match load.version() {
            Some(ip) => self.version(ip),
            None => self,
        }
    }

    fn value(self, load: Load, op: CmpOp, data: &[u8]) -> Self {
        self.guard(load)
            .with(load.into_register(Register::FIRST))
            .with(Expr::Cmp {
                op,
                from: Register::FIRST,
                data: data.to_vec(),
            })
    }

    fn prefix(self, load: Load, network: IpAddr, len: u8) -> Self {
        let octets = octets(network);
        let mask = prefix_mask(octets.len(), len);
        let network: Vec<u8> = octets.iter().zip(&mask).map(|(o, m)| o & m).collect();
        let xor = vec![0; mask.len()];
        self.guard(load)
            .with(load.into_register(Register::FIRST))
            .with(Expr::Bitwise {
                from: Register::FIRST,
                to: Register::FIRST,
                mask,
                xor,
            })
            .with(Expr::Cmp {
                op: CmpOp::Eq,
                from: Register::FIRST,
                data: network,
            })
    }

    fn any_bit(self, load: Expr, bits: u32) -> Self {
        self.with(load)
            .with(Expr::Bitwise {
                from: Register::FIRST,
                to: Register::FIRST,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .with(Expr::Cmp {
                op: CmpOp::Neq,
                from: Register::FIRST,
                data: vec![0; 4],
            })
    }

    fn lookup(self, parts: &[Load], set: &str, inverted: bool) -> Self {
        self.load(parts).with(Expr::Lookup {
            set: set.into(),
            from: Register::FIRST,
            inverted,
        })
    }

    /// Loads the parts into registers one behind the other. What is beyond the last register can not
    /// be loaded; the kernel then refuses the lookup for its length.
    fn load(self, parts: &[Load]) -> Self {
        let guarded = parts.iter().fold(self, |line, part| line.guard(*part));
        let mut word = 0_u8;
        let mut line = guarded;
        for part in parts {
            if let Some(to) = Register::new(word) {
                line = line.with(part.into_register(to));
            }
            word = word.saturating_add(part.words());
        }
        line
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `len` one bits in front, in `bytes` bytes.
fn prefix_mask(bytes: usize, len: u8) -> Vec<u8> {
    let mut left = u32::from(len);
    (0..bytes)
        .map(|_| {
            let here = left.min(8);
            left -= here;
            // Eight bits shifted out of eight leave nothing.
            u8::MAX.checked_shr(here).map_or(u8::MAX, |low| !low)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_mask_of_any_length_has_that_many_ones() {
        assert_eq!(prefix_mask(4, 0), [0, 0, 0, 0]);
        assert_eq!(prefix_mask(4, 9), [255, 128, 0, 0]);
        assert_eq!(prefix_mask(4, 32), [255; 4]);
        assert_eq!(prefix_mask(4, 77), [255; 4]);
    }

    #[test]
    fn line_guards_an_address_once_and_by_the_way_of_its_family() {
        let a: IpAddr = [10, 0, 0, 1].into();
        let count = |family| {
            let line = Line::new(family).source(a).destination(a);
            line.exprs().len()
        };
        assert_eq!(count(Family::Inet), 6);
        assert_eq!(count(Family::Netdev), 6);
        assert_eq!(count(Family::Ipv4), 4);
    }

    #[test]
    fn concatenation_fills_the_registers_one_behind_the_other() {
        let parts = [
            Load::Oifname,
            Load::Source(Ip::V6),
            Load::Protocol,
            Load::DestinationPort,
        ];
        let line = Line::new(Family::Inet)
            .version(Ip::V6)
            .record(&parts, "denied6");
        let words: Vec<u8> = line
            .exprs()
            .iter()
            .skip(2)
            .filter_map(|expr| {
                if let Expr::Meta { to, .. } | Expr::Payload { to, .. } = expr {
                    return Some(to.word());
                }
                None
            })
            .collect();
        assert_eq!(words, [0, 4, 8, 9]);
    }
}
