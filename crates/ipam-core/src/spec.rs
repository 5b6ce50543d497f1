//! What a shard is made of: its place, its address blocks, its times. Immutable for the shard's life.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use types::address::{Family, is_reserved};
use types::cloud::{VSwitchId, ZoneId};
use types::op::ShardId;

use crate::slot::Slot;

/// Prefix length of a shard's IPv4 block unless configured otherwise: 4,096 addresses.
///
/// Reason: state of 64-160 KiB, one snapshot chunk; a whole /16 makes 16 shards.
pub const DEFAULT_SHARD_PREFIX_LEN: u8 = 20;

/// Widest IPv4 block of a shard: its slots must find room in one IPv6 /112.
pub const WIDEST_SHARD_PREFIX_LEN: u8 = 16;

/// IPv6 addresses a shard has beyond its IPv4 ones, where the vSwitch has room for them.
///
/// Reason: the cloud keeps up to nine IPv6 addresses at either end but four IPv4 ones; without a
/// reserve the last pods of a shard would find an IPv4 address and no IPv6 one.
pub const SPARE_V6: u32 = 18;

/// Prefix length of a shard's IPv6 block.
pub const V6_BLOCK_PREFIX_LEN: u8 = 112;

/// Whether somebody else takes addresses from the vSwitch too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ours alone: a conflict is a fault, and its address is set aside as QUARANTINE.
    Exclusive,
    /// Others take addresses too: a conflict is learnt as FOREIGN.
    Shared,
}

/// How long addresses rest. Durations, at least a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timing {
    /// From the cloud's word that an address left its ENI until another ENI may get it.
    pub cooldown: Duration,
    /// How long an address with a conflict is left alone before it is tried again.
    pub foreign_ttl: Duration,
}

impl Default for Timing {
    /// 60 s of cooldown, which outlives late duplicates of cloud calls; one hour for a conflict.
    fn default() -> Self {
        Self {
            cooldown: Duration::from_mins(1),
            foreign_ttl: Duration::from_hours(1),
        }
    }
}

/// A vSwitch as the cloud describes it, with how we use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VSwitchSpec {
    /// Its id.
    pub id: VSwitchId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its IPv4 range.
    pub v4: Ipv4Net,
    /// Its IPv6 range, if it has one and the cluster uses it.
    pub v6: Option<Ipv6Net>,
    /// Whether others use it.
    pub mode: Mode,
    /// How long addresses rest.
    pub timing: Timing,
}

/// A shard: block `id.index` of a vSwitch.
///
/// Invariant: the blocks lie in the vSwitch's ranges. Made by [`shards_of_vswitch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSpec {
    id: ShardId,
    vswitch: VSwitchSpec,
    v4: Ipv4Net,
    v6: Option<Ipv6Net>,
    v6_slots: u32,
}

/// Why a vSwitch can not be divided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Shards would be wider than a shard's IPv6 block.
    #[error("shard prefix length {len} of {vswitch} is not in 16..=28")]
    ShardPrefixLen {
        /// The vSwitch.
        vswitch: VSwitchId,
        /// What was asked for.
        len: u8,
    },
    /// The IPv6 range has fewer /112 blocks than there are shards.
    #[error("ipv6 range {range} of {vswitch} has no /112 block for each of {shards} shards")]
    V6TooSmall {
        /// The vSwitch.
        vswitch: VSwitchId,
        /// Its IPv6 range.
        range: Ipv6Net,
        /// How many shards the IPv4 range makes.
        shards: u32,
    },
}

