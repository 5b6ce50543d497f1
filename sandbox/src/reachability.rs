//! Who reaches whom: every place dials every other, over every family.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use fabric::error::FabricError;
use fabric::namespace::Namespace;
use futures::stream::{StreamExt, TryStreamExt};

use crate::echo::{Dial, Outcome, dial_all};

/// How many namespaces dial at once.
const DIALERS: usize = 4;

/// Something with addresses and a server: a pod, a node, a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// For messages; also what its server answers.
    pub name: String,
    /// Where it dials from.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// One connection that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Name of the dialer.
    pub from: String,
    /// Name of the dialed.
    pub to: String,
    /// The address that was dialed.
    pub target: IpAddr,
    /// What came of it.
    pub outcome: Outcome,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from, to, target, ..
        } = self;
        match &self.outcome {
            Outcome::Reached => write!(f, "{from} reached {to} at {target}"),
            Outcome::Wrong { name } => write!(f, "{from} wanted {to} at {target}, got {name}"),
            Outcome::Failed { why } => write!(f, "{from} did not reach {to} at {target}: {why}"),
        }
    }
}

/// All attempts of one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matrix {
    /// In no particular order.
    pub attempts: Vec<Attempt>,
}

impl Matrix {
    /// Those that did not reach whom they should.
    pub fn failures(&self) -> Vec<&Attempt> {
        let failed = |a: &&Attempt| !a.outcome.is_reached();
        self.attempts.iter().filter(failed).collect()
    }
}

/// Each of `from` dials all addresses of each of `to` but itself.
pub async fn all_pairs(
    from: &[Place],
    to: &[Place],
    limit: Duration,
) -> Result<Matrix, FabricError> {
    let rows: Vec<Vec<Attempt>> = futures::stream::iter(from)
        .map(|dialer| row(dialer, to, limit))
        .buffer_unordered(DIALERS)
        .try_collect()
        .await?;
    Ok(Matrix {
        attempts: rows.into_iter().flatten().collect(),
    })
}

async fn row(from: &Place, to: &[Place], limit: Duration) -> Result<Vec<Attempt>, FabricError> {
    let targets: Vec<_> = to
        .iter()
        .filter(|place| place.name != from.name)
        .flat_map(|place| place.addresses.iter().map(move |ip| (place, *ip)))
        .collect();
    let dials = targets
        .iter()
        .map(|(place, target)| Dial {
            source: None,
            target: *target,
            expect: place.name.clone(),
        })
        .collect();
    let outcomes = dial_all(&from.namespace, dials, limit).await?;
    Ok(targets
        .into_iter()
        .zip(outcomes)
        .map(|((place, target), outcome)| Attempt {
            from: from.name.clone(),
            to: place.name.clone(),
            target,
            outcome,
        })
        .collect())
}
