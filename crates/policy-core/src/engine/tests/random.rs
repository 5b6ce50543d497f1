use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::world::{World, allow, namespace, placed, pod, policy, settings, with_ports};
use crate::layout::Settings;
use nft_wire::element::Element;

/// What the kernel holds, without the order of elements and what was counted.
fn content(world: &World) -> Vec<String> {
    let mut out = Vec::new();
    for table in world.kernel.tables.values() {
        for (name, state) in &table.chains {
            out.push(format!("{} {name} {:?}", table.at(), state.chain.base));
            out.extend(state.rules.iter().map(|r| format!("{name} {:?}", r.exprs)));
        }
        for (name, state) in &table.sets {
            let mut elements: Vec<Element> = state.elements.clone();
            elements.sort();
            out.push(format!("{name} {:?} {elements:?}", state.set));
        }
    }
    out
}

/// The world as it is now, for a build from nothing.
#[derive(Default, Clone)]
struct Facts {
    namespaces: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    policies: BTreeMap<String, Value>,
    placed: BTreeMap<String, (String, String)>,
}

impl Facts {
    fn build(&self, settings: Settings) -> World {
        let mut world = World::on(super::kernel::Kernel::default(), settings);
        let objects = self
            .policies
            .values()
            .chain(self.pods.values())
            .chain(self.namespaces.values());
        objects.for_each(|o| world.put(o));
        for (name, (sandbox, address)) in &self.placed {
            world.engine.place(placed(name, sandbox, &[address]));
        }
        world.engine.set_synced();
        world.settle_clean();
        world
    }
}

fn random_policy(rng: &mut StdRng, name: &str) -> Value {
    let label = |rng: &mut StdRng| ["a", "b", "c"][rng.random_range(0..3)];
    let port: u16 = rng.random_range(80..90);
    match rng.random_range(0..7) {
        0 => policy(
            name,
            &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
        1 => policy(
            name,
            &json!({"podSelector": {"matchLabels": {"app": label(rng)}}, "ingress": [{"ports": [{"port": "web"}]}]}),
        ),
        2 => policy(
            name,
            &json!({
                "podSelector": {}, "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"app": label(rng)}}}],
                            "ports": [{"port": "web"}, {"port": port, "endPort": port + 5}]}],
            }),
        ),
        3 => policy(
            name,
            &json!({"podSelector": {}, "ingress": [{"from": [
                {"ipBlock": {"cidr": "10.0.0.0/24", "except": [format!("10.0.0.{}/32", rng.random_range(1..9))]}},
                {"namespaceSelector": {"matchLabels": {"t": "1"}}},
            ]}]}),
        ),
        _ => allow(name, label(rng), port),
    }
}

fn one_event(rng: &mut StdRng, world: &mut World, facts: &mut Facts) {
    let name = format!("o{}", rng.random_range(0..8));
    match rng.random_range(0..10) {
        0..=2 => {
            let node = ["n1", "n2"][rng.random_range(0..2)];
            let app = ["a", "b", "c"][rng.random_range(0..3)];
            let address = format!("10.0.0.{}", rng.random_range(1..9));
            let port: u16 = rng.random_range(80..84);
            let ports = json!([{"name": "web", "containerPort": port}]);
            let one = with_ports(pod(&name, node, &[&address], &json!({"app": app})), &ports);
            world.put(&one);
            if facts.placed.contains_key(&name) && node != "n1" {
                let (sandbox, _) = facts.placed.remove(&name).unwrap();
                world.engine.unplace(&super::world::attachment(&sandbox));
            }
            facts.pods.insert(name, one);
        }
        3 => {
            if let Some((sandbox, _)) = facts.placed.remove(&name) {
                world.engine.unplace(&super::world::attachment(&sandbox));
            }
            world.drop_pod(&name);
            facts.pods.remove(&name);
        }
        4..=6 => {
            let one = random_policy(rng, &name);
            world.put(&one);
            facts.policies.insert(name, one);
        }
        7 => {
            world.drop_policy(&name);
            facts.policies.remove(&name);
        }
        8 => {
            let labels = [json!({}), json!({"t": "1"})][rng.random_range(0..2)].clone();
            let one = namespace("x", &labels);
            world.put(&one);
            facts.namespaces.insert("x".to_owned(), one);
        }
        _ => {
            let local = facts
                .pods
                .get(&name)
                .is_some_and(|p| p["spec"]["nodeName"] == "n1");
            if local {
                let sandbox = format!("s{}", rng.random_range(0..1_000_000));
                let address = format!("10.0.0.{}", rng.random_range(1..9));
                if let Some((old, _)) = facts
                    .placed
                    .insert(name.clone(), (sandbox.clone(), address.clone()))
                {
                    world.engine.unplace(&super::world::attachment(&old));
                }
                world.engine.place(placed(&name, &sandbox, &[&address]));
            }
        }
    }
}

// A2, E10
#[test]
fn any_run_of_events_ends_with_the_tables_that_a_fresh_start_makes() {
    let base: u64 = std::env::var("POLICY_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    for seed in base..base + 40 {
        let settings = Settings {
            switch_above: 2,
            batch_bytes: if seed % 3 == 0 { 600 } else { 1 << 20 },
            ..settings()
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::with(settings.clone());
        let mut facts = Facts::default();
        facts
            .namespaces
            .insert("x".to_owned(), namespace("x", &json!({})));
        world.settle_clean();
        for _ in 0..40 {
            for _ in 0..rng.random_range(1..6) {
                one_event(&mut rng, &mut world, &mut facts);
            }
            // Events that come while a transaction is under way.
            if let Some(step) = world.engine.next_step() {
                super::world::check_order(&step);
                one_event(&mut rng, &mut world, &mut facts);
                world.kernel.transact(&step.changes).unwrap();
                let took_effect = rng.random_range(0..10) > 0;
                if took_effect {
                    world.engine.committed(&step);
                } else {
                    world.engine.failed(&step, crate::plan::Failure::Unknown);
                }
            }
            if rng.random_range(0..3) == 0 {
                world.settle_clean();
            }
        }
        world.settle_clean();
        let fresh = facts.build(settings.clone());
        pretty(&content(&fresh), &content(&world), seed);
        // Nothing is left when everything is gone.
        for name in facts.policies.keys() {
            world.drop_policy(name);
        }
        for (name, (sandbox, _)) in &facts.placed {
            world.drop_pod(name);
            world.engine.unplace(&super::world::attachment(sandbox));
        }
        for name in facts.pods.keys() {
            world.drop_pod(name);
        }
        world.settle_clean();
        assert_eq!(world.units().len(), 0, "seed {seed}");
        assert_eq!(world.engine.index().counts().sets, 0, "seed {seed}");
    }
}

fn pretty(fresh: &[String], have: &[String], seed: u64) {
    let missing: Vec<_> = fresh.iter().filter(|l| !have.contains(l)).take(3).collect();
    let extra: Vec<_> = have.iter().filter(|l| !fresh.contains(l)).take(3).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "seed {seed}: missing {missing:#?} extra {extra:#?}"
    );
}
