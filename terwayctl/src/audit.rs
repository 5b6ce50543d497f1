//! `terwayctl audit`: do cloud, shard logs, agents and kernels tell the same story?
//!
//! [`picture`] is what the four say; [`compare`] finds where they differ, without asking anybody;
//! [`collect`] asks; [`run`] is the command. An audit only reads.

pub mod collect;
pub mod compare;
pub mod picture;
pub mod run;
