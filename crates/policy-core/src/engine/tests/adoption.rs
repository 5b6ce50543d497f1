use serde_json::json;
use std::sync::Arc;

use super::kernel::Kernel;
use super::world::{World, allow, namespace, placed, pod, settings};
use crate::plan::{StepKind, Target};
use nft_wire::chain::Chain;
use nft_wire::change::Change;
use nft_wire::element::{Element, Elements};
use nft_wire::key::{Field, Key};
use nft_wire::name::{Family, TableRef};
use nft_wire::set::Set;
use nft_wire::verdict::Verdict;

fn fill(world: &mut World) {
    world.put(&namespace("x", &json!({})));
    world.put(&pod(
        "a",
        "n1",
        &["10.0.0.1", "fd00::1"],
        &json!({"app": "a"}),
    ));
    world.put(&pod(
        "c",
        "n2",
        &["10.0.0.3", "fd00::3"],
        &json!({"app": "c"}),
    ));
    world
        .engine
        .place(placed("a", "s1", &["10.0.0.1", "fd00::1"]));
    for n in 0..20 {
        world.put(&allow(&format!("p{n}"), "c", 80 + n));
    }
}

fn at() -> TableRef {
    TableRef::new(Family::Inet, "terway_policy")
}

/// A kernel that an earlier process left behind.
fn left_behind() -> Kernel {
    let mut world = World::new();
    fill(&mut world);
    world.settle_clean();
    world.kernel
}

fn restarted(kernel: Kernel) -> World {
    let mut world = World::on(kernel, settings());
    // The dump may come first.
    world.engine.adopt(&Target::Host, &world.kernel.dump());
    fill(&mut world);
    world.engine.set_synced();
    world
}

#[test]
fn restart_on_an_equal_kernel_writes_nothing() {
    let mut world = restarted(left_behind());
    assert_eq!(world.settle_clean().len(), 0);
    assert!(world.engine.is_ready(&super::world::attachment("s1")));
}

#[test]
fn counters_that_went_on_are_no_difference() {
    let mut kernel = left_behind();
    for table in kernel.tables.values_mut() {
        for rule in table.chains.values_mut().flat_map(|c| &mut c.rules) {
            for expr in &mut rule.exprs {
                if let nft_wire::expr::Expr::Counter { packets, bytes } = expr {
                    (*packets, *bytes) = (7, 700);
                }
            }
        }
    }
    assert_eq!(restarted(kernel).settle_clean().len(), 0);
}

#[test]
fn restart_writes_only_the_difference() {
    let mut world = World::on(left_behind(), settings());
    fill(&mut world);
    world.put(&pod("d", "n2", &["10.0.0.4"], &json!({"app": "c"})));
    world.drop_pod("c");
    world.engine.set_synced();
    let kinds: Vec<StepKind> = world.settle_clean().iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [StepKind::Move, StepKind::Grow]);
}

#[test]
fn foreign_objects_in_our_table_are_removed() {
    let mut kernel = left_behind();
    let mut set = Set::plain(&at(), "mine", &[Field::Ipv4]);
    set.flags.interval = false;
    kernel
        .transact(&[
            Change::AddChain(Chain::regular(&at(), "theirs")),
            Change::AddSet(set),
            Change::AddElements(Elements {
                table: at(),
                set: "to_pod".into(),
                elements: vec![Element::leading(
                    Key::ifname("calievil"),
                    Verdict::Goto("theirs".into()),
                )],
            }),
        ])
        .unwrap();
    let mut world = restarted(kernel);
    world.settle_clean();
    assert!(!world.kernel.policy().chains.contains_key("theirs"));
    assert!(!world.kernel.policy().sets.contains_key("mine"));
}

#[test]
fn damaged_chains_are_put_right_in_place() {
    for victim in ["eg", "deny_in", "in_", "r_"] {
        let mut kernel = left_behind();
        let table = kernel.tables.get_mut(&at()).unwrap();
        let name = Arc::clone(table.chains.keys().find(|n| n.starts_with(victim)).unwrap());
        table.chains.get_mut(&name).unwrap().rules.pop();
        let mut world = restarted(kernel);
        let steps = world.settle_clean();
        assert_eq!(steps.len(), 1, "{name}");
        assert_eq!(steps[0].kind, StepKind::Create);
    }
}

#[test]
fn damaged_sets_and_maps_are_put_right() {
    let mut kernel = left_behind();
    let table = kernel.tables.get_mut(&at()).unwrap();
    for (name, set) in &mut table.sets {
        if name.starts_with("pm_") || name.starts_with("p4_") || &**name == "to_pod" {
            set.elements.pop();
        }
    }
    restarted(kernel).settle_clean();
}

#[test]
fn a_base_chain_that_hooks_in_elsewhere_makes_the_tables_be_made_anew() {
    let mut kernel = left_behind();
    let table = kernel.tables.get_mut(&at()).unwrap();
    let base = table.chains.get_mut("ing").unwrap();
    base.chain.base.as_mut().unwrap().priority = 7;
    let mut world = restarted(kernel);
    let steps = world.settle_clean();
    assert_eq!(steps[0].kind, StepKind::Rebuild);
}

#[test]
fn tables_that_somebody_flushed_are_made_again() {
    let mut world = World::new();
    fill(&mut world);
    world.settle_clean();
    world.kernel = Kernel::default();
    world.engine.mistrust(&Target::Host);
    assert!(!world.engine.is_ready(&super::world::attachment("s1")));
    world.settle_clean();
    assert!(world.engine.is_ready(&super::world::attachment("s1")));
}

#[test]
fn a_set_that_was_only_half_filled_is_filled_before_anything_leads_to_it() {
    let mut kernel = left_behind();
    // As though the process had ended before the chains were made.
    let table = kernel.tables.get_mut(&at()).unwrap();
    table.chains.clear();
    let maps = ["to_pod", "from_pod", "from_ip4", "from_ip6"];
    for (name, set) in &mut table.sets {
        if maps.contains(&&**name) || name.starts_with("p4_") {
            set.elements.clear();
        }
    }
    table.sets.retain(|name, _| !name.starts_with("pm_"));
    let mut world = restarted(kernel);
    let steps = world.settle_clean();
    let first = &steps[0];
    assert_eq!(first.kind, StepKind::Create);
    assert!(
        first
            .changes
            .iter()
            .any(|c| matches!(c, Change::AddElements(e) if e.set.starts_with("p4_")))
    );
}
