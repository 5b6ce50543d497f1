//! Sources of credentials against the simulated cloud: what they give is what the cloud takes.

use std::path::Path;
use std::time::Duration;

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::Encryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use ecs_sim::config::{MetadataTokens, SimConfig};
use ecs_sim::roles::RoleSpec;
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, SecurityGroupKind, SecurityGroupSpec, VSwitchSpec, VpcSpec};
use serde_json::json;

use crate::world::{World, new_eni, reason, region};

const PATIENCE: Duration = Duration::from_secs(30);
const KEYRING: &str = "0123456789abcdef0123456789abcdef";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack";

/// Looks until it holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looks = async {
        let mut every = tokio::time::interval(Duration::from_millis(10));
        while !holds() {
            every.tick().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, looks).await;
    assert!(waited.is_ok(), "waited in vain: {what}");
}

impl World {
    fn signer(&self) -> String {
        let current = self.gateway.credentials.current();
        current.map_or_else(|none| none.to_string(), |keys| keys.access_key_id.clone())
    }

    fn complaint(&self) -> String {
        let unmet = self.health.unmet();
        unmet
            .into_iter()
            .filter(|(name, _)| *name == "credentials")
            .map(|(_, why)| why)
            .collect()
    }
}

/// The gateway's own host: it asks from loopback.
async fn host(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let sim = region(change).await;
    sim.add_vpc(VpcSpec {
        id: "vpc-loop".parse().unwrap(),
        ipv4_cidr: "127.0.0.0/8".parse().unwrap(),
        ipv6_cidr: None,
    })
    .unwrap();
    sim.add_vswitch(VSwitchSpec {
        id: "vsw-loop".parse().unwrap(),
        vpc: "vpc-loop".parse().unwrap(),
        zone: "cn-test-a".parse().unwrap(),
        ipv4_cidr: "127.0.0.0/24".parse().unwrap(),
        ipv6_cidr: None,
    })
    .unwrap();
    sim.add_security_group(SecurityGroupSpec {
        id: "sg-loop".parse().unwrap(),
        vpc: "vpc-loop".parse().unwrap(),
        kind: SecurityGroupKind::Normal,
    })
    .unwrap();
    sim.run_instance(InstanceSpec {
        id: "i-gateway".parse().unwrap(),
        instance_type: "ecs.g7.xlarge".parse().unwrap(),
        vswitch: "vsw-loop".parse().unwrap(),
        security_groups: vec!["sg-loop".parse().unwrap()],
        primary_ip: Some("127.0.0.1".parse().unwrap()),
        name: String::new(),
    })
    .await
    .unwrap();
    sim
}

fn role(life_seconds: u64) -> RoleSpec {
    RoleSpec {
        instances: vec!["i-gateway".parse().unwrap()],
        life_seconds,
        ..RoleSpec::new("terway")
    }
}

const AUTO: &str = "ram_role = \"auto\"\nmetadata = \"<metadata>\"";

#[tokio::test]
async fn role_of_the_instance_is_renewed_before_its_keys_end() {
    for mode in [MetadataTokens::Required, MetadataTokens::Optional] {
        let sim = host(|config| config.metadata_tokens = mode).await;
        sim.set_role(role(6));
        let world = World::signed_by(sim, tempfile::tempdir().unwrap(), AUTO, &[]).await;
        let first = world.signer();
        world.made(1, "10.0.0.10").await;

        until("other keys", || world.signer() != first).await;
        world.made(2, "10.0.0.20").await;

        assert!(world.health.is_ready(), "{}", world.complaint());
        let signers: Vec<String> = world
            .sim
            .calls()
            .into_iter()
            .map(|call| call.access_key_id)
            .collect();
        assert!(signers.contains(&first) && signers.contains(&world.signer()));
        assert!(
            !world
                .sim
                .calls()
                .iter()
                .any(|call| call.code.contains("Expired"))
        );
    }
}

#[tokio::test]
async fn role_that_was_taken_away_is_named_when_its_keys_have_ended_and_comes_back_by_itself() {
    let sim = host(|_| {}).await;
    sim.set_role(role(2));
    let world = World::signed_by(sim, tempfile::tempdir().unwrap(), AUTO, &[]).await;
    world.made(1, "10.0.0.10").await;

    assert!(world.sim.remove_role("terway"));
    until("a complaint", || !world.complaint().is_empty()).await;
    let status = world.create(new_eni(2, "10.0.0.20")).await.unwrap_err();
    let complaint = world.complaint();
    world.sim.set_role(role(600));
    until("readiness", || world.health.is_ready()).await;
    world.made(3, "10.0.0.30").await;

    assert_eq!(reason(&status), "REASON_CLOUD_CREDENTIALS");
    for text in [complaint.as_str(), status.message()] {
        assert!(
            text.contains("credentials.ram_role") && text.contains("no RAM role"),
            "{text}"
        );
    }
    let metrics = world.registry.encode();
    assert!(
        metrics.contains("terway_gateway_faults_total{reason=\"REASON_CLOUD_CREDENTIALS\"} 1"),
        "{metrics}"
    );
}

