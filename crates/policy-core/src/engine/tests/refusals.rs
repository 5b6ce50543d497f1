use serde_json::json;

use super::world::{World, allow, attachment, placed, pod, policy};
use crate::plan::{Failure, Target};
use nft_wire::verdict::Verdict;

const EINVAL: i32 = 22;

fn two_pods() -> World {
    let mut world = World::new();
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({"app": "a"})));
    world.put(&pod("b", "n1", &["10.0.0.2"], &json!({"app": "b"})));
    world.engine.place(placed("a", "sa", &["10.0.0.1"]));
    world.engine.place(placed("b", "sb", &["10.0.0.2"]));
    world.settle_clean();
    world
}

fn of_app(name: &str, app: &str, port: u16) -> serde_json::Value {
    policy(
        name,
        &json!({
            "podSelector": {"matchLabels": {"app": app}},
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": port}]}],
        }),
    )
}

/// The name of the chain that a policy gets, from a world where nothing is refused.
fn chain_of(policy: &serde_json::Value) -> String {
    let mut world = two_pods();
    world.put(policy);
    world.settle_clean();
    world
        .units()
        .into_iter()
        .find(|u| u.starts_with("r_"))
        .unwrap()
}

#[test]
fn an_object_that_the_kernel_refuses_closes_its_pods_and_no_others() {
    let poison = of_app("p", "a", 80);
    let mut world = two_pods();
    world.kernel.refuses.insert(chain_of(&poison), EINVAL);
    world.put(&poison);
    world.put(&of_app("q", "b", 81));
    world.settle();
    assert_eq!(
        world.lead("to_pod", "a"),
        Some(Verdict::Goto("deny_in".into()))
    );
    assert!(matches!(world.lead("to_pod", "b"), Some(Verdict::Goto(c)) if c.starts_with("in_")));
    assert!(!world.engine.is_ready(&attachment("sa")));
    assert!(world.engine.is_ready(&attachment("sb")));
    let problems = world.engine.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].pods.len(), 1);
    assert_eq!(world.engine.stats().closed_pods, 1);
    assert!(!world.engine.allows(&super::world::flow(
        "10.0.0.2",
        "10.0.0.1",
        crate::flow::Protocol::TCP,
        80
    )));
    // The policy goes, and its pods open again.
    world.drop_policy("p");
    world.settle();
    assert_eq!(world.lead("to_pod", "a"), Some(Verdict::Accept));
    assert!(world.engine.is_ready(&attachment("sa")));
    assert_eq!(
        world.engine.diff(&Target::Host, &world.kernel.dump()),
        Vec::<String>::new()
    );
}

#[test]
fn an_object_that_the_kernel_does_not_name_is_found_by_halving() {
    let poison = of_app("p", "a", 80);
    let mut world = two_pods();
    world.kernel.refuses.insert(chain_of(&poison), EINVAL);
    world.put(&poison);
    for n in 0..10 {
        world.put(&of_app(&format!("q{n}"), "b", 100 + n));
    }
    for _ in 0..200 {
        let Some(step) = world.engine.next_step() else {
            break;
        };
        match world.kernel.transact(&step.changes) {
            Ok(()) => world.engine.committed(&step),
            Err((_, errno)) => world.engine.failed(&step, Failure::Whole { errno }),
        }
    }
    assert!(!world.engine.has_work());
    assert_eq!(
        world.lead("to_pod", "a"),
        Some(Verdict::Goto("deny_in".into()))
    );
    assert!(world.engine.is_ready(&attachment("sb")));
}

#[test]
fn a_link_that_is_gone_holds_up_nobody_else() {
    let mut world = two_pods();
    world.kernel.links = Some(["calia", "calib"].map(str::to_owned).into());
    world.put(&pod("d", "n1", &["10.0.0.4"], &json!({})));
    world.put(&pod("e", "n1", &["10.0.0.5"], &json!({})));
    world
        .kernel
        .links
        .as_mut()
        .unwrap()
        .insert("calie".to_owned());
    world.engine.place(placed("d", "sd", &["10.0.0.4"]));
    world.engine.place(placed("e", "se", &["10.0.0.5"]));
    world.settle();
    assert!(!world.engine.is_ready(&attachment("sd")));
    assert!(world.engine.is_ready(&attachment("se")));
    world
        .kernel
        .links
        .as_mut()
        .unwrap()
        .insert("calid".to_owned());
    world.engine.unplace(&attachment("sd"));
    world.engine.place(placed("d", "sd2", &["10.0.0.4"]));
    world.settle();
    assert!(world.engine.is_ready(&attachment("sd2")));
}

#[test]
fn a_transaction_without_an_answer_makes_the_tables_be_read_again() {
    for took_effect in [true, false] {
        let mut world = two_pods();
        world.put(&allow("p", "b", 80));
        let step = world.engine.next_step().unwrap();
        if took_effect {
            world.kernel.transact(&step.changes).unwrap();
        }
        world.engine.failed(&step, Failure::Unknown);
        assert_eq!(world.engine.unknown_targets(), [Target::Host]);
        assert!(world.engine.next_step().is_none());
        world.settle_clean();
    }
}

#[test]
fn a_transaction_that_was_not_sent_is_held_against_nobody() {
    let mut world = two_pods();
    world.put(&allow("p", "b", 80));
    let step = world.engine.next_step().unwrap();
    assert!(world.engine.next_step().is_none());
    world.engine.failed(&step, Failure::NotSent);
    let again = world.engine.next_step().unwrap();
    assert_eq!(step.changes, again.changes);
    world.engine.failed(&again, Failure::Whole { errno: 11 });
    world.settle_clean();
    assert!(world.engine.problems().is_empty());
}

#[test]
fn the_answer_to_another_step_changes_nothing() {
    let mut world = two_pods();
    world.put(&allow("p", "b", 80));
    let step = world.engine.next_step().unwrap();
    let mut other = step.clone();
    other.number += 1;
    world.engine.committed(&other);
    assert!(world.engine.next_step().is_none());
    world.engine.failed(&step, Failure::NotSent);
    world.settle_clean();
}

#[test]
fn somebody_elses_change_is_noticed_by_the_refusal_and_put_right() {
    let mut world = two_pods();
    world.put(&allow("p", "b", 80));
    world.settle_clean();
    let set = world
        .units()
        .into_iter()
        .find(|u| u.starts_with("p4_"))
        .unwrap();
    let table = world
        .kernel
        .tables
        .values_mut()
        .find(|t| &*t.at().name == "terway_policy")
        .unwrap();
    table.sets.get_mut(set.as_str()).unwrap().elements.clear();
    world.drop_pod("b");
    world.engine.unplace(&attachment("sb"));
    world.settle();
    assert!(world.engine.stats().refused > 0);
    assert_eq!(
        world.engine.diff(&Target::Host, &world.kernel.dump()),
        Vec::<String>::new()
    );
}
