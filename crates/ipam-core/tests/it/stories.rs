//! Small stories: what the owner does for one node, step by step.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipam_core::eni::EniState;
use ipam_core::inventory::{self, HeldEni};
use ipam_core::plan::Shortage;
use ipam_core::record::Record;
use ipam_core::shard::apply::ApplyError;
use ipam_core::shard::{EniPlace, PlaceChange};
use ipam_core::slot::{Slot, SlotSet, SlotState};
use ipam_core::spec::Mode;
use ipam_core::step::{Call, Outcome, next_step, on_outcome};
use types::address::{Family, Stack};
use types::op::Seq;
use types::quota::EniQuota;
use types::time::Tick;

use crate::cloud::Fault;
use crate::world::{QUOTA, SETTLE, World, instance};

fn world() -> World {
    World::new(Mode::Exclusive)
}

fn want(world: &mut World, node: usize, pods: u32) {
    world.nodes.get_mut(&instance(node)).unwrap().want = pods;
}

/// A node with `pods` pods' worth of addresses, everything at rest.
fn settled(pods: u32) -> World {
    let mut world = world();
    want(&mut world, 0, pods);
    world.settle();
    world
}

fn names(records: &[Record]) -> Vec<&'static str> {
    records.iter().map(Record::name).collect()
}

#[test]
fn node_that_wants_one_pod_gets_a_full_eni() {
    let mut world = world();
    want(&mut world, 0, 1);

    let plan = world.plan(&instance(0));

    let [
        Record::EniIntent {
            primary,
            slots,
            quota_index,
            ..
        },
    ] = plan.records.as_slice()
    else {
        panic!("{:?}", plan.records);
    };
    assert_eq!((*primary, *quota_index), (1, 0));
    assert_eq!(slots.count(Family::V4), 13);
    assert_eq!(slots.count(Family::V6), 13);
    assert_eq!(plan.shortage, None);
}

// The create call takes ten explicit addresses of a family beside the primary one; the remaining IPv4
// follows while the ENI is Available, the remaining IPv6 after InUse.
#[test]
fn bring_up_keeps_to_the_limits_of_each_call() {
    let mut world = world();
    want(&mut world, 0, 13);
    let _plan = world.plan(&instance(0));

    let mut calls = Vec::new();
    while let Some(step) = world.steps().first().cloned() {
        calls.push(match &step.call {
            Call::Create { ipv4, ipv6, .. } => format!("create 1+{}/{}", ipv4.len(), ipv6.len()),
            Call::Assign { ipv4, ipv6, .. } => format!("assign {}/{}", ipv4.len(), ipv6.len()),
            Call::Attach { .. } => "attach".to_owned(),
            Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. } => "other".to_owned(),
        });
        world.drive(&step, Fault::None);
    }

    assert_eq!(
        calls,
        ["create 1+10/10", "assign 2/0", "attach", "assign 0/3"]
    );
    world.settle();
    assert_eq!(world.pods(&instance(0)), 13);
}

#[test]
fn eni_of_a_small_type_needs_no_assign_call() {
    let quota = EniQuota {
        ipv4_per_eni: 6,
        ipv6_per_eni: 6,
        ..QUOTA
    };
    let mut world = World::with("10.0.0.0/26", Mode::Exclusive, quota);
    want(&mut world, 0, 6);

    world.settle();

    assert_eq!(world.pods(&instance(0)), 6);
    assert_eq!(world.log.len(), 4, "intent, created, attached, held");
}

// I2: what a node may use is granted only after the ENI is attached.
#[test]
fn nothing_is_held_before_the_eni_is_attached() {
    let mut world = world();
    want(&mut world, 0, 1);
    let _plan = world.plan(&instance(0));

    for _ in 0..2 {
        let step = world.steps().remove(0);
        world.drive(&step, Fault::None);
        assert!(world.shard.grants_of(&instance(0)).is_empty());
    }
}

#[test]
fn want_for_two_enis_creates_both_at_once() {
    let mut world = world();
    want(&mut world, 0, 20);

    let plan = world.plan(&instance(0));

    assert_eq!(names(&plan.records), ["eni-intent", "eni-intent"]);
    assert_eq!(world.look(&instance(0)).records, []);
}

// I10.
#[test]
fn want_past_the_quota_is_an_eni_limit() {
    let mut world = world();
    want(&mut world, 0, 27);

    let plan = world.plan(&instance(0));

    assert_eq!(names(&plan.records), ["eni-intent", "eni-intent"]);
    assert_eq!(plan.shortage, Some(Shortage::EniLimit));
}

