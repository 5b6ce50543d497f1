//! What expressions load: facts of the packet, of its flow, and its bytes.

use std::net::IpAddr;

use nft_wire::chain::Hook;
use nft_wire::expr::{CtKey, FlowDirection, MetaKey, PayloadBase};
use nft_wire::key::ifname;

use super::{Stage, Surroundings, Walk};
use crate::machine::conntrack::{Tuple, state};

impl Walk {
    pub(super) fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Option<Vec<u8>> {
        let header = match base {
            PayloadBase::LinkLayer => self.packet.link_header(),
            PayloadBase::Network => {
                let mut all = self.packet.network_header();
                all.extend(self.packet.transport_header());
                all
            }
            PayloadBase::Transport => self.packet.transport_header(),
        };
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        header.get(start..end).map(<[u8]>::to_vec)
    }

    pub(super) fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        Some(match key {
            MetaKey::Length => 60_u32.to_ne_bytes().to_vec(),
            MetaKey::Protocol => self.packet.ether_type().to_be_bytes().to_vec(),
            MetaKey::Mark | MetaKey::Cpu => vec![0; 4],
            MetaKey::Iif => index(self.path.from()).to_ne_bytes().to_vec(),
            MetaKey::Oif => index(self.path.to()).to_ne_bytes().to_vec(),
            MetaKey::Iifname => ifname(self.path.from().unwrap_or("")).to_vec(),
            MetaKey::Oifname => {
                // The output interface is not known before routing.
                let known = !matches!(
                    self.stages.get(self.stage.saturating_sub(1)),
                    Some(Stage::Ingress | Stage::Hook(Hook::Prerouting))
                );
                ifname(self.path.to().filter(|_| known).unwrap_or("")).to_vec()
            }
            MetaKey::Nfproto => vec![if self.packet.source.is_ipv4() { 2 } else { 10 }],
            MetaKey::L4proto => vec![self.packet.protocol],
            MetaKey::Pkttype | MetaKey::Nftrace => vec![0],
            MetaKey::Iiftype => 1_u16.to_ne_bytes().to_vec(),
            MetaKey::Skuid => return None,
        })
    }

    pub(super) fn ct(
        &self,
        around: Surroundings<'_>,
        key: CtKey,
        direction: Option<FlowDirection>,
    ) -> Option<Vec<u8>> {
        // There is no connection tracking at the ingress of a device.
        let sight = self.sight?;
        if key == CtKey::State {
            return Some(sight.state.to_ne_bytes().to_vec());
        }
        if matches!(sight.state, state::INVALID | state::UNTRACKED) {
            return None;
        }
        let entry = sight.flow.and_then(|id| around.conntrack.flow(id));
        let tuple = match (entry, direction) {
            (Some(entry), Some(FlowDirection::Reply)) => entry.reply.clone(),
            (Some(entry), _) => entry.original.clone(),
            (None, Some(FlowDirection::Reply)) => Tuple::of(&self.packet).reversed(),
            (None, _) => Tuple::of(&self.packet),
        };
        let address = |address: IpAddr, four: bool| match address {
            IpAddr::V4(a) => four.then(|| a.octets().to_vec()),
            IpAddr::V6(a) => (!four).then(|| a.octets().to_vec()),
        };
        match key {
            CtKey::State => None,
            CtKey::Mark => Some(sight.mark.to_ne_bytes().to_vec()),
            CtKey::Direction => Some(vec![u8::from(sight.reply)]),
            CtKey::Status => {
                let translated = around.translated.is_some()
                    || entry.is_some_and(|e| e.original.reversed() != e.reply);
                let bits = if entry.is_some() { 8_u32 } else { 0 }
                    | if entry.is_some_and(|e| e.replied) {
                        2
                    } else {
                        0
                    }
                    | if translated { 0x20 } else { 0 };
                Some(bits.to_ne_bytes().to_vec())
            }
            CtKey::L3protocol => Some(vec![if tuple.source.is_ipv4() { 2 } else { 10 }]),
            CtKey::Protocol => Some(vec![tuple.protocol]),
            CtKey::ProtoSource => Some(tuple.source_port.to_be_bytes().to_vec()),
            CtKey::ProtoDestination => Some(tuple.destination_port.to_be_bytes().to_vec()),
            CtKey::Zone => Some(vec![0, 0]),
            CtKey::SourceV4 => address(tuple.source, true),
            CtKey::DestinationV4 => address(tuple.destination, true),
            CtKey::SourceV6 => address(tuple.source, false),
            CtKey::DestinationV6 => address(tuple.destination, false),
            CtKey::Expiration | CtKey::Id => Some(vec![0; 4]),
        }
    }
}

/// A made-up index of an interface: 0 for none, 1 for the loopback.
fn index(name: Option<&str>) -> u32 {
    match name {
        None => 0,
        Some("lo") => 1,
        Some(name) => {
            name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            }) | 0x100
        }
    }
}
