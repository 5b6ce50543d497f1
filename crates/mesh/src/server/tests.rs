//! The unix socket: who may connect, and what becomes of its file.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tonic::service::Routes;
use tonic::{Code, Status};

use super::rpc_metrics::RpcMetrics;
use super::{Bound, Params};
use crate::authz::TABLE;
use crate::client::{self, Channel};
use crate::drain::Drain;
use crate::metrics::Registry;
use crate::tasks::Tasks;

fn serve(bound: Bound) -> (Tasks, Registry) {
    let (tasks, registry) = (Tasks::new(Drain::new()), Registry::new());
    bound.serve(
        Routes::default(),
        TABLE,
        &RpcMetrics::register(&registry),
        &tasks,
    );
    (tasks, registry)
}

async fn call(path: &Path) -> Result<(), Status> {
    let channel = Channel::unix(path, &client::Params::default());
    let mut client = proto::node::v1::cni_client::CniClient::new(channel);
    client
        .status(proto::node::v1::StatusRequest {})
        .await
        .map(drop)
}

#[tokio::test]
async fn unix_socket_belongs_to_root_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/agent.sock");

    let (tasks, _) = serve(Bound::unix(&path, Params::default()).unwrap());

    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Allowed by the table, and then nobody implements it.
    assert_eq!(call(&path).await.unwrap_err().code(), Code::Unimplemented);
    tasks.drain().stop();
    assert!(tasks.wait(Duration::from_secs(10)).await);
    assert!(!path.exists(), "the socket file stayed behind");
}

#[tokio::test]
async fn unix_caller_of_another_uid_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let somebody_else = nix::unistd::Uid::current().as_raw() + 1;
    let bound = Bound::unix_of(&path, somebody_else, Params::default()).unwrap();
    let (tasks, registry) = serve(bound);

    let refused = call(&path).await.unwrap_err();

    assert_ne!(refused.code(), Code::Unimplemented, "{refused:?}");
    let counted = "terway_rpc_server_handshake_failures_total{reason=\"NotRoot\"} 1";
    assert!(registry.encode().contains(counted), "{}", registry.encode());
    tasks.drain().stop();
}

#[tokio::test]
async fn unix_socket_of_a_living_process_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let _first = Bound::unix(&path, Params::default()).unwrap();

    let second = Bound::unix(&path, Params::default());

    assert!(second.unwrap_err().to_string().contains("agent.sock"));
}

#[tokio::test]
async fn unix_socket_of_a_dead_process_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let (tasks, _) = serve(Bound::unix(&path, Params::default()).unwrap());

    assert_eq!(call(&path).await.unwrap_err().code(), Code::Unimplemented);
    tasks.drain().stop();
}

#[test]
fn file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    std::fs::write(&path, "precious").unwrap();

    assert!(Bound::unix(&path, Params::default()).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
