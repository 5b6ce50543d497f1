//! Tests that fill the machine or measure time, one after the other: what one of them does to the kernel's shared
//! locks would show in the figures of the next one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]
#![expect(
    clippy::print_stdout,
    reason = "tests print their seeds and what they counted"
)]

mod never_open;
mod pod_starts;
mod revocation;

use tokio::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this program runs.
async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}
