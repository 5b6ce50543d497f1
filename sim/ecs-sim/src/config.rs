//! How the simulated cloud behaves: latencies, quotas, limits, the metadata service.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::cloud::RegionId;

use crate::clock::Clock;

/// A range from which a latency is drawn, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Shortest.
    pub min_ms: u64,
    /// Longest; never below the shortest.
    pub max_ms: u64,
}

impl Span {
    /// From `min_ms` to `max_ms`.
    pub const fn new(min_ms: u64, max_ms: u64) -> Self {
        Self { min_ms, max_ms }
    }
}

/// How long things take. `*_call` is until the answer, the others until the state changes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Answers of all Describe actions.
    pub describe_call: Span,
    /// The answer of Create, with which the ENI is there.
    pub create_call: Span,
    /// Answers of Assign and Unassign, with which the addresses are there or gone.
    pub address_call: Span,
    /// Answers of Attach, Detach and Delete, which only start something.
    pub start_call: Span,
    /// `Attaching` to `InUse`.
    pub attach: Span,
    /// The same for members of a trunk.
    pub attach_member: Span,
    /// `Detaching` to `Available`.
    pub detach: Span,
    /// `Deleting` to gone.
    pub delete: Span,
}

impl Latency {
    /// Nothing takes time.
    pub const fn none() -> Self {
        let none = Span::new(0, 0);
        Self {
            describe_call: none,
            create_call: none,
            address_call: none,
            start_call: none,
            attach: none,
            attach_member: none,
            detach: none,
            delete: none,
        }
    }

    /// A few milliseconds, for tests.
    pub const fn fast() -> Self {
        Self {
            describe_call: Span::new(0, 1),
            create_call: Span::new(1, 3),
            address_call: Span::new(1, 3),
            start_call: Span::new(0, 1),
            attach: Span::new(2, 8),
            attach_member: Span::new(1, 4),
            detach: Span::new(2, 6),
            delete: Span::new(1, 4),
        }
    }

    /// Seconds, as the real cloud.
    ///
    /// Reason: nothing is published; these are what the vendor's own client waits for.
    pub const fn real() -> Self {
        Self {
            describe_call: Span::new(50, 150),
            create_call: Span::new(600, 1500),
            address_call: Span::new(300, 1000),
            start_call: Span::new(100, 300),
            attach: Span::new(2000, 5000),
            attach_member: Span::new(1000, 2000),
            detach: Span::new(2000, 4000),
            delete: Span::new(1000, 3000),
        }
    }

    /// The profile of that name: `none`, `fast` or `real`.
    pub fn profile(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::none()),
            "fast" => Some(Self::fast()),
            "real" => Some(Self::real()),
            _ => None,
        }
    }
}

/// Which requests the metadata service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadataTokens {
    /// With a token, or without.
    #[default]
    Optional,
    /// Only with a token.
    Required,
    /// None at all: the service is switched off.
    Disabled,
}

/// Limits that are not of an instance type.
///
/// Source: ECS limits; all of them can be raised on request, so they can here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// ENIs of the account in the region, primary ones not counted.
    pub enis: usize,
    /// Private addresses in a basic security group.
    pub normal_group: usize,
    /// Private addresses in an advanced security group.
    pub enterprise_group: usize,
    /// Security groups of one ENI.
    pub groups_per_eni: usize,
    /// Attach operations on one instance at a time.
    pub concurrent_attaches: usize,
    /// How long a `ClientToken` is remembered, in seconds.
    pub client_token_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            enis: 50_000,
            normal_group: 2_000,
            enterprise_group: 65_536,
            groups_per_eni: ecs_api::action::MAX_SECURITY_GROUPS,
            concurrent_attaches: ecs_api::action::MAX_CONCURRENT_ATTACHES,
            client_token_seconds: 24 * 3600,
        }
    }
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// The only region there is.
    pub region: RegionId,
    /// Where time comes from.
    pub clock: Clock,
    /// How long things take.
    pub latency: Latency,
    /// Calls per minute by action name; actions that are not named have their default quota.
    pub quotas: BTreeMap<String, u32>,
    /// Limits.
    pub limits: Limits,
    /// The metadata service.
    pub metadata_tokens: MetadataTokens,
    /// How far Describe of ENIs is behind the truth.
    pub read_lag: Duration,
    /// How far the metadata service is behind the truth.
    pub metadata_lag: Duration,
    /// Seed of ids, hardware addresses and latencies, so that runs can be repeated. It is printed in the dump.
    pub seed: u64,
}

impl SimConfig {
    /// A region with fast latencies, default quotas and no lags.
    pub fn new(region: RegionId) -> Self {
        Self {
            region,
            clock: Clock::Wall,
            latency: Latency::fast(),
            quotas: BTreeMap::new(),
            limits: Limits::default(),
            metadata_tokens: MetadataTokens::Optional,
            read_lag: Duration::ZERO,
            metadata_lag: Duration::ZERO,
            seed: 1,
        }
    }
}
