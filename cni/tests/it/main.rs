//! The plug-in as the runtime starts it, against an agent that answers as it is told.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, what can not go on may stop where it stands"
)]

mod agent;
mod chain;
mod inputs;
mod installing;
mod plugin;
mod verbs;
