//! The binary: bad input ends it with status 64 and the name of what is wrong, before any port opens.

use std::process::{Command, Output};

use crate::world::WORLD;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecs-sim"))
        .args(arguments)
        .output()
        .unwrap()
}

fn run_world(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("world.toml");
    std::fs::write(&path, text).unwrap();
    run(&["--world", path.to_str().unwrap(), "--listen", "127.0.0.1:0"])
}

fn check(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn binary_with_a_bad_world_names_what_is_wrong() {
    check(&run_world(&format!("surprise = 1\n{WORLD}")), "surprise");
    check(
        &run_world(&WORLD.replace("vsw-small", "small")),
        "vSwitch id",
    );
    check(
        &run_world(&WORLD.replace("\"sg-b\"", "\"sg-a\"")),
        "sg-a exists already",
    );
    check(&run_world(&WORLD.replace("\"none\"", "\"slow\"")), "slow");
}

#[test]
fn binary_without_a_world_says_so() {
    check(&run(&[]), "--world");
    check(&run(&["--world", "/none/such.toml"]), "/none/such.toml");
}
