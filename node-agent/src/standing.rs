//! Where the node stands: what is wrong, whether pods can be started, and the conditions of the Node object. Pure.
//!
//! A fault has a name of one word, which is the same in the condition, in the event, in the metric and in
//! `/readyz`. Faults of the cloud and of ipam are called as they are on the wire (`VswitchExhausted`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cluster::health::{Health, Reason as FeedReason};
use proto::control::v1::NodeCondition;
use proto::types::v1::Reason;
use types::op::ShardId;

/// The condition that says whether pods can be started.
pub const READY: &str = "TerwayReady";
/// Terway's condition about addresses.
pub const SUFFICIENT_IP: &str = "SufficientIP";
/// Its reason when it is false; Terway's.
const INSUFFICIENT_IP: &str = "InsufficientIP";

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// No pod can be started because of it, whatever else is well.
    pub blocks: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl Fault {
    fn blocking(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            blocks: true,
        }
    }

    fn passing(reason: String, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            blocks: false,
        }
    }
}

/// Whether metadata service, certificate and Node object speak of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// The Node object was not seen yet.
    #[default]
    Unknown,
    /// They agree, as far as they say anything.
    Agrees,
    /// They do not; what they say.
    Differs(String),
}

/// What a replica said that a shard can not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Why.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

/// The way to ipam.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ipam {
    /// Some replica has welcomed us, and its session is up.
    pub welcomed: bool,
    /// Shards that serve this node; nothing before any replica told.
    pub shards: Option<BTreeSet<ShardId>>,
    /// What replicas said their shards can not give.
    pub shortages: BTreeMap<ShardId, Shortage>,
    /// Why the last session or question for routes failed, while none has worked since: name of the reason on the
    /// wire if there was one, and words.
    pub trouble: Option<(Option<String>, String)>,
}

impl Ipam {
    /// Shortages of shards that serve this node.
    fn short(&self) -> impl Iterator<Item = &Shortage> {
        let serve = |shard: &ShardId| {
            let shards = self.shards.as_ref();
            shards.is_none_or(|shards| shards.contains(shard))
        };
        let of_ours = self.shortages.iter().filter(move |(shard, _)| serve(shard));
        of_ours.map(|(_, shortage)| shortage)
    }

    /// Whether a further address can be asked for with any hope.
    fn gives(&self) -> bool {
        let Some(shards) = &self.shards else {
            return false;
        };
        self.welcomed && shards.iter().any(|s| !self.shortages.contains_key(s))
    }
}

/// The feed of pods from the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Feed {
    /// All pods of this node were told once.
    pub synced: bool,
    /// What is wrong: name, words.
    pub trouble: Option<(&'static str, String)>,
}

impl Feed {
    /// As the source says.
    pub fn of(health: &Health) -> Self {
        let trouble = health.troubles().min_by_key(|(_, trouble)| trouble.reason);
        let named = trouble.map(|(_, trouble)| match trouble.reason {
            FeedReason::Forbidden | FeedReason::Unauthenticated => "ApiServerForbidden",
            FeedReason::Unreachable
            | FeedReason::Overloaded
            | FeedReason::Expired
            | FeedReason::Missing
            | FeedReason::Odd => "ApiServerUnreachable",
        });
        Self {
            synced: health.synced(),
            trouble: named.zip(health.complaint()),
        }
    }
}

/// All that is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// The installation leaves the node.
    pub leaving: bool,
    /// Who we are.
    pub identity: Identity,
    /// Our certificate has ended.
    pub certificate_expired: bool,
    /// Pods of this node.
    pub feed: Feed,
    /// Why policy-agent does not let pods start; nothing when it does, or policy is off.
    pub policy: Option<String>,
    /// Why the kernel is not as pods need it.
    pub kernel: Option<String>,
    /// Why the configuration of the plug-in can not be written.
    pub configuration: Option<String>,
    /// The way to addresses.
    pub ipam: Ipam,
    /// Pods that could be bound now.
    pub free: u32,
}

impl Situation {
    /// All is well but for what ipam says.
    pub fn of_ipam(ipam: Ipam) -> Self {
        Self {
            ipam,
            ..Self::default()
        }
    }

