//! Addresses as calls take them: split by family and length, with the tokens of their assigns.

use std::net::IpAddr;

use ecs_api::action::{Action, MAX_ASSIGN_IPV6};
use ecs_api::model::eni::Eni;

use super::{Addresses, has};
use crate::op::OpKey;

/// IPv4 addresses in one call. Reason: the documents say 50 for one list and 32 in their newest text.
const MAX_IPV4: usize = 32;

/// Addresses of one family, as many as one call takes.
#[derive(Debug, Clone)]
pub(super) enum Load {
    V4(Vec<std::net::Ipv4Addr>),
    V6(Vec<std::net::Ipv6Addr>),
}

impl Load {
    pub(super) fn split(addresses: &Addresses) -> (Vec<Self>, Vec<Self>) {
        let v4 = addresses.ipv4.chunks(MAX_IPV4);
        let v6 = addresses.ipv6.chunks(MAX_ASSIGN_IPV6);
        (
            v4.map(|part| Self::V4(part.to_vec())).collect(),
            v6.map(|part| Self::V6(part.to_vec())).collect(),
        )
    }

    pub(super) fn addresses(&self) -> Addresses {
        match self {
            Self::V4(ipv4) => Addresses {
                ipv4: ipv4.clone(),
                ipv6: Vec::new(),
            },
            Self::V6(ipv6) => Addresses {
                ipv4: Vec::new(),
                ipv6: ipv6.clone(),
            },
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::V4(ipv4) => ipv4.len(),
            Self::V6(ipv6) => ipv6.len(),
        }
    }

    /// Those that the ENI  or those that it has not.
    pub(super) fn narrowed(&self, eni: &Eni, present: bool) -> Self {
        match self {
            Self::V4(ipv4) => Self::V4(
                ipv4.iter()
                    .copied()
                    .filter(|ip| eni.ipv4.contains(ip) == present)
                    .collect(),
            ),
            Self::V6(ipv6) => Self::V6(
                ipv6.iter()
                    .copied()
                    .filter(|ip| eni.ipv6.contains(ip) == present)
                    .collect(),
            ),
        }
    }

    /// Its addresses as one text, whatever their order.
    pub(super) fn text(&self) -> String {
        let mut all: Vec<_> = self.addresses().all().collect();
        all.sort_unstable();
        let all: Vec<_> = all.iter().map(ToString::to_string).collect();
        all.join(",")
    }

    pub(super) fn assign_action(&self) -> Action {
        match self {
            Self::V4(_) => Action::AssignPrivateIpAddresses,
            Self::V6(_) => Action::AssignIpv6Addresses,
        }
    }

    pub(super) fn unassign_action(&self) -> Action {
        match self {
            Self::V4(_) => Action::UnassignPrivateIpAddresses,
            Self::V6(_) => Action::UnassignIpv6Addresses,
        }
    }
}

/// What a token of an assign is drawn for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) op: &'a OpKey,
    /// How often the addresses had to be put there again, after they were seen to be missing.
    pub(super) round: u32,
}

impl Step<'_> {
    /// The token names the addresses: when a part of them turns out to be there already, the rest is another call
    /// and needs another token.
    pub(super) fn token(self, load: &Load) -> String {
        self.op
            .client_token(&format!("assign {} {}", self.round, load.text()))
    }
}

/// Which state of addresses is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Gone,
}

impl Presence {
    /// The addresses of which it is not so. An ENI that is not shown has none.
    pub(super) fn rest(self, seen: Option<&Eni>, addresses: &Addresses) -> Addresses {
        let is_so = |ip: IpAddr| {
            let there = seen.is_some_and(|eni| has(eni, ip));
            there == (self == Self::There)
        };
        let (v4, v6) = (addresses.ipv4.iter(), addresses.ipv6.iter());
        Addresses {
            ipv4: v4.copied().filter(|ip| !is_so((*ip).into())).collect(),
            ipv6: v6.copied().filter(|ip| !is_so((*ip).into())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(ipv4: &[&str]) -> Load {
        Load::V4(ipv4.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    #[test]
    fn token_of_a_load_does_not_depend_on_the_order() {
        let op = OpKey {
            shard: crate::op::ShardKey {
                authority: "a".to_owned(),
                shard: "vsw-1.0".to_owned(),
            },
            sequence: 1,
            epoch: 1,
        };
        let step = Step { op: &op, round: 0 };
        let again = Step { op: &op, round: 1 };
        let both = load(&["10.0.0.1", "10.0.0.2"]);

        assert_eq!(
            step.token(&both),
            step.token(&load(&["10.0.0.2", "10.0.0.1"]))
        );
        assert_ne!(step.token(&both), step.token(&load(&["10.0.0.1"])));
        assert_ne!(step.token(&both), again.token(&both));
    }

    #[test]
    fn addresses_are_split_by_what_one_call_takes() {
        let addresses = Addresses {
            ipv4: (0..70).map(std::net::Ipv4Addr::from).collect(),
            ipv6: (0..11).map(std::net::Ipv6Addr::from).collect(),
        };

        let (v4, v6) = Load::split(&addresses);

        assert_eq!(v4.iter().map(Load::len).collect::<Vec<_>>(), [32, 32, 6]);
        assert_eq!(v6.iter().map(Load::len).collect::<Vec<_>>(), [10, 1]);
    }
}
