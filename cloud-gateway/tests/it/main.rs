//! The gateway against the simulated cloud over loopback HTTP.

#[cfg(test)]
mod account;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod life;
#[cfg(test)]
mod load;
#[cfg(test)]
mod lost;
#[cfg(test)]
mod process;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod wire;
#[cfg(test)]
mod world;
