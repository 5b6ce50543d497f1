//! One conformance suite for the shard log: the same cases on memory, redb and a real etcd.

use std::process::Command;

mod cases;
mod fixture;

use fixture::{EtcdFixture, MemoryFixture, RedbFixture};

/// Makes one test of each case for each store.
macro_rules! conformance {
    ($($case:ident)*) => {
        /// In memory; answers are lost by a wrapper.
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(&mut super::MemoryFixture::start().await).await;
            })*
        }

        /// One file; answers are lost by a wrapper.
        mod redb {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(&mut super::RedbFixture::start().await).await;
            })*
        }

        /// A real etcd; answers are lost by a proxy on the wire.
        mod etcd {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(&mut super::EtcdFixture::start().await).await;
            })*
        }
    };
}

conformance! {
    claim_of_a_fresh_shard_is_empty
    claim_of_an_owned_shard_names_the_owner
    claim_after_the_owner_died_has_a_higher_epoch_and_all_records
    claim_by_the_owner_itself_ends_its_older_fence
    claim_by_a_later_life_of_the_owner_does_not_wait
    claim_with_an_ended_session_is_refused
    claim_whose_answer_was_lost_is_settled_by_claiming_again
    claim_of_one_shard_leaves_others_alone
    append_after_another_claim_is_fenced
    append_on_an_older_head_is_fenced
    append_of_two_writers_on_one_head_lets_one_through
    append_of_a_group_keeps_its_order
    append_of_nothing_is_refused
    append_of_the_newest_batch_again_is_not_a_second_one
    append_whose_answer_was_lost_is_committed
    append_whose_request_was_lost_is_not_committed
    append_that_arrives_after_its_resolution_changes_nothing
    resolve_after_another_claim_is_fenced
    resolve_whose_answer_was_lost_can_be_repeated
    replay_equals_what_was_appended
    replay_after_a_restart_of_the_process_equals_what_was_appended
    index_key_is_taken_by_one_shard_only
    index_conflict_fails_its_own_batch_only
    index_key_given_back_is_free_for_another
    index_key_of_another_shard_is_not_given_back
    index_change_whose_answer_was_lost_is_committed_once
    index_keys_are_listed_by_prefix_with_their_holders
    index_key_twice_in_one_batch_is_refused
    append_of_129_operations_is_too_large_and_of_128_is_not
    append_over_one_and_a_half_mebibyte_is_too_large_and_below_is_not
    snapshot_is_where_the_replay_begins
    snapshot_inside_a_batch_keeps_the_rest_of_it
    snapshot_that_is_not_newer_changes_nothing
    snapshot_beyond_the_head_is_refused
    snapshot_of_an_older_owner_is_fenced
    snapshot_of_many_pieces_comes_back_whole
    snapshot_whose_answer_was_lost_can_be_repeated
    strays_of_an_unfinished_snapshot_are_passed_over
    transfer_moves_the_shard_in_one_step
    transfer_to_a_dead_replica_leaves_the_shard
    transfer_by_an_older_owner_is_fenced
    release_frees_the_shard_at_once
    read_without_a_claim_sees_all_and_disturbs_nobody
    damaged_batch_is_refused_and_the_shard_stays_free
    missing_batch_is_refused
    damaged_snapshot_is_refused
    random_histories_agree_with_a_plain_list
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the figure that the suite is asked for"
)]
fn every_store_runs_the_same_cases() {
    let list = Command::new(std::env::current_exe().unwrap())
        .arg("--list")
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let of = |store: &str| -> Vec<String> {
        let prefix = format!("log::{store}::");
        list.lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect()
    };

    let (memory, redb, etcd) = (of("memory"), of("redb"), of("etcd"));

    println!(
        "cases: memory {}, redb {}, etcd {}",
        memory.len(),
        redb.len(),
        etcd.len()
    );
    assert_eq!(memory, redb);
    assert_eq!(memory, etcd);
    assert_eq!(memory.len(), 47);
}
