//! Terway's `eni_conf` JSON: the one parser.
//!
//! ipam reads vSwitches, security groups, stack and policy; the agent reads pool sizes and the Service CIDR.
//! Keys that Terway once knew and we do not act on give a warning; a key nobody ever knew is refused by name.
//! Credentials in the file are refused by everybody but the gateway, which is the only one that may hold them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use types::address::Stack;
use types::cloud::{RegionId, SecurityGroupId, VSwitchId, ZoneId};

/// What a pod network needs of `eni_conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConf {
    /// Region, if given; the metadata service knows it otherwise.
    pub region: Option<RegionId>,
    /// Candidate vSwitches by zone, in the operator's order.
    pub vswitches: BTreeMap<ZoneId, Vec<VSwitchId>>,
    /// Security groups of ENIs; empty means the instance's own.
    pub security_groups: Vec<SecurityGroupId>,
    /// Tags put on every ENI.
    pub eni_tags: BTreeMap<String, String>,
    /// Which families pods get.
    pub stack: Stack,
    /// How a vSwitch of a zone is chosen.
    pub vswitch_policy: VSwitchPolicy,
    /// Idle addresses a node keeps at least.
    pub min_pool_size: u32,
    /// Idle addresses a node keeps at most.
    pub max_pool_size: u32,
    /// Service networks.
    pub service_cidr: Vec<IpNet>,
    /// What the operator should know about the file; one sentence each, naming the key.
    pub warnings: Vec<String>,
}

/// How a vSwitch of a zone is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VSwitchPolicy {
    /// The first one with room.
    Ordered,
    /// A stable shuffle by node.
    Random,
    /// The one with most room.
    Most,
}

/// A file that can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EniConfError {
    /// Not JSON.
    #[error("eni_conf is not valid JSON: {why}")]
    Json {
        /// What the parser said, with line and column.
        why: String,
    },
    /// A key has a value that it may not have.
    #[error("eni_conf key {key}: {why}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// Security groups of one ENI.
///
/// Source: ECS OpenAPI facts, limits (5 by default, 10 on request; Terway's code allows 10).
pub const MAX_SECURITY_GROUPS: usize = 10;

/// Keys of Terway that have no effect here, and why.
const PASSED_OVER: &[(&str, &str)] = &[
    ("version", "it never had a meaning"),
    (
        "resource_group_id",
        "ENIs are made in the account's default resource group",
    ),
    ("ip_pool_sync_period", "pools follow their target at once"),
    ("ip_warm_up_size", "the pool target warms the node up"),
    (
        "idle_ip_reclaim_after",
        "idle addresses go back by the pool target",
    ),
    (
        "idle_ip_reclaim_interval",
        "idle addresses go back by the pool target",
    ),
    (
        "idle_ip_reclaim_batch_size",
        "idle addresses go back by the pool target",
    ),
    (
        "idle_ip_reclaim_jitter_factor",
        "idle addresses go back by the pool target",
    ),
    (
        "min_eni",
        "the pool target decides how many ENIs a node has",
    ),
    (
        "max_eni",
        "the instance type decides how many ENIs a node may have",
    ),
    (
        "eni_cap_ratio",
        "the instance type decides how many ENIs a node may have",
    ),
    (
        "eni_cap_shift",
        "the instance type decides how many ENIs a node may have",
    ),
    ("prefix", "it belongs to a removed mode"),
    (
        "eni_selection_policy",
        "ENIs are filled one after the other",
    ),
    ("enable_eni_trunking", "trunk ENIs are not supported yet"),
    ("enable_erdma", "eRDMA is not supported"),
    (
        "custom_stateful_workload_kinds",
        "fixed addresses are not supported yet",
    ),
    ("ipam_type", "addresses always come from ipam-service"),
    (
        "backoff_override",
        "the gateway's configuration holds retry limits",
    ),
    ("extra_routes", "extra routes are not supported yet"),
    ("disable_device_plugin", "there is no device plug-in yet"),
    ("eni_tag_filter", "ENIs are told apart by our own tags"),
    ("eni_tag_block_list", "ENIs are told apart by our own tags"),
    ("kube_client_qps", "nodes do not poll the API server"),
    ("kube_client_burst", "nodes do not poll the API server"),
    (
        "rate_limit",
        "the gateway's configuration holds rate limits",
    ),
    (
        "enable_patch_pod_ips",
        "policy does not need the annotation",
    ),
    ("enable_ip_prefix", "prefix mode is not supported yet"),
    ("ipv4_prefix_count", "prefix mode is not supported yet"),
    ("ipv6_prefix_count", "prefix mode is not supported yet"),
    (
        "credential_path",
        "credentials belong to cloud-gateway alone",
    ),
    (
        "access_key",
        "credentials belong to cloud-gateway alone; take them out of this file",
    ),
    (
        "access_secret",
        "credentials belong to cloud-gateway alone; take them out of this file",
    ),
    ("enable_eip_pool", "Terway removed it"),
    ("enable_eip_migrate", "Terway removed it"),
    ("allow_eip_rob", "Terway removed it"),
    ("eni_cap_policy", "Terway removed it"),
    ("wait_trunk_eni", "Terway removed it"),
    ("disable_security_group_check", "Terway removed it"),
];

