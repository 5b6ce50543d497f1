use super::*;
use types::op::Seq;

const REST: Duration = Duration::from_secs(30);

fn eni(id: &str, n: u8, addresses: u8) -> EniRecord {
    let mut granted = BTreeMap::new();
    for i in 1..=addresses {
        granted.insert(format!("10.0.{n}.{i}").parse().unwrap(), Seq(7));
        granted.insert(format!("2001:db8:{n}::{i}").parse().unwrap(), Seq(7));
    }
    EniRecord {
        shard: "vsw-a.0".parse().unwrap(),
        eni: id.parse().unwrap(),
        mac: MacAddr([0, 0x16, 0x3e, 0, 0, n]),
        vswitch: "vsw-a".parse().unwrap(),
        ipv4_cidr: "10.0.0.0/16".parse().unwrap(),
        ipv4_gateway: "10.0.255.253".parse().unwrap(),
        ipv6: Some((
            "2001:db8::/32".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
        )),
        primary: format!("10.0.{n}.1").parse().unwrap(),
        addresses: granted,
        whole: false,
    }
}

fn request(sandbox: &str) -> BindRequest {
    BindRequest {
        attachment: AttachmentKey::new(sandbox, "eth0").unwrap(),
        pod: PodKey::new("default", sandbox),
        pod_uid: String::new(),
        netns: "/run/netns/x".into(),
        host_link: "cali0".into(),
        mtu: 1500,
        boot_id: "b".into(),
        whole: false,
    }
}

fn pool(addresses: u8) -> Pool {
    let mut pool = Pool::new(Stack::Dual, REST);
    assert!(pool.attach(eni("eni-1", 1, addresses)));
    pool.set_ready(&"eni-1".parse().unwrap(), true);
    pool
}

// I3: an address is bound to at most one live sandbox.
#[test]
fn two_sandboxes_never_share_an_address() {
    let mut pool = pool(3);

    let mut seen = BTreeSet::new();
    for n in 0..3 {
        let (binding, fresh) = pool.bind(&request(&format!("s{n}")), Tick(1)).unwrap();
        assert!(fresh);
        assert!(binding.addresses().all(|ip| seen.insert(ip)));
    }

    assert_eq!(pool.bind(&request("s3"), Tick(1)).unwrap_err(), Empty);
}

// I4: the same attachment gets the same answer.
#[test]
fn same_attachment_gets_the_same_addresses() {
    let mut pool = pool(3);
    let (first, _) = pool.bind(&request("s"), Tick(1)).unwrap();

    let (second, fresh) = pool.bind(&request("s"), Tick(2)).unwrap();

    assert_eq!((first, false), (second, fresh));
}

// I6: an address rests before another sandbox of the node gets it.
#[test]
fn freed_address_rests_before_it_is_reused() {
    let mut pool = pool(1);
    let (binding, _) = pool.bind(&request("s"), Tick(1)).unwrap();
    pool.unbind(&binding.attachment, Tick(1000)).unwrap();

    assert!(pool.bind(&request("t"), Tick(30_999)).is_err());
    assert_eq!(pool.rest_ends().first(), Some(&Tick(31_000)));
    assert!(pool.bind(&request("t"), Tick(31_000)).is_ok());
}

#[test]
fn longest_unused_address_goes_first() {
    let mut pool = pool(2);
    let (first, _) = pool.bind(&request("s"), Tick(1)).unwrap();
    pool.unbind(&first.attachment, Tick(2)).unwrap();

    let (second, _) = pool.bind(&request("t"), Tick(100_000)).unwrap();

    assert_ne!(first.ipv4, second.ipv4);
}

#[test]
fn eni_without_its_link_serves_nobody() {
    let mut pool = pool(2);
    pool.set_ready(&"eni-1".parse().unwrap(), false);

    assert!(pool.bind(&request("s"), Tick(1)).is_err());
    assert_eq!(pool.free(), 0);
}

#[test]
fn both_families_or_none_are_bound() {
    let mut record = eni("eni-1", 1, 2);
    record.addresses.retain(|ip, _| ip.is_ipv4());
    let mut pool = Pool::new(Stack::Dual, REST);
    pool.attach(record);
    pool.set_ready(&"eni-1".parse().unwrap(), true);

    assert!(pool.bind(&request("s"), Tick(1)).is_err());
}

#[test]
fn revocation_of_a_bound_address_is_refused() {
    let mut pool = pool(2);
    let (binding, _) = pool.bind(&request("s"), Tick(1)).unwrap();
    let eni = binding.eni.clone();
    let asked = pool.eni(&eni).unwrap().0.addresses.clone();

    let (accepted, refused) = pool.revoke(&eni, &asked);

    assert_eq!(refused.len(), 2);
    assert_eq!(accepted.len(), 2);
    assert!(binding.addresses().all(|ip| refused.contains(&ip)));
}

