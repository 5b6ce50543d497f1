//! Pods that start under fire.

use policy_lab::pod_starts;

/// Starts of a CI run.
const STARTS: u64 = 300;

// E6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_starts_under_fire_gets_no_packet_before_its_policy_and_loses_no_answer() {
    let _turn = crate::turn().await;
    let report = pod_starts::run(STARTS).await.unwrap();

    assert_eq!(report.starts, STARTS);
    assert_eq!(report.denied_delivered, 0, "{report:?}");
    assert_eq!(report.lost, 0, "{report:?}");
    assert!(
        report.denied_sent > 100 * STARTS,
        "the fire was too thin: {}",
        report.denied_sent
    );
    assert!(report.asked >= 6 * STARTS);
}
