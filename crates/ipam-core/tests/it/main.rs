//! A shard driven against a simulated cloud and simulated nodes, through the crate's public functions.

#[cfg(test)]
mod cloud;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod node;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod wholes;
#[cfg(test)]
mod world;
