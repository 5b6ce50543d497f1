//! What is to be done about an authority, from what the Secret holds and the time. No I/O.
//!
//! A new authority is first trusted and only later used: a step lasts twice the life of a certificate, in which
//! everybody has asked for a new one and got the bundle with it. Then the new one issues, and the old one is trusted
//! for another such time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::secret::Secret;
use x509_parser::pem::Pem;

/// A certificate of an authority and its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: Secret,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate && self.key.expose() == other.key.expose()
    }
}

/// What a Secret holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Who issues.
    pub current: Option<Pair>,
    /// Who is trusted already and will issue.
    pub next: Option<Pair>,
    /// Who is trusted still, PEM, besides these two.
    pub old: Vec<String>,
    /// When the last step was taken.
    pub step: Option<SystemTime>,
}

/// Times of authorities.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Life of a certificate.
    pub leaf: Duration,
    /// Life of an authority.
    pub authority: Duration,
}

impl Times {
    /// How long a step lasts at least.
    const fn settled(&self) -> Duration {
        self.leaf.saturating_mul(2)
    }
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing is to be done.
    Rest,
    /// There is no authority: make the first one.
    Begin,
    /// Make the next one, and trust it.
    Prepare,
    /// Let the next one issue, and trust the old one still.
    Switch,
    /// Trust the old ones no more.
    Forget,
}

/// What is to be done now.
pub fn step(kept: &Kept, times: &Times, now: SystemTime) -> Step {
    let Some(current) = &kept.current else {
        return Step::Begin;
    };
    let end = not_after(&current.certificate).unwrap_or(UNIX_EPOCH);
    let left = end.duration_since(now).unwrap_or_default();
    let since = kept.step.and_then(|at| now.duration_since(at).ok());
    // Without a time nothing is known to be settled, unless the clock went back: then it is waited for once more.
    let settled = since.is_some_and(|since| since >= times.settled());
    if kept.next.is_some() {
        // An authority about to end must not issue, settled or not.
        return if settled || left < times.leaf {
            Step::Switch
        } else {
            Step::Rest
        };
    }
    if left < times.authority / 3 {
        return Step::Prepare;
    }
    if !kept.old.is_empty() && settled {
        return Step::Forget;
    }
    Step::Rest
}

/// Takes a step. `fresh` makes an authority.
///
/// # Errors
/// Whatever `fresh` says.
pub fn take<E>(
    step: Step,
    mut kept: Kept,
    now: SystemTime,
    fresh: impl FnOnce() -> Result<Pair, E>,
) -> Result<Kept, E> {
    match step {
        Step::Rest => return Ok(kept),
        Step::Begin => kept.current = Some(fresh()?),
        Step::Prepare => kept.next = Some(fresh()?),
        Step::Switch => {
            let before = std::mem::replace(&mut kept.current, kept.next.take());
            kept.old.extend(before.map(|pair| pair.certificate));
        }
        Step::Forget => kept.old.clear(),
    }
    kept.step = Some(now);
    Ok(kept)
}

impl Kept {
    /// All that are trusted, PEM: who issues first.
    pub fn bundle(&self) -> String {
        let pairs = [&self.current, &self.next].into_iter().flatten();
        let all = pairs.map(|pair| &pair.certificate).chain(&self.old);
        let mut bundle = String::new();
        for one in all {
            bundle.push_str(one.trim());
            bundle.push('\n');
        }
        bundle
    }
}

/// The end of the first certificate of a PEM text.
pub fn not_after(pem: &str) -> Option<SystemTime> {
    let first = Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?;
    let certificate = first.parse_x509().ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// The certificates of a PEM text, one by one, as they stand.
pub fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END)
        .filter(|part| part.contains(END))
        .map(|part| format!("{}\n", part.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use mesh::ca::{Authority, CaError};
    use mesh::clock;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const TIMES: Times = Times {
        leaf: DAY,
        authority: Duration::from_hours(24 * 90),
    };

    fn fresh() -> Result<Pair, CaError> {
        let made = Authority::new(TIMES.authority)?;
        Ok(Pair {
            certificate: made.certificate().to_owned(),
            key: made.key().clone(),
        })
    }

    fn go(kept: Kept, now: SystemTime) -> (Step, Kept) {
        let step = step(&kept, &TIMES, now);
        (step, take(step, kept, now, fresh).unwrap())
    }

    #[test]
    fn authority_goes_through_its_life_step_by_step() {
        let start = clock::wall();
        let (first, kept) = go(Kept::default(), start);
        assert_eq!(first, Step::Begin);
        let old = kept.current.clone().unwrap().certificate;
        assert_eq!(go(kept.clone(), start + DAY * 50).0, Step::Rest);

        // A third of its life is left: the next one is trusted, and does not issue.
        let (prepared, kept) = go(kept, start + DAY * 61);
        assert_eq!(prepared, Step::Prepare);
        assert_eq!(kept.current.as_ref().unwrap().certificate, old);
        let next = kept.next.clone().unwrap().certificate;
        assert_eq!(kept.bundle(), format!("{}\n{}\n", old.trim(), next.trim()));
        assert_eq!(go(kept.clone(), start + DAY * 62).0, Step::Rest);

        // Everybody trusts it: it issues, and the old one is trusted still.
        let (switched, kept) = go(kept, start + DAY * 63);
        assert_eq!(switched, Step::Switch);
        assert_eq!(kept.current.as_ref().unwrap().certificate, next);
        assert_eq!(kept.bundle(), format!("{}\n{}\n", next.trim(), old.trim()));
    }

    #[test]
    fn old_authority_is_forgotten_when_all_have_certificates_of_the_new_one() {
        let now = clock::wall();
        let kept = Kept {
            current: Some(fresh().unwrap()),
            next: None,
            old: vec!["old".to_owned()],
            step: Some(now),
        };

        assert_eq!(step(&kept, &TIMES, now + DAY), Step::Rest);
        let (last, kept) = go(kept, now + DAY * 2);
        assert_eq!(last, Step::Forget);
        assert!(kept.old.is_empty());
    }

    #[test]
    fn authority_at_its_end_is_replaced_although_the_next_one_is_young() {
        let start = clock::wall();
        let now = start + DAY * 90 - DAY / 2;
        let kept = Kept {
            current: Some(fresh().unwrap()),
            next: Some(fresh().unwrap()),
            old: Vec::new(),
            step: Some(now),
        };

        assert_eq!(step(&kept, &TIMES, now), Step::Switch);
    }

    #[test]
    fn key_is_not_in_a_debug_print() {
        let kept = Kept {
            current: Some(fresh().unwrap()),
            ..Kept::default()
        };

        let shown = format!("{kept:?}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
        assert!(shown.contains("BEGIN CERTIFICATE"), "{shown}");
    }

    #[test]
    fn bundle_is_split_into_its_certificates() {
        let (a, b) = (fresh().unwrap().certificate, fresh().unwrap().certificate);

        let parts = split(&format!("# comment\n{a}\n{b}"));

        assert_eq!(parts.len(), 2);
        assert!(parts[1].trim() == b.trim());
        assert!(split("nothing").is_empty());
    }
}
