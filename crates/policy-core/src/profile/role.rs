//! What the members of a set of far ends do to what passes.
//!
//! A packet looks sets up one after the other, and a transaction can become visible between two of them. What it meets
//! is then neither the old nor the new state but a mixture, and the mixture must not pass what both deny. Where one
//! transaction only takes rights away, or only gives some, every mixture lies between the two states. So one selector
//! has a set for each role in which rules use it, and sets of different roles change in different transactions.

use crate::policy::Action;

/// A role of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Who is in it may do more: the far ends of Accept, and those that Deny leaves out.
    Permits,
    /// Who is in it may do less: the far ends of Deny, and those that Accept leaves out.
    Restricts,
    /// Whoever is in it is judged by other rules: the far ends of Pass.
    Leads,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Permits, Self::Restricts, Self::Leads];

    /// Of a set that a rule with this action looks in; `inverted`: for those that are not in it.
    pub const fn of(action: Action, inverted: bool) -> Self {
        match (action, inverted) {
            (Action::Accept, false) | (Action::Deny, true) | (Action::Log, _) => Self::Permits,
            (Action::Accept, true) | (Action::Deny, false) => Self::Restricts,
            (Action::Pass, _) => Self::Leads,
        }
    }

    /// What a set's name says of its role, behind kind and family.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Permits => "",
            Self::Restricts => "d",
            Self::Leads => "s",
        }
    }

    /// Role, and whether it is of IPv4, of a set of far ends by its name; `None` for any other name.
    pub fn of_name(name: &str) -> Option<(Self, bool)> {
        let (kind, _) = name.split_once('_')?;
        let rest = kind.strip_prefix(['p', 'n'])?;
        let (v4, letter) = match rest.strip_prefix('4') {
            Some(letter) => (true, letter),
            None => (false, rest.strip_prefix('6')?),
        };
        let role = Self::ALL.into_iter().find(|role| role.letter() == letter)?;
        Some((role, v4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_set_says_role_and_family() {
        assert_eq!(Role::of_name("p4_0a"), Some((Role::Permits, true)));
        assert_eq!(Role::of_name("n6d_0a"), Some((Role::Restricts, false)));
        assert_eq!(Role::of_name("p6s_0a_1"), Some((Role::Leads, false)));
        for other in ["pm_0a", "b4_0a", "p5_0a", "pods4", "p4x_0a", "denied4"] {
            assert_eq!(Role::of_name(other), None, "{other}");
        }
    }
}
