//! Which established flows have to be judged again. Whoever changes rules widens it, the revoker takes it: it is
//! never more than one thing to do, however much happens meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy_core::engine::Disturbance;
use policy_core::flow::Flow;
use tokio::sync::Notify;

/// With more addresses than this, all flows are looked at: comparing costs more than judging then.
const FEW: usize = 4096;

/// A set of flows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Rules of local pods changed: it should be soon. Addresses that merely came and went can be looked at together.
    pub prompt: bool,
    /// It was looked at once: no further look is planned.
    pub second: bool,
    /// All flows of local pods.
    pub everything: bool,
    /// Flows with one of these addresses at either end.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that no local pod has any more: their entries are deleted.
    pub gone: BTreeSet<IpAddr>,
}

impl Scope {
    /// All flows.
    pub const fn everything() -> Self {
        Self {
            prompt: true,
            second: false,
            everything: true,
            addresses: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    /// What a change of rules disturbed.
    pub fn of(disturbance: Disturbance) -> Self {
        let prompt = !disturbance.locals.is_empty();
        let mut addresses = disturbance.locals;
        addresses.extend(disturbance.lost);
        addresses.extend(disturbance.gained);
        let mut scope = Self {
            prompt,
            second: false,
            everything: false,
            addresses,
            gone: disturbance.gone,
        };
        scope.bound();
        scope
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.addresses.is_empty() && self.gone.is_empty()
    }

    /// Takes in another one.
    pub fn widen(&mut self, other: Self) {
        // Two that were both looked at once need no third look; one that is new does.
        self.second = other.second && (self.second || self.is_empty());
        self.prompt |= other.prompt;
        self.everything |= other.everything;
        self.addresses.extend(other.addresses);
        self.gone.extend(other.gone);
        self.bound();
    }

    /// Whether the flow is in it.
    pub fn holds(&self, flow: &Flow) -> bool {
        self.everything
            || self.addresses.contains(&flow.source)
            || self.addresses.contains(&flow.destination)
    }

    fn bound(&mut self) {
        if self.addresses.len() > FEW {
            self.everything = true;
        }
        if self.everything {
            self.addresses.clear();
        }
    }
}

/// The scope that waits to be looked at. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    scope: Mutex<Scope>,
    more: Notify,
}

impl Pending {
    /// Widens it and wakes who waits.
    pub fn add(&self, scope: Scope) {
        if scope.is_empty() {
            return;
        }
        self.lock().widen(scope);
        self.inner.more.notify_one();
    }

    /// Waits until there is something in it, and says whether that is prompt.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn filled(&self) -> bool {
        loop {
            {
                let scope = self.lock();
                if !scope.is_empty() {
                    return scope.prompt;
                }
            }
            self.inner.more.notified().await;
        }
    }

    /// Waits until it is widened.
    ///
    /// # Cancel safety
    /// Cancel-safe. One who waits is woken, no more.
    pub async fn widened(&self) {
        self.inner.more.notified().await;
    }

    /// Takes what is in it now.
    pub fn take(&self) -> Scope {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Scope> {
        // A scope has no state in between.
        self.inner
            .scope
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use policy_core::flow::Protocol;

    use super::*;

    fn ip(last: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + last).to_be_bytes())
    }

    fn of(addresses: impl IntoIterator<Item = u32>) -> Scope {
        Scope {
            addresses: addresses.into_iter().map(ip).collect(),
            ..Scope::default()
        }
    }

    #[tokio::test]
    async fn changes_that_come_meanwhile_are_one_thing_to_do() {
        let pending = Pending::default();
        for number in 0..100 {
            pending.add(of([number % 3]));
        }

        assert!(!pending.filled().await);
        assert_eq!(pending.take(), of([0, 1, 2]));
        assert!(pending.take().is_empty());
    }

    #[test]
    fn very_many_addresses_are_everything() {
        let mut scope = of(0..4000);
        scope.widen(of(4000..5000));

        assert!(scope.everything);
        assert!(scope.addresses.is_empty());
    }

    #[test]
    fn scope_holds_flows_of_either_end() {
        let flow = Flow {
            source: ip(1),
            destination: ip(2),
            protocol: Protocol::TCP,
            port: 80,
        };

        assert!(of([1]).holds(&flow) && of([2]).holds(&flow));
        assert!(!of([3]).holds(&flow));
        assert!(Scope::everything().holds(&flow));
    }
}
