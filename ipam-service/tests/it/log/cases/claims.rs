//! Who may write: claims, transfers, releases, reads.

use super::*;

pub(crate) async fn claim_of_a_fresh_shard_is_empty(f: &mut impl LogFixture) {
    let me = f.replica("ipam-0").await;

    let claim = f.log().claim(&shard(), &me).await.unwrap();

    assert_eq!(claim.fence.head, Head::default());
    assert!(claim.fence.epoch.0 > 0);
    assert_eq!(claim.snapshot, None);
    assert_eq!(claim.tail, []);
}

// I1: one writer.
pub(crate) async fn claim_of_an_owned_shard_names_the_owner(f: &mut impl LogFixture) {
    let (me, fence) = claimed(f).await;
    let other = f.replica("ipam-1").await;

    let err = f.log().claim(&shard(), &other).await.unwrap_err();

    let ClaimError::Owned(owner) = err else {
        panic!("{err}")
    };
    assert_eq!(owner.replica, me);
    assert_eq!(owner.epoch, fence.epoch);
}

// I8: a crash of the owner loses nothing that was answered.
pub(crate) async fn claim_after_the_owner_died_has_a_higher_epoch_and_all_records(
    f: &mut impl LogFixture,
) {
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a", "b"]).await;
    append(f, &mut fence, &["c"]).await;
    f.end(&me).await;
    let other = f.replica("ipam-1").await;

    let claim = f.log().claim(&shard(), &other).await.unwrap();

    assert!(claim.fence.epoch > fence.epoch);
    assert_eq!(claim.fence.head, fence.head);
    assert_eq!(texts(&claim.tail), numbered(1, &["a", "b", "c"]));
}

pub(crate) async fn claim_by_the_owner_itself_ends_its_older_fence(f: &mut impl LogFixture) {
    let (me, old) = claimed(f).await;

    let claim = f.log().claim(&shard(), &me).await.unwrap();

    assert!(claim.fence.epoch > old.epoch);
    assert_eq!(
        f.log().append(&old, &batch(&["x"])).await,
        Err(AppendError::Fenced)
    );
    f.log().append(&claim.fence, &batch(&["y"])).await.unwrap();
}

pub(crate) async fn claim_by_a_later_life_of_the_owner_does_not_wait(f: &mut impl LogFixture) {
    let (first, old) = claimed(f).await;
    let second = f.replica("ipam-0").await;
    assert_ne!(first.session, second.session);

    let claim = f.log().claim(&shard(), &second).await.unwrap();
    f.end(&first).await;

    // The end of the first session does not take the shard from the second.
    f.log().append(&claim.fence, &batch(&["y"])).await.unwrap();
    assert_eq!(
        f.log().append(&old, &batch(&["x"])).await,
        Err(AppendError::Fenced)
    );
}

pub(crate) async fn claim_with_an_ended_session_is_refused(f: &mut impl LogFixture) {
    let me = f.replica("ipam-0").await;
    f.end(&me).await;

    let err = f.log().claim(&shard(), &me).await.unwrap_err();

    assert_eq!(err, ClaimError::SessionEnded);
    assert_eq!(f.log().read(&shard()).await.unwrap().owner, None);
}

pub(crate) async fn claim_whose_answer_was_lost_is_settled_by_claiming_again(
    f: &mut impl LogFixture,
) {
    let me = f.replica("ipam-0").await;
    f.lose_answer(0);

    let lost = f.log().claim(&shard(), &me).await;
    let again = f.log().claim(&shard(), &me).await.unwrap();

    assert!(matches!(lost, Err(ClaimError::Unknown(_))), "{lost:?}");
    f.log().append(&again.fence, &batch(&["a"])).await.unwrap();
}

pub(crate) async fn claim_of_one_shard_leaves_others_alone(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let other = f.replica("ipam-1").await;

    let claim = f.log().claim(&other_shard(), &other).await.unwrap();
    f.log().append(&claim.fence, &batch(&["b"])).await.unwrap();
    append(f, &mut fence, &["c"]).await;

    assert_eq!(claim.tail, []);
    assert_eq!(stored(f, &shard()).await, numbered(1, &["a", "c"]));
    assert_eq!(stored(f, &other_shard()).await, numbered(1, &["b"]));
}

pub(crate) async fn transfer_moves_the_shard_in_one_step(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let to = f.replica("ipam-1").await;
    let third = f.replica("ipam-2").await;

    f.log().transfer(&fence, &to).await.unwrap();
    let between = f.log().claim(&shard(), &third).await;
    let claim = f.log().claim(&shard(), &to).await.unwrap();

    assert!(matches!(between, Err(ClaimError::Owned(owner)) if owner.replica == to));
    assert_eq!(
        f.log().append(&fence, &batch(&["x"])).await,
        Err(AppendError::Fenced)
    );
    assert_eq!(texts(&claim.tail), numbered(1, &["a"]));
    f.log().append(&claim.fence, &batch(&["b"])).await.unwrap();
}

pub(crate) async fn transfer_to_a_dead_replica_leaves_the_shard(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    let to = f.replica("ipam-1").await;
    f.end(&to).await;

    let err = f.log().transfer(&fence, &to).await.unwrap_err();

    assert_eq!(err, HandOverError::TargetGone);
    append(f, &mut fence, &["a"]).await;
}

pub(crate) async fn transfer_by_an_older_owner_is_fenced(f: &mut impl LogFixture) {
    let (me, old) = claimed(f).await;
    let Claim { fence, .. } = f.log().claim(&shard(), &me).await.unwrap();
    let to = f.replica("ipam-1").await;

    assert_eq!(
        f.log().transfer(&old, &to).await,
        Err(HandOverError::Fenced)
    );
    assert_eq!(f.log().release(&old).await, Err(HandOverError::Fenced));

    f.log().append(&fence, &batch(&["a"])).await.unwrap();
}

pub(crate) async fn release_frees_the_shard_at_once(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a"]).await;
    let other = f.replica("ipam-1").await;

    f.log().release(&fence).await.unwrap();
    let claim = f.log().claim(&shard(), &other).await.unwrap();

    assert!(claim.fence.epoch > fence.epoch);
    assert_eq!(
        f.log().append(&fence, &batch(&["x"])).await,
        Err(AppendError::Fenced)
    );
    assert_eq!(f.log().release(&fence).await, Err(HandOverError::Fenced));
}

pub(crate) async fn read_without_a_claim_sees_all_and_disturbs_nobody(f: &mut impl LogFixture) {
    let empty = f.log().read(&shard()).await.unwrap();
    let (me, mut fence) = claimed(f).await;
    append(f, &mut fence, &["a", "b"]).await;
    f.log()
        .snapshot(&fence, Seq(1), Bytes::from_static(b"state"))
        .await
        .unwrap();

    let read = f.log().read(&shard()).await.unwrap();

    assert_eq!(
        (empty.owner, empty.head, empty.tail),
        (None, Head::default(), Vec::new())
    );
    let owner = read.owner.unwrap();
    assert_eq!((owner.replica, owner.epoch), (me, fence.epoch));
    assert_eq!(read.head, fence.head);
    assert_eq!(read.snapshot.unwrap().state, "state");
    assert_eq!(texts(&read.tail), numbered(2, &["b"]));
    append(f, &mut fence, &["c"]).await;
}
