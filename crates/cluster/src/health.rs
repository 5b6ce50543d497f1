//! How a source that follows an API server fares, for metrics and for people.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How a source fares.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// By resource as RBAC names it, such as `pods` or `networkpolicies.networking.k8s.io`.
    pub resources: BTreeMap<String, Resource>,
}

/// How one resource fares.
#[derive(Debug, Clone, Default)]
pub struct Resource {
    /// What is being done.
    pub phase: Phase,
    /// It was read as a whole once.
    pub synced: bool,
    /// Objects, as far as known.
    pub objects: usize,
    /// When the API server last said something sensible about it.
    pub contact: Option<Instant>,
    /// How often it was read as a whole.
    pub listed: u64,
    /// How often a request failed.
    pub failures: u64,
    /// What is wrong now.
    pub trouble: Option<Trouble>,
}

/// What is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was asked yet.
    #[default]
    Starting,
    /// The whole is being read.
    Listing,
    /// Changes are followed.
    Watching,
    /// The cluster does not have this resource; it is looked for again.
    Absent,
    /// The last request failed; the next one waits.
    Waiting,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What sort of failure.
    pub reason: Reason,
    /// The verb that was tried: `list` or `watch`.
    pub verb: &'static str,
    /// In words.
    pub message: String,
    /// Since when nothing else was seen.
    pub since: Instant,
}

/// What sort of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No connection, or it broke, or nothing came.
    Unreachable,
    /// 401: the credentials are not known.
    Unauthenticated,
    /// 403: RBAC does not allow the verb on the resource.
    Forbidden,
    /// 429 or 5xx.
    Overloaded,
    /// 410: the place in the history is gone.
    Expired,
    /// 404 of a resource that every cluster has, or of one that had objects a moment ago.
    Missing,
    /// Another refusal, or an answer that is not understood.
    Odd,
}

impl Reason {
    /// As a label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Overloaded => "overloaded",
            Self::Expired => "expired",
            Self::Missing => "missing",
            Self::Odd => "odd",
        }
    }
}

impl Health {
    /// Whether everything was read as a whole once.
    pub fn synced(&self) -> bool {
        self.resources.values().all(|resource| resource.synced)
    }

    /// How long ago the API server last said something sensible about any resource; nothing when it never did.
    pub fn contact_age(&self) -> Option<Duration> {
        let newest = self.resources.values().filter_map(|r| r.contact).max()?;
        Some(newest.elapsed())
    }

    /// What is wrong now, by resource.
    pub fn troubles(&self) -> impl Iterator<Item = (&str, &Trouble)> {
        self.resources
            .iter()
            .filter_map(|(name, resource)| Some((name.as_str(), resource.trouble.as_ref()?)))
    }

    /// One line about what is wrong; nothing when nothing is.
    pub fn complaint(&self) -> Option<String> {
        let mut all: Vec<String> = self
            .troubles()
            .map(|(name, trouble)| format!("{} {name}: {}", trouble.verb, trouble.message))
            .collect();
        all.sort();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
