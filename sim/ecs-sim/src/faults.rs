//! Faults that are injected into calls.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::time::Tick;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// The call is refused as the real cloud throttles it.
    Throttle,
    /// The call takes longer.
    Delay {
        /// By how much, in milliseconds.
        ms: u64,
    },
    /// The call has its effect, then the connection closes without an answer.
    LoseAnswer,
    /// The connection closes and nothing was done.
    LoseRequest,
    /// Status 500, and nothing was done.
    InternalError,
    /// Status 500, although the call had its effect.
    InternalErrorAfterEffect,
    /// Describe of ENIs shows the past.
    StaleDescribe {
        /// How far back, in milliseconds.
        lag_ms: u64,
    },
    /// The call is refused with this.
    Refuse {
        /// HTTP status, 400 to 599.
        status: u16,
        /// The code.
        code: String,
        /// The message.
        message: String,
    },
}

/// A fault, which calls it strikes, and for how long. Without `times` and `for_ms` it stays until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Name of the action; absent means all.
    #[serde(default)]
    pub action: Option<String>,
    /// What goes wrong.
    pub effect: Effect,
    /// Matching calls that pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many calls are struck after that.
    #[serde(default)]
    pub times: Option<u32>,
    /// For how long from now, in milliseconds.
    #[serde(default)]
    pub for_ms: Option<u64>,
}

impl Fault {
    /// Strikes every call of the action until it is removed.
    pub fn on(action: ecs_api::action::Action, effect: Effect) -> Self {
        Self {
            action: Some(action.name().to_owned()),
            ..Self::everywhere(effect)
        }
    }

    /// Strikes every call until it is removed.
    pub fn everywhere(effect: Effect) -> Self {
        Self {
            action: None,
            effect,
            skip: 0,
            times: None,
            for_ms: None,
        }
    }

    /// Strikes only so many calls.
    #[must_use]
    pub fn times(self, n: u32) -> Self {
        Self {
            times: Some(n),
            ..self
        }
    }

    /// Lets so many matching calls pass first.
    #[must_use]
    pub fn after(self, n: u32) -> Self {
        Self { skip: n, ..self }
    }

    /// Ends after this time.
    #[must_use]
    pub fn during(self, time: Duration) -> Self {
        Self {
            for_ms: Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..self
        }
    }
}

/// Names an injected fault, to remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FaultId(pub u64);

/// The faults that are in force.
#[derive(Debug, Default)]
pub struct FaultSet {
    next: u64,
    armed: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    id: FaultId,
    fault: Fault,
    until: Option<Tick>,
}

impl FaultSet {
    /// Adds one, from `now` on.
    pub fn inject(&mut self, fault: Fault, now: Tick) -> FaultId {
        self.next = self.next.saturating_add(1);
        let id = FaultId(self.next);
        let until = fault.for_ms.map(|ms| now.after(Duration::from_millis(ms)));
        self.armed.push(Armed { id, fault, until });
        id
    }

    /// Removes one. False if it is gone already.
    pub fn remove(&mut self, id: FaultId) -> bool {
        let before = self.armed.len();
        self.armed.retain(|armed| armed.id != id);
        self.armed.len() != before
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.armed.clear();
    }

    /// Those in force.
    pub fn list(&self) -> Vec<(FaultId, Fault)> {
        self.armed
            .iter()
            .map(|armed| (armed.id, armed.fault.clone()))
            .collect()
    }

    /// What strikes a call of `action` at `now`, in the order of injection. Counts it.
    pub fn strike(&mut self, action: &str, now: Tick) -> Vec<Effect> {
        self.armed
            .retain(|armed| armed.until.is_none_or(|until| now < until));
        let mut effects = Vec::new();
        for Armed { fault, .. } in &mut self.armed {
            if fault.action.as_deref().is_some_and(|name| name != action) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if let Some(times) = &mut fault.times {
                *times = times.saturating_sub(1);
            }
            effects.push(fault.effect.clone());
        }
        self.armed
            .retain(|armed| armed.fault.skip > 0 || armed.fault.times != Some(0));
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_with_a_count_strikes_after_its_skips_and_then_ends() {
        let mut faults = FaultSet::default();
        let fault = Fault::everywhere(Effect::Throttle).after(1).times(2);
        faults.inject(fault, Tick(0));

        let struck: Vec<_> = (0..5).map(|_| faults.strike("A", Tick(0)).len()).collect();

        assert_eq!(struck, [0, 1, 1, 0, 0]);
    }

    #[test]
    fn fault_with_a_duration_ends_with_it() {
        let mut faults = FaultSet::default();
        let fault = Fault::everywhere(Effect::LoseAnswer).during(Duration::from_millis(10));
        faults.inject(fault, Tick(0));

        assert_eq!(faults.strike("A", Tick(9)).len(), 1);
        assert!(faults.strike("A", Tick(10)).is_empty());
    }

    #[test]
    fn fault_on_one_action_spares_the_others() {
        let mut faults = FaultSet::default();
        let action = ecs_api::action::Action::AttachNetworkInterface;
        faults.inject(Fault::on(action, Effect::InternalError), Tick(0));

        assert!(faults.strike("DetachNetworkInterface", Tick(0)).is_empty());
        assert_eq!(
            faults.strike(action.name(), Tick(0)),
            [Effect::InternalError]
        );
    }
}
