use proptest::prelude::*;

use super::*;

fn op(sequence: u64, epoch: u64) -> OpKey {
    OpKey {
        shard: ShardKey {
            authority: "cluster-a".to_owned(),
            shard: "vsw-1.0".to_owned(),
        },
        sequence,
        epoch,
    }
}

fn registry(max_running: usize, max_finished: usize) -> Arc<Registry<u32>> {
    Registry::new(max_running, max_finished, Arc::new(Metrics::default()))
}

fn run(registry: &Arc<Registry<u32>>, op: &OpKey) -> Slot<u32> {
    let Entry::Run(slot) = registry.enter(op, [0; 32]).unwrap() else {
        panic!("runs or ran already");
    };
    slot
}

#[test]
fn token_is_the_same_for_every_owner_of_the_shard() {
    assert_eq!(
        op(7, 1).client_token("create"),
        op(7, 2).client_token("create")
    );
}

#[test]
fn token_differs_by_step_sequence_shard_and_authority() {
    let base = op(7, 1);
    let mut other_shard = base.clone();
    other_shard.shard.shard = "vsw-1.1".to_owned();
    let mut other_authority = base.clone();
    other_authority.shard.authority = "cluster-b".to_owned();

    let tokens = [
        base.client_token("create"),
        base.client_token("assign"),
        op(8, 1).client_token("create"),
        other_shard.client_token("create"),
        other_authority.client_token("create"),
    ];

    for (n, token) in tokens.iter().enumerate() {
        assert!(!tokens[n + 1..].contains(token), "{tokens:?}");
    }
}

proptest! {
    #[test]
    fn token_is_short_ascii_whatever_the_key(
        authority in ".*", shard in ".*", step in ".*", sequence: u64,
    ) {
        let op = OpKey { shard: ShardKey { authority, shard }, sequence, epoch: 0 };

        let token = op.client_token(&step);

        prop_assert!(token.len() <= 64 && token.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}

#[test]
fn call_with_the_key_of_a_running_operation_joins_it() {
    let registry = registry(10, 10);
    let slot = run(&registry, &op(1, 1));

    let second = registry.enter(&op(1, 1), [0; 32]).unwrap();
    slot.finish(Ok(5));

    let Entry::Join(result) = second else {
        panic!("{second:?}");
    };
    assert_eq!(*result.borrow(), Some(Ok(5)));
}

#[test]
fn finished_operation_answers_without_running_again() {
    let registry = registry(10, 10);
    run(&registry, &op(1, 1)).finish(Ok(5));

    assert!(matches!(
        registry.enter(&op(1, 1), [0; 32]),
        Ok(Entry::Done(5))
    ));
}

#[test]
fn failed_operation_may_be_tried_again() {
    let registry = registry(10, 10);
    run(&registry, &op(1, 1)).finish(Err(Failure::Unavailable {
        what: String::new(),
    }));

    assert!(matches!(
        registry.enter(&op(1, 1), [0; 32]),
        Ok(Entry::Run(_))
    ));
}

#[test]
fn key_with_other_parameters_is_refused() {
    let registry = registry(10, 10);
    let slot = run(&registry, &op(1, 1));
    assert!(matches!(
        registry.enter(&op(1, 1), [1; 32]),
        Err(Failure::Invalid { .. })
    ));

    slot.finish(Ok(5));

    assert!(matches!(
        registry.enter(&op(1, 1), [1; 32]),
        Err(Failure::Invalid { .. })
    ));
}

// I: the second line of the fence: the work of older owners is dropped at the gateway.
#[test]
fn older_epoch_after_a_newer_one_is_stale() {
    let registry = registry(10, 10);
    run(&registry, &op(1, 5)).finish(Ok(1));

    let refused = registry.enter(&op(2, 4), [0; 32]);

    assert!(
        matches!(
            refused,
            Err(Failure::EpochStale {
                epoch: 4,
                seen: 5,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn fence_drops_the_queued_and_names_what_was_sent() {
    let registry = registry(10, 10);
    let queued = run(&registry, &op(1, 1));
    let sent = run(&registry, &op(2, 1));
    sent.fence().note_sent();

    let on_wire = registry.fence(&op(0, 0).shard, 2).unwrap();

    assert_eq!(on_wire, [2]);
    assert!(queued.fence().is_raised() && sent.fence().is_raised());
    assert!(registry.fence(&op(0, 0).shard, 1).is_err());
}

#[test]
fn operation_that_the_new_owner_asks_for_too_goes_on() {
    let registry = registry(10, 10);
    let same = run(&registry, &op(1, 1));
    let other = run(&registry, &op(2, 1));

    assert!(matches!(
        registry.enter(&op(1, 2), [0; 32]),
        Ok(Entry::Join(_))
    ));

    assert!(!same.fence().is_raised());
    assert!(other.fence().is_raised());
}

#[test]
fn operation_that_died_leaves_its_key_free() {
    let registry = registry(10, 10);
    let slot = run(&registry, &op(1, 1));
    let waiting = slot.subscribe();

    drop(slot);

    assert!(waiting.has_changed().is_err());
    assert!(matches!(
        registry.enter(&op(1, 1), [0; 32]),
        Ok(Entry::Run(_))
    ));
}

#[test]
fn more_operations_than_may_run_are_shed() {
    let registry = registry(1, 10);
    let _slot = run(&registry, &op(1, 1));

    assert!(matches!(
        registry.enter(&op(2, 1), [0; 32]),
        Err(Failure::Overloaded { .. })
    ));
}

#[test]
fn memory_of_finished_operations_is_bounded() {
    let registry = registry(10, 2);
    for sequence in 1..=3 {
        run(&registry, &op(sequence, 1)).finish(Ok(5));
    }

    assert!(matches!(
        registry.enter(&op(1, 1), [0; 32]),
        Ok(Entry::Run(_))
    ));
    assert!(matches!(
        registry.enter(&op(3, 1), [0; 32]),
        Ok(Entry::Done(5))
    ));
}
