//! Names of the places between two effects at which a debug build can be made to die.
//!
//! Armed by `TERWAY_CRASH_AT`; see `mesh::crash`. A replica that dies at any of them comes back to the same answer,
//! because what it was doing stands in the log (I8).

/// Where a replica can be made to die.
pub const CRASH_POINTS: &[&str] = &[
    "ipam.claim.after_commit",
    "ipam.fence.after_call",
    "ipam.append.before_commit",
    "ipam.append.after_commit",
    "ipam.snapshot.after_commit",
    "ipam.intent.after_commit",
    "ipam.create.before_call",
    "ipam.create.after_call",
    "ipam.attach.before_call",
    "ipam.attach.after_call",
    "ipam.assign.before_call",
    "ipam.assign.after_call",
    "ipam.held.after_commit",
    "ipam.grant.before_send",
    "ipam.revoke.after_commit",
    "ipam.revoke.before_send",
    "ipam.revoked.after_commit",
    "ipam.unassign.before_call",
    "ipam.unassign.after_call",
    "ipam.detach.before_call",
    "ipam.detach.after_call",
    "ipam.delete.before_call",
    "ipam.delete.after_call",
    "ipam.gone.after_commit",
];

#[cfg(test)]
mod tests {
    use super::CRASH_POINTS;

    #[test]
    fn crash_points_have_distinct_names() {
        let mut names = CRASH_POINTS.to_vec();
        names.sort_unstable();
        names.dedup();

        assert_eq!(names.len(), CRASH_POINTS.len());
        assert!(names.iter().all(|n| n.starts_with("ipam.")));
    }
}
