//! One feed from sources that come and go.

use policy_core::object::Event;
use tokio::sync::mpsc;

use crate::feed::Batch;
use crate::feed::keys::Keys;

/// Nobody reads the feed any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed;

/// The feed's writing end. It outlives its sources.
#[derive(Debug)]
pub(super) struct Output {
    sender: mpsc::Sender<Batch>,
    keys: Keys,
    /// The source is telling its state.
    telling: bool,
    /// Of the newest batch after which the reader had everything.
    sequence: u64,
}

impl Output {
    pub(super) fn new(sender: mpsc::Sender<Batch>) -> Self {
        Self {
            sender,
            keys: Keys::default(),
            telling: true,
            sequence: 0,
        }
    }

    /// A source begins to tell its state from the start.
    pub(super) const fn begin(&mut self) {
        self.keys.begin();
        self.telling = true;
    }

    /// Hands a batch of the source on; with the one that ends its state goes what vanished meanwhile.
    ///
    /// # Cancel safety
    /// Cancel-safe: until the reader has room nothing is noted.
    pub(super) async fn deliver(&mut self, mut batch: Batch) -> Result<(), Closed> {
        let room = self.sender.reserve().await.map_err(|_| Closed)?;
        for event in &batch.events {
            match event {
                Event::Upsert(object) => self.keys.see(object),
                Event::Delete(key) => self.keys.forget(key),
            }
        }
        if batch.synced {
            if self.telling {
                batch
                    .events
                    .extend(self.keys.sweep().into_iter().map(Event::Delete));
            }
            self.telling = false;
            self.sequence = batch.sequence;
        } else {
            batch.sequence = self.sequence;
        }
        room.send(batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy_core::object::{Labels, Namespace, Object, ObjectKey};

    use super::*;
    use crate::feed::channel;

    fn batch(sequence: u64, synced: bool, names: &[&str]) -> Batch {
        let event = |name: &&str| {
            Event::Upsert(Object::Namespace(Namespace {
                name: Arc::from(*name),
                labels: Labels::new(),
            }))
        };
        Batch {
            sequence,
            synced,
            events: names.iter().map(event).collect(),
            seen_at_ms: 0,
        }
    }

    #[tokio::test]
    async fn second_source_deletes_what_it_does_not_have() {
        let (sender, mut feed) = channel();
        let mut output = Output::new(sender);
        output.deliver(batch(5, true, &["a", "b"])).await.unwrap();
        output.begin();
        output.deliver(batch(0, false, &["b"])).await.unwrap();
        output.deliver(batch(9, true, &["c"])).await.unwrap();

        let first = feed.next().await.unwrap();
        let second = feed.next().await.unwrap();
        let third = feed.next().await.unwrap();

        assert_eq!((first.sequence, first.events.len()), (5, 2));
        assert_eq!(
            (second.sequence, second.synced, second.events.len()),
            (5, false, 1)
        );
        assert_eq!((third.sequence, third.synced), (9, true));
        assert_eq!(
            third.events[1..],
            [Event::Delete(ObjectKey::Namespace("a".into()))]
        );
    }

    #[tokio::test]
    async fn delivery_that_is_given_up_loses_no_deletion() {
        let (sender, mut feed) = channel();
        let mut output = Output::new(sender.clone());
        output.deliver(batch(1, true, &["a"])).await.unwrap();
        let mut filled = 0;
        while sender.try_send(batch(1, true, &[])).is_ok() {
            filled += 1;
        }
        output.begin();
        let given_up = output.deliver(batch(2, true, &[]));
        assert!(futures::FutureExt::now_or_never(given_up).is_none());
        for _ in 0..=filled {
            feed.next().await.unwrap();
        }

        output.begin();
        output.deliver(batch(3, true, &[])).await.unwrap();

        let last = feed.next().await.unwrap();
        assert_eq!(
            last.events,
            [Event::Delete(ObjectKey::Namespace("a".into()))]
        );
    }
}
