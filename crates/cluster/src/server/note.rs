//! Notes how one resource fares.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::health::{Health, Phase, Reason, Resource, Trouble};

/// A list that works does not mend a watch that does not.
fn mend(resource: &mut Resource, verb: &'static str) -> bool {
    let mended = resource
        .trouble
        .as_ref()
        .is_some_and(|t| t.verb == verb || verb == WATCH);
    if mended {
        resource.trouble = None;
    }
    mended
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
            mend(resource, verb)
        });
    }

    /// All was read, by requests with this verb.
    pub(super) fn whole(&self, verb: &'static str, objects: usize) {
        self.change(|resource| {
            resource.synced = true;
            resource.listed = resource.listed.saturating_add(1);
            resource.contact = Some(Instant::now());
            resource.objects = objects;
            mend(resource, verb);
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
            mend(resource, WATCH) || !known
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
