//! Children are watched, and end when they should.

use std::path::Path;
use std::time::Duration;

use fabric::vpc::{Fabric, FabricConfig};
use sandbox::process::{Process, ProcessError, Spec};

const LIMIT: Duration = Duration::from_secs(20);

fn spec(fabric: &Fabric, dir: &Path, script: &str) -> Spec {
    Spec {
        name: "child".to_owned(),
        namespace: fabric.vpc().clone(),
        program: "sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![("WORD".to_owned(), "hello".to_owned())],
        log: dir.join("child.log"),
    }
}

#[tokio::test]
async fn child_that_dies_is_reported_with_the_end_of_its_log() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let child = Process::start(spec(&fabric, dir.path(), "echo $WORD; exit 3")).unwrap();

    let status = child.wait_exit(LIMIT).await.unwrap();

    assert_eq!(status.code(), Some(3));
    let error = child.check().unwrap_err();
    assert!(matches!(error, ProcessError::Died { .. }));
    assert!(error.to_string().contains("hello"), "{error}");
}

#[tokio::test]
async fn child_that_ignores_sigterm_is_killed() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; while :; do sleep 1; done";
    let child = Process::start(spec(&fabric, dir.path(), script)).unwrap();
    child.check().unwrap();

    child.kill().await.unwrap();

    assert!(child.check().is_err());
    child.stop().await.unwrap();
}

#[tokio::test]
async fn child_has_the_process_id_of_its_program_and_runs_in_its_namespace() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let child = Process::start(spec(&fabric, dir.path(), "echo $$; ip -o link; exit 0")).unwrap();

    child.wait_exit(LIMIT).await.unwrap();

    let log = std::fs::read_to_string(dir.path().join("child.log")).unwrap();
    assert!(log.starts_with(&format!("{}\n", child.pid())), "{log}");
    assert_eq!(log.lines().count(), 2, "more links than loopback: {log}");
}

#[tokio::test]
async fn program_that_is_not_there_is_reported() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(&fabric, dir.path(), "");
    spec.program = "/does/not/exist".into();
    let child = Process::start(spec).unwrap();

    child.wait_exit(LIMIT).await.unwrap();

    let error = child.check().unwrap_err().to_string();
    assert!(error.contains("/does/not/exist"), "{error}");
}
