//! Stories of ENIs that pods have for themselves, and of ENIs whose node is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipam_core::eni::EniState;
use ipam_core::plan::Shortage;
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use ipam_core::spec::Mode;
use types::address::{Family, Stack};

use crate::cloud::Fault;
use crate::world::{World, instance};

/// A node that wants `pods` pods on shared ENIs and `wholes` ENIs, with everything at rest.
fn settled(pods: u32, wholes: u32) -> World {
    let mut world = World::new(Mode::Exclusive);
    let node = world.nodes.get_mut(&instance(0)).unwrap();
    (node.want, node.wholes) = (pods, wholes);
    world.settle();
    world
}

/// Addresses that the node may use on ENIs of pods' own.
fn on_wholes(world: &World) -> BTreeSet<IpAddr> {
    world
        .shard
        .whole_enis()
        .flat_map(|key| world.shard.grants_on(key))
        .map(|grant| grant.address)
        .collect()
}

#[test]
fn whole_eni_has_one_address_of_each_family_and_takes_a_place() {
    let world = settled(0, 1);

    let wholes: Vec<_> = world.shard.whole_enis().collect();
    let [key] = wholes.as_slice() else {
        panic!("{wholes:?}");
    };
    let eni = world.shard.eni(*key).unwrap();
    assert_eq!((eni.state, eni.quota_index), (EniState::Attached, 0));
    assert_eq!(eni.slots.count(Family::V4), 1);
    assert_eq!(eni.slots.count(Family::V6), 1);
    assert_eq!(on_wholes(&world).len(), 2);
    assert_eq!(world.log.len(), 4, "intent, created, attached, held");
}

// I4: a total that is said again is the same ENI.
#[test]
fn want_that_is_repeated_brings_nothing_more() {
    let mut world = settled(0, 1);
    let before = on_wholes(&world);

    assert_eq!(world.plan(&instance(0)).records, []);
    world.settle();

    assert_eq!(on_wholes(&world), before);
}

#[test]
fn pods_that_share_get_none_of_a_whole_eni() {
    let mut world = settled(13, 1);

    assert_eq!(world.attached(), 2);
    let shared = world
        .shard
        .enis()
        .find(|(key, _)| !world.shard.is_whole(*key));
    assert_eq!(shared.unwrap().1.slots.count(Family::V4), 13);
    // I10: the second place is taken, so the pool can not grow.
    world.nodes.get_mut(&instance(0)).unwrap().want = 14;
    let plan = world.plan(&instance(0));
    assert_eq!(
        (plan.records, plan.shortage),
        (vec![], Some(Shortage::EniLimit))
    );
}

// I10: one place is left to pods that share, whatever is asked for.
#[test]
fn last_place_is_kept_for_pods_that_share() {
    let world = settled(0, 9);

    assert_eq!(world.shard.whole_enis().count(), 1);
}

#[test]
fn whole_eni_that_is_wanted_no_more_goes_at_once_and_leaves_the_pool_alone() {
    let mut world = settled(13, 1);
    let shared = world
        .shard
        .enis()
        .find(|(key, _)| !world.shard.is_whole(*key));
    let shared = shared.unwrap().0;

    world.nodes.get_mut(&instance(0)).unwrap().wholes = 0;
    world.settle();

    assert_eq!(world.shard.whole_enis().count(), 0);
    assert_eq!(
        world.shard.enis().map(|(key, _)| key).collect::<Vec<_>>(),
        [shared]
    );
    assert_eq!(world.cloud.enis.len(), 1);
}

// I2: an ENI that a pod has stays, whatever the node says it wants.
#[test]
fn whole_eni_in_use_is_never_asked_back() {
    let mut world = settled(0, 1);
    let node = world.nodes.get_mut(&instance(0)).unwrap();
    node.bind(0);
    node.wholes = 0;

    world.settle();

    assert_eq!(world.shard.whole_enis().count(), 1);
    let node = world.nodes.get_mut(&instance(0)).unwrap();
    node.bound.clear();
    world.settle();
    assert_eq!(world.shard.whole_enis().count(), 0);
    world.check_no_leak();
}

#[test]
fn family_that_a_whole_eni_was_refused_is_asked_for_again() {
    let mut world = World::new(Mode::Exclusive);
    world.stack = Stack::Ipv4;
    world.nodes.get_mut(&instance(0)).unwrap().wholes = 1;
    world.settle();
    assert_eq!(on_wholes(&world).len(), 1);

    world.stack = Stack::Dual;
    world.settle();

    assert_eq!(on_wholes(&world).len(), 2);
}

// A log and a snapshot of a shard without whole ENIs are those of the first version, byte by byte.
#[test]
fn shard_without_whole_enis_is_written_as_before() {
    let first = |world: &World| {
        let log: BTreeSet<u8> = world.log.iter().map(|bytes| bytes[0]).collect();
        (log, world.shard.snapshot().unwrap()[0])
    };

    assert_eq!(first(&settled(13, 0)), (BTreeSet::from([1]), 1));
    let mut world = settled(13, 1);
    assert_eq!(first(&world), (BTreeSet::from([1, 2]), 2));
    let restored = Shard::restore(world.shard.spec().clone(), &world.shard.snapshot().unwrap());
    assert_eq!(restored.as_ref(), Ok(&world.shard));
    world.nodes.get_mut(&instance(0)).unwrap().wholes = 0;
    world.settle();
    assert_eq!(world.shard.snapshot().unwrap()[0], 1);
}

// I2, I6: only an ENI that is attached to nothing loses its grants; its addresses rest before others get them.
#[test]
fn detached_eni_of_a_node_that_is_gone_goes_by_the_way_of_all_enis() {
    let mut world = settled(13, 1);
    let [kept, gone]: [_; 2] = world
        .shard
        .enis()
        .map(|(key, eni)| (key, eni.id.clone().unwrap()))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let addresses = world.shard.grants_on(gone.0);
    world.cloud.detach_by_hand(&gone.1);
    world.nodes.get_mut(&instance(0)).unwrap().forget(&gone.1);
    world.silence(&gone.1);

    world.commit(&Record::EniDetached { eni: gone.0 });
    world.commit(&Record::DetachIntent { eni: gone.0 });
    while let Some(step) = world.steps().first().cloned() {
        world.drive(&step, Fault::None);
    }

    assert!(world.shard.eni(gone.0).is_none());
    assert!(!world.shard.grants_on(kept.0).is_empty());
    for grant in addresses {
        let state = world.shard.slot(grant.slot).unwrap();
        assert_eq!(state.name(), "cooling");
    }
    assert!(!world.cloud.enis.contains_key(&gone.1));
}

#[test]
fn eni_with_an_open_operation_is_not_taken_for_detached() {
    let mut world = World::new(Mode::Exclusive);
    world.nodes.get_mut(&instance(0)).unwrap().wholes = 1;
    let _plan = world.plan(&instance(0));
    let key = world.shard.whole_enis().next().unwrap();
    let next = world.shard.next_seq();

    let applied = world.shard.apply(next, &Record::EniDetached { eni: key });

    applied.unwrap_err();
}
