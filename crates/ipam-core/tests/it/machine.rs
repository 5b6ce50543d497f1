//! Random histories with faults: the laws hold after each record, and everything comes to rest.

use std::time::Duration;

use ipam_core::record::Record;
use ipam_core::spec::Mode;
use proptest::prelude::*;

use crate::cloud::Fault;
use crate::world::{World, instance};

#[derive(Debug, Clone)]
enum Event {
    Want(usize, u32),
    Wholes(usize, u32),
    Bind(usize, usize),
    Unbind(usize, usize),
    Plan(usize),
    Drive(usize, Fault),
    Deliver(usize, bool),
    Acknowledge(usize, bool),
    Sync(usize),
    Pass(u64, i64),
    Snapshot,
    Reload,
    Exhausted(bool),
    Gone(usize),
    Lost(usize),
    Detached(usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        20 => Just(Fault::None),
        3 => Just(Fault::LostBefore),
        3 => Just(Fault::LostAfter),
        2 => Just(Fault::Conflict),
        1 => Just(Fault::Exhausted),
        1 => Just(Fault::Limit),
        2 => Just(Fault::StaleRead),
        1 => Just(Fault::Vanish),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let any_pick = 0_usize..1_000;
    prop_oneof![
        8 => (0_usize..3, 0_u32..30).prop_map(|(n, want)| Event::Want(n, want)),
        4 => (0_usize..3, 0_u32..3).prop_map(|(n, wholes)| Event::Wholes(n, wholes)),
        8 => (0_usize..3, any_pick.clone()).prop_map(|(n, pick)| Event::Bind(n, pick)),
        6 => (0_usize..3, any_pick.clone()).prop_map(|(n, pick)| Event::Unbind(n, pick)),
        14 => (0_usize..3).prop_map(Event::Plan),
        30 => (any_pick.clone(), fault()).prop_map(|(pick, fault)| Event::Drive(pick, fault)),
        14 => (any_pick.clone(), any::<bool>()).prop_map(|(pick, again)| Event::Deliver(pick, again)),
        10 => (any_pick.clone(), any::<bool>()).prop_map(|(pick, again)| Event::Acknowledge(pick, again)),
        4 => (0_usize..3).prop_map(Event::Sync),
        12 => (0_u64..90_000, prop_oneof![4 => Just(0), 1 => -7_200_000_i64..7_200_000])
            .prop_map(|(ms, jump)| Event::Pass(ms, jump)),
        2 => Just(Event::Snapshot),
        2 => Just(Event::Reload),
        1 => any::<bool>().prop_map(Event::Exhausted),
        1 => (0_usize..3).prop_map(Event::Gone),
        1 => any_pick.clone().prop_map(Event::Lost),
        1 => any_pick.prop_map(Event::Detached),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Want(n, want) => {
            if let Some(node) = world.nodes.get_mut(&instance(n)) {
                node.want = want;
            }
        }
        Event::Wholes(n, wholes) => {
            if let Some(node) = world.nodes.get_mut(&instance(n)) {
                node.wholes = wholes;
            }
        }
        Event::Bind(n, pick) => {
            if let Some(node) = world.nodes.get_mut(&instance(n)) {
                node.bind(pick);
            }
        }
        Event::Unbind(n, pick) => {
            if let Some(node) = world.nodes.get_mut(&instance(n)) {
                node.unbind(pick);
            }
        }
        Event::Plan(n) => drop(world.plan(&instance(n))),
        Event::Drive(pick, fault) => {
            let steps = world.steps();
            if !steps.is_empty() {
                world.drive(&steps[pick % steps.len()], fault);
            }
        }
        Event::Deliver(pick, again) => world.deliver(pick, again),
        Event::Acknowledge(pick, again) => world.acknowledge(pick, again),
        Event::Sync(n) => world.sync(&instance(n)),
        Event::Pass(ms, jump) => world.pass(Duration::from_millis(ms), jump),
        Event::Snapshot => world.take_snapshot(),
        Event::Reload => world.reload(),
        Event::Exhausted(exhausted) => world.exhausted = exhausted,
        Event::Gone(n) => world.remove_node(&instance(n)),
        Event::Lost(pick) => lose(world, pick),
        Event::Detached(pick) => detach(world, pick),
    }
}

/// A node's object is gone, and the cloud has one of its ENIs attached to nothing.
fn detach(world: &mut World, pick: usize) {
    let idle: Vec<_> = world
        .shard
        .enis()
        .filter(|(key, eni)| {
            eni.state == ipam_core::eni::EniState::Attached
                && !eni.lost
                && world.shard.op_on(*key).is_none()
        })
        .map(|(key, eni)| (key, eni.id.clone().unwrap()))
        .collect();
    if idle.is_empty() {
        return;
    }
    let (key, id) = idle[pick % idle.len()].clone();
    world.cloud.detach_by_hand(&id);
    world.silence(&id);
    // Without its link the node can not use the addresses any more.
    for node in world.nodes.values_mut() {
        node.forget(&id);
    }
    world.commit(&Record::EniDetached { eni: key });
    world.commit(&Record::DetachIntent { eni: key });
}

/// A reconciler finds that the cloud does not know an attached ENI.
fn lose(world: &mut World, pick: usize) {
    let lost: Vec<_> = world
        .shard
        .enis()
        .filter(|(key, eni)| {
            eni.state == ipam_core::eni::EniState::Attached
                && world.shard.op_on(*key).is_none()
                && eni
                    .id
                    .as_ref()
                    .is_some_and(|id| world.cloud.vanished.contains(id))
        })
        .map(|(key, _)| key)
        .collect();
    if !lost.is_empty() {
        world.commit(&Record::EniLost {
            eni: lost[pick % lost.len()],
        });
    }
}

fn history(mode: Mode, events: &[Event]) {
    let mut world = World::new(mode);
    for event in events {
        happen(&mut world, event);
        world.check_use();
    }
    world.reload();

    world.exhausted = false;
    world.cloud.foreign.clear();
    for n in 0..100 {
        lose(&mut world, n);
    }
    world.settle();

    for instance in world.instances() {
        assert_eq!(
            world.look(&instance).records,
            [],
            "a settled view plans nothing"
        );
    }
    world.check_no_leak();
    world.reload();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    // I1, I2, I4, I6, I7, I8, I10.
    #[test]
    fn any_history_of_an_exclusive_vswitch_keeps_the_laws_and_comes_to_rest(
        events in prop::collection::vec(event(), 200),
    ) {
        history(Mode::Exclusive, &events);
    }

    // I1, I2, I4, I6, I7, I8, I10.
    #[test]
    fn any_history_of_a_shared_vswitch_keeps_the_laws_and_comes_to_rest(
        events in prop::collection::vec(event(), 200),
    ) {
        history(Mode::Shared, &events);
    }
}
