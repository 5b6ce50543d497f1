use serde_json::json;

use super::world::{World, allow, attachment, ip, link, namespace, placed, pod, policy, settings};
use crate::index::LocalPod;
use crate::layout::Settings;
use crate::plan::{StepKind, Target};
use nft_wire::change::Change;
use nft_wire::verdict::Verdict;
use types::pod::PodKey;

fn kinds(steps: &[crate::plan::Step]) -> Vec<StepKind> {
    steps.iter().map(|s| s.kind).collect()
}

fn three_pods() -> World {
    let mut world = World::new();
    world.put(&pod(
        "a",
        "n1",
        &["10.0.0.1", "fd00::1"],
        &json!({"app": "a"}),
    ));
    world.put(&pod(
        "b",
        "n1",
        &["10.0.0.2", "fd00::2"],
        &json!({"app": "b"}),
    ));
    world.put(&pod(
        "c",
        "n2",
        &["10.0.0.3", "fd00::3"],
        &json!({"app": "c"}),
    ));
    world
}

#[test]
fn nothing_is_written_before_every_feed_is_in_sync() {
    let mut world = World::on(super::kernel::Kernel::default(), settings());
    world.engine.adopt(&Target::Host, &[]);
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    assert!(world.engine.next_step().is_none());
    assert!(!world.engine.has_work());
    world.engine.set_synced();
    assert!(world.engine.has_work());
    world.settle_clean();
}

#[test]
fn first_install_brings_base_chains_with_the_elements_of_all_known_pods() {
    let mut world = three_pods();
    world.put(&allow("p", "c", 80));
    let steps = world.settle_clean();
    assert_eq!(kinds(&steps), [StepKind::Create, StepKind::Move]);
    let bases = |step: &crate::plan::Step| {
        step.changes
            .iter()
            .filter(|c| matches!(c, Change::AddChain(chain) if chain.base.is_some()))
            .count()
    };
    assert_eq!(bases(&steps[0]), 0);
    assert_eq!(bases(&steps[1]), 5);
    assert!(world.lead("to_pod", "a").is_some() && world.lead("from_pod", "b").is_some());
}

#[test]
fn a_policy_change_takes_at_most_three_transactions() {
    let mut world = three_pods();
    world.settle_clean();
    world.put(&allow("p", "c", 80));
    assert!(world.settle_clean().len() <= 3);
    world.put(&allow("p", "b", 81));
    assert!(world.settle_clean().len() <= 3);
    world.drop_policy("p");
    let steps = world.settle_clean();
    assert!(steps.len() <= 3);
    assert_eq!(world.lead("to_pod", "a"), Some(Verdict::Accept));
}

#[test]
fn a_remote_pod_touches_sets_alone() {
    let mut world = three_pods();
    world.put(&allow("p", "c", 80));
    world.settle_clean();
    world.put(&pod("d", "n2", &["10.0.0.4"], &json!({"app": "c"})));
    let steps = world.settle_clean();
    assert_eq!(kinds(&steps), [StepKind::Grow]);
    assert!(
        steps[0]
            .changes
            .iter()
            .all(|c| matches!(c, Change::AddElements(_)))
    );
    world.drop_pod("d");
    let steps = world.settle_clean();
    assert_eq!(kinds(&steps), [StepKind::Move]);
    assert!(
        steps[0]
            .changes
            .iter()
            .all(|c| matches!(c, Change::DeleteElements(_)))
    );
}

// B8, B6
#[test]
fn an_address_that_goes_from_one_pod_to_another_leaves_before_it_joins() {
    let mut world = three_pods();
    world.put(&allow("p", "c", 80));
    world.put(&allow("q", "d", 81));
    world.put(&pod("d", "n2", &["10.0.0.9"], &json!({"app": "d"})));
    world.settle_clean();
    world.put(&pod("c", "n2", &["10.0.0.8"], &json!({"app": "c"})));
    world.put(&pod("d", "n2", &["10.0.0.3"], &json!({"app": "d"})));
    let steps = world.settle_clean();
    assert_eq!(kinds(&steps), [StepKind::Move, StepKind::Grow]);
}

// B10
#[test]
fn a_pod_that_changes_its_labels_moves_at_once_to_chains_that_stand() {
    let mut world = three_pods();
    world.put(&policy(
        "p",
        &json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"]}),
    ));
    world.settle_clean();
    let before = world.lead("to_pod", "a");
    assert_eq!(world.lead("to_pod", "b"), Some(Verdict::Accept));
    world.put(&pod(
        "b",
        "n1",
        &["10.0.0.2", "fd00::2"],
        &json!({"app": "a"}),
    ));
    let steps = world.settle_clean();
    // The chains stand already for the other pod.
    assert_eq!(kinds(&steps), [StepKind::Move]);
    assert_eq!(world.lead("to_pod", "b"), before);
}