// I10: places that other shards have taken are not ours.
#[test]
fn place_of_another_shard_is_left_alone() {
    let mut world = world();
    want(&mut world, 0, 20);
    let mut view = world.view(&instance(0));
    view.free_places = vec![1];

    let plan = ipam_core::plan::plan_node(
        &world.shard,
        &view,
        &ipam_core::plan::PlanPolicy::default(),
        Tick(0),
    );

    assert!(matches!(
        plan.records.as_slice(),
        [Record::EniIntent { quota_index: 1, .. }]
    ));
    assert_eq!(plan.shortage, Some(Shortage::EniLimit));
    assert_eq!(
        world.shard.place_change(&plan.records[0]),
        Some(PlaceChange::Take(EniPlace {
            instance: instance(0),
            index: 1
        }))
    );
}

#[test]
fn last_addresses_make_a_smaller_eni_then_the_vswitch_is_exhausted() {
    let mut world = World::with("10.0.0.0/27", Mode::Exclusive, QUOTA);
    want(&mut world, 0, 26);
    world.settle();
    assert_eq!(world.pods(&instance(0)), 26);
    want(&mut world, 1, 5);

    let plan = world.plan(&instance(1));

    let [Record::EniIntent { slots, .. }] = plan.records.as_slice() else {
        panic!("{:?}", plan.records);
    };
    // 32 addresses, four of them the cloud's, 26 in use.
    assert_eq!(slots.count(Family::V4), 2);
    assert_eq!(plan.shortage, Some(Shortage::VSwitchExhausted));
}

#[test]
fn vswitch_full_by_the_clouds_word_starts_nothing() {
    let mut world = world();
    want(&mut world, 0, 5);
    world.exhausted = true;

    let plan = world.plan(&instance(0));

    assert_eq!(plan.records, []);
    assert_eq!(plan.shortage, Some(Shortage::VSwitchExhausted));
}

#[test]
fn exhausted_create_frees_what_it_asked_for() {
    let mut world = world();
    want(&mut world, 0, 5);
    let _plan = world.plan(&instance(0));
    let step = world.steps().remove(0);

    let records = on_outcome(&world.shard, &step, &Outcome::Exhausted, Tick(0));
    let change = world.shard.place_change(&records[0]);
    world.drive(&step, Fault::Exhausted);

    assert_eq!(world.shard.enis().count(), 0);
    assert_eq!(world.shard.counts(Family::V4).free, 60);
    assert_eq!(
        change,
        Some(PlaceChange::Free(EniPlace {
            instance: instance(0),
            index: 0
        }))
    );
}

#[test]
fn partly_filled_eni_is_filled_before_another_is_created() {
    let mut world = settled(13);
    want(&mut world, 0, 3);
    world.settle();
    assert_eq!(world.pods(&instance(0)), 3);
    want(&mut world, 0, 13);

    let plan = world.plan(&instance(0));

    assert_eq!(names(&plan.records), ["assign-intent"]);
    world.settle();
    assert_eq!(world.pods(&instance(0)), 13);
    assert_eq!(world.attached(), 1);
}

// The pool's maximum never trims what a freshly created ENI brought.
#[test]
fn fresh_eni_is_not_trimmed_until_it_has_settled() {
    let mut world = world();
    want(&mut world, 0, 2);
    let _plan = world.plan(&instance(0));
    while let Some(step) = world.steps().first().cloned() {
        world.drive(&step, Fault::None);
    }

    world.pass(SETTLE.checked_sub(Duration::from_secs(1)).unwrap(), 0);
    assert_eq!(world.look(&instance(0)).records, []);

    world.pass(Duration::from_secs(1), 0);
    assert_eq!(names(&world.look(&instance(0)).records), ["tick", "revoke"]);
}

#[test]
fn whole_idle_eni_goes_before_another_is_trimmed() {
    let mut world = settled(26);
    assert_eq!(world.attached(), 2);
    want(&mut world, 0, 13);

    let plan = world.plan(&instance(0));

    let [Record::Tick { .. }, Record::Revoke { slots, .. }] = plan.records.as_slice() else {
        panic!("{:?}", plan.records);
    };
    assert_eq!(slots.count(Family::V4), 13);
    world.settle();
    assert_eq!((world.attached(), world.pods(&instance(0))), (1, 13));
    assert_eq!(world.cloud.enis.len(), 1);
}

