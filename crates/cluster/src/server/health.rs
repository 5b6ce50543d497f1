//! How a source that follows an API server fares, for metrics and for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
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

impl Resource {
    /// A list that works does not mend a watch that does not.
    fn mend(&mut self, verb: &'static str) -> bool {
        let mended = self
            .trouble
            .as_ref()
            .is_some_and(|t| t.verb == verb || verb == WATCH);
        if mended {
            self.trouble = None;
        }
        mended
    }
}

/// Verb of lists.
pub(super) const LIST: &str = "list";
/// Verb of watches, also of those that begin with everything there is.
pub(super) const WATCH: &str = "watch";

/// Notes how one resource fares.
#[derive(Debug, Clone)]
pub(super) struct Note {
    health: Arc<watch::Sender<Health>>,
    resource: String,
}

impl Note {
    pub(super) fn new(health: &Arc<watch::Sender<Health>>, resource: String) -> Self {
        let note = Self {
            health: Arc::clone(health),
            resource,
        };
        note.change(|_| true);
        note
    }

    /// The resource.
    pub(super) fn resource(&self) -> &str {
        &self.resource
    }

    /// Readers are told only when `change` says so.
    fn change(&self, change: impl FnOnce(&mut Resource) -> bool) {
        self.health.send_if_modified(|health| {
            change(health.resources.entry(self.resource.clone()).or_default())
        });
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.change(|resource| std::mem::replace(&mut resource.phase, phase) != phase);
    }

    /// Something sensible was said to a request with this verb, and there are so many objects.
    pub(super) fn contact(&self, verb: &'static str, objects: usize) {
        self.change(|resource| {
            resource.contact = Some(Instant::now());
            resource.objects = objects;
            resource.mend(verb)
        });
    }

    /// All was read, by requests with this verb.
    pub(super) fn whole(&self, verb: &'static str, objects: usize) {
        self.change(|resource| {
            resource.synced = true;
            resource.listed = resource.listed.saturating_add(1);
            resource.contact = Some(Instant::now());
            resource.objects = objects;
            resource.mend(verb);
            true
        });
    }

    /// The cluster does not have the resource.
    pub(super) fn absent(&self) {
        self.change(|resource| {
            let known = resource.phase == Phase::Absent && resource.synced;
            resource.phase = Phase::Absent;
            resource.synced = true;
            resource.objects = 0;
            resource.contact = Some(Instant::now());
            resource.mend(WATCH) || !known
        });
    }

    /// A request failed. True when it was not known that it does.
    pub(super) fn failed(&self, reason: Reason, verb: &'static str, message: String) -> bool {
        let mut fresh = false;
        self.change(|resource| {
            resource.phase = Phase::Waiting;
            resource.failures = resource.failures.saturating_add(1);
            let known = resource.trouble.as_ref();
            let known = known.filter(|known| known.reason == reason);
            fresh = known.is_none();
            let since = known.map_or_else(Instant::now, |known| known.since);
            resource.trouble = Some(Trouble {
                reason,
                verb,
                message,
                since,
            });
            true
        });
        fresh
    }
}
