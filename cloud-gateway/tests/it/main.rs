//! The gateway against the simulated cloud over loopback HTTP.

mod account;
mod life;
mod load;
mod lost;
mod refusals;
mod wire;
mod world;