#[test]
fn eni_with_a_pod_is_trimmed_and_keeps_the_pod_and_its_primary_address() {
    let mut world = settled(13);
    let node = world.nodes.get_mut(&instance(0)).unwrap();
    node.bind(7);
    node.bind(20);
    let bound: BTreeSet<IpAddr> = node.bound.clone();
    node.want = 2;

    world.settle();

    let node = &world.nodes[&instance(0)];
    assert!(bound.iter().all(|ip| node.usable.contains_key(ip)));
    let (_, eni) = world.shard.enis().next().unwrap();
    let primary = Slot {
        family: Family::V4,
        index: eni.primary,
    };
    assert!(matches!(
        world.shard.slot(primary),
        Some(SlotState::Held { .. })
    ));
    assert_eq!(world.pods(&instance(0)), 2);
}

#[test]
fn given_back_addresses_are_granted_again_without_a_cloud_call() {
    let mut world = settled(13);
    want(&mut world, 0, 0);
    let _plan = world.plan(&instance(0));
    for _ in 0..20 {
        world.deliver(0, false);
        world.acknowledge(0, false);
    }
    want(&mut world, 0, 13);

    let plan = world.plan(&instance(0));

    assert_eq!(names(&plan.records), ["held"]);
    assert_eq!(world.steps(), []);
    world.settle();
    assert_eq!(world.pods(&instance(0)), 13);
}

#[test]
fn ipv4_only_node_gets_no_ipv6() {
    let mut world = world();
    world.stack = Stack::Ipv4;
    want(&mut world, 0, 13);

    world.settle();

    assert_eq!(world.pods(&instance(0)), 13);
    assert_eq!(world.shard.counts(Family::V6).held, 0);
}

// I2: a revoke that the node refuses leaves the grant as it was, with its generation.
#[test]
fn refused_revoke_keeps_the_address_held() {
    let mut world = settled(13);
    let before = world.shard.grants_of(&instance(0));
    want(&mut world, 0, 0);
    let plan = world.plan(&instance(0));
    assert_eq!(names(&plan.records), ["tick", "revoke"]);
    let everything: Vec<IpAddr> = world.nodes[&instance(0)].usable.keys().copied().collect();

    let record = inventory::acknowledge(
        &world.shard,
        &instance(0),
        world.shard.last_seq(),
        &[],
        &everything,
    );
    world.commit(&record.unwrap());

    assert_eq!(world.shard.grants_of(&instance(0)), before);
    assert_eq!(world.shard.counts(Family::V4).held, 13);
}

// A node's list of bound addresses is always a little old: asking at once again would fill the log.
#[test]
fn refused_revoke_is_not_repeated_at_once() {
    let mut world = settled(13);
    want(&mut world, 0, 0);
    let _plan = world.plan(&instance(0));
    let everything: Vec<IpAddr> = world.nodes[&instance(0)].usable.keys().copied().collect();
    let record = inventory::acknowledge(
        &world.shard,
        &instance(0),
        world.shard.last_seq(),
        &everything[2..],
        &everything[..2],
    );
    world.commit(&record.unwrap());

    let again = |world: &mut World| {
        let records = world.look(&instance(0)).records;
        names(&records).contains(&"revoke")
    };
    assert!(!again(&mut world));
    world.pass(SETTLE, 0);
    assert!(again(&mut world));
}

// I2.
#[test]
fn grant_on_an_eni_that_is_not_attached_does_not_apply() {
    let mut world = world();
    want(&mut world, 0, 5);
    let _plan = world.plan(&instance(0));
    let step = world.steps().remove(0);
    world.drive(&step, Fault::None);
    let (key, eni) = world.shard.enis().next().unwrap();
    let grant = Record::Held {
        eni: key,
        slots: SlotSet::from_iter([Slot {
            family: Family::V4,
            index: eni.primary,
        }]),
    };

    let applied = world.shard.clone().apply(world.shard.next_seq(), &grant);

    assert!(matches!(applied, Err(ApplyError::EniState { .. })));
}

// I12: a node answers for itself alone.
#[test]
fn acknowledgement_by_another_node_changes_nothing() {
    let mut world = settled(13);
    want(&mut world, 0, 0);
    let _plan = world.plan(&instance(0));
    let everything: Vec<IpAddr> = world.nodes[&instance(0)].usable.keys().copied().collect();

    let record = inventory::acknowledge(
        &world.shard,
        &instance(1),
        world.shard.last_seq(),
        &everything,
        &[],
    );

    assert_eq!(record, None);
}

