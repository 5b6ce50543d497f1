//! Index keys: taken once across all shards, in the transaction of the batch.

use super::*;

/// Two shards with an owner each.
async fn two(f: &impl LogFixture) -> (Fence, Fence) {
    let (me, one) = claimed(f).await;
    let other = f.log().claim(&other_shard(), &me).await.unwrap().fence;
    (one, other)
}

async fn take(f: &impl LogFixture, fence: &mut Fence, name: &str) {
    let index = IndexChange::take(key(name), fence.head.seq.next());
    fence.head = f
        .log()
        .append_with_index(fence, &batch(&[name]), &index)
        .await
        .unwrap();
}

async fn listed(f: &impl LogFixture, prefix: &str) -> Vec<(String, ShardId, u64)> {
    let entries = f.log().list_index(prefix).await.unwrap();
    entries
        .into_iter()
        .map(|e| (e.key.as_str().to_owned(), e.holder.shard, e.holder.op.0))
        .collect()
}

// I10: two shards cannot both take the last ENI slot of an instance.
pub(crate) async fn index_key_is_taken_by_one_shard_only(f: &mut impl LogFixture) {
    let (mut one, other) = two(f).await;
    take(f, &mut one, "eni/i-1/0").await;

    let index = IndexChange::take(key("eni/i-1/0"), Seq(1));
    let err = f
        .log()
        .append_with_index(&other, &batch(&["x"]), &index)
        .await
        .unwrap_err();

    let AppendError::Conflict { key, holder } = err else {
        panic!("{err}")
    };
    assert_eq!(key.as_str(), "eni/i-1/0");
    assert_eq!((holder.shard, holder.op), (shard(), Seq(1)));
}

pub(crate) async fn index_conflict_fails_its_own_batch_only(f: &mut impl LogFixture) {
    let (mut one, mut other) = two(f).await;
    take(f, &mut one, "eni/i-1/0").await;
    let index = IndexChange {
        create: vec![(key("eni/i-1/1"), Seq(1)), (key("eni/i-1/0"), Seq(1))],
        delete: Vec::new(),
    };

    let err = f
        .log()
        .append_with_index(&other, &batch(&["x"]), &index)
        .await
        .unwrap_err();
    // The same head still holds: nothing was written.
    take(f, &mut other, "eni/i-1/1").await;

    assert!(matches!(err, AppendError::Conflict { .. }), "{err}");
    assert_eq!(stored(f, &other_shard()).await, numbered(1, &["eni/i-1/1"]));
}

pub(crate) async fn index_key_given_back_is_free_for_another(f: &mut impl LogFixture) {
    let (mut one, mut other) = two(f).await;
    take(f, &mut one, "eni/i-1/0").await;

    let give = IndexChange::give_back(key("eni/i-1/0"));
    one.head = f
        .log()
        .append_with_index(&one, &batch(&["gone"]), &give)
        .await
        .unwrap();
    take(f, &mut other, "eni/i-1/0").await;
    // It belongs to the other now; giving back what is already free is no error.
    let absent = IndexChange::give_back(key("eni/i-1/7"));
    one.head = f
        .log()
        .append_with_index(&one, &batch(&["again"]), &absent)
        .await
        .unwrap();

    assert_eq!(
        listed(f, "eni/").await,
        [("eni/i-1/0".to_owned(), other_shard(), 1)]
    );
}

pub(crate) async fn index_key_of_another_shard_is_not_given_back(f: &mut impl LogFixture) {
    let (mut one, other) = two(f).await;
    take(f, &mut one, "eni/i-1/0").await;

    let give = IndexChange::give_back(key("eni/i-1/0"));
    let err = f
        .log()
        .append_with_index(&other, &batch(&["x"]), &give)
        .await
        .unwrap_err();

    assert!(matches!(err, AppendError::Conflict { .. }), "{err}");
    assert_eq!(listed(f, "eni/").await.len(), 1);
    assert_eq!(stored(f, &other_shard()).await, []);
}

// I4: a lost answer neither takes a slot twice nor loses it.
pub(crate) async fn index_change_whose_answer_was_lost_is_committed_once(f: &mut impl LogFixture) {
    let (_, mut fence) = claimed(f).await;
    let batch = batch(&["a"]);
    let index = IndexChange::take(key("eni/i-1/0"), Seq(1));
    f.lose_answer(0);

    let lost = f.log().append_with_index(&fence, &batch, &index).await;
    let again = f
        .log()
        .append_with_index(&fence, &batch, &index)
        .await
        .unwrap();

    assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    fence.head = again;
    assert_eq!(fence.head.seq, Seq(1));
    assert_eq!(listed(f, "").await, [("eni/i-1/0".to_owned(), shard(), 1)]);
}

pub(crate) async fn index_keys_are_listed_by_prefix_with_their_holders(f: &mut impl LogFixture) {
    let (mut one, mut other) = two(f).await;
    for (fence, name) in [
        (0, "eni/i-1/1"),
        (1, "eni/i-1/0"),
        (0, "eni/i-10/0"),
        (1, "fix/c/pod"),
    ] {
        take(f, if fence == 0 { &mut one } else { &mut other }, name).await;
    }

    let instance: types::cloud::InstanceId = "i-1".parse().unwrap();
    let entries = f
        .log()
        .list_index(&IndexKey::eni_prefix(&instance))
        .await
        .unwrap();

    let slots: Vec<_> = entries.iter().map(|e| e.key.eni_index().unwrap()).collect();
    assert_eq!(slots, [0, 1]);
    assert_eq!(entries[0].holder.shard, other_shard());
    assert_eq!(listed(f, "").await.len(), 4);
}

pub(crate) async fn index_key_twice_in_one_batch_is_refused(f: &mut impl LogFixture) {
    let (_, fence) = claimed(f).await;
    let index = IndexChange {
        create: vec![(key("eni/i-1/0"), Seq(1)), (key("eni/i-1/0"), Seq(2))],
        delete: Vec::new(),
    };

    let err = f
        .log()
        .append_with_index(&fence, &batch(&["a", "b"]), &index)
        .await
        .unwrap_err();

    assert!(matches!(err, AppendError::Invalid(_)), "{err}");
    assert_eq!(stored(f, &shard()).await, []);
}

pub(crate) async fn append_of_129_operations_is_too_large_and_of_128_is_not(
    f: &mut impl LogFixture,
) {
    let (_, mut fence) = claimed(f).await;
    let of = |n: usize| IndexChange {
        create: (0..n)
            .map(|i| (key(&format!("eni/i-1/{i}")), Seq(1)))
            .collect(),
        delete: Vec::new(),
    };

    let over = f
        .log()
        .append_with_index(&fence, &batch(&["a"]), &of(MAX_INDEX_KEYS + 1))
        .await;
    fence.head = f
        .log()
        .append_with_index(&fence, &batch(&["a"]), &of(MAX_INDEX_KEYS))
        .await
        .unwrap();

    let too_large = AppendError::TooLarge {
        what: "operations",
        is: 129,
        most: 128,
    };
    assert_eq!(over, Err(too_large));
    assert_eq!(listed(f, "eni/i-1/").await.len(), 126);
}
