//! `terwayctl` as a person runs it.

// Said so that lints see helpers here as what they are, too: test code.
#[cfg(test)]
mod ca;
#[cfg(test)]
mod issuer;
#[cfg(test)]
mod keep;
#[cfg(test)]
mod status;
