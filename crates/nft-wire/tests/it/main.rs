//! The wire against bytes that `nft` sent and that a kernel answered, against random input, and
//! against a kernel in a network namespace that is made and removed here. The last needs root and
//! `nft`, and fails without.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, what can not go on may stop where it stands"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks the messages that it is about"
)]

mod cross_read;
mod golden;
mod hostile;
mod random;
mod sample;