// I2: an acknowledgement that comes again after the address was granted anew means the old grant.
#[test]
fn late_acknowledgement_does_not_touch_a_newer_grant() {
    let mut world = settled(13);
    want(&mut world, 0, 0);
    let _plan = world.plan(&instance(0));
    let revoke = world.shard.last_seq();
    let everything: Vec<IpAddr> = world.nodes[&instance(0)].usable.keys().copied().collect();
    for _ in 0..20 {
        world.deliver(0, false);
        world.acknowledge(0, false);
    }
    want(&mut world, 0, 13);
    let _plan = world.plan(&instance(0));

    let late = inventory::acknowledge(&world.shard, &instance(0), revoke, &everything, &[]);

    assert_eq!(late, None);
}

// I6.
#[test]
fn address_off_an_eni_cools_whatever_the_wall_clock_does() {
    let mut world = settled(13);
    want(&mut world, 0, 0);
    let _plan = world.plan(&instance(0));
    for _ in 0..20 {
        world.deliver(0, false);
        world.acknowledge(0, false);
    }
    let _plan = world.plan(&instance(0));
    while let Some(step) = world.steps().first().cloned() {
        world.drive(&step, Fault::None);
    }
    assert_eq!(world.shard.counts(Family::V4).cooling, 13);

    world.pass(Duration::from_secs(30), 86_400_000);
    world.reload();
    world.pass(Duration::from_secs(29), -86_400_000);
    assert_eq!(world.shard.counts(Family::V4).cooling, 13);

    // The new owner counts from the last committed time: the cooldown became longer, not shorter.
    world.pass(Duration::from_secs(31), 0);
    assert_eq!(world.shard.counts(Family::V4).cooling, 0);
}

#[test]
fn freed_addresses_are_used_last() {
    let mut world = settled(13);
    let first = world.shard.free_slots(Family::V4, 1);
    want(&mut world, 0, 0);
    world.settle();
    world.pass(Duration::from_hours(1), 0);

    let next = world.shard.free_slots(Family::V4, 60);

    assert_eq!(next[..1], first);
    assert_eq!(next.last().unwrap().index, 13);
}

#[test]
fn conflict_on_a_shared_vswitch_is_learnt_as_foreign_and_on_an_exclusive_one_set_aside() {
    for (mode, name) in [(Mode::Shared, "foreign"), (Mode::Exclusive, "quarantine")] {
        let mut world = World::new(mode);
        want(&mut world, 0, 5);
        let _plan = world.plan(&instance(0));
        let step = world.steps().remove(0);

        world.drive(&step, Fault::Conflict);

        let state = world.shard.slot(Slot {
            family: Family::V4,
            index: 1,
        });
        assert_eq!(state.unwrap().name(), name);
        assert_eq!(world.shard.enis().count(), 0);
        world.settle();
        assert!(world.pods(&instance(0)) >= 5);
    }
}

#[test]
fn attach_refused_for_the_quota_deletes_the_eni_again() {
    let mut world = world();
    want(&mut world, 0, 5);
    let _plan = world.plan(&instance(0));
    for fault in [Fault::None, Fault::None, Fault::Limit] {
        let step = world.steps().remove(0);
        world.drive(&step, fault);
    }

    assert_eq!(
        world.shard.enis().next().unwrap().1.state,
        EniState::Deleting
    );
    let step = world.steps().remove(0);
    world.drive(&step, Fault::None);

    assert_eq!(world.shard.enis().count(), 0);
    assert!(world.cloud.enis.is_empty());
    assert_eq!(world.shard.counts(Family::V4).cooling, 13);
}

// I4, I8: after a restart the same call is made under the same key.
#[test]
fn lost_answer_is_driven_again_with_the_same_key_after_a_restart() {
    let mut world = world();
    want(&mut world, 0, 5);
    let _plan = world.plan(&instance(0));
    let first = world.steps();
    world.drive(&first[0], Fault::LostAfter);

    world.reload();

    assert_eq!(world.steps(), first);
    world.settle();
    assert_eq!(world.cloud.enis.len(), 1);
    assert_eq!(world.pods(&instance(0)), 5);
}

#[test]
fn answer_to_a_step_that_is_past_adds_nothing() {
    let mut world = world();
    want(&mut world, 0, 5);
    let _plan = world.plan(&instance(0));
    let create = world.steps().remove(0);
    world.drive(&create, Fault::None);

    let records = on_outcome(&world.shard, &create, &Outcome::Exhausted, Tick(0));

    assert_eq!(records, []);
}

