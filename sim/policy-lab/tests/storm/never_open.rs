//! The storm in the size of a CI run, and the two manners of writing that it must see leak.

use policy_lab::bed::hand::Manner;
use policy_lab::never_open::{self, Report, Size};

/// Most updates until a leaky manner has to be noticed. One in some hundred updates leaks.
const UPDATES: u64 = 10_000;
/// Denied packets in a second.
const RATE: u64 = 150_000;
/// Rules of another tool at the end of each way before ours: a packet needs some milliseconds for them all.
const NEIGHBOUR: u32 = 40;
/// Denied packets in a second when each has to pass them.
const SLOW_RATE: u64 = 120;

fn assert_kept(report: &Report, size: &Size) {
    for (kept, text) in report.promises(size) {
        assert!(kept, "{text}: {report:?}");
    }
}

// E10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_streams_deliver_nothing_whatever_happens_to_agents_and_tables() {
    let _turn = crate::turn().await;
    let report = never_open::run(Size::CI).await.unwrap();

    assert_kept(&report, &Size::CI);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_streams_deliver_nothing_where_tables_have_no_owner() {
    let _turn = crate::turn().await;
    let size = Size {
        updates: 200,
        denied_packets: 200_000,
        kills: 6,
        crashes: 4,
        flushes: 0,
        pods: 6,
        ..Size::CI
    };

    let report = never_open::run_unowned(size).await.unwrap();

    assert_kept(&report, &size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_and_elements_in_one_transaction_leak_in_this_harness() {
    let _turn = crate::turn().await;
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
    let _turn = crate::turn().await;
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
    let _turn = crate::turn().await;
    for (updates, rate, neighbour) in [(1_000, RATE, 0), (500, SLOW_RATE, NEIGHBOUR)] {
        let report = never_open::leaky(Manner::Ordered, updates, rate, neighbour)
            .await
            .unwrap();

        assert_eq!(report.denied_delivered, 0, "{report:?}");
        assert_eq!(report.updates, updates);
        assert!(report.denied_sent > 0, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_flush_of_a_table_without_owner_is_closed_within_the_time_of_a_revocation() {
    let _turn = crate::turn().await;
    let window = never_open::unowned_flush(60_000).await.unwrap();

    println!(
        "a foreign flush is open for {:?}: {} packets",
        window.open, window.delivered
    );
    assert!(window.open.as_millis() < 1_500, "{window:?}");
}
