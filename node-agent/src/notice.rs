//! Which netlink notifications mean that something of ours was lost. Pure.
//!
//! The agent's own changes come back as notifications too; they must not start a comparison of everything.

use std::collections::BTreeSet;
use std::net::IpAddr;

use datapath::desired::EniState;
use datapath::watch::Change;
use ipnet::IpNet;
use types::address::MacAddr;

/// What the node has at the moment.
#[derive(Debug, Clone, Default)]
pub struct Stakes {
    /// Addresses of pods that no call is running for.
    pub pod_addresses: BTreeSet<IpAddr>,
    /// Host links of these pods.
    pub pod_links: BTreeSet<String>,
    /// Hardware addresses of all ENIs.
    pub eni_macs: BTreeSet<MacAddr>,
    /// Links of ENIs that are configured.
    pub enis: Vec<EniState>,
}

/// What to do about a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It is none of our business.
    Nothing,
    /// An ENI's link came, changed or went: look at the ENIs.
    Uplinks,
    /// Something of ours was lost: compare everything.
    Everything,
}

/// Judges one notification.
pub fn judge(change: &Change, stakes: &Stakes) -> Notice {
    let lost = |ours: bool| {
        if ours {
            Notice::Everything
        } else {
            Notice::Nothing
        }
    };
    match change {
        Change::Resync => Notice::Everything,
        Change::Link { index, mac, up, .. } => {
            let ours = mac.is_some_and(|mac| stakes.eni_macs.contains(&mac));
            let known = stakes.enis.iter().any(|e| e.ifindex == *index);
            match (ours, known && *up) {
                (true, false) => Notice::Uplinks,
                (true, true) | (false, _) => Notice::Nothing,
            }
        }
        Change::LinkGone { index, name } => {
            if stakes.enis.iter().any(|e| e.ifindex == *index) {
                return Notice::Uplinks;
            }
            lost(stakes.pod_links.contains(name))
        }
        Change::AddressGone { link, .. } => lost(stakes.enis.iter().any(|e| e.ifindex == *link)),
        Change::Address { .. } => Notice::Nothing,
        Change::RouteGone { dst, table } => lost(
            is_host(*dst) && stakes.pod_addresses.contains(&dst.addr())
                || stakes.enis.iter().any(|e| e.table == *table),
        ),
        Change::RuleGone { ip, .. } => {
            lost(ip.is_some_and(|ip| stakes.pod_addresses.contains(&ip)))
        }
    }
}

fn is_host(net: IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stakes() -> Stakes {
        Stakes {
            pod_addresses: BTreeSet::from(["10.0.0.5".parse().unwrap()]),
            pod_links: BTreeSet::from(["cali1".to_owned()]),
            eni_macs: BTreeSet::from([MacAddr([0, 0x16, 0x3e, 0, 0, 1])]),
            enis: vec![EniState {
                ifname: "eth1".into(),
                ifindex: 7,
                table: 1007,
            }],
        }
    }

    #[test]
    fn lost_rule_of_a_pod_means_a_comparison() {
        let change = Change::RuleGone {
            priority: 512,
            ip: Some("10.0.0.5".parse().unwrap()),
        };

        assert_eq!(judge(&change, &stakes()), Notice::Everything);
    }

    #[test]
    fn rule_of_a_pod_that_was_deleted_means_nothing() {
        let change = Change::RuleGone {
            priority: 512,
            ip: Some("10.0.0.6".parse().unwrap()),
        };

        assert_eq!(judge(&change, &stakes()), Notice::Nothing);
    }

    #[test]
    fn new_link_with_the_hardware_address_of_an_eni_means_a_look_at_enis() {
        let mac = Some(MacAddr([0, 0x16, 0x3e, 0, 0, 1]));
        let change = Change::Link {
            index: 9,
            name: "eth2".into(),
            mac,
            up: false,
        };

        assert_eq!(judge(&change, &stakes()), Notice::Uplinks);
    }

    #[test]
    fn eni_that_is_set_down_means_a_look_at_enis() {
        let mac = Some(MacAddr([0, 0x16, 0x3e, 0, 0, 1]));
        let change = Change::Link {
            index: 7,
            name: "eth1".into(),
            mac,
            up: false,
        };

        assert_eq!(judge(&change, &stakes()), Notice::Uplinks);
    }

    #[test]
    fn lost_default_route_of_an_eni_means_a_comparison() {
        let change = Change::RouteGone {
            dst: "0.0.0.0/0".parse().unwrap(),
            table: 1007,
        };

        assert_eq!(judge(&change, &stakes()), Notice::Everything);
    }

    #[test]
    fn lost_notifications_mean_a_comparison() {
        assert_eq!(
            judge(&Change::Resync, &Stakes::default()),
            Notice::Everything
        );
    }

    #[test]
    fn veth_of_a_pod_that_comes_up_means_nothing() {
        let change = Change::Link {
            index: 30,
            name: "cali9".into(),
            mac: None,
            up: true,
        };

        assert_eq!(judge(&change, &stakes()), Notice::Nothing);
    }
}