/// Divides a vSwitch into aligned blocks, in the order of their index.
///
/// A vSwitch no wider than `shard_prefix_len` is one shard. Shard *i* has IPv4 block *i* and the
/// *i*-th /112 of the IPv6 range.
///
/// # Errors
/// [`SpecError`] when the lengths do not fit; the configuration must change.
pub fn shards_of_vswitch(
    vswitch: &VSwitchSpec,
    shard_prefix_len: u8,
) -> Result<Vec<ShardSpec>, SpecError> {
    let len = shard_prefix_len.max(vswitch.v4.prefix_len());
    let bad_len = || SpecError::ShardPrefixLen {
        vswitch: vswitch.id.clone(),
        len: shard_prefix_len,
    };
    if !(WIDEST_SHARD_PREFIX_LEN..=28).contains(&shard_prefix_len) {
        return Err(bad_len());
    }
    let blocks: Vec<Ipv4Net> = vswitch
        .v4
        .trunc()
        .subnets(len)
        .map_err(|_| bad_len())?
        .collect();
    let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
    let mut specs = Vec::with_capacity(blocks.len());
    for (index, v4) in (0_u32..).zip(blocks) {
        let v6 = vswitch
            .v6
            .map(|range| {
                v6_block(range, index).ok_or_else(|| SpecError::V6TooSmall {
                    vswitch: vswitch.id.clone(),
                    range,
                    shards: count,
                })
            })
            .transpose()?;
        let v4_slots = slots_of(v4);
        specs.push(ShardSpec {
            id: ShardId {
                vswitch: vswitch.id.clone(),
                index,
            },
            vswitch: vswitch.clone(),
            v4,
            v6,
            v6_slots: if v6.is_some() {
                v4_slots.saturating_add(SPARE_V6).min(1 << 16)
            } else {
                0
            },
        });
    }
    Ok(specs)
}

fn v6_block(range: Ipv6Net, index: u32) -> Option<Ipv6Net> {
    let free_bits = u32::from(V6_BLOCK_PREFIX_LEN.checked_sub(range.prefix_len())?);
    if free_bits < 32 && index.checked_shr(free_bits)? != 0 {
        return None;
    }
    let base = u128::from(range.network()).checked_add(u128::from(index).checked_shl(16)?)?;
    Ipv6Net::new(Ipv6Addr::from(base), V6_BLOCK_PREFIX_LEN).ok()
}

fn slots_of(block: Ipv4Net) -> u32 {
    1_u32
        .checked_shl(32_u32.saturating_sub(u32::from(block.prefix_len())))
        .unwrap_or(u32::MAX)
}

impl ShardSpec {
    /// Name of the shard.
    pub fn id(&self) -> &ShardId {
        &self.id
    }

    /// The vSwitch it is a part of.
    pub fn vswitch(&self) -> &VSwitchSpec {
        &self.vswitch
    }

    /// Its IPv4 block.
    pub fn v4_block(&self) -> Ipv4Net {
        self.v4
    }

    /// Its IPv6 block, if the vSwitch has IPv6. Only the first [`Self::slot_count`] are used.
    pub fn v6_block(&self) -> Option<Ipv6Net> {
        self.v6
    }

    /// Whether it has IPv6 slots.
    pub fn has_v6(&self) -> bool {
        self.v6.is_some()
    }

    /// Number of slots of a family, with those that the cloud keeps.
    pub fn slot_count(&self, family: Family) -> u32 {
        match family {
            Family::V4 => slots_of(self.v4),
            Family::V6 => self.v6_slots,
        }
    }

    /// The address of a slot; `None` outside the shard.
    pub fn address(&self, slot: Slot) -> Option<IpAddr> {
        if slot.index >= self.slot_count(slot.family) {
            return None;
        }
        match slot.family {
            Family::V4 => {
                let address = u32::from(self.v4.network()).checked_add(slot.index)?;
                Some(IpAddr::V4(Ipv4Addr::from(address)))
            }
            Family::V6 => {
                let base = u128::from(self.v6?.network());
                let address = base.checked_add(u128::from(slot.index))?;
                Some(IpAddr::V6(Ipv6Addr::from(address)))
            }
        }
    }

    /// The slot of an address; `None` outside the shard.
    pub fn slot(&self, address: IpAddr) -> Option<Slot> {
        let (family, offset) = match address {
            IpAddr::V4(ip) => (
                Family::V4,
                u32::from(ip).checked_sub(u32::from(self.v4.network()))?,
            ),
            IpAddr::V6(ip) => (
                Family::V6,
                u128::from(ip)
                    .checked_sub(u128::from(self.v6?.network()))?
                    .try_into()
                    .ok()?,
            ),
        };
        (offset < self.slot_count(family)).then_some(Slot {
            family,
            index: offset,
        })
    }

