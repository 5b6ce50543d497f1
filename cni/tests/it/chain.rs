//! Chained with Debian's `portmap`: our result is its `prevResult`, and it accepts it.

use std::path::Path;

use serde_json::{Value, json};

use crate::plugin::{Bench, run};

const PORTMAP: &str = "/usr/lib/cni/portmap";
const VERSION: &str = "1.0.0";

fn in_namespace(name: &str) -> String {
    format!("/var/run/netns/{name}")
}

fn ip(words: &[&str]) {
    let output = std::process::Command::new("ip")
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {words:?}: {} (this test needs root)",
        String::from_utf8_lossy(&output.stderr)
    );
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

/// Runs the rest of the chain as the CNI library does, in a namespace of its own, since it writes NAT
/// rules.
fn portmap(
    namespace: &Namespace,
    verb: &str,
    call: &crate::plugin::Call,
    conf: &Value,
) -> crate::plugin::Said {
    let mut environment = call.environment.clone();
    environment.insert("CNI_COMMAND", verb.to_owned());
    let file = std::fs::File::open(in_namespace(&namespace.0)).unwrap();
    let input = serde_json::to_vec(conf).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run(Path::new(PORTMAP), &environment, &input)
    })
    .join()
    .unwrap()
}

#[test]
fn result_is_accepted_by_portmap_and_comes_back_to_check_and_del() {
    assert!(
        Path::new(PORTMAP).exists(),
        "install containernetworking-plugins"
    );
    let bench = Bench::new();
    let agent = bench.agent();
    let namespace = Namespace(format!("cni{}", std::process::id()));
    ip(&["netns", "add", &namespace.0]);
    ip(&["-n", &namespace.0, "link", "set", "lo", "up"]);
    let shipped: Value =
        serde_json::from_str(include_str!("../../conf/10-terway.conflist")).unwrap();
    assert_eq!(shipped["plugins"][0]["type"], "terway");
    let mut conf = shipped["plugins"][1].clone();
    conf["cniVersion"] = json!(VERSION);
    conf["name"] = shipped["name"].clone();
    conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    });

    let call = bench.call("ADD", VERSION, |_| {});
    let ours = call.run();
    assert!(ours.succeeded, "{ours:?}");
    conf["prevResult"] = ours.json();
    let theirs = portmap(&namespace, "ADD", &call, &conf);

    assert!(theirs.succeeded, "{theirs:?}");
    let last = theirs.json();
    assert_eq!(last["ips"], ours.json()["ips"]);
    let check = bench
        .call("CHECK", VERSION, |c| c["prevResult"] = last.clone())
        .run();
    assert!(check.succeeded, "{check:?}");
    let expected = agent.seen(|s| s.check.clone()).unwrap().expected_ips;
    assert_eq!(expected, ["10.9.0.5/32", "fd09::5/128"]);
    conf["prevResult"] = last.clone();
    assert!(portmap(&namespace, "DEL", &call, &conf).succeeded);
    let del = bench.call("DEL", VERSION, |c| c["prevResult"] = last).run();
    assert!(del.succeeded, "{del:?}");
}

#[test]
fn shipped_configuration_is_accepted() {
    let bench = Bench::new();
    let _agent = bench.agent();
    let mut conf: Value = serde_json::from_str(include_str!("../../conf/10-terway.conf")).unwrap();
    conf["agent_socket"] = json!(bench.folder.path().join("agent.sock"));
    let input = serde_json::to_vec(&conf).unwrap();

    let said = bench.call("ADD", "0.4.0", |_| {}).input(&input).run();

    assert!(said.succeeded, "{said:?}");
}
