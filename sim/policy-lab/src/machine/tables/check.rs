//! What the kernel checks of a transaction as a whole.

use std::collections::{BTreeMap, BTreeSet};

use nft_wire::chain::Hook;
use nft_wire::expr::Expr;

use super::{Fault, Tables, fault};
use crate::machine::refusal::Errno;

/// The kernel's limit of jumps within each other.
const JUMPS: usize = 16;
/// Hooks that a reject can be reached from.
const REJECTS: [Hook; 4] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output];

impl Tables {
    /// What the kernel checks of the whole: no circles, no too deep jumps, rejects where they are legal, ranges that
    /// do not overlap.
    pub(super) fn check(&self) -> Result<(), Fault> {
        for set in self.sets.values() {
            if set.set.flags.interval && set.set.key.len() == 1 && !set.members.ranges_take_turns()
            {
                return fault(Errno::Exists, format!("ranges of {} overlap", set.set.name));
            }
        }
        let mut seen = BTreeMap::new();
        for (id, state) in &self.chains {
            if let Some(base) = &state.chain.base {
                self.walk(*id, base.hook, 0, &mut seen)?;
            }
        }
        Ok(())
    }

    /// Follows jumps; `seen` has the deepest level at which a chain was walked for a hook.
    fn walk(
        &self,
        id: u64,
        hook: Hook,
        depth: usize,
        seen: &mut BTreeMap<(u64, Hook), usize>,
    ) -> Result<(), Fault> {
        if depth > JUMPS {
            return fault(Errno::Deep, "jumps too deep, or in a circle");
        }
        if seen
            .get(&(id, hook))
            .is_some_and(|deepest| *deepest >= depth)
        {
            return Ok(());
        }
        seen.insert((id, hook), depth);
        for law in self.rules(id) {
            for (expr, refers) in law.rule.exprs.iter().zip(&law.refers) {
                if matches!(expr, Expr::Reject(_)) && !REJECTS.contains(&hook) {
                    return fault(Errno::Unsupported, "reject at this hook");
                }
                for target in self.targets(expr, *refers) {
                    self.walk(target, hook, depth + 1, seen)?;
                }
            }
        }
        Ok(())
    }

    /// The chains that an expression can lead to.
    fn targets(&self, expr: &Expr, refers: Option<u64>) -> BTreeSet<u64> {
        if matches!(expr, Expr::Verdict(_)) {
            return refers.into_iter().collect();
        }
        refers
            .filter(|_| matches!(expr, Expr::Vmap { .. }))
            .and_then(|id| self.sets.get(&id))
            .into_iter()
            .flat_map(|map| map.members.targets())
            .collect()
    }
}
