//! The gateway against the simulated cloud over loopback HTTP.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod account;
mod life;
mod load;
mod lost;
mod process;
mod refusals;
mod wire;
mod world;
