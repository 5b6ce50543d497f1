//! Crash points, seen from outside the process.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use mesh::crash::VARIABLE;
use mesh::crash_point;

/// Plays both parts: the parent, and the child that it starts with the point armed.
#[test]
fn armed_point_kills_the_process_at_the_hit_that_was_asked_for() {
    if std::env::var_os(VARIABLE).is_some() {
        crash_point!("it.other");
        crash_point!("it.crash");
        crash_point!("it.crash");
        panic!("survived");
    }
    let this = "crash::armed_point_kills_the_process_at_the_hit_that_was_asked_for";

    let run = |armed: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this])
            .env(VARIABLE, armed)
            .output()
            .unwrap()
            .status
    };

    assert_eq!(run("it.crash:2").signal(), Some(9));
    assert_eq!(
        run("it.crash:3").signal(),
        None,
        "the point was reached twice only"
    );
}
