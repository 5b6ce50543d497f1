//! MAC addresses, address families, and the addresses that a vSwitch keeps for itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Which families the pods of a cluster get. Both or none of them are granted to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// IPv4 alone.
    Ipv4,
    /// IPv4 and IPv6.
    Dual,
}

impl Stack {
    /// Whether pods get IPv6 too.
    pub fn has_v6(self) -> bool {
        matches!(self, Self::Dual)
    }
}

/// Hardware address of a link or an ENI. Written in lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// Text that is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a MAC address such as 00:16:3e:12:34:56")]
pub struct InvalidMac {
    /// What was given.
    pub text: String,
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac {
            text: text.chars().take(40).collect(),
        };
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Addresses at the front of a vSwitch's IPv4 range that the cloud keeps.
///
/// Source: ECS OpenAPI facts, limits: the first and the last three IPv4 addresses are the system's.
pub const RESERVED_V4_FRONT: u32 = 1;
/// Addresses at the end of a vSwitch's IPv4 range that the cloud keeps. The gateway is the first of them.
pub const RESERVED_V4_BACK: u32 = 3;
/// Addresses at either end of a vSwitch's IPv6 range that the cloud keeps. The gateway is the first at the end.
pub const RESERVED_V6: u128 = 9;

/// The gateway of a vSwitch: the third address from the end of an IPv4 range, the ninth of an IPv6 one.
pub fn vswitch_gateway(cidr: IpNet) -> IpAddr {
    match cidr {
        IpNet::V4(net) => IpAddr::V4(v4_from_end(net, RESERVED_V4_BACK)),
        IpNet::V6(net) => IpAddr::V6(v6_from_end(net, RESERVED_V6)),
    }
}

fn v4_from_end(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.broadcast()).saturating_sub(n.saturating_sub(1)))
}

fn v6_from_end(net: Ipv6Net, n: u128) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.broadcast()).saturating_sub(n.saturating_sub(1)))
}

/// Whether the cloud keeps `ip` of the vSwitch range `cidr` for itself, or `ip` lies outside.
pub fn is_reserved(cidr: IpNet, ip: IpAddr) -> bool {
    if !cidr.contains(&ip) {
        return true;
    }
    match (cidr, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) => {
            let (first, last, ip) = (
                u32::from(net.network()),
                u32::from(net.broadcast()),
                u32::from(ip),
            );
            ip.abs_diff(first) < RESERVED_V4_FRONT || last.abs_diff(ip) < RESERVED_V4_BACK
        }
        (IpNet::V6(net), IpAddr::V6(ip)) => {
            let (first, last, ip) = (
                u128::from(net.network()),
                u128::from(net.broadcast()),
                u128::from(ip),
            );
            ip.abs_diff(first) < RESERVED_V6 || last.abs_diff(ip) < RESERVED_V6
        }
        (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn gateway_of_a_v4_vswitch_is_third_from_the_end() {
        assert_eq!(vswitch_gateway(net("10.0.1.0/24")), ip("10.0.1.253"));
    }

    #[test]
    fn gateway_of_a_v6_vswitch_is_ninth_from_the_end() {
        assert_eq!(
            vswitch_gateway(net("2001:db8::/64")),
            ip("2001:db8::ffff:ffff:ffff:fff7")
        );
    }

    #[test]
    fn empty_slash_24_has_252_usable_addresses() {
        let cidr = net("10.0.1.0/24");

        let usable = (0..=255)
            .filter(|n| !is_reserved(cidr, ip(&format!("10.0.1.{n}"))))
            .count();

        assert_eq!(usable, 252);
    }

    #[test]
    fn mac_round_trips_in_lower_case() {
        let mac: MacAddr = "00:16:3E:aB:00:01".parse().unwrap();

        assert_eq!(mac.to_string(), "00:16:3e:ab:00:01");
        assert!("00:16:3e:ab:00".parse::<MacAddr>().is_err());
        assert!("00:16:3e:ab:00:01:02".parse::<MacAddr>().is_err());
    }
}
