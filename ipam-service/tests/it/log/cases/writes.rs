//! What is written: order, fences, lost answers, limits, replay.

use super::*;

// I1: a writer that was replaced changes nothing.
pub(crate) async fn append_after_another_claim_is_fenced(f: &mut impl LogFixture) {
    let (me, old) = claimed(f).await;
    f.end(&me).await;
    let other = f.replica("ipam-1").await;
    let claim = f.log().claim(&shard(), &other).await.unwrap();

    let err = f.log().append(&old, &batch(&["x"])).await.unwrap_err();

    assert_eq!(err, AppendError::Fenced);
    f.log().append(&claim.fence, &batch(&["a"])).await.unwrap();
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a"]));
}

pub(crate) async fn append_on_an_older_head_is_fenced(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    let old = fence.clone();
    append(f, &mut fence, &["a"]).await;

    let err = f.log().append(&old, &batch(&["x"])).await.unwrap_err();

    assert_eq!(err, AppendError::Fenced);
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a"]));
}

pub(crate) async fn append_of_two_writers_on_one_head_lets_one_through(f: &mut impl LogFixture) {
    let (_, fence) = claimed(f).await;
    let log = f.log();
    let (a, b) = (batch(&["a"]), batch(&["b"]));

    let (first, second) = tokio::join!(log.append(&fence, &a), log.append(&fence, &b));

    assert_eq!(
        [&first, &second].iter().filter(|r| r.is_ok()).count(),
        1,
        "{first:?} {second:?}"
    );
    assert_eq!(
        [&first, &second]
            .iter()
            .filter(|r| **r == &Err(AppendError::Fenced))
            .count(),
        1
    );
    assert_eq!(stored(f, &shard()).await.len(), 1);
}

pub(crate) async fn append_of_a_group_keeps_its_order(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;

    append(f, &mut fence, &["c", "a", "b"]).await;
    append(f, &mut fence, &["b"]).await;

    assert_eq!(fence.head.seq, Seq(4));
    assert_eq!(
        stored(f, &shard()).await,
        numbered(1, &["c", "a", "b", "b"])
    );
}

pub(crate) async fn append_of_nothing_is_refused(f: &mut impl LogFixture) {
    let (_, fence) = claimed(f).await;

    let err = f.log().append(&fence, &batch(&[])).await.unwrap_err();

    assert!(matches!(err, AppendError::Invalid(_)), "{err}");
}

// I4: the same batch sent twice is one.
pub(crate) async fn append_of_the_newest_batch_again_is_not_a_second_one(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    let before = fence.clone();
    let batch = append(f, &mut fence, &["a"]).await;

    let again = f.log().append(&before, &batch).await.unwrap();

    assert_eq!(again, fence.head);
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a"]));
}

pub(crate) async fn append_whose_answer_was_lost_is_committed(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let batch = batch(&["b"]);
    f.lose_answer(0);

    let lost = f.log().append(&fence, &batch).await;
    let outcome = f.log().resolve(&fence, batch.id).await.unwrap();

    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    let Outcome::Committed(head) = outcome else {
        panic!("{outcome:?}")
    };
    fence.head = head;
    append(f, &mut fence, &["c"]).await;
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a", "b", "c"]));
}

pub(crate) async fn append_whose_request_was_lost_is_not_committed(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let batch = batch(&["b"]);
    f.lose_request();

    let lost = f.log().append(&fence, &batch).await;
    let outcome = f.log().resolve(&fence, batch.id).await.unwrap();

    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    let Outcome::NotCommitted(head) = outcome else {
        panic!("{outcome:?}")
    };
    fence.head = head;
    // The same batch may be sent again.
    fence.head = f.log().append(&fence, &batch).await.unwrap();
    append(f, &mut fence, &["c"]).await;
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a", "b", "c"]));
}

// I1, I4: "not committed" is final.
pub(crate) async fn append_that_arrives_after_its_resolution_changes_nothing(
    f: &mut impl LogFixture,
) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let late = batch(&["late"]);
    f.hold_request();

    let lost = f.log().append(&fence, &late).await;
    let outcome = f.log().resolve(&fence, late.id).await.unwrap();
    f.deliver_late().await;

    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    let Outcome::NotCommitted(head) = outcome else {
        panic!("{outcome:?}")
    };
    fence.head = head;
    append(f, &mut fence, &["b"]).await;
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a", "b"]));
}

pub(crate) async fn resolve_after_another_claim_is_fenced(f: &mut impl LogFixture) {
    let (me, fence) = claimed(f).await;
    let batch = batch(&["a"]);
    f.lose_answer(0);
    let lost = f.log().append(&fence, &batch).await;
    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    f.end(&me).await;
    let other = f.replica("ipam-1").await;
    f.log().claim(&shard(), &other).await.unwrap();

    assert_eq!(
        f.log().resolve(&fence, batch.id).await,
        Err(AppendError::Fenced)
    );
}

