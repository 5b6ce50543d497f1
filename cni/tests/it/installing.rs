//! The binary as the installer's container starts it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::plugin::{Bench, run};

fn terway(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

fn ours() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_terway"))
}

#[test]
fn installed_plugin_is_the_binary_itself_and_serves_calls() {
    let bench = Bench::new();
    let bin = bench.folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let to = format!("--to={}", bin.display());

    let first = terway(ours(), &["install", &to]);
    let again = terway(ours(), &["install", &to]);

    assert!(
        first.status.success() && again.status.success(),
        "{first:?}"
    );
    let said = |out: &Output| String::from_utf8(out.stdout.clone()).unwrap();
    assert!(said(&first).contains(" installed: "), "{}", said(&first));
    assert!(
        said(&again).contains(" is there already: "),
        "{}",
        said(&again)
    );
    let call = bench.call("VERSION", "1.1.0", |_| ());
    let reply = run(&bin.join("terway"), &call.environment, &call.input);
    let versions: Value = reply.json();
    assert_eq!(versions["supportedVersions"].as_array().unwrap().len(), 5);
}

#[test]
fn arguments_that_are_not_understood_end_with_64_and_say_how_it_is_used() {
    let out = terway(ours(), &["install"]);

    assert_eq!(out.status.code(), Some(64));
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("install --to DIR")
    );
}

#[test]
fn folder_that_is_not_there_fails_and_is_named() {
    let out = terway(ours(), &["install", "--to", "/nonexistent/bin"]);

    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("/nonexistent/bin")
    );
}
