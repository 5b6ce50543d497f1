//! Machinery that proves the policy agent right.
pub mod bed;
pub mod cases;
pub mod machine;
pub mod model;
pub mod mutation;
pub mod never_open;
pub mod pod_starts;
pub mod probe;
pub mod random;
pub mod stream;
pub mod talk;
