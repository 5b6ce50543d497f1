use super::*;

fn shard(n: u32) -> ShardId {
    format!("vsw-a.{n}").parse().unwrap()
}

fn shortage(reason: Reason, message: &str) -> Shortage {
    Shortage {
        reason,
        message: message.to_owned(),
    }
}

/// A node that has all it needs, and no address yet.
fn good() -> Situation {
    Situation {
        identity: Identity::Agrees,
        feed: Feed {
            synced: true,
            trouble: None,
        },
        ipam: Ipam {
            welcomed: true,
            shards: Some(BTreeSet::from([shard(0), shard(1)])),
            ..Ipam::default()
        },
        ..Situation::default()
    }
}

fn condition(situation: &Situation, name: &str) -> (bool, String) {
    let all = situation.conditions();
    let found = all.into_iter().find(|c| c.r#type == name).unwrap();
    (found.status, found.reason)
}

fn is(status: bool, reason: &str) -> (bool, String) {
    (status, reason.to_owned())
}

#[test]
fn node_with_a_session_and_no_address_serves() {
    assert!(good().serves());
    assert_eq!(condition(&good(), READY), is(true, "TerwayReady"));
    assert_eq!(condition(&good(), SUFFICIENT_IP), is(true, "SufficientIP"));
}

/// Each fault by its name, for a node without a free address.
#[test]
fn every_fault_is_named_and_keeps_a_node_without_addresses_from_serving() {
    type Break = fn(&mut Situation);
    let short = |s: &mut Situation, reason| {
        for n in 0..2 {
            s.ipam.shortages.insert(shard(n), shortage(reason, "why"));
        }
    };
    let cases: [(&str, Break); 16] = [
        ("IdentityMismatch", |s| {
            s.identity = Identity::Differs("i-1 and i-2".to_owned());
        }),
        ("ApiServerForbidden", |s| {
            s.feed.synced = false;
            s.feed.trouble = Some(("ApiServerForbidden", "list pods: 403".to_owned()));
        }),
        ("ApiServerUnreachable", |s| {
            s.feed.synced = false;
            s.feed.trouble = Some(("ApiServerUnreachable", "refused".to_owned()));
        }),
        ("PolicyNotReady", |s| s.policy = Some("away".to_owned())),
        ("ConfigError", |s| {
            s.configuration = Some("no file".to_owned());
        }),
        ("IpamUnreachable", |s| {
            s.ipam.welcomed = false;
            s.ipam.trouble = Some((None, "connect: refused".to_owned()));
        }),
        ("NodeUnknown", |s| {
            s.ipam.welcomed = false;
            s.ipam.trouble = Some((Some("REASON_NODE_UNKNOWN".to_owned()), "i-1".to_owned()));
        }),
        ("NoVSwitch", |s| s.ipam.shards = Some(BTreeSet::new())),
        ("VswitchExhausted", |_| {}),
        ("VswitchInvalid", |_| {}),
        ("SecurityGroupInvalid", |_| {}),
        ("CloudCredentials", |_| {}),
        ("CloudForbidden", |_| {}),
        ("SecurityGroupFull", |_| {}),
        ("CloudInvalid", |_| {}),
        ("CloudUnavailable", |_| {}),
    ];
    for (name, broken) in cases {
        let mut situation = good();
        broken(&mut situation);
        let reason = Reason::from_str_name(&format!("REASON_{}", snake(name)));
        if let Some(reason) = reason.filter(|_| situation == good()) {
            short(&mut situation, reason);
        }

        assert!(!situation.serves(), "{name}");
        assert_eq!(condition(&situation, READY), is(false, name), "{name}");
        assert!(
            situation
                .faults()
                .iter()
                .any(|f| f.reason == name && f.blocks),
            "{name}"
        );
    }
}

/// The other way round.
fn snake(camel: &str) -> String {
    let mut name = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn node_with_addresses_in_hand_serves_whoever_of_ipam_and_cloud_is_away() {
    let mut situation = good();
    situation.free = 3;
    situation.ipam.welcomed = false;
    situation.ipam.trouble = Some((None, "refused".to_owned()));
    situation.certificate_expired = true;

    assert!(situation.serves());
    assert_eq!(condition(&situation, READY), is(true, "CertificateExpired"));
    assert_eq!(
        condition(&situation, SUFFICIENT_IP),
        is(true, "SufficientIP")
    );
}

#[test]
fn api_server_that_goes_away_later_is_named_and_keeps_nobody_from_serving() {
    let mut situation = good();
    situation.feed.trouble = Some(("ApiServerUnreachable", "refused".to_owned()));

    assert!(situation.serves());
    assert_eq!(
        condition(&situation, READY),
        is(true, "ApiServerUnreachable")
    );
}

#[test]
fn addresses_are_insufficient_when_every_shard_of_the_node_is_short() {
    let mut situation = good();
    let why = "vsw-a has no free address";
    let short = shortage(Reason::VswitchExhausted, why);
    situation.ipam.shortages.insert(shard(0), short.clone());
    assert_eq!(
        condition(&situation, SUFFICIENT_IP),
        is(true, "SufficientIP")
    );

    situation.ipam.shortages.insert(shard(1), short);

    assert_eq!(
        condition(&situation, SUFFICIENT_IP),
        is(false, "InsufficientIP")
    );
    let all = situation.conditions();
    assert!(
        all.iter()
            .any(|c| c.r#type == SUFFICIENT_IP && c.message.contains(why))
    );
}

#[test]
fn node_that_leaves_says_so_and_does_not_serve() {
    let mut situation = good();
    situation.leaving = true;

    assert!(!situation.serves());
    assert_eq!(condition(&situation, READY), is(false, "Leaving"));
}

#[test]
fn node_that_nobody_has_answered_yet_is_starting_and_says_nothing_of_addresses() {
    let all = Situation::default().conditions();

    assert_eq!(all.len(), 1);
    assert_eq!((all[0].status, all[0].reason.as_str()), (false, "Starting"));
}
