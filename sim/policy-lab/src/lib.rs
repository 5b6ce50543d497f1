//! Machinery that proves the policy agent right.