    /// Whether the cloud keeps the address of `slot` for itself.
    pub fn is_reserved(&self, slot: Slot) -> bool {
        let range = match slot.family {
            Family::V4 => Some(IpNet::V4(self.vswitch.v4)),
            Family::V6 => self.vswitch.v6.map(IpNet::V6),
        };
        match (range, self.address(slot)) {
            (Some(range), Some(address)) => is_reserved(range, address),
            (None, _) | (_, None) => true,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A vSwitch for tests: IPv4 range, IPv6 range or none, exclusive.
    pub(crate) fn vswitch(v4: &str, v6: Option<&str>) -> VSwitchSpec {
        VSwitchSpec {
            id: "vsw-test".parse().unwrap(),
            zone: "cn-hangzhou-h".parse().unwrap(),
            v4: v4.parse().unwrap(),
            v6: v6.map(|v6| v6.parse().unwrap()),
            mode: Mode::Exclusive,
            timing: Timing::default(),
        }
    }

    fn v4(index: u32) -> Slot {
        Slot {
            family: Family::V4,
            index,
        }
    }

    fn v6(index: u32) -> Slot {
        Slot {
            family: Family::V6,
            index,
        }
    }

    #[test]
    fn slash_16_makes_16_shards_with_aligned_blocks_of_both_families() {
        let shards = shards_of_vswitch(&vswitch("10.1.0.0/16", Some("2001:db8::/64")), 20).unwrap();

        assert_eq!(shards.len(), 16);
        assert_eq!(shards[3].v4_block().to_string(), "10.1.48.0/20");
        assert_eq!(
            shards[3].v6_block().unwrap().to_string(),
            "2001:db8::3:0/112"
        );
        assert_eq!(shards[3].id().to_string(), "vsw-test.3");
    }

    #[test]
    fn slash_24_is_one_shard() {
        let shards = shards_of_vswitch(&vswitch("10.1.7.0/24", None), 20).unwrap();

        assert_eq!(shards.len(), 1);
        assert_eq!(shards[0].slot_count(Family::V4), 256);
        assert_eq!(shards[0].slot_count(Family::V6), 0);
    }

    #[test]
    fn slot_and_address_are_inverse() {
        let shards = shards_of_vswitch(&vswitch("10.1.0.0/16", Some("2001:db8::/64")), 20).unwrap();

        for slot in [v4(0), v4(4095), v6(0), v6(4095)] {
            let address = shards[5].address(slot).unwrap();
            assert_eq!(shards[5].slot(address), Some(slot));
            assert_eq!(shards[4].slot(address), None);
        }
        assert_eq!(shards[5].address(v4(4096)), None);
    }

    #[test]
    fn reserved_addresses_lie_at_the_ends_of_the_vswitch_not_of_the_shard() {
        let shards = shards_of_vswitch(&vswitch("10.1.0.0/16", Some("2001:db8::/64")), 20).unwrap();

        assert!(shards[0].is_reserved(v4(0)));
        assert!(!shards[0].is_reserved(v4(1)));
        assert!(shards[0].is_reserved(v6(8)));
        assert!(!shards[0].is_reserved(v6(9)));
        assert!(!shards[1].is_reserved(v4(0)));
        assert!(shards[15].is_reserved(v4(4093)));
        assert!(!shards[15].is_reserved(v4(4092)));
    }

    // I11: in a /24 each IPv4 address of a pod finds an IPv6 one.
    #[test]
    fn small_vswitch_has_no_fewer_ipv6_than_ipv4_addresses() {
        let shards = shards_of_vswitch(&vswitch("10.1.7.0/24", Some("2001:db8::/64")), 20).unwrap();

        let free_v4 = (0..256).filter(|i| !shards[0].is_reserved(v4(*i))).count();
        let free_v6 = (0..shards[0].slot_count(Family::V6))
            .filter(|i| !shards[0].is_reserved(v6(*i)))
            .count();

        assert!(free_v6 >= free_v4, "{free_v6} < {free_v4}");
    }

    #[test]
    fn ipv6_range_with_too_few_blocks_is_refused() {
        let err =
            shards_of_vswitch(&vswitch("10.1.0.0/16", Some("2001:db8::/110")), 20).unwrap_err();

        assert!(matches!(err, SpecError::V6TooSmall { shards: 16, .. }));
    }

    #[test]
    fn shard_prefix_len_out_of_range_is_refused() {
        for len in [8, 15, 29] {
            let err = shards_of_vswitch(&vswitch("10.1.0.0/12", None), len).unwrap_err();

            assert!(matches!(err, SpecError::ShardPrefixLen { .. }));
        }
    }
}
