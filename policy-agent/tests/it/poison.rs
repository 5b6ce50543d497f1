//! A kernel that refuses: one object for good, or everything for a while.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nft_wire::change::Change;
use nft_wire::element::Element;
use policy_agent::enforcer::port::{Dump, DumpError, Ownership, Refused, Rules};
use policy_core::plan::{Failure, Target};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bed::{Agent, Bed, FAR_V4, Wants, gone, namespace, policy, until};
use crate::traffic::{passes, udp};

const EINVAL: i32 = 22;
const ENOBUFS: i32 = 105;
/// A port whose rules this kernel does not take.
const POISON: u16 = 6666;

/// What stands between enforcer and kernel.
#[derive(Clone, Default)]
struct Mood {
    everything: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
}

struct Moody {
    kernel: Box<dyn Rules + Send>,
    mood: Mood,
}

fn is_poison(change: &Change) -> bool {
    let bytes = format!("{:?}", POISON.to_be_bytes());
    format!("{change:?}").contains(&bytes)
}

impl Rules for Moody {
    fn commit(&mut self, target: &Target, changes: &[Change]) -> Result<(), Refused> {
        let failure = if self.mood.everything.load(Ordering::Acquire) {
            Failure::Whole { errno: ENOBUFS }
        } else if let Some(index) = changes.iter().position(is_poison) {
            Failure::Change {
                index,
                errno: EINVAL,
            }
        } else {
            return self.kernel.commit(target, changes);
        };
        self.mood.refused.fetch_add(1, Ordering::AcqRel);
        Err(Refused {
            failure,
            namespace_gone: false,
            text: "this kernel is in a mood".to_owned(),
        })
    }

    fn dump(&mut self, target: &Target) -> Result<Dump, DumpError> {
        self.kernel.dump(target)
    }

    fn elements(&mut self, target: &Target, name: &str) -> Result<Option<Vec<Element>>, DumpError> {
        self.kernel.elements(target, name)
    }

    fn forget(&mut self, target: &Target) {
        self.kernel.forget(target);
    }

    fn node_addresses(&mut self) -> Vec<IpAddr> {
        self.kernel.node_addresses()
    }

    fn ownership(&mut self) -> Ownership {
        self.kernel.ownership()
    }
}

async fn moody(bed: &Bed) -> (Agent, Mood) {
    let mood = Mood::default();
    let between = mood.clone();
    let wants = Wants {
        between: Box::new(|kernel| {
            Box::new(Moody {
                kernel,
                mood: between,
            })
        }),
        ..Wants::default()
    };
    (Agent::start_with(bed, wants).await, mood)
}

/// Everybody may send to this port of pods with this label.
fn opens(name: &str, app: &str, port: u16) -> policy_core::object::Event {
    let selector: Value = json!({"matchLabels": {"app": app}});
    policy(
        name,
        &json!({
            "podSelector": selector,
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": port}]}],
        }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_that_the_kernel_refuses_closes_its_pods_and_everything_else_goes_on() {
    let mut bed = Bed::new();
    let (sick, well) = (bed.pod("sick"), bed.pod("well"));
    let (mut agent, mood) = moody(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            sick.object(&json!({"app": "sick"})),
            well.object(&json!({"app": "well"})),
        ])
        .await;
    for (pod, sandbox) in [(&sick, "s1"), (&well, "s2")] {
        agent.gate.ready(pod.attached(sandbox), None).await.unwrap();
    }
    let poison = opens("poison", "sick", POISON);
    let from = udp(&bed.far(), FAR_V4, 0);
    let of_sick = udp(&sick.namespace, sick.v4, POISON);
    let of_well = udp(&well.namespace, well.v4, 80);
    let marker = udp(&well.namespace, well.v4, 81);
    assert!(passes(&from, &of_sick, &marker));

    agent
        .enforce(vec![poison.clone(), opens("good", "well", 81)])
        .await;

    assert!(!passes(&from, &of_sick, &marker), "the sick pod is open");
    assert!(!passes(&from, &of_well, &marker), "the good policy waits");
    assert!((agent.metric("terway_policy_failed_closed_pods") - 1.0).abs() < 0.1);
    let said = std::fs::read_to_string(&agent.events_file).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    let event: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(event["reason"], "PolicyNotEnforced", "{said}");
    assert_eq!(event["involvedObject"]["name"], "poison", "{said}");
    // A new sandbox of the sick pod does not start, and is told why in time.
    let deadline = Some(Instant::now() + Duration::from_millis(200));
    let refused = agent.gate.ready(sick.attached("s3"), deadline).await;
    assert!(refused.is_err(), "{refused:?}");
    // What is refused for good is not tried for ever.
    let tried = mood.refused.load(Ordering::Acquire);
    for round in 0..10 {
        let labels = json!({"app": "well", "round": round.to_string()});
        agent.enforce(vec![well.object(&labels)]).await;
    }
    assert_eq!(mood.refused.load(Ordering::Acquire), tried);

    agent.enforce(vec![gone(&poison)]).await;

    // The flow was cut meanwhile, and is given back a moment later.
    until("it is open again", async || {
        passes(&from, &of_sick, &marker)
    })
    .await;
    assert!(agent.metric("terway_policy_failed_closed_pods") < 0.1);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kernel_that_refuses_everything_for_a_while_keeps_what_it_has_and_gets_the_rest_later() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let (mut agent, mood) = moody(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({"app": "a"})),
            opens("first", "a", 81),
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let first = udp(&pod.namespace, pod.v4, 81);
    let second = udp(&pod.namespace, pod.v4, 82);
    let third = udp(&pod.namespace, pod.v4, 83);
    mood.everything.store(true, Ordering::Release);

    let sequence = agent.tell(vec![opens("second", "a", 82)]).await;
    until("it is tried again", async || {
        mood.refused.load(Ordering::Acquire) >= 3
    })
    .await;
    assert!(!passes(&from, &second, &first), "open too early");
    assert!(!passes(&from, &third, &first), "open");
    mood.everything.store(false, Ordering::Release);
    agent.until_applied(sequence).await;

    assert!(passes(&from, &second, &first));
    assert!(!passes(&from, &third, &first));
    agent.end().await;
}