// I1: a delayed grant after the revocation must not bring the address back.
#[test]
fn grant_older_than_its_revocation_is_ignored() {
    let mut pool = pool(1);
    let eni: EniId = "eni-1".parse().unwrap();
    let asked = pool.eni(&eni).unwrap().0.addresses.clone();
    pool.revoke(&eni, &asked);

    assert!(!pool.grant(&eni, asked.clone()));
    let newer = asked.keys().map(|ip| (*ip, Seq(8))).collect();
    assert!(pool.grant(&eni, newer));
}

#[test]
fn revocation_older_than_the_grant_is_refused() {
    let mut pool = pool(1);
    let eni: EniId = "eni-1".parse().unwrap();
    let asked = pool
        .eni(&eni)
        .unwrap()
        .0
        .addresses
        .keys()
        .map(|ip| (*ip, Seq(6)))
        .collect();

    let (accepted, refused) = pool.revoke(&eni, &asked);

    assert_eq!((accepted.len(), refused.len()), (0, 2));
}

#[test]
fn eni_in_use_is_not_forgotten() {
    let mut pool = pool(1);
    let (binding, _) = pool.bind(&request("s"), Tick(1)).unwrap();

    assert!(pool.remove(&binding.eni).is_none());
    pool.unbind(&binding.attachment, Tick(2));
    assert!(pool.remove(&binding.eni).is_some());
}

#[test]
fn repeated_attach_changes_nothing() {
    let mut pool = pool(3);

    assert!(!pool.attach(eni("eni-1", 1, 3)));
    assert!(pool.eni(&"eni-1".parse().unwrap()).unwrap().1);
    assert_eq!(pool.free(), 3);
}

fn whole_request(sandbox: &str) -> BindRequest {
    BindRequest {
        whole: true,
        ..request(sandbox)
    }
}

/// Three pairs on a shared ENI, and an ENI for one pod.
fn mixed() -> Pool {
    let mut pool = pool(3);
    assert!(pool.attach(EniRecord {
        whole: true,
        ..eni("eni-2", 2, 1)
    }));
    pool.set_ready(&"eni-2".parse().unwrap(), true);
    pool
}

#[test]
fn whole_eni_serves_the_pod_that_asks_for_one_and_no_other() {
    let mut pool = mixed();

    for n in 0..3 {
        let (binding, _) = pool.bind(&request(&format!("s{n}")), Tick(1)).unwrap();
        assert_eq!(binding.eni.as_str(), "eni-1");
    }
    assert_eq!(pool.bind(&request("s3"), Tick(1)).unwrap_err(), Empty);
    let (binding, fresh) = pool.bind(&whole_request("w"), Tick(1)).unwrap();
    assert!(fresh && binding.whole);
    assert_eq!(binding.eni.as_str(), "eni-2");
    assert_eq!(pool.bind(&whole_request("v"), Tick(1)).unwrap_err(), Empty);
    // The same sandbox asks again.
    assert_eq!(
        pool.bind(&whole_request("w"), Tick(2)).unwrap(),
        (binding, false)
    );
    // The pool's own numbers know nothing of it.
    let holding = pool.holdings()[&"vsw-a.0".parse().unwrap()];
    assert_eq!((holding.pods, holding.bound), (3, 3));
}

#[test]
fn whole_eni_rests_before_another_pod_has_it_and_not_before_the_same() {
    let mut pool = mixed();
    let first = whole_request("w");
    pool.bind(&first, Tick(1)).unwrap();
    pool.unbind(&first.attachment, Tick(1_000)).unwrap();

    assert_eq!(
        pool.bind(&whole_request("v"), Tick(2_000)).unwrap_err(),
        Empty
    );
    let again = BindRequest {
        attachment: AttachmentKey::new("w2", "eth0").unwrap(),
        ..first
    };
    assert!(pool.bind(&again, Tick(2_000)).is_ok());
    pool.unbind(&again.attachment, Tick(2_000)).unwrap();
    assert!(pool.bind(&whole_request("v"), Tick(32_000)).is_ok());
}

// An agent that is put back a version, or forth, reads what the other wrote.
#[test]
fn record_without_the_mark_is_of_a_shared_eni() {
    let mut record = serde_json::to_value(eni("eni-1", 1, 1)).unwrap();
    record.as_object_mut().unwrap().remove("whole").unwrap();

    assert!(!serde_json::from_value::<EniRecord>(record).unwrap().whole);
}