    /// All that is wrong, the gravest first.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Identity::Differs(why) = &self.identity {
            faults.push(Fault::blocking("IdentityMismatch", why));
        }
        if self.certificate_expired {
            let why = "the certificate of this node has ended, and nobody has renewed it";
            faults.push(Fault::passing("CertificateExpired".to_owned(), why));
        }
        if let Some((reason, why)) = &self.feed.trouble {
            faults.push(Fault {
                blocks: !self.feed.synced,
                ..Fault::blocking(reason, why)
            });
        }
        if let Some(why) = &self.policy {
            faults.push(Fault::blocking("PolicyNotReady", why));
        }
        if let Some(why) = &self.kernel {
            faults.push(Fault::passing("KernelNotReady".to_owned(), why));
        }
        if let Some(why) = &self.configuration {
            faults.push(Fault::blocking("ConfigError", why));
        }
        faults.extend(self.ipam_faults());
        faults
    }

    fn ipam_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some((reason, why)) = &self.ipam.trouble
            && !self.ipam.welcomed
        {
            let named = reason.as_deref().map(camel);
            let named = named.unwrap_or_else(|| "IpamUnreachable".to_owned());
            faults.push(Fault::passing(named, why));
        }
        if self.ipam.shards.as_ref().is_some_and(BTreeSet::is_empty) {
            let why =
                "no vSwitch that the configuration names can be used in the zone of this node";
            faults.push(Fault::passing("NoVSwitch".to_owned(), why));
        }
        // One fault of a sort, with the words of all shards that have it.
        let mut sorts: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for shortage in self.ipam.short() {
            let words = sorts
                .entry(camel(shortage.reason.as_str_name()))
                .or_default();
            words.insert(&shortage.message);
        }
        for (reason, words) in sorts {
            let words: Vec<&str> = words.into_iter().collect();
            faults.push(Fault::passing(reason, words.join("; ")));
        }
        let none = self.free == 0 && !self.ipam.gives();
        for fault in &mut faults {
            fault.blocks = none;
        }
        faults
    }

    /// What is still missing before pods can be started, in words; nothing when they can.
    pub fn missing(&self) -> Option<String> {
        if let Some(fault) = self.faults().into_iter().find(|fault| fault.blocks) {
            return Some(fault.to_string());
        }
        if self.identity == Identity::Unknown {
            return Some("the Node object of this node was not seen yet".to_owned());
        }
        if !self.feed.synced {
            return Some("pods of this node are not known yet".to_owned());
        }
        if self.free == 0 && !self.ipam.gives() {
            return Some("no address is free and no ipam replica is reached".to_owned());
        }
        None
    }

    /// Whether pods can be started.
    pub fn serves(&self) -> bool {
        !self.leaving && self.missing().is_none()
    }

    /// Conditions of the Node object.
    pub fn conditions(&self) -> Vec<NodeCondition> {
        let mut conditions = vec![self.ready()];
        // Before anybody was asked nothing is known about addresses.
        if self.free > 0 || self.ipam.shards.is_some() {
            conditions.push(self.sufficient_ip());
        }
        conditions
    }

    fn ready(&self) -> NodeCondition {
        let faults = self.faults();
        let (status, reason, message) = if self.leaving {
            let why = "the network plug-in is being uninstalled: no new pods";
            (false, "Leaving".to_owned(), why.to_owned())
        } else if let Some(missing) = self.missing() {
            let fault = faults.into_iter().find(|fault| fault.blocks);
            fault.map_or_else(
                || (false, "Starting".to_owned(), missing),
                |fault| (false, fault.reason, fault.message),
            )
        } else if let Some(fault) = faults.into_iter().next() {
            // No numbers: a text that changes is told again.
            let message = format!("pods can be started, but: {}", fault.message);
            (true, fault.reason, message)
        } else {
            (true, READY.to_owned(), "pods can be started".to_owned())
        };
        NodeCondition {
            r#type: READY.to_owned(),
            status,
            reason,
            message,
        }
    }

    fn sufficient_ip(&self) -> NodeCondition {
        let none = self.ipam.shards.as_ref().is_some_and(BTreeSet::is_empty);
        let all_short = self.ipam.shards.as_ref().is_some_and(|shards| {
            shards
                .iter()
                .all(|shard| self.ipam.shortages.contains_key(shard))
        });
        let enough = self.free > 0 || !(none || all_short);
        let faults = self.ipam_faults();
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        NodeCondition {
            r#type: SUFFICIENT_IP.to_owned(),
            status: enough,
            reason: if enough {
                SUFFICIENT_IP
            } else {
                INSUFFICIENT_IP
            }
            .to_owned(),
            message: if enough {
                "addresses are free, or can be had".to_owned()
            } else {
                faults.join("; ")
            },
        }
    }
}

/// `REASON_VSWITCH_EXHAUSTED` → `VswitchExhausted`: how events and conditions are called in Kubernetes.
pub fn camel(name: &str) -> String {
    let words = name.strip_prefix("REASON_").unwrap_or(name).split('_');
    let mut camel = String::new();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next());
        camel.extend(letters.map(|letter| letter.to_ascii_lowercase()));
    }
    camel
}

#[cfg(test)]
mod tests;
