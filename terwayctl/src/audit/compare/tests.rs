use super::*;
use crate::audit::picture::{Binding, CloudEni, NodeEni, Shard, ShardEni, Slot};
use rstest::rstest;
use std::collections::{BTreeMap, BTreeSet};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One node with one ENI of two addresses, one of them bound: all agree.
fn picture() -> Picture {
    let addresses = [ip("10.0.0.5"), ip("10.0.0.6")];
    let slot = Slot {
        state: "held".into(),
        eni: "eni-1".into(),
        generation: 7,
    };
    Picture {
        cloud: BTreeMap::from([(
            "eni-1".into(),
            CloudEni {
                instance: "i-1".into(),
                mac: "m1".into(),
                status: "InUse".into(),
                addresses: addresses.into(),
            },
        )]),
        shards: BTreeMap::from([(
            "vsw-a.0".into(),
            Shard {
                slots: addresses.map(|ip| (ip, slot.clone())).into(),
                enis: BTreeMap::from([(
                    "eni-1".into(),
                    ShardEni {
                        state: "attached".into(),
                        instance: "i-1".into(),
                        mac: "m1".into(),
                    },
                )]),
                open_ops: 0,
            },
        )]),
        nodes: BTreeMap::from([("n1".into(), node(addresses))]),
    }
}

fn node(addresses: [IpAddr; 2]) -> Node {
    Node {
        instance: "i-1".into(),
        enis: BTreeMap::from([(
            "eni-1".into(),
            NodeEni {
                shard: "vsw-a.0".into(),
                mac: "m1".into(),
                ready: true,
                addresses: addresses.map(|ip| (ip, 7)).into(),
            },
        )]),
        bindings: BTreeMap::from([(
            "s1/eth0".into(),
            Binding {
                pod: "default/a".into(),
                eni: "eni-1".into(),
                addresses: BTreeSet::from([addresses[0]]),
                ..Binding::default()
            },
        )]),
        orphans: Vec::new(),
    }
}

fn shard(p: &mut Picture) -> &mut Shard {
    p.shards.get_mut("vsw-a.0").unwrap()
}

fn n1(p: &mut Picture) -> &mut Node {
    p.nodes.get_mut("n1").unwrap()
}

fn cloud(p: &mut Picture) -> &mut CloudEni {
    p.cloud.get_mut("eni-1").unwrap()
}

#[test]
fn picture_in_which_all_agree_has_no_finding() {
    assert_eq!(compare(&picture()), []);
}

#[rstest]
#[case(Kind::BoundTwice, |p: &mut Picture| {
    let binding = n1(p).bindings["s1/eth0"].clone();
    n1(p).bindings.insert("s2/eth0".into(), binding);
})]
#[case(Kind::TwoOwners, |p: &mut Picture| {
    let other = shard(p).clone();
    p.shards.insert("vsw-a.1".into(), other);
})]
#[case(Kind::BoundNotHeld, |p: &mut Picture| {
    n1(p).bindings.get_mut("s1/eth0").unwrap().addresses.insert(ip("10.0.0.99"));
})]
#[case(Kind::GrantedNotHeld, |p: &mut Picture| {
    n1(p).enis.get_mut("eni-1").unwrap().addresses.insert(ip("10.0.0.99"), 7);
})]
#[case(Kind::GenerationDiffers, |p: &mut Picture| {
    shard(p).slots.get_mut(&ip("10.0.0.6")).unwrap().generation = 8;
})]
#[case(Kind::HeldNotGranted, |p: &mut Picture| {
    n1(p).enis.get_mut("eni-1").unwrap().addresses.remove(&ip("10.0.0.6"));
})]
#[case(Kind::HeldNotInCloud, |p: &mut Picture| {
    cloud(p).addresses.remove(&ip("10.0.0.6"));
})]
#[case(Kind::CloudNotHeld, |p: &mut Picture| {
    cloud(p).addresses.insert(ip("10.0.0.77"));
})]
#[case(Kind::EniUnknown, |p: &mut Picture| {
    p.cloud.insert("eni-2".into(), CloudEni { status: "Available".into(), ..CloudEni::default() });
})]
#[case(Kind::EniMissing, |p: &mut Picture| {
    p.cloud.remove("eni-1");
})]
#[case(Kind::EniElsewhere, |p: &mut Picture| cloud(p).instance = "i-2".into())]
#[case(Kind::MacDiffers, |p: &mut Picture| cloud(p).mac = "m2".into())]
#[case(Kind::LinkMissing, |p: &mut Picture| {
    n1(p).enis.get_mut("eni-1").unwrap().ready = false;
})]
#[case(Kind::KernelDrift, |p: &mut Picture| {
    n1(p).bindings.get_mut("s1/eth0").unwrap().drift.push("rule 512".into());
})]
#[case(Kind::KernelOrphan, |p: &mut Picture| n1(p).orphans.push("link cali9".into()))]
#[case(Kind::SandboxGone, |p: &mut Picture| {
    n1(p).bindings.get_mut("s1/eth0").unwrap().netns_gone = true;
})]
fn planted_fault_is_found_by_its_kind(#[case] kind: Kind, #[case] plant: fn(&mut Picture)) {
    let mut planted = picture();
    plant(&mut planted);

    let found = compare(&planted);

    assert!(
        found.iter().any(|f| f.kind == kind),
        "{kind:?} not in {found:?}"
    );
}

#[test]
fn work_under_way_is_no_finding() {
    let mut p = picture();
    let moving = Slot {
        state: "unassign".into(),
        eni: "eni-1".into(),
        generation: 0,
    };
    shard(&mut p).slots.insert(ip("10.0.0.6"), moving);
    n1(&mut p)
        .enis
        .get_mut("eni-1")
        .unwrap()
        .addresses
        .remove(&ip("10.0.0.6"));

    assert_eq!(compare(&p), []);
}
