//! Tests of the laboratory.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]
#![expect(
    clippy::print_stderr,
    reason = "tests print their seeds and what they counted"
)]

mod bed;
mod incremental;
mod interleaving;
mod kernel_cases;
mod kernel_random;
mod model;
mod mutations;
mod special_addresses;
mod upstream;
