use std::collections::BTreeSet;

use mesh::config::Sources;

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

const GOOD: &str = r#"
    [tls]
    ca = "/tls/ca.crt"
    cert = "/tls/tls.crt"
    key = "/tls/tls.key"
    [cluster]
    id = "c1"
    namespace = "kube-system"
    release = "terway"
    phase = "kube-system/terway-phase"
    [leader]
    lease = "terway-controlplane"
    name = "pod-1"
    [certificates]
    issue = true
    secret = "terway-ca"
    trust = "terway-trust"
    audience = "terway"
    accounts = { node = "terway-node", gateway = "g", ipam = "i", relay = "r", etcd = "e" }
    [nodes]
    startup_taint = "node.terway.local/not-ready:NoSchedule"
    instances = "terway-instances"
    [ipam]
    replicas = ["10.0.0.1:7301"]
"#;

fn read(sets: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("controlplane.toml");
    std::fs::write(&file, GOOD).unwrap();
    let sources = Sources {
        file: Some(file),
        variables: Vec::new(),
        sets: sets.iter().map(|set| (*set).to_owned()).collect(),
    };
    mesh::run::configure(&sources).map_err(|error| format!("{error:#}"))
}

#[test]
fn configuration_that_makes_no_sense_names_its_key() {
    for (set, key) in [
        ("mode=sleep", "mode"),
        ("cluster.id=a/b", "cluster.id"),
        ("cluster.namespace=", "cluster.namespace"),
        ("cluster.release=", "cluster.release"),
        ("cluster.phase=terway-phase", "cluster.phase"),
        ("leader.lease=", "leader.lease"),
        ("leader.name=", "leader.name"),
        ("leader.lease_ms=10", "leader.lease_ms"),
        ("leader.renew_ms=8000", "leader.renew_ms"),
        ("certificates.authority=vault", "certificates.authority"),
        ("certificates.secret=", "certificates.secret"),
        ("certificates.trust=", "certificates.trust"),
        ("certificates.audience=", "certificates.audience"),
        ("certificates.lifetime_ms=1000", "certificates.lifetime_ms"),
        (
            "certificates.authority_lifetime_ms=86400000",
            "certificates.authority_lifetime_ms",
        ),
        ("certificates.accounts.ipam=g", "certificates.accounts"),
        ("certificates.accounts.cni=g", "certificates.accounts"),
        ("tls.key=/elsewhere/tls.key", "tls"),
        ("nodes.startup_taint=a", "nodes.startup_taint"),
        ("nodes.startup_taint=a=b:Sometimes", "nodes.startup_taint"),
        ("ipam.replicas=[]", "ipam.replicas"),
        ("ipam.replicas=[\"10.0.0.1\"]", "ipam.replicas"),
        ("uninstall.timeout_ms=0", "uninstall.timeout_ms"),
        ("uninstall.hurry=true", "uninstall"),
    ] {
        let why = read(&[set]).expect_err(set);
        assert!(why.contains(key), "{set}: {why}");
    }
}

#[test]
fn uninstalling_needs_no_name_in_the_lease() {
    assert!(read(&["mode=uninstall", "leader.name="]).is_ok());
}

#[test]
fn taint_is_read_with_and_without_a_value() {
    for text in ["a:NoSchedule", "a.b/c=d:NoExecute"] {
        assert_eq!(text.parse::<Taint>().unwrap().to_string(), text);
    }
}

/// Every key, down to values.
fn keys(prefix: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(table) => {
            for (name, inner) in table {
                let dot = if prefix.is_empty() { "" } else { "." };
                keys(&format!("{prefix}{dot}{name}"), inner, found);
            }
        }
        None => {
            found.insert(prefix.to_owned());
        }
    }
}

/// The keys in the tables of a chapter of the document.
fn documented(chapter: &str) -> BTreeSet<String> {
    let (_, text) = DOCUMENT.split_once(&format!("\n## {chapter}\n")).unwrap();
    let text = text.split_once("\n## ").map_or(text, |(text, _)| text);
    let rows = text.lines().filter_map(|row| row.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

#[test]
fn every_key_is_documented() {
    let config = read(&[]).unwrap();
    let mut found = BTreeSet::new();
    keys("", &serde_json::to_value(&config).unwrap(), &mut found);
    let (own, shared) = (documented("controlplane"), documented("Every service"));

    let missing: Vec<_> = found
        .iter()
        .filter(|key| !own.contains(*key) && !shared.contains(*key))
        .collect();
    let gone: Vec<_> = own.difference(&found).collect();

    assert!(missing.is_empty(), "not in the document: {missing:?}");
    assert!(gone.is_empty(), "documented, but no key: {gone:?}");
}
