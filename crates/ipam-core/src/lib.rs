//! The address book of a cluster as pure functions: shards, plans, and the laws they keep.
//!
//! A shard is a state machine that one owner drives. Its only input is [`record::Record`], its only
//! mutator [`shard::Shard::apply`]; the state is the fold of the log, so it can be rebuilt anywhere.
//! The owner's loop, which lives in `ipam-service`, is:
//!
//! 1. [`plan::plan_node`] compares what a node wants with the shard and names the records to append.
//!    Records that start something are *intents*: they are durable before the cloud is asked.
//! 2. For each open operation [`step::next_step`] says which cloud call is due, and
//!    [`step::on_outcome`] turns the answer into records. After a restart the same two functions
//!    drive what was left open: there is no other path.
//! 3. What a node may use is said by committed `Held` records alone. [`inventory`] compares a node's
//!    own list with the shard, and turns its acknowledgements into records.
//! 4. [`clock::OwnerClock`] tells the time that `Tick` records carry; a cooldown ends by a committed
//!    tick, never by somebody's clock.
//!
//! Plans are made against a state to which all earlier records are applied. An owner that applies
//! before it commits must throw its copy away and load again when the commit fails, and must speak
//! to nobody about a record before it is committed.
//!
//! Words: a *slot* is one address of the shard; an ENI and an operation are named by the sequence
//! number of the record that started them; the *generation* of a grant is the number of its `Held`
//! record. No clock, no I/O, no runtime.
#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

pub mod clock;
pub mod eni;
pub mod invariants;
pub mod inventory;
pub mod plan;
pub mod pool;
pub mod record;
pub mod route;
pub mod shard;
pub mod slot;
pub mod spec;
pub mod step;
