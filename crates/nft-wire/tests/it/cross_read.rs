//! The sample ruleset in a real kernel: what it dumps is what we sent, and `nft` reads in it what the
//! text says.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nft_wire::batch::encode_batch;
use nft_wire::change::Change;
use nft_wire::element::Element;
use nft_wire::expr::Expr;
use nft_wire::message::{Message, decode_all};
use nft_wire::name::{Family, Name};
use nft_wire::request::Request;
use nft_wire::snapshot::Snapshot;
use nft_wire::table::Table;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::sample;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of its own with an `nft` in it.
struct Lab {
    name: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(
            Command::new("ip")
                .args(["netns", "del", &self.name])
                .status(),
        );
    }
}

impl Lab {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nft{}-{number}", std::process::id());
        let status = Command::new("ip")
            .args(["netns", "add", &name])
            .status()
            .unwrap();
        assert!(status.success(), "ip netns add (these tests need root)");
        Self { name }
    }

    fn nft(&self, arguments: &[&str]) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft"])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A socket inside: made by a thread that enters and ends.
    fn socket(&self) -> Kernel {
        let path = format!("/var/run/netns/{}", self.name);
        let socket = std::thread::spawn(move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
            socket.bind_auto().unwrap();
            socket.connect(&SocketAddr::new(0, 0)).unwrap();
            socket
        });
        Kernel {
            socket: socket.join().unwrap(),
        }
    }
}

struct Kernel {
    socket: Socket,
}

impl Kernel {
    fn commit(&self, changes: &[Change]) {
        let batch = encode_batch(changes, 100).unwrap();
        self.socket.send(&batch.bytes, 0).unwrap();
        loop {
            let (datagram, _) = self.socket.recv_from_full().unwrap();
            for (header, message) in decode_all(&datagram).unwrap() {
                let Message::Answer(answer) = message else {
                    continue;
                };
                let change = batch.change_of(header.seq).map(|at| changes[at].label());
                assert_eq!(answer.errno, 0, "{change:?} {answer:?}");
                if Some(header.seq) == batch.ack_seq() {
                    return;
                }
            }
        }
    }

