//! Snapshots: where they cut, what they leave, how large they may be.

use super::*;

fn state(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// Number of keys that begin with `prefix`.
async fn count(f: &impl LogFixture, prefix: &str) -> usize {
    let read = Txn::read(vec![Op::prefix(prefix)]);
    f.bare().txn(read).await.unwrap().reads[0].len()
}

pub(crate) async fn snapshot_is_where_the_replay_begins(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    append(f, &mut fence, &["b", "c"]).await;
    f.log()
        .snapshot(&fence, Seq(3), state("abc"))
        .await
        .unwrap();
    append(f, &mut fence, &["d"]).await;

    let claim = f.log().claim(&shard(), &me).await.unwrap();

    let snapshot = claim.snapshot.unwrap();
    assert_eq!((snapshot.upto, snapshot.state), (Seq(3), state("abc")));
    assert_eq!(texts(&claim.tail), numbered(4, &["d"]));
    assert_eq!(count(f, &f.keys().log_all(&shard())).await, 1);
}

pub(crate) async fn snapshot_inside_a_batch_keeps_the_rest_of_it(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a", "b", "c"]).await;
    f.log().snapshot(&fence, Seq(2), state("ab")).await.unwrap();

    let claim = f.log().claim(&shard(), &me).await.unwrap();

    assert_eq!(claim.snapshot.unwrap().upto, Seq(2));
    assert_eq!(texts(&claim.tail), numbered(3, &["c"]));
}

pub(crate) async fn snapshot_that_is_not_newer_changes_nothing(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a", "b"]).await;
    f.log()
        .snapshot(&fence, Seq(2), state("new"))
        .await
        .unwrap();

    f.log()
        .snapshot(&fence, Seq(1), state("old"))
        .await
        .unwrap();
    f.log()
        .snapshot(&fence, Seq(2), state("again"))
        .await
        .unwrap();

    let snapshot = f.log().read(&shard()).await.unwrap().snapshot.unwrap();
    assert_eq!((snapshot.upto, snapshot.state), (Seq(2), state("new")));
}

pub(crate) async fn snapshot_beyond_the_head_is_refused(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;

    let err = f
        .log()
        .snapshot(&fence, Seq(2), state("x"))
        .await
        .unwrap_err();

    assert!(matches!(err, AppendError::Invalid(_)), "{err}");
}

pub(crate) async fn snapshot_of_an_older_owner_is_fenced(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    f.log().claim(&shard(), &me).await.unwrap();

    let err = f
        .log()
        .snapshot(&fence, Seq(1), state("x"))
        .await
        .unwrap_err();

    assert_eq!(err, AppendError::Fenced);
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a"]));
}

pub(crate) async fn snapshot_of_many_pieces_comes_back_whole(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    // Two pieces in one transaction; ten in several; one again.
    for (upto, len, pieces) in [
        (1, SNAPSHOT_CHUNK_BYTES + 1, 2),
        (2, 10 * SNAPSHOT_CHUNK_BYTES - 99, 10),
        (3, 1, 1),
    ] {
        append(f, &mut fence, &["a"]).await;

        f.log()
            .snapshot(&fence, Seq(upto), noise(len))
            .await
            .unwrap();

        let snapshot = f.log().read(&shard()).await.unwrap().snapshot.unwrap();
        assert_eq!(snapshot.upto, Seq(upto));
        assert!(snapshot.state == noise(len), "{len} bytes differ");
        // Pieces of the one before are gone.
        assert_eq!(count(f, &f.keys().snap_all(&shard())).await, pieces);
    }
}

pub(crate) async fn snapshot_whose_answer_was_lost_can_be_repeated(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    f.lose_answer(1);

    let lost = f.log().snapshot(&fence, Seq(1), state("a")).await;
    f.log().snapshot(&fence, Seq(1), state("a")).await.unwrap();

    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    append(f, &mut fence, &["b"]).await;
    let read = f.log().read(&shard()).await.unwrap();
    assert_eq!(read.snapshot.unwrap().state, state("a"));
    assert_eq!(texts(&read.tail), numbered(2, &["b"]));
}

// I8: an owner that dies between the pieces of a snapshot leaves nothing that confuses the next one.
pub(crate) async fn strays_of_an_unfinished_snapshot_are_passed_over(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let stray = value(f, &f.keys().log(&shard(), Seq(1))).await;
    f.log().snapshot(&fence, Seq(1), state("a")).await.unwrap();
    append(f, &mut fence, &["b"]).await;
    plant(f, put(f.keys().log(&shard(), Seq(1)), stray)).await;
    for chunk in [0, 1, 9] {
        plant(f, put(f.keys().snap(&shard(), 2, chunk), state("half"))).await;
    }

    let claim = f.log().claim(&shard(), &me).await.unwrap();
    f.log()
        .snapshot(&claim.fence, Seq(2), state("ab"))
        .await
        .unwrap();

    assert_eq!(claim.snapshot.unwrap().state, state("a"));
    assert_eq!(texts(&claim.tail), numbered(2, &["b"]));
    let read = f.log().read(&shard()).await.unwrap();
    assert_eq!(read.snapshot.unwrap().state, state("ab"));
    assert_eq!(count(f, &f.keys().snap_all(&shard())).await, 1);
    assert_eq!(count(f, &f.keys().log_all(&shard())).await, 0);
}

pub(crate) async fn damaged_snapshot_is_refused(f: &mut impl LogFixture) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    f.log().snapshot(&fence, Seq(1), state("a")).await.unwrap();
    plant(
        f,
        put(f.keys().snap(&shard(), 1, 0), state("not what was written")),
    )
    .await;

    let err = f.log().claim(&shard(), &me).await.unwrap_err();

    assert!(matches!(err, ClaimError::Corrupt(_)), "{err}");
}
