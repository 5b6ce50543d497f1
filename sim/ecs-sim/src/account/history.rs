//! What ENIs looked like a while ago, for readers that lag behind the truth.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use types::cloud::EniId;
use types::time::Tick;

use crate::account::eni::Eni;

/// Longest lag that can be shown. Older pictures are dropped.
pub const MAX_LAG: Duration = Duration::from_mins(2);

/// Pictures kept of one ENI.
const MAX_PICTURES: usize = 64;

/// Pictures between two rounds of dropping old ones.
const PRUNE_EVERY: u32 = 1024;

/// Pictures of ENIs by time; none is a picture of an ENI that is gone.
#[derive(Debug, Default)]
pub struct History {
    pictures: BTreeMap<EniId, VecDeque<(Tick, Option<Eni>)>>,
    since_prune: u32,
}

impl History {
    /// The ENI looks like this from `now` on.
    pub fn record(&mut self, id: &EniId, eni: Option<Eni>, now: Tick) {
        let pictures = self.pictures.entry(id.clone()).or_default();
        pictures.push_back((now, eni));
        while pictures.len() > MAX_PICTURES {
            pictures.pop_front();
        }
        self.since_prune = self.since_prune.saturating_add(1);
        if self.since_prune >= PRUNE_EVERY {
            self.since_prune = 0;
            self.prune(now);
        }
    }

    /// What a reader sees that stands at `at`.
    pub fn at(&self, at: Tick) -> impl Iterator<Item = &Eni> {
        self.pictures.values().filter_map(move |pictures| {
            let (_, eni) = pictures.iter().rev().find(|(since, _)| *since <= at)?;
            eni.as_ref()
        })
    }

    fn prune(&mut self, now: Tick) {
        let old = |since: Tick| now.since(since) > MAX_LAG;
        self.pictures.retain(|_, pictures| {
            // The newest old picture still holds for readers at the far end.
            while pictures.get(1).is_some_and(|(since, _)| old(*since)) {
                pictures.pop_front();
            }
            !matches!(pictures.back(), Some((since, None)) if old(*since))
        });
    }
}