#[test]
fn a_thousand_replicas_share_their_chains() {
    let mut world = World::new();
    world.put(&allow("p", "c", 80));
    world.put(&pod("r0", "n1", &["10.1.0.0"], &json!({"app": "r"})));
    world.settle_clean();
    let units = world.units();
    for n in 1..1000_u32 {
        let name = format!("r{n}");
        let address = format!("10.1.{}.{}", n / 250, n % 250);
        world.put(&pod(&name, "n1", &[&address], &json!({"app": "r"})));
    }
    let steps = world.settle_clean();
    assert_eq!(world.units(), units);
    assert_eq!(kinds(&steps), [StepKind::Move]);
    assert_eq!(world.members("to_pod"), 1000);
    assert_eq!(world.members("from_pod"), 1000);
}

#[test]
fn nothing_by_content_is_left_after_all_policies_and_pods_are_gone() {
    let mut world = three_pods();
    for n in 0..20_u16 {
        world.put(&allow(&format!("p{n}"), "c", 80 + n));
    }
    world.settle_clean();
    assert!(!world.units().is_empty());
    for n in 0..20 {
        world.drop_policy(&format!("p{n}"));
    }
    for name in ["a", "b", "c"] {
        world.drop_pod(name);
    }
    world.settle_clean();
    assert_eq!(world.units().len(), 0);
    assert_eq!(
        world.members("to_pod") + world.members("from_ip4") + world.members("hair"),
        0
    );
    assert_eq!(world.engine.index().counts().sets, 0);
    let stats = world.engine.stats();
    assert_eq!(
        (stats.pods, stats.profiles, stats.chains, stats.members),
        (0, 0, 0, 0)
    );
}

#[test]
fn many_policies_are_found_by_port() {
    let mut world = three_pods();
    for n in 0..16_u16 {
        world.put(&allow(&format!("p{n}"), "c", 80 + n));
    }
    world.settle_clean();
    assert!(!world.units().iter().any(|u| u.starts_with("pm_")));
    world.put(&allow("p16", "c", 200));
    world.settle_clean();
    let map = world
        .units()
        .into_iter()
        .find(|u| u.starts_with("pm_"))
        .unwrap();
    assert_eq!(world.members(&map), 17);
}

#[test]
fn many_policies_with_ranges_are_cut_into_disjoint_pieces() {
    let mut world = three_pods();
    for n in 0..20_u16 {
        let mut one = allow(&format!("p{n}"), "c", 100 + 3 * n);
        one["spec"]["ingress"][0]["ports"][0]["endPort"] = json!(110 + 3 * n);
        world.put(&one);
    }
    world.settle_clean();
    let map = world
        .units()
        .into_iter()
        .find(|u| u.starts_with("pm_"))
        .unwrap();
    let set = &world.kernel.policy().sets[map.as_str()];
    assert!(set.set.flags.interval);
    let mut ends: Vec<_> = set
        .elements
        .iter()
        .map(|e| (e.key.clone(), e.end.clone().unwrap()))
        .collect();
    ends.sort();
    assert!(ends.windows(2).all(|w| w[0].1 < w[1].0));
}

#[test]
fn a_large_set_comes_in_parts_before_anything_leads_to_it() {
    let mut world = World::with(Settings {
        batch_bytes: 4096,
        ..settings()
    });
    for n in 0..1000_u32 {
        let address = format!("10.2.{}.{}", n / 250, n % 250);
        world.put(&pod(
            &format!("m{n}"),
            "n2",
            &[&address],
            &json!({"app": "c"}),
        ));
    }
    world.settle_clean();
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    world.put(&allow("p", "c", 80));
    let steps = world.settle_clean();
    let moved = steps.iter().position(|s| {
        s.changes
            .iter()
            .any(|c| matches!(c, Change::AddElements(e) if &*e.set == "to_pod"))
    });
    let filled = steps.iter().rposition(|s| {
        s.changes
            .iter()
            .any(|c| matches!(c, Change::AddElements(e) if e.set.starts_with("p4_")))
    });
    assert!(steps.len() > 4 && filled < moved, "{filled:?} {moved:?}");
}