pub(crate) async fn resolve_whose_answer_was_lost_can_be_repeated(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let batch = batch(&["b"]);
    f.lose_request();
    let lost = f.log().append(&fence, &batch).await;
    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    f.lose_answer(0);

    let first = f.log().resolve(&fence, batch.id).await;
    let second = f.log().resolve(&fence, batch.id).await.unwrap();

    assert!(matches!(first, Err(AppendError::Unknown(_))), "{first:?}");
    let Outcome::NotCommitted(head) = second else {
        panic!("{second:?}")
    };
    fence.head = head;
    append(f, &mut fence, &["c"]).await;
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a", "c"]));
}

/// Batches of all sorts; returns what must come back.
async fn write_a_lot(f: &impl LogFixture, fence: &mut Fence) -> Vec<Bytes> {
    let mut written = Vec::new();
    for round in 1..=30_usize {
        let records: Vec<Bytes> = (0..=round % 7)
            .map(|i| noise(round * i * 13 % 200))
            .collect();
        written.extend(records.clone());
        fence.head = f.log().append(fence, &Batch::new(records)).await.unwrap();
    }
    written
}

pub(crate) async fn replay_equals_what_was_appended(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;

    let written = write_a_lot(f, &mut fence).await;
    let claim = f.log().claim(&shard(), &me).await.unwrap();

    let seqs: Vec<u64> = claim.tail.iter().map(|r| r.seq.0).collect();
    let data: Vec<Bytes> = claim.tail.into_iter().map(|r| r.data).collect();
    assert_eq!(data, written);
    assert_eq!(seqs, (1..=fence.head.seq.0).collect::<Vec<_>>());
    assert_eq!(claim.fence.head, fence.head);
}

// I9: what was answered is there afterwards.
pub(crate) async fn replay_after_a_restart_of_the_process_equals_what_was_appended(
    f: &mut impl LogFixture,
) {
    let (_, mut fence) = claimed(f).await;
    let written = write_a_lot(f, &mut fence).await;

    f.restart().await;
    let me = f.replica("ipam-0").await;
    let claim = f.log().claim(&shard(), &me).await.unwrap();

    let data: Vec<Bytes> = claim.tail.into_iter().map(|r| r.data).collect();
    assert_eq!(data, written);
    assert!(claim.fence.epoch > fence.epoch);
    assert_eq!(
        f.log().append(&fence, &batch(&["x"])).await,
        Err(AppendError::Fenced)
    );
}

pub(crate) async fn append_over_one_and_a_half_mebibyte_is_too_large_and_below_is_not(
    f: &mut impl LogFixture,
) {
    let (_, mut fence) = claimed(f).await;

    let over = f
        .log()
        .append(&fence, &Batch::new(vec![noise(MAX_REQUEST_BYTES)]))
        .await;
    let below = Batch::new(vec![noise(MAX_REQUEST_BYTES - 1024)]);
    fence.head = f.log().append(&fence, &below).await.unwrap();

    assert!(
        matches!(over, Err(AppendError::TooLarge { what: "bytes", .. })),
        "{over:?}"
    );
    assert_eq!(fence.head.seq, Seq(1));
    let read = f.log().read(&shard()).await.unwrap();
    assert_eq!(read.tail[0].data, below.records[0]);
}

pub(crate) async fn damaged_batch_is_refused_and_the_shard_stays_free(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    append(f, &mut fence, &["b"]).await;
    let key = f.keys().log(&shard(), Seq(1));
    let mut bytes = value(f, &key).await.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    plant(f, put(key.clone(), Bytes::from(bytes))).await;
    f.log().release(&fence).await.unwrap();
    let other = f.replica("ipam-1").await;

    let err = f.log().claim(&shard(), &other).await.unwrap_err();
    let read = f.log().read(&shard()).await.unwrap_err();

    assert!(
        matches!(&err, ClaimError::Corrupt(why) if why.contains(&key)),
        "{err}"
    );
    assert!(matches!(read, ReadError::Corrupt(_)), "{read}");
    let own = Txn::read(vec![Op::Get(f.keys().own(&shard()))]);
    assert_eq!(f.bare().txn(own).await.unwrap().reads[0], []);
}

pub(crate) async fn missing_batch_is_refused(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    append(f, &mut fence, &["b"]).await;
    append(f, &mut fence, &["c"]).await;
    plant(f, Op::Delete(f.keys().log(&shard(), Seq(2)))).await;

    let err = f.log().claim(&shard(), &me).await.unwrap_err();

    assert!(matches!(err, ClaimError::Corrupt(_)), "{err}");
}
