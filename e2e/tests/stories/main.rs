//! Stories with real binaries, a real kernel and a simulated cloud. They need root.

mod bad_input;
mod connectivity;
mod crashes;
mod exhaustion;
mod library;
mod lifecycle;
mod planted;
mod policy;
mod readme;
mod replicas;
mod whole;