fn typed<T: serde::de::DeserializeOwned>(key: &str, value: Value) -> Result<T, EniConfError> {
    serde_json::from_value(value).map_err(|e| EniConfError::Key {
        key: key.to_owned(),
        why: e.to_string(),
    })
}

impl EniConf {
    /// Reads the text of `eni_conf`.
    ///
    /// # Errors
    /// [`EniConfError`] naming the key: a wrong type, an unknown key, a malformed id, too many groups,
    /// `min_pool_size` above `max_pool_size`.
    pub fn parse(text: &str) -> Result<Self, EniConfError> {
        let top: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|e| EniConfError::Json { why: e.to_string() })?;
        let mut conf = Self {
            region: None,
            vswitches: BTreeMap::new(),
            security_groups: Vec::new(),
            eni_tags: BTreeMap::new(),
            stack: Stack::Ipv4,
            vswitch_policy: VSwitchPolicy::Ordered,
            min_pool_size: 0,
            max_pool_size: 5,
            service_cidr: Vec::new(),
            warnings: Vec::new(),
        };
        for (key, value) in top {
            conf.take(&key, value)?;
        }
        conf.check()?;
        Ok(conf)
    }

    fn take(&mut self, key: &str, value: Value) -> Result<(), EniConfError> {
        match key {
            "region_id" => self.region = Some(typed(key, value)?),
            "vswitches" => self.vswitches = typed(key, value)?,
            "security_group" => {
                let group: String = typed(key, value)?;
                if !group.is_empty() {
                    self.add_group(key, &group)?;
                }
            }
            "security_groups" => {
                for group in typed::<Vec<String>>(key, value)? {
                    self.add_group(key, &group)?;
                }
            }
            "eni_tags" => self.eni_tags = typed(key, value)?,
            "ip_stack" => {
                self.stack = match typed::<String>(key, value)?.as_str() {
                    "" | "ipv4" => Stack::Ipv4,
                    "dual" => Stack::Dual,
                    other => {
                        return Err(EniConfError::Key {
                            key: key.to_owned(),
                            why: format!("{other:?} is not one of ipv4, dual"),
                        });
                    }
                }
            }
            "vswitch_selection_policy" => self.vswitch_policy = typed(key, value)?,
            "min_pool_size" => self.min_pool_size = typed(key, value)?,
            "max_pool_size" => self.max_pool_size = typed(key, value)?,
            "service_cidr" => {
                let text: String = typed(key, value)?;
                for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                    let net = part.parse().map_err(|_| EniConfError::Key {
                        key: key.to_owned(),
                        why: format!("{part:?} is not a network such as 172.16.0.0/16"),
                    })?;
                    self.service_cidr.push(net);
                }
            }
            _ => match PASSED_OVER.iter().find(|(known, _)| *known == key) {
                Some((_, why)) => self.warnings.push(format!("{key} has no effect: {why}")),
                None => {
                    return Err(EniConfError::Key {
                        key: key.to_owned(),
                        why: "no such key".to_owned(),
                    });
                }
            },
        }
        Ok(())
    }

    fn add_group(&mut self, key: &str, text: &str) -> Result<(), EniConfError> {
        let group: SecurityGroupId = text.parse().map_err(|e| EniConfError::Key {
            key: key.to_owned(),
            why: format!("{e}"),
        })?;
        if !self.security_groups.contains(&group) {
            self.security_groups.push(group);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), EniConfError> {
        let fail = |key: &str, why: String| {
            Err(EniConfError::Key {
                key: key.to_owned(),
                why,
            })
        };
        if self.security_groups.len() > MAX_SECURITY_GROUPS {
            return fail(
                "security_groups",
                format!("more than {MAX_SECURITY_GROUPS} groups"),
            );
        }
        if self.min_pool_size > self.max_pool_size {
            return fail(
                "min_pool_size",
                format!(
                    "{} is above max_pool_size, which is {}",
                    self.min_pool_size, self.max_pool_size
                ),
            );
        }
        let mut seen = BTreeMap::new();
        for (zone, list) in &self.vswitches {
            for vswitch in list {
                if let Some(other) = seen.insert(vswitch, zone) {
                    return fail(
                        "vswitches",
                        format!("{vswitch} stands under {other} and {zone}"),
                    );
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_sample_is_read_with_its_order() {
        let conf = EniConf::parse(
            r#"{"version": "1", "max_pool_size": 5, "min_pool_size": 0,
                "vswitches": {"cn-hangzhou-h": ["vsw-a", "vsw-b"], "cn-hangzhou-i": ["vsw-c"]},
                "service_cidr": "172.16.0.0/20, fd00::/112", "security_group": "sg-1",
                "security_groups": ["sg-2", "sg-1"], "ip_stack": "dual",
                "vswitch_selection_policy": "ordered"}"#,
        )
        .unwrap();

        let zone: ZoneId = "cn-hangzhou-h".parse().unwrap();
        assert_eq!(
            conf.vswitches[&zone]
                .iter()
                .map(VSwitchId::as_str)
                .collect::<Vec<_>>(),
            ["vsw-a", "vsw-b"]
        );
        assert_eq!(conf.security_groups.len(), 2);
        assert_eq!(conf.stack, Stack::Dual);
        assert_eq!(conf.service_cidr.len(), 2);
        assert_eq!(
            conf.warnings,
            ["version has no effect: it never had a meaning"]
        );
    }

    #[test]
    fn unknown_key_is_refused_by_name() {
        let err = EniConf::parse(r#"{"max_pool_sise": 5}"#).unwrap_err();

        assert_eq!(err.to_string(), "eni_conf key max_pool_sise: no such key");
    }

    #[test]
    fn removed_key_gives_a_warning() {
        let conf = EniConf::parse(r#"{"enable_eip_pool": "true"}"#).unwrap();

        assert_eq!(
            conf.warnings,
            ["enable_eip_pool has no effect: Terway removed it"]
        );
    }

    #[test]
    fn malformed_vswitch_names_key_and_value() {
        let err = EniConf::parse(r#"{"vswitches": {"z": ["switch-1"]}}"#).unwrap_err();

        assert!(
            err.to_string().starts_with("eni_conf key vswitches: "),
            "{err}"
        );
        assert!(err.to_string().contains("switch-1"), "{err}");
    }

    #[test]
    fn min_above_max_is_refused() {
        let err = EniConf::parse(r#"{"min_pool_size": 9}"#).unwrap_err();

        assert!(err.to_string().contains("min_pool_size"), "{err}");
    }

    #[test]
    fn vswitch_in_two_zones_is_refused() {
        assert!(EniConf::parse(r#"{"vswitches": {"a": ["vsw-1"], "b": ["vsw-1"]}}"#).is_err());
    }

    #[test]
    fn broken_json_says_where() {
        let err = EniConf::parse("{").unwrap_err();

        assert!(matches!(err, EniConfError::Json { .. }));
        assert!(err.to_string().contains("line 1"), "{err}");
    }
}