fn oidc(dir: &Path, role: &RoleSpec) -> String {
    let token = dir.join("token");
    format!(
        "[credentials.oidc]\nrole_arn = {:?}\nprovider_arn = {PROVIDER:?}\n\
         token_file = {token:?}\nsts_endpoint = \"<sts>\"",
        role.arn()
    )
}

fn service_role(token: &str) -> RoleSpec {
    RoleSpec {
        oidc_provider: Some(PROVIDER.to_owned()),
        oidc_tokens: vec![token.to_owned()],
        ..RoleSpec::new("terway")
    }
}

#[tokio::test]
async fn role_of_the_service_account_is_taken_with_the_token_of_the_day() {
    let sim = region(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    sim.set_role(service_role("token-of-monday"));
    let token = dir.path().join("token");
    std::fs::write(&token, "token-of-monday\n").unwrap();
    let credentials = oidc(dir.path(), &service_role(""));
    let world = World::signed_by(sim, dir, &credentials, &[]).await;
    let first = world.signer();
    world.made(1, "10.0.0.10").await;

    // kubelet writes another token, the old one is worth nothing any more, and the keys are refused.
    std::fs::write(&token, "token-of-tuesday\n").unwrap();
    world.sim.set_role(service_role("token-of-tuesday"));
    assert!(world.sim.disable_access_key(&first));
    let again = async {
        // A refusal makes it look at once, but not more often than once in a second.
        while world.create(new_eni(2, "10.0.0.20")).await.is_err() {}
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();

    assert!(world.signer().starts_with("STS.") && world.signer() != first);
}

#[tokio::test]
async fn token_that_sts_refuses_is_a_complaint_without_the_token() {
    let sim = region(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    sim.set_role(service_role("token-of-monday"));
    let token = dir.path().join("token");
    std::fs::write(&token, "hush-hush").unwrap();
    let credentials = oidc(dir.path(), &service_role(""));
    let world = World::signed_by(sim, dir, &credentials, &[]).await;
    let complaint = world.complaint();

    std::fs::write(&token, "token-of-monday").unwrap();
    until("readiness", || world.health.is_ready()).await;

    for word in [
        "AuthenticationFail.OIDCToken.Invalid",
        "acs:ram::1234567890123456:role/terway",
    ] {
        assert!(complaint.contains(word), "{word}: {complaint}");
    }
    assert!(!complaint.contains("hush"), "{complaint}");
    world.made(1, "10.0.0.10").await;
}

fn seal(iv: u8, plain: &str) -> String {
    let iv = [iv; 16];
    let mut buffer = [0_u8; 128];
    buffer[..plain.len()].copy_from_slice(plain.as_bytes());
    let sealed = Encryptor::<Aes256>::new_from_slices(KEYRING.as_bytes(), &iv)
        .unwrap()
        .encrypt_padded::<Pkcs7>(&mut buffer, plain.len())
        .unwrap();
    STANDARD.encode([&iv, sealed].concat())
}

fn write_token_config(path: &Path, n: u8) {
    let file = json!({
        "access.key.id": seal(n, &format!("STS.id-{n}")),
        "access.key.secret": seal(n.wrapping_add(50), &format!("secret-{n}")),
        "security.token": seal(n.wrapping_add(100), &format!("token-{n}")),
        "expiration": "2999-01-01T00:00:00Z",
        "keyring": KEYRING,
    });
    // As a mount changes: at once.
    let beside = path.with_extension("new");
    std::fs::write(&beside, file.to_string()).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

#[tokio::test]
async fn token_file_that_comes_late_is_named_with_its_secret_and_then_followed() {
    let sim = region(|_| {}).await;
    for n in [1, 2] {
        let (id, secret) = (format!("STS.id-{n}"), format!("secret-{n}"));
        sim.add_temporary_key(&id, &secret, &format!("token-{n}"), None);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token-config");
    let credentials =
        format!("token_config = {path:?}\nsecret = \"addon.network.token\"\nreread_ms = 20");
    let world = World::signed_by(sim, dir, &credentials, &[]).await;
    let shown = path.display().to_string();

    for text in [world.complaint(), world.signer()] {
        for word in ["credentials.token_config", &shown, "addon.network.token"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    let usable = |value| {
        format!(
            "terway_gateway_credentials_usable{{source=\"credentials.token_config\",\
             place=\"{shown}\",secret=\"addon.network.token\"}} {value}"
        )
    };
    let metrics = world.registry.encode();
    assert!(metrics.contains(&usable(0)), "{metrics}");
    write_token_config(&path, 1);
    until("readiness", || world.health.is_ready()).await;
    world.made(1, "10.0.0.10").await;
    write_token_config(&path, 2);
    until("the next keys", || world.signer() == "STS.id-2").await;
    world.made(2, "10.0.0.20").await;
    std::fs::write(&path, "{").unwrap();
    until("a failed look", || {
        !world
            .registry
            .encode()
            .contains("terway_gateway_credentials_failed_total 0")
    })
    .await;
    world.made(3, "10.0.0.30").await;

    let metrics = world.registry.encode();
    assert!(world.health.is_ready(), "{}", world.complaint());
    assert!(metrics.contains(&usable(1)), "{metrics}");
    for hush in ["secret-2", "token-2", KEYRING] {
        assert!(!metrics.contains(hush));
    }
}
