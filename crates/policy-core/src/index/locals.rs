//! Pods of this node: their objects, their attachments, and the policies that select them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use types::pod::{AttachmentKey, PodKey};

use super::vocabulary::LocalPod;
use crate::object::Pod;
use crate::policy::Policy;

/// One local pod.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// The object; the last one when it was deleted and attachments of it stand.
    pub(super) object: Option<Arc<Pod>>,
    /// Whether the object is there.
    pub(super) live: bool,
    /// Attachments of this name, of whatever UID; by attachment.
    pub(super) placements: Vec<Arc<LocalPod>>,
    /// Policies that select it, in the order of judgement.
    pub(super) policies: Vec<Arc<Policy>>,
}

impl Local {
    /// Attachments of the object's UID; all while there is no object.
    pub(super) fn own(&self) -> impl Iterator<Item = &Arc<LocalPod>> {
        self.placements.iter().filter(|placement| {
            self.object
                .as_ref()
                .is_none_or(|pod| is_of(placement, &pod.uid))
        })
    }

    /// Addresses of the object and its attachments; sorted, each once.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        let object = self.object.iter().flat_map(|pod| &pod.ips);
        let mut ips: Vec<IpAddr> = object
            .chain(self.own().flat_map(|placement| &placement.ips))
            .copied()
            .collect();
        ips.sort();
        ips.dedup();
        ips
    }

    /// Lets the object go when neither it nor an attachment of it is there.
    pub(super) fn settle(&mut self) {
        if !self.live && self.own().next().is_none() {
            self.object = None;
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.object.is_none() && self.placements.is_empty()
    }
}

/// Whether an attachment is of a pod with this UID; one that is not known fits every other.
fn is_of(placement: &LocalPod, uid: &str) -> bool {
    placement.uid.is_empty() || uid.is_empty() || *placement.uid == *uid
}

/// All local pods.
#[derive(Debug, Default)]
pub(super) struct Locals {
    pub(super) pods: BTreeMap<PodKey, Local>,
    attachments: HashMap<AttachmentKey, PodKey>,
}

impl Locals {
    /// Notes an attachment. Answers the pod that had it before, if that was another, and whether something changed.
    pub(super) fn place(&mut self, mut placed: LocalPod) -> (Option<PodKey>, bool) {
        placed.ips.sort();
        placed.ips.dedup();
        let key = placed.key.clone();
        let attachment = placed.attachment.clone();
        let other = self
            .attachments
            .insert(attachment.clone(), key.clone())
            .filter(|other| *other != key);
        if let Some(other) = &other {
            self.take(other, &attachment);
        }
        let placements = &mut self.pods.entry(key).or_default().placements;
        let place = placements.binary_search_by(|have| have.attachment.cmp(&attachment));
        let changed = match place {
            Ok(place) => placements.get_mut(place).is_some_and(|have| {
                let changed = **have != placed;
                *have = Arc::new(placed);
                changed
            }),
            Err(place) => {
                placements.insert(place, Arc::new(placed));
                true
            }
        };
        (other, changed)
    }

    /// Forgets an attachment. Answers the pod that had it.
    pub(super) fn unplace(&mut self, attachment: &AttachmentKey) -> Option<PodKey> {
        let key = self.attachments.remove(attachment)?;
        self.take(&key, attachment);
        Some(key)
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_bare(&self) -> bool {
        self.pods.is_empty() && self.attachments.is_empty()
    }

    fn take(&mut self, key: &PodKey, attachment: &AttachmentKey) {
        if let Some(local) = self.pods.get_mut(key) {
            local
                .placements
                .retain(|placement| placement.attachment != *attachment);
        }
    }

    /// Local pods of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Vec<PodKey> {
        self.pods
            .range(PodKey::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(key, _)| key.clone())
            .collect()
    }
}