#[test]
fn lost_eni_is_replaced_and_leaves_the_books_when_its_node_gives_it_up() {
    let mut world = settled(13);
    let (key, _) = world.shard.enis().next().unwrap();
    world.cloud.enis.clear();
    world
        .cloud
        .vanished
        .insert(world.shard.eni(key).unwrap().id.clone().unwrap());

    world.commit(&Record::EniLost { eni: key });
    let plan = world.look(&instance(0));
    world.settle();

    assert_eq!(names(&plan.records), ["tick", "revoke", "eni-intent"]);
    assert!(world.shard.eni(key).is_none());
    assert_eq!(world.pods(&instance(0)), 13);
}

// Node death needs proof, and then everything comes back.
#[test]
fn proved_death_of_a_node_frees_its_addresses() {
    let mut world = settled(26);

    world.remove_node(&instance(0));
    world.settle();
    world.pass(Duration::from_hours(1), 0);

    assert_eq!(world.shard.enis().count(), 0);
    assert_eq!(world.shard.counts(Family::V4).free, 60);
}

#[test]
fn node_that_lost_its_store_is_told_everything_again() {
    let world = settled(13);

    let difference = inventory::compare(&world.shard, &instance(0), &[]);

    let (key, _) = world.shard.enis().next().unwrap();
    assert_eq!(difference.attached, [key]);
    assert_eq!(world.shard.grants_on(key).len(), 26);
    assert!(difference.revokes.is_empty() && difference.removed.is_empty());
}

#[test]
fn node_with_an_eni_of_nobody_must_give_it_up() {
    let world = settled(13);
    let stray = HeldEni {
        id: "eni-other".parse().unwrap(),
        addresses: vec![("10.0.0.40".parse().unwrap(), Seq(2))],
    };
    let mut held = world.nodes[&instance(0)].inventory();
    held.push(stray.clone());

    let difference = inventory::compare(&world.shard, &instance(0), &held);

    assert_eq!(difference.removed, ["eni-other".parse().unwrap()]);
    assert_eq!(difference.revokes.len(), 1);
    assert_eq!(difference.revokes[0].revoke, Seq(0));
    assert_eq!(difference.revokes[0].addresses, stray.addresses);
    assert!(difference.attached.is_empty() && difference.grants.is_empty());
}

#[test]
fn node_with_an_older_generation_gets_the_grant_again() {
    let world = settled(13);
    let mut held = world.nodes[&instance(0)].inventory();
    let (ip, generation) = held[0].addresses[3];
    held[0].addresses[3] = (ip, Seq(generation.0 - 1));

    let difference = inventory::compare(&world.shard, &instance(0), &held);

    let grants: Vec<_> = difference.grants.into_values().flatten().collect();
    assert_eq!(grants.len(), 1);
    assert_eq!((grants[0].address, grants[0].generation), (ip, generation));
}

#[test]
fn record_that_does_not_follow_leaves_the_shard_unchanged() {
    let mut world = settled(13);
    let before = world.shard.clone();
    let (key, eni) = before.enis().next().unwrap();
    let slots = eni.slots.clone();
    let next = before.next_seq();

    let wrong = [
        Record::Held {
            eni: key,
            slots: slots.clone(),
        },
        Record::UnassignIntent {
            eni: key,
            slots: slots.clone(),
        },
        Record::AssignIntent { eni: key, slots },
        Record::DetachIntent { eni: key },
        Record::DeleteIntent { eni: key },
        Record::EniAttached {
            eni: Seq(99),
            at: Tick(0),
        },
        Record::Revoke {
            eni: key,
            slots: SlotSet::new(),
        },
    ];
    for record in wrong {
        assert!(world.shard.apply(next, &record).is_err(), "{record:?}");
        assert_eq!(world.shard, before);
    }
    let twice = world
        .shard
        .apply(before.last_seq(), &Record::Tick { at: Tick(1) });
    assert!(matches!(twice, Err(ApplyError::Sequence { .. })));
    assert_eq!(next_step(&world.shard, Seq(99)), None);
}

#[test]
fn snapshot_of_another_shard_is_refused() {
    use ipam_core::shard::Shard;
    use ipam_core::shard::snapshot::RestoreError;

    let bytes = settled(13).shard.snapshot().unwrap();
    let other = World::with("10.0.1.0/26", Mode::Exclusive, QUOTA).shard;

    let restored = Shard::restore(other.spec().clone(), &bytes);

    assert_eq!(restored, Err(RestoreError::OtherSpec));
    assert_eq!(
        Shard::restore(other.spec().clone(), &bytes[1..]),
        Err(RestoreError::Format)
    );
}