    fn ask(&self, request: &Request) -> Vec<Change> {
        self.socket.send(&request.encode(1), 0).unwrap();
        let mut changes = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().unwrap();
            for (_, message) in decode_all(&datagram).unwrap() {
                match message {
                    Message::Change(change) => changes.push(change),
                    Message::Done(0) => return changes,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let table = sample::golden();
        let mut snapshot = Snapshot::new(Table::new(table.clone()), 0);
        let rules = Request::Rules {
            table: table.clone(),
            chain: None,
        };
        for request in [
            Request::Tables(Family::Inet),
            Request::Chains(Family::Inet),
            Request::Sets(table.clone()),
            rules,
        ] {
            for change in self.ask(&request) {
                snapshot.take(change);
            }
        }
        let sets: Vec<_> = snapshot.sets.keys().cloned().collect();
        for set in sets {
            let table = table.clone();
            for change in self.ask(&Request::Elements { table, set }) {
                snapshot.take(change);
            }
        }
        snapshot
    }
}

/// Without what the kernel adds by itself.
fn sorted(elements: &[Element]) -> Vec<Element> {
    let mut elements = elements.to_vec();
    for element in &mut elements {
        if let Some(life) = element.life.as_mut() {
            life.expiration = None;
            life.counter = life.counter.filter(|c| c.packets > 0);
        }
    }
    elements.sort();
    elements
}

#[test]
fn what_the_kernel_dumps_is_what_we_sent() {
    let lab = Lab::new();
    let kernel = lab.socket();
    kernel.commit(&sample::transaction());
    let snapshot = kernel.snapshot();
    assert!(!snapshot.foreign);
    for chain in sample::chains() {
        let state = &snapshot.chains[&chain.name];
        assert_eq!(state.chain, chain);
        let mut rules = state.rules.clone();
        for rule in &mut rules {
            assert!(rule.handle.take().is_some());
        }
        let sent: Vec<_> = sample::rules()
            .into_iter()
            .filter(|r| r.chain == chain.name)
            .collect();
        assert_eq!(rules, sent);
    }
    for set in sample::sets() {
        assert_eq!(snapshot.sets[&set.name].set, set);
    }
    for sent in sample::elements() {
        let found = &snapshot.sets[&sent.set].elements;
        assert_eq!(sorted(found), sorted(&sent.elements), "{}", sent.set);
    }
}

#[test]
fn changes_undone_one_by_one_leave_an_empty_table() {
    let lab = Lab::new();
    let kernel = lab.socket();
    let table = sample::golden();
    kernel.commit(&sample::transaction());
    let mut undo = Vec::new();
    for (name, state) in kernel.snapshot().chains {
        let rule = state.rules.into_iter().next();
        undo.extend(
            rule.and_then(|rule| rule.handle)
                .map(|handle| Change::DeleteRule {
                    table: table.clone(),
                    chain: Name::clone(&name),
                    handle,
                }),
        );
        undo.push(Change::FlushChain {
            table: table.clone(),
            name,
        });
    }
    undo.extend(
        sample::elements()
            .into_iter()
            .enumerate()
            .map(|(at, elements)| match at % 2 {
                0 => Change::DeleteElements(elements),
                _ => Change::FlushSet {
                    table: table.clone(),
                    name: elements.set,
                },
            }),
    );
    undo.extend(sample::sets().into_iter().map(|set| Change::DeleteSet {
        table: table.clone(),
        name: set.name,
    }));
    undo.extend(
        sample::chains()
            .into_iter()
            .map(|chain| Change::DeleteChain {
                table: table.clone(),
                name: chain.name,
            }),
    );
    kernel.commit(&undo);
    let left = kernel.snapshot();
    assert_eq!((left.chains.len(), left.sets.len()), (0, 0));
    kernel.commit(&[Change::DeleteTable(table)]);
    assert_eq!(kernel.ask(&Request::Tables(Family::Inet)), []);
}

/// What `nft -j` lists, without handles and places.
fn listed(lab: &Lab) -> Vec<Value> {
    let all: Value = serde_json::from_str(&lab.nft(&["-j", "list", "ruleset"])).unwrap();
    let mut all = all["nftables"].as_array().unwrap().clone();
    all.retain(|entry| entry.get("metainfo").is_none());
    for entry in &mut all {
        clean(entry);
    }
    all.sort_by_key(ToString::to_string);
    all
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            map.remove("expires");
            map.values_mut().for_each(clean);
            if let Some(Value::Array(elements)) = map.get_mut("elem") {
                elements.sort_by_key(ToString::to_string);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn nft_lists_what_we_loaded_as_it_lists_the_text() {
    let ours = Lab::new();
    let kernel = ours.socket();
    let mut transaction = sample::transaction();
    // Where `nft` itself writes another expression for the same meaning, it also lists another text.
    for change in &mut transaction {
        if let Change::AddRule(rule) = change {
            rule.exprs
                .retain(|expr| !matches!(expr, Expr::Byteorder { .. }));
        }
    }
    kernel.commit(&transaction);
    let theirs = Lab::new();
    theirs.nft(&[
        "-f",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sent.nft"),
    ]);
    let (ours, theirs) = (listed(&ours), listed(&theirs));
    let by_text = |all: &[Value]| -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in all {
            *counts.entry(entry.to_string()).or_default() += 1;
        }
        counts
    };
    let (ours, theirs) = (by_text(&ours), by_text(&theirs));
    let only = |a: &BTreeMap<String, usize>, b: &BTreeMap<String, usize>| -> Vec<String> {
        a.iter()
            .filter(|(k, n)| b.get(*k) != Some(n))
            .map(|(k, _)| k.clone())
            .collect()
    };
    assert_eq!(only(&ours, &theirs), only(&theirs, &ours));
}
