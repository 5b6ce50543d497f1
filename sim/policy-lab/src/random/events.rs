//! Random histories of a world: what a watch could say, in order and out of it.

use serde_json::{Value, json};

use crate::random::dice::Dice;
use crate::random::objects::{self, Scene};
use crate::random::{Flavour, World, cluster, policies, probes};

/// One thing that a watch says.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// The object is now so.
    Put(Value),
    /// The object of this document is not there (any more).
    Gone(Value),
}

/// Kind (with API group), namespace and name: what makes two documents the same object.
pub fn identity(document: &Value) -> (String, String, String) {
    let text = |pointer: &str| {
        document
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let group = text("/apiVersion")
        .rsplit_once('/')
        .map(|(group, _)| group.to_owned())
        .unwrap_or_default();
    (
        format!("{group}/{}", text("/kind")),
        text("/metadata/namespace"),
        text("/metadata/name"),
    )
}

/// The documents that are there after one more happening.
pub fn apply(documents: &mut Vec<Value>, happening: &Happening) {
    match happening {
        Happening::Put(document) => {
            let id = identity(document);
            match documents.iter_mut().find(|d| identity(d) == id) {
                Some(slot) => *slot = document.clone(),
                None => documents.push(document.clone()),
            }
        }
        Happening::Gone(document) => {
            let id = identity(document);
            documents.retain(|d| identity(d) != id);
        }
    }
}

/// A history of `length` happenings that begins with the world's own objects in any order. Contains updates,
/// relabelling, moves of addresses, replacements of pods, deletions, repetitions of old states, and deletions of
/// what is not there.
pub fn history(seed: u64, flavour: Flavour, length: usize) -> Vec<Happening> {
    let mut dice = Dice::new(seed ^ 0x5eed_0fe7);
    let world = World::generate(seed, flavour);
    let mut scene_dice = Dice::new(seed);
    scene_dice.next();
    let scene = Scene::generate(&mut scene_dice, objects_stack(&world.documents));
    let mut first = world.documents.clone();
    dice.shuffle(&mut first);
    let mut out: Vec<Happening> = first.into_iter().map(Happening::Put).collect();
    let mut now = Vec::new();
    for happening in &out {
        apply(&mut now, happening);
    }
    for number in 0..length {
        let next = step(&mut dice, &scene, &now, &out, flavour, number);
        apply(&mut now, &next);
        // Some of the events come twice.
        if dice.chance(8) {
            out.push(next.clone());
        }
        out.push(next);
    }
    out
}

fn objects_stack(documents: &[Value]) -> crate::random::Stack {
    let addresses: Vec<std::net::IpAddr> = probes::places(documents)
        .iter()
        .filter(|place| matches!(place, probes::Place::Node { .. }))
        .map(probes::Place::address)
        .collect();
    match (
        addresses.iter().any(std::net::IpAddr::is_ipv4),
        addresses.iter().any(std::net::IpAddr::is_ipv6),
    ) {
        (true, false) => crate::random::Stack::V4,
        (false, true) => crate::random::Stack::V6,
        (true, true) | (false, false) => crate::random::Stack::Dual,
    }
}

fn is_policy(document: &Value) -> bool {
    !["Pod", "Node", "Namespace"]
        .iter()
        .any(|kind| probes::is_kind(document, kind))
}

fn on_host(pod: &Value) -> bool {
    pod.pointer("/spec/hostNetwork").is_some()
}

fn some_of<'a>(dice: &mut Dice, now: &'a [Value], kind: &str) -> Option<&'a Value> {
    let list: Vec<&Value> = now.iter().filter(|d| probes::is_kind(d, kind)).collect();
    dice.pick(&list).copied()
}

fn step(
    dice: &mut Dice,
    scene: &Scene,
    now: &[Value],
    past: &[Happening],
    flavour: Flavour,
    number: usize,
) -> Happening {
    let fallback = || {
        Happening::Put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}))
    };
    match dice.below(20) {
        // Relabel a pod.
        0..=3 => match some_of(dice, now, "Pod").cloned() {
            Some(mut pod) => {
                let name = identity(&pod).2;
                pod["metadata"]["labels"] = json!(objects::labels(dice, &name));
                Happening::Put(pod)
            }
            None => fallback(),
        },
        // Relabel a namespace, or bring it back.
        4 | 5 => {
            let name = dice.pick(&scene.namespaces).copied().unwrap_or("x");
            Happening::Put(objects::namespace(dice, name))
        }
        // An address moves to another pod, of which the former holder may not have gone yet.
        6 => match (
            some_of(dice, now, "Pod").cloned(),
            some_of(dice, now, "Pod"),
        ) {
            (Some(mut taker), Some(giver)) if !on_host(&taker) && !on_host(giver) => {
                for key in ["podIP", "podIPs"] {
                    taker["status"][key] = giver["status"][key].clone();
                }
                Happening::Put(taker)
            }
            _ => fallback(),
        },
        // A pod replaced, created anew or moved to the other node.
        7..=9 => {
            let name = dice.word(&["a", "b", "c", "d", "e", "f", "g", "q"]);
            let space = dice.pick(&scene.namespaces).copied().unwrap_or("x");
            let slot = dice.below(24);
            Happening::Put(objects::pod(dice, scene.stack, space, name, slot, None))
        }
        10 | 11 => match some_of(dice, now, "Pod") {
            Some(pod) => Happening::Gone(pod.clone()),
            None => fallback(),
        },
        // A pod finishes and keeps its address in its status.
        12 => match some_of(dice, now, "Pod").cloned() {
            Some(mut pod) => {
                pod["status"]["phase"] = json!("Succeeded");
                Happening::Put(pod)
            }
            None => fallback(),
        },
        13 | 14 => {
            let malformed = flavour.malformed && dice.chance(5);
            let name = dice.below(6);
            let policy = policies::network_policy(dice, scene, name, malformed);
            Happening::Put(flavour.maybe_spoilt(dice, policy))
        }
        15 if flavour.cluster => {
            let name = dice.below(3);
            let policy = cluster::policy(dice, scene, name, false);
            Happening::Put(flavour.maybe_spoilt(dice, policy))
        }
        16 if flavour.calico && dice.chance(30) => {
            let name = dice.below(2);
            let policy = cluster::calico(dice, scene, name);
            Happening::Put(flavour.maybe_spoilt(dice, policy))
        }
        15..=17 => {
            let policies: Vec<&Value> = now.iter().filter(|d| is_policy(d)).collect();
            match dice.pick(&policies) {
                Some(policy) => Happening::Gone((*policy).clone()),
                None => fallback(),
            }
        }
        // An old state comes again, as after a relist.
        18 => match dice.pick(past) {
            Some(old) => old.clone(),
            None => fallback(),
        },
        // A deletion of what never was, or of a namespace or node that still has pods.
        _ => match number % 3 {
            0 => Happening::Gone(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "never"},
            })),
            1 => match some_of(dice, now, "Namespace") {
                Some(space) => Happening::Gone(space.clone()),
                None => fallback(),
            },
            _ => Happening::Gone(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "x", "name": "never"},
            })),
        },
    }
}
