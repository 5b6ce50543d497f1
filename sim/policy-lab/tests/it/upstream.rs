//! The expectations of the conformance cases beside what another engine makes of the same documents.
//!
//! Runs where `go` is installed and its modules can be had; says so where not. The engine knows
//! NetworkPolicies alone, so cases with policies of the cluster or of Calico are left out, by count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use policy_lab::cases;
use policy_lab::cases::case::Case;
use policy_oracle::probe::{End, Probe, Protocol};
use policy_oracle::world::World;
use serde_json::{Value, json};

/// Cases in which the other engine says something else, and why.
const KNOWN: [(&str, &str); 8] = [
    (
        "hand/b2-not-in-matches-an-absent-key",
        "the engine wants the key to be there; the API does not",
    ),
    (
        "hand/b3-unreadable-peer-matches-nothing",
        "the engine panics on an operator that it does not know",
    ),
    (
        "hand/b3-unreadable-subject-closes-the-namespace",
        "the engine panics on an operator that it does not know",
    ),
    (
        "hand/b4-pods-wait-for-their-namespace",
        "to the engine an empty selector matches even a namespace that is not there",
    ),
    (
        "hand/b9-host-network-pod-is-no-peer-and-no-subject",
        "the engine knows no nodes, so none reaches its own pods",
    ),
    (
        "hand/c4-outside-by-its-address",
        "the engine knows no nodes, so none reaches its own pods",
    ),
    (
        "hand/d2-range-that-makes-no-sense-matches-nothing",
        "the engine panics on a range that ends before it starts",
    ),
    (
        "hand/e1-node-reaches-its-own-closed-pods",
        "the engine knows no nodes, so none reaches its own pods",
    ),
];

/// Cases that the engine can be asked.
const ASKED: usize = 230 + 50 + 48;

#[test]
fn expectations_agree_with_another_engine() {
    let Some(engine) = built() else { return };
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(network_policies_alone)
        .collect();
    let differ = differences(&engine, &cases);
    let known: BTreeSet<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = differ.keys().map(String::as_str).collect();
    let unlisted: Vec<_> = differ
        .iter()
        .filter(|(name, _)| !known.contains(name.as_str()))
        .collect();
    assert!(
        unlisted.is_empty(),
        "{} differ: {unlisted:#?}",
        unlisted.len()
    );
    let stale: Vec<_> = known.difference(&found).collect();
    assert!(stale.is_empty(), "these agree by now: {stale:?}");
    assert_eq!(cases.len(), ASKED);
}

/// The built program; `None` where `go` or the modules are not to be had.
fn built() -> Option<std::path::PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("policy-upstream");
    let go = |arguments: &[&str]| {
        Command::new("go")
            .args(arguments)
            .current_dir(&source)
            .stdin(Stdio::null())
            .output()
    };
    let have = go(&["mod", "download"]);
    match have {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            note(&format!(
                "not compared, modules are not to be had: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
            return None;
        }
        Err(error) => {
            note(&format!("not compared, go does not run: {error}"));
            return None;
        }
    }
    let output = go(&["build", "-o", program.to_str().unwrap(), "."]).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(program)
}

fn note(text: &str) {
    // Straight to the terminal: a captured note would be seen by nobody.
    let line = format!("expectations against another engine: {text}\n");
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}

fn network_policies_alone(case: &Case) -> bool {
    let group = |document: &Value| {
        let version = document["apiVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        version
            .split_once('/')
            .map_or(String::new(), |(group, _)| group.to_owned())
    };
    case.steps
        .iter()
        .flat_map(|step| &step.put)
        .all(|document| matches!(group(document).as_str(), "" | "networking.k8s.io"))
}

fn spoken(end: &End) -> Value {
    match end {
        End::Pod {
            namespace,
            name,
            address,
        } => json!({"namespace": namespace, "name": name, "address": address}),
        End::Node { address, .. } | End::Address(address) => json!({"address": address}),
    }
}

fn question(documents: &[Value], probes: &[(Probe, bool)]) -> String {
    let probes: Vec<Value> = probes
        .iter()
        .map(|(probe, _)| {
            let protocol = match probe.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
                Protocol::Sctp => "SCTP",
                Protocol::Icmp | Protocol::NeighbourDiscovery | Protocol::Other(_) => {
                    panic!("{probe} has no ports")
                }
            };
            json!({
                "from": spoken(&probe.source), "to": spoken(&probe.destination),
                "protocol": protocol, "port": probe.port,
            })
        })
        .collect();
    json!({"documents": documents, "probes": probes}).to_string()
}

/// The name of a case, and after one of its steps the documents and the probes.
type Asked<'a> = (&'a str, Vec<Value>, Vec<(Probe, bool)>);

/// By the name of the case: what differs first.
fn differences(engine: &Path, cases: &[Case]) -> BTreeMap<String, String> {
    let asked: Vec<Asked<'_>> = cases
        .iter()
        .flat_map(|case| {
            case.steps.iter().zip(case.states()).map(|(step, state)| {
                let probes = step.probes(&World::from_documents(state.clone())).unwrap();
                (case.name.as_str(), state, probes)
            })
        })
        .collect();
    let mut process = Command::new(engine)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let mut differ = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (_, documents, probes) in &asked {
                writeln!(input, "{}", question(documents, probes)).unwrap();
            }
            drop(input);
        });
        let mut lines = output.lines();
        for (name, _, probes) in &asked {
            let line = lines.next().unwrap().unwrap();
            let answer: Value = serde_json::from_str(&line).unwrap();
            if let Some(what) = difference(&answer, probes) {
                differ.entry((*name).to_owned()).or_insert(what);
            }
        }
        assert!(lines.next().is_none());
    });
    assert!(process.wait().unwrap().success());
    differ
}

fn difference(answer: &Value, probes: &[(Probe, bool)]) -> Option<String> {
    let error = answer["error"].as_str().unwrap();
    if !error.is_empty() {
        return Some(format!("no answer: {error}"));
    }
    let said = answer["open"].as_str().unwrap();
    assert_eq!(said.len(), probes.len());
    let wrong: Vec<&(Probe, bool)> = probes
        .iter()
        .zip(said.chars())
        .filter(|((_, open), said)| *open != (*said == 'y'))
        .map(|(probe, _)| probe)
        .collect();
    let (probe, open) = wrong.first()?;
    Some(format!(
        "{} of {}, first {probe} expected {open}",
        wrong.len(),
        probes.len()
    ))
}
