//! Calls per minute and action, in fixed windows of one minute.

use std::collections::BTreeMap;

use ecs_api::action::Action;
use types::time::Tick;

use crate::refusal::Refusal;

/// Length of a window in milliseconds.
///
/// Source: ECS API throttling: an action refused in one minute can be called again in the next.
const WINDOW_MS: u64 = 60_000;

/// The budgets of the account.
#[derive(Debug, Default)]
pub struct Quotas {
    per_minute: BTreeMap<String, u32>,
    used: BTreeMap<Action, Window>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Window {
    number: u64,
    calls: u32,
}

impl Quotas {
    /// Default budgets, except for the named actions.
    pub fn new(per_minute: BTreeMap<String, u32>) -> Self {
        Self {
            per_minute,
            used: BTreeMap::new(),
        }
    }

    /// Sets the budget of one action.
    pub fn set(&mut self, action: Action, per_minute: u32) {
        self.per_minute.insert(action.name().to_owned(), per_minute);
    }

    /// Takes one call from the budget.
    ///
    /// # Errors
    /// `Throttling.User` with the time left in the window when there is none.
    pub fn take(&mut self, action: Action, now: Tick) -> Result<(), Refusal> {
        let quota = self
            .per_minute
            .get(action.name())
            .copied()
            .unwrap_or_else(|| action.default_quota_per_minute());
        let number = now.0 / WINDOW_MS;
        let window = self.used.entry(action).or_default();
        if window.number != number {
            *window = Window { number, calls: 0 };
        }
        if window.calls >= quota {
            return Err(Refusal::throttled(WINDOW_MS - now.0 % WINDOW_MS));
        }
        window.calls = window.calls.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: Action = Action::CreateNetworkInterface;

    #[test]
    fn call_over_the_budget_is_throttled_until_the_next_minute() {
        let mut quotas = Quotas::default();
        quotas.set(ACTION, 2);

        assert!(quotas.take(ACTION, Tick(59_000)).is_ok());
        assert!(quotas.take(ACTION, Tick(59_100)).is_ok());
        let refusal = quotas.take(ACTION, Tick(59_400)).unwrap_err();
        assert_eq!(refusal.code, "Throttling.User");
        assert_eq!(refusal.retry_after_ms, Some(600));
        assert!(quotas.take(ACTION, Tick(60_000)).is_ok());
    }

    #[test]
    fn call_of_another_action_has_its_own_budget() {
        let mut quotas = Quotas::default();
        quotas.set(ACTION, 0);

        assert!(quotas.take(ACTION, Tick(0)).is_err());
        assert!(quotas.take(Action::DeleteNetworkInterface, Tick(0)).is_ok());
    }
}
