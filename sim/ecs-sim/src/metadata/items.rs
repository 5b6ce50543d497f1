//! The items of the metadata tree.

use std::fmt::Display;
use std::time::Duration;

use ecs_api::model::eni::{EniKind, EniStatus};
use ipnet::IpNet;
use types::address::vswitch_gateway;
use types::cloud::InstanceId;
use types::time::Tick;

use crate::account::Account;
use crate::account::eni::Eni;
use crate::account::instance::Instance;

/// What one instance may see.
#[derive(Debug)]
pub(crate) struct View<'a> {
    account: &'a Account,
    instance: &'a Instance,
    /// Its attached ENIs as of the lag, the primary one first.
    enis: Vec<&'a Eni>,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        account: &'a Account,
        id: &InstanceId,
        now: Tick,
        lag: Duration,
    ) -> Option<Self> {
        let lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        let at = Tick(now.0.saturating_sub(lag_ms));
        let attached = |eni: &&Eni| {
            eni.instance.as_ref() == Some(id)
                && matches!(eni.status, EniStatus::InUse | EniStatus::Detaching)
        };
        let mut enis: Vec<_> = if lag.is_zero() {
            account.enis.values().filter(attached).collect()
        } else {
            account.history.at(at).filter(attached).collect()
        };
        enis.sort_by_key(|eni| (eni.kind != EniKind::Primary, &eni.id));
        Some(Self {
            account,
            instance: account.instances.get(id)?,
            enis,
        })
    }

    /// The text of an item; a name that ends in `/` lists what is below it.
    pub(crate) fn item(&self, name: &str) -> Option<String> {
        if let Some(rest) = name.strip_prefix("network/interfaces/macs/") {
            return self.mac_item(rest);
        }
        let instance = self.instance;
        let vswitch = self.account.vswitches.get(&instance.vswitch)?;
        let primary = self.enis.first();
        Some(match name {
            "" => ROOT.join("\n"),
            "instance-id" => instance.id.to_string(),
            "instance/instance-type" => instance.instance_type.to_string(),
            "instance/instance-name" | "hostname" => instance.name.clone(),
            "region-id" => self.account.region.to_string(),
            "zone-id" => instance.zone.to_string(),
            "vpc-id" => instance.vpc.to_string(),
            "vpc-cidr-block" => self.account.vpcs.get(&instance.vpc)?.ipv4_cidr.to_string(),
            "vswitch-id" => instance.vswitch.to_string(),
            "vswitch-cidr-block" => vswitch.spec.ipv4_cidr.to_string(),
            "mac" => primary?.mac.to_string(),
            "private-ipv4" => primary?.primary.to_string(),
            "network-type" => "vpc".to_owned(),
            "serial-number" => format!("sim-{}", instance.id),
            "owner-account-id" => "0".to_owned(),
            _ => return None,
        })
    }

    fn mac_item(&self, rest: &str) -> Option<String> {
        if rest.is_empty() {
            let macs: Vec<_> = self
                .enis
                .iter()
                .map(|eni| format!("{}/", eni.mac))
                .collect();
            return Some(macs.join("\n"));
        }
        let (mac, name) = rest.split_once('/')?;
        let eni = self.enis.iter().find(|eni| eni.mac.to_string() == mac)?;
        let spec = &self.account.vswitches.get(&eni.vswitch)?.spec;
        let vpc = self.account.vpcs.get(&eni.vpc)?;
        let v6 = spec.ipv6_cidr;
        Some(match name {
            "" => PER_ENI.join("\n"),
            "network-interface-id" => eni.id.to_string(),
            "vswitch-id" => eni.vswitch.to_string(),
            "vpc-id" => eni.vpc.to_string(),
            "primary-ip-address" => eni.primary.to_string(),
            "gateway" => vswitch_gateway(IpNet::V4(spec.ipv4_cidr)).to_string(),
            "netmask" => spec.ipv4_cidr.netmask().to_string(),
            "vswitch-cidr-block" => spec.ipv4_cidr.to_string(),
            "vpc-cidr-block" => vpc.ipv4_cidr.to_string(),
            "private-ipv4s" => {
                let quoted: Vec<_> = eni.all_ipv4().map(|ip| format!("\"{ip}\"")).collect();
                format!("[{}]", quoted.join(","))
            }
            "ipv6s" if !eni.ipv6.is_empty() => unquoted(&eni.ipv6),
            "ipv6-gateway" => vswitch_gateway(IpNet::V6(v6?)).to_string(),
            "vswitch-ipv6-cidr-block" => v6?.to_string(),
            "vpc-ipv6-cidr-blocks" => unquoted(&[vpc.ipv6_cidr?]),
            _ => return None,
        })
    }
}

/// A list as the service writes those of IPv6: in brackets, without quotes.
fn unquoted(entries: &[impl Display]) -> String {
    let texts: Vec<_> = entries.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(","))
}

const ROOT: [&str; 15] = [
    "hostname",
    "instance-id",
    "instance/",
    "mac",
    "network-type",
    "network/",
    "owner-account-id",
    "private-ipv4",
    "region-id",
    "serial-number",
    "vpc-cidr-block",
    "vpc-id",
    "vswitch-cidr-block",
    "vswitch-id",
    "zone-id",
];

const PER_ENI: [&str; 13] = [
    "gateway",
    "ipv6-gateway",
    "ipv6s",
    "netmask",
    "network-interface-id",
    "primary-ip-address",
    "private-ipv4s",
    "vpc-cidr-block",
    "vpc-id",
    "vpc-ipv6-cidr-blocks",
    "vswitch-cidr-block",
    "vswitch-id",
    "vswitch-ipv6-cidr-block",
];
