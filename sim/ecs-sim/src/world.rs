//! World files: what exists when the simulator starts, in TOML. Unknown keys are refused by name.

use std::collections::BTreeMap;

use ecs_api::action::Action;
use serde::Deserialize;
use types::cloud::{RegionId, ZoneId};

use crate::config::{Latency, Limits, MetadataTokens, SimConfig};
use crate::roles::RoleSpec;
use crate::sim::Sim;
use crate::spec::{
    InstanceSpec, InstanceTypeSpec, SecurityGroupSpec, VSwitchSpec, VpcSpec, WorldError,
};

/// A world file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// The region.
    pub region: RegionId,
    /// Seed of ids, hardware addresses and latencies.
    #[serde(default = "first_seed")]
    pub seed: u64,
    /// `none`, `fast` or `real`.
    #[serde(default = "fast")]
    pub latency: String,
    /// Which requests the metadata service answers.
    #[serde(default)]
    pub metadata_tokens: MetadataTokens,
    /// Limits that are not of an instance type.
    #[serde(default)]
    pub limits: Limits,
    /// Calls per minute by action.
    #[serde(default)]
    pub quotas: BTreeMap<String, u32>,
    /// Zones.
    pub zones: Vec<ZoneId>,
    /// Keys.
    #[serde(default)]
    pub access_keys: Vec<AccessKey>,
    /// VPCs.
    #[serde(default)]
    pub vpcs: Vec<VpcSpec>,
    /// vSwitches.
    #[serde(default)]
    pub vswitches: Vec<VSwitchSpec>,
    /// Security groups.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupSpec>,
    /// Instance types beside the built-in ones.
    #[serde(default)]
    pub instance_types: Vec<InstanceTypeSpec>,
    /// Instances.
    #[serde(default)]
    pub instances: Vec<InstanceSpec>,
    /// RAM roles.
    #[serde(default)]
    pub roles: Vec<RoleSpec>,
}

/// A key of a world file. These are keys of a simulator; they open nothing.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// Its token, if it is a temporary key.
    #[serde(default)]
    pub security_token: Option<String>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn first_seed() -> u64 {
    1
}

fn fast() -> String {
    "fast".to_owned()
}

/// A world file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It does not parse; the message names the key.
    #[error("world file: {0}")]
    Parse(#[from] toml::de::Error),
    /// There is no such latency profile.
    #[error("world file: latency {name:?} is not none, fast or real")]
    Latency {
        /// What was given.
        name: String,
    },
    /// A quota for an action that does not exist.
    #[error("world file: quotas: {0}")]
    Quota(#[from] ecs_api::action::UnknownAction),
    /// Things that cannot be together.
    #[error("world file: {0}")]
    World(#[from] WorldError),
}

impl World {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`LoadError`] with the key that is wrong.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let world: Self = toml::from_str(text)?;
        for name in world.quotas.keys() {
            name.parse::<Action>()?;
        }
        if Latency::profile(&world.latency).is_none() {
            return Err(LoadError::Latency {
                name: world.latency,
            });
        }
        Ok(world)
    }

    /// The settings in it.
    pub fn config(&self) -> SimConfig {
        SimConfig {
            latency: Latency::profile(&self.latency).unwrap_or(Latency::fast()),
            quotas: self.quotas.clone(),
            limits: self.limits,
            metadata_tokens: self.metadata_tokens,
            seed: self.seed,
            ..SimConfig::new(self.region.clone())
        }
    }

    /// Builds everything in it.
    ///
    /// # Errors
    /// [`LoadError::World`] with the first thing that cannot be.
    pub async fn build(self, sim: &Sim) -> Result<(), LoadError> {
        for key in self.access_keys {
            match key.security_token {
                Some(token) => sim.add_temporary_key(&key.id, &key.secret, &token, None),
                None => sim.add_access_key(&key.id, &key.secret),
            }
        }
        for zone in self.zones {
            sim.add_zone(zone)?;
        }
        for vpc in self.vpcs {
            sim.add_vpc(vpc)?;
        }
        for vswitch in self.vswitches {
            sim.add_vswitch(vswitch)?;
        }
        for group in self.security_groups {
            sim.add_security_group(group)?;
        }
        for instance_type in self.instance_types {
            sim.set_instance_type(instance_type);
        }
        for instance in self.instances {
            sim.run_instance(instance).await?;
        }
        for role in self.roles {
            sim.set_role(role);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_file_with_an_unknown_key_is_refused_by_name() {
        let text = "region = \"cn-hangzhou\"\nzones = []\nvswitchs = []\n";

        let message = World::parse(text).unwrap_err().to_string();

        assert!(message.contains("vswitchs"), "{message}");
    }

    #[test]
    fn world_file_with_an_unknown_action_is_refused_by_name() {
        let text = "region = \"cn-hangzhou\"\nzones = []\n[quotas]\nCreateEni = 1\n";

        let message = World::parse(text).unwrap_err().to_string();

        assert!(message.contains("CreateEni"), "{message}");
    }
}
