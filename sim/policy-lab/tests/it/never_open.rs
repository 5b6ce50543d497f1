//! The storm in the size of a CI run, and the two manners of writing that it must see leak.

use policy_lab::bed::hand::Manner;
use policy_lab::never_open::{self, Size};

/// Most updates until a leaky manner has to be noticed. The rate of leaks was one in some hundred updates.
const UPDATES: u64 = 30_000;
/// Denied packets in a second.
const RATE: u64 = 150_000;
/// Rules of another tool before ours, and denied packets in a second when each has to pass them.
const NEIGHBOUR: u32 = 30_000;
const SLOW_RATE: u64 = 600;
/// The slowest storm that counts, in denied packets in a second.
const RATE_MIN: f64 = 50_000.0;

// E10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_streams_deliver_nothing_whatever_happens_to_agents_and_tables() {
    let size = Size::CI;

    let report = never_open::run(size).await.unwrap();

    assert_eq!(report.denied_delivered, 0, "{report:?}");
    assert!(report.denied_sent >= size.denied_packets, "{report:?}");
    assert!(
        report.rate() >= RATE_MIN,
        "{} packets/s: {report:?}",
        report.rate()
    );
    assert!(
        report.updates >= size.updates && report.transactions >= 2 * size.updates,
        "{report:?}"
    );
    assert_eq!(
        (report.kills, report.crashes),
        (size.kills, size.crashes),
        "{report:?}"
    );
    assert_eq!(
        report.flushes_alive + report.flushes_dead,
        size.flushes,
        "{report:?}"
    );
    // What the idle control loses, the machine loses; beyond that nothing may be lost.
    let share = report.allowed_sent / report.idle_sent.max(1) + 1;
    assert!(
        report.allowed_lost <= report.idle_lost * share,
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_and_elements_in_one_transaction_leak_in_this_harness() {
    let report = never_open::leaky(Manner::OneTransaction, UPDATES, RATE, 0)
        .await
        .unwrap();

    assert!(
        report.denied_delivered > 0,
        "the harness does not see: {report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_table_leaks_in_this_harness() {
    let report = never_open::leaky(Manner::ReplaceTable, UPDATES, SLOW_RATE, NEIGHBOUR)
        .await
        .unwrap();

    assert!(
        report.denied_delivered > 0,
        "the harness does not see: {report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_in_their_order_leak_nothing_in_this_harness() {
    let report = never_open::leaky(Manner::Ordered, 3_000, RATE, 0)
        .await
        .unwrap();

    assert_eq!(report.denied_delivered, 0, "{report:?}");
    assert_eq!(report.updates, 3_000);
    let report = never_open::leaky(Manner::Ordered, 300, SLOW_RATE, NEIGHBOUR)
        .await
        .unwrap();
    assert_eq!(report.denied_delivered, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_flush_of_a_table_without_owner_is_closed_within_the_time_of_a_revocation() {
    let window = never_open::unowned_flush(60_000).await.unwrap();

    assert!(window.open.as_millis() < 1_500, "{window:?}");
}
