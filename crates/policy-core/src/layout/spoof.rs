//! The anti-spoof chain of one link: a pod sends from its own addresses alone.

use std::net::{IpAddr, Ipv6Addr};

use nft_wire::build::{Ip, Line};
use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::name::{Family, Name};

use super::frame::{ChainSpec, Exprs};
use super::names::netdev;
use super::settings::Settings;

/// The chain of a link whose pod has these addresses. Frames that are no IP pass: ARP, above all.
pub fn spoof_chain(settings: &Settings, link: &str, ips: &[IpAddr]) -> ChainSpec {
    let rule = || Line::new(Family::Netdev);
    let drop = |ip| rule().version(ip).counter().drop().exprs();
    let mut rules: Vec<Exprs> = ips
        .iter()
        .map(|ip| rule().source(*ip).accept().exprs())
        .collect();
    rules.push(drop(Ip::V4));
    // Neighbour discovery has the link-local source, or none while an address is being checked.
    let discovery = || rule().hop_limit(255).icmpv6(133..=137);
    let link_local = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
    rules.push(discovery().source_prefix(link_local, 10).accept().exprs());
    let none = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    rules.push(discovery().source(none).accept().exprs());
    rules.push(drop(Ip::V6));
    ChainSpec {
        chain: Chain {
            table: netdev(settings),
            name: Name::from(link),
            base: Some(Base {
                kind: Kind::Filter,
                hook: Hook::Ingress,
                priority: 0,
                policy: Policy::Accept,
                device: Some(Name::from(link)),
            }),
        },
        rules,
    }
}
