//! What `terwayctl policy` says of a living agent, and of its manifests alone.

use clap::Parser;
use serde_json::json;

use crate::bed::{Bed, BedPod, FAR_V4, NODE, PATIENCE};
use crate::program::{Program, Site};
use crate::traffic::{passes, udp};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: terwayctl::policy::run::Args,
}

/// Runs `terwayctl policy` with these words: what a shell would see as success, and what is printed.
fn terwayctl(words: &[&str]) -> (bool, String) {
    let words = std::iter::once("policy").chain(words.iter().copied());
    let cli = Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{e}"));
    let mut out = Vec::new();
    let done = terwayctl::policy::run::run(&cli.args, &mut out).unwrap_or_else(|e| panic!("{e:#}"));
    (done, String::from_utf8(out).unwrap())
}

/// A pod to whose port 81 all may send, under a living agent.
async fn living() -> (Bed, BedPod, Site, Program) {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let site = Site::new(&bed);
    site.write(&pod.document(&json!({})));
    site.write(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "only-81"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        },
    }));
    site.write(&json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.45.0.1"}]},
    }));
    let program = site.start("agent.log", &[]);
    site.until("policy is in force", |s| s.enabled && s.in_sync)
        .await;
    site.ready(&pod, "s1").await.unwrap();
    (bed, pod, site, program)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_question_is_answered_by_a_living_agent_and_explain_alike_by_its_manifests() {
    let (bed, pod, site, program) = living().await;
    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &denied, &marker));
    let far = FAR_V4.to_string();
    let (socket, manifests) = (site.socket(), site.path("manifests"));
    let (link, v4) = (pod.link.clone(), pod.v4);

    let asked = tokio::task::spawn_blocking(move || {
        let socket = ["--socket", socket.to_str().unwrap()];
        let folder = ["--manifests", manifests.to_str().unwrap()];
        let ask = |words: &[&str]| terwayctl(&[words, &socket].concat());
        let node = format!("node/{NODE}");
        for (source, port, allowed) in [
            (far.as_str(), "80", false),
            (far.as_str(), "81", true),
            (node.as_str(), "80", true),
        ] {
            let question = ["explain", source, "x/a", port, "udp"];
            let (online, text) = ask(&question);
            let (offline, words) = terwayctl(&[&question[..], &folder].concat());
            assert_eq!((online, offline), (allowed, allowed), "{text}\n{words}");
            assert!(!text.contains("DIFFERENCE"), "{text}");
        }
        let (_, text) = ask(&["explain", &far, "x/a", "80", "udp"]);
        assert!(
            text.contains("DENIED") && text.contains("only-81"),
            "{text}"
        );
        // What the kernel has stands beside it, with its counters.
        let (_, text) = ask(&["explain", &far, "x/a", "81", "udp"]);
        let counted = |line: &str| line.contains("chain r_") && !line.contains("(0 packets");
        assert!(text.lines().any(counted), "{text}");
        assert!(text.contains(&link), "{text}");

        let (_, text) = ask(&["pod", "x/a"]);
        assert!(text.contains("only-81") && text.contains(&link), "{text}");
        assert!(
            text.contains("denied lately: 1 packets of 1 flows"),
            "{text}"
        );
        let (same, text) = ask(&["diff"]);
        assert!(same && text.contains("0 differences"), "{text}");
        let (_, text) = ask(&["denied"]);
        assert!(
            text.contains(&format!("ingress x/a ({link}): {far} -> {v4} udp 80")),
            "{text}"
        );
        let (well, text) = ask(&["status"]);
        assert!(
            well && text.contains("policy: on") && text.contains("in sync: true"),
            "{text}"
        );
        (far, socket.map(str::to_owned))
    });
    let (far, socket) = asked.await.unwrap();

    let trace = tokio::task::spawn_blocking(move || {
        let words = [
            "trace",
            &far,
            "x/a",
            "80",
            "udp",
            "--seconds",
            "3",
            &socket[0],
            &socket[1],
        ];
        terwayctl(&words).1
    });
    let speak = async {
        let mut every = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            every.tick().await;
            from.send_to(b"x", (pod.v4, 80)).unwrap();
        }
    };
    let text = tokio::select! {
        () = speak => unreachable!(),
        text = tokio::time::timeout(PATIENCE * 2, trace) => text.unwrap().unwrap(),
    };
    assert!(text.contains("deny_in"), "{text}");
    program.terminate().await;
}