// E6
#[test]
fn rules_of_a_scheduled_pod_stand_before_its_link() {
    let mut world = World::new();
    world.put(&policy("deny", &json!({"podSelector": {}})));
    world.put(&pod("a", "n1", &[], &json!({})));
    world.settle_clean();
    assert!(matches!(world.lead("to_pod", "a"), Some(Verdict::Goto(_))));
    assert_eq!(world.members("from_ip4"), 0);
    world.engine.place(placed("a", "s1", &["10.0.0.1"]));
    assert!(!world.engine.is_ready(&attachment("s1")));
    world.settle_clean();
    assert!(world.engine.is_ready(&attachment("s1")));
    assert_eq!(world.members("from_ip4"), 1);
}

#[test]
fn a_late_end_of_an_old_sandbox_leaves_its_successor_alone() {
    let mut world = World::new();
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    world.engine.place(placed("a", "old", &["10.0.0.1"]));
    world.settle_clean();
    world.engine.place(placed("a", "new", &["10.0.0.1"]));
    world.settle_clean();
    world.engine.unplace(&attachment("old"));
    world.settle_clean();
    assert!(world.engine.is_ready(&attachment("new")));
    assert!(world.lead("to_pod", "a").is_some());
    world.engine.unplace(&attachment("new"));
    world.drop_pod("a");
    world.settle_clean();
    assert!(world.lead("to_pod", "a").is_none());
}

// E8
#[test]
fn a_placed_pod_has_an_anti_spoof_chain_unless_it_opts_out() {
    let mut world = World::new();
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    world.engine.place(placed("a", "s1", &["10.0.0.1"]));
    world.settle_clean();
    let chain = link(&PodKey::new("x", "a"));
    let spoof = |world: &World| {
        let table = world
            .kernel
            .tables
            .values()
            .find(|t| &*t.at().name == "terway_spoof");
        table.is_some_and(|t| t.chains.contains_key(chain.as_str()))
    };
    assert!(spoof(&world));
    let mut off = pod("a", "n1", &["10.0.0.1"], &json!({}));
    off["metadata"]["annotations"] = json!({"k8s.aliyun.com/spoof-check": "off"});
    world.put(&off);
    world.settle_clean();
    assert!(!spoof(&world));
    assert!(world.engine.is_ready(&attachment("s1")));
}

#[test]
fn a_pod_without_a_host_side_link_has_its_rules_in_its_own_namespace() {
    let mut world = World::new();
    world.put(&policy("deny", &json!({"podSelector": {}})));
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    world.engine.set_node_addresses([ip("10.9.9.9")]);
    world.engine.place(LocalPod {
        host_link: None,
        netns: Some("/run/netns/a".into()),
        ..placed("a", "s1", &["10.0.0.1"])
    });
    let inside = Target::Namespace("/run/netns/a".into());
    assert!(world.engine.unknown_targets().contains(&inside));
    let mut own = super::kernel::Kernel::default();
    for target in world.engine.unknown_targets() {
        world.engine.adopt(&target, &[]);
    }
    while let Some(step) = world.engine.next_step() {
        let kernel = if step.target == inside {
            &mut own
        } else {
            &mut world.kernel
        };
        kernel.transact(&step.changes).unwrap();
        world.engine.committed(&step);
    }
    assert!(world.engine.is_ready(&attachment("s1")));
    assert_eq!(own.policy().sets["to_pod"].elements.len(), 1);
    assert_eq!(own.policy().sets["node4"].elements.len(), 1);
    assert_eq!(
        world.engine.diff(&inside, &own.dump()),
        Vec::<String>::new()
    );
    world.engine.unplace(&attachment("s1"));
    world.drop_pod("a");
    assert!(world.engine.next_step().is_none());
    assert!(world.engine.unknown_targets().is_empty());
}

#[test]
fn teardown_removes_both_tables_whether_they_are_there_or_not() {
    let mut world = three_pods();
    let step = world.engine.teardown(&Target::Host);
    world.kernel.transact(&step.changes).unwrap();
    world.settle_clean();
    let step = world.engine.teardown(&Target::Host);
    world.kernel.transact(&step.changes).unwrap();
    assert!(world.kernel.tables.is_empty());
}

// B4
#[test]
fn a_namespace_that_changes_its_labels_moves_its_pods_in_and_out_of_sets() {
    let mut world = three_pods();
    world.put(&policy(
        "p",
        &json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"t": "1"}}}]}]}),
    ));
    world.settle_clean();
    let set = world
        .units()
        .into_iter()
        .find(|u| u.starts_with("p4_"))
        .unwrap();
    assert_eq!(world.members(&set), 0);
    world.put(&namespace("x", &json!({"t": "1"})));
    assert_eq!(kinds(&world.settle_clean()), [StepKind::Grow]);
    assert_eq!(world.members(&set), 3);
    world.put(&namespace("x", &json!({})));
    assert_eq!(kinds(&world.settle_clean()), [StepKind::Move]);
    assert_eq!(world.members(&set), 0);
}
