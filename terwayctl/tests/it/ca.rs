//! `terwayctl ca`: what it makes, and how it fails.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use mesh::identity::Identity;
use mesh::tls::{TlsConfig, TlsMaterial};

fn terwayctl(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_terwayctl"))
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn issued_certificate_loads_and_names_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let uri = "spiffe://terway.local/cluster/c1/node/i-1";

    let init = terwayctl(dir.path(), &["ca", "init", "--dir", "ca"]);
    assert!(init.status.success(), "{}", said(&init));
    let arguments = [
        "ca",
        "issue",
        "--dir",
        "ca",
        "--out",
        "n",
        "--identity",
        uri,
        "--san",
        "10.0.0.1",
    ];
    let issued = terwayctl(
        dir.path(),
        &[&arguments[..], &["--san", "node-1", "--days", "1"]].concat(),
    );
    assert!(issued.status.success(), "{}", said(&issued));

    let material = TlsMaterial::load(&TlsConfig::in_dir(&dir.path().join("n"))).unwrap();
    assert_eq!(material.identity(), Identity::node("c1", "i-1"));
    for file in ["ca/ca.key", "n/tls.key"] {
        let mode = std::fs::metadata(dir.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn usage_that_is_not_understood_ends_with_64_and_names_the_argument() {
    let dir = tempfile::tempdir().unwrap();

    for (arguments, named) in [
        (&["ca", "issue", "--dir", "ca"][..], "--out"),
        (&["ca", "init"], "--dir"),
        (&["ca", "init", "--dir", "ca", "--days", "0"], "--days"),
        (
            &[
                "ca",
                "issue",
                "--dir",
                "ca",
                "--out",
                "o",
                "--identity",
                "spiffe://x/gateway/g",
            ],
            "trust domain",
        ),
        (&["ca", "revoke"], "revoke"),
        (&[], "Usage"),
    ] {
        let output = terwayctl(dir.path(), arguments);

        assert_eq!(
            output.status.code(),
            Some(64),
            "{arguments:?}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains(named),
            "{arguments:?}: {}",
            said(&output)
        );
    }
}

#[test]
fn failure_ends_with_1_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let identity = ["--identity", "spiffe://terway.local/gateway/g1"];

    let nowhere = [
        &["ca", "issue", "--dir", "nowhere", "--out", "o"][..],
        &identity,
    ]
    .concat();
    let missing = terwayctl(dir.path(), &nowhere);
    terwayctl(dir.path(), &["ca", "init", "--dir", "ca"]);
    let again = terwayctl(dir.path(), &["ca", "init", "--dir", "ca"]);
    let odd = [
        &["ca", "issue", "--dir", "ca", "--out", "o", "--san", "a b"][..],
        &identity,
    ]
    .concat();
    let odd = terwayctl(dir.path(), &odd);

    for (output, named) in [
        (missing, "nowhere/ca.crt"),
        (again, "ca holds"),
        (odd, "a b"),
    ] {
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(named), "{}", said(&output));
    }
}

#[test]
fn help_and_version_are_answers() {
    let dir = tempfile::tempdir().unwrap();

    for argument in ["--help", "--version"] {
        let output = terwayctl(dir.path(), &[argument]);

        assert!(output.status.success());
        assert!(said(&output).contains("terwayctl"), "{}", said(&output));
    }
}
