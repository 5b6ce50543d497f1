//! The agent's program in a node's namespace, as a supervisor runs it: one folder, one configuration, many lives.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datapath::owner::{OwnerError, Peer};
use mesh::client::{Channel, Params};
use mesh::drain::Drain;
use mesh::tasks::Tasks;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::node::v1::{Attachment, PodRef};
use proto::policy::v1::gate_client::GateClient;
use proto::policy::v1::policies_client::PoliciesClient;
use proto::policy::v1::{LocalPod, ReadyRequest, ReleaseRequest, StatusRequest, StatusResponse};
use serde_json::{Value, json};
use tonic::Status;

use crate::bed::{Bed, BedPod, NODE, PATIENCE, inside};

/// How long a process may take for what it does at its start and end, on a machine that does much else.
const LIFE: Duration = Duration::from_mins(1);

/// Looks until it is so, with a bound.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !so().await {
            look.tick().await;
        }
    };
    tokio::time::timeout(LIFE, waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// The folder of a node's agent, and how it is started.
pub(crate) struct Site {
    node: String,
    folder: tempfile::TempDir,
}

/// The program while it runs; killed when dropped.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Site {
    pub(crate) fn new(bed: &Bed) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["manifests", "eni-config"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let site = Self {
            node: bed.node(),
            folder,
        };
        site.write(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}},
        }));
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a manifest into the folder.
    pub(crate) fn write(&self, document: &Value) {
        let part = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        let name = format!(
            "manifests/{}-{}.json",
            part("/kind").unwrap(),
            part("/metadata/name").unwrap()
        );
        // Appears as a whole.
        let fresh = self.path("fresh");
        std::fs::write(&fresh, document.to_string()).unwrap();
        std::fs::rename(fresh, self.path(&name)).unwrap();
    }

    /// Says something as Terway's `eni-config` does.
    pub(crate) fn say(&self, key: &str, text: &str) {
        std::fs::write(self.path("eni-config").join(key), text).unwrap();
    }

    /// Starts the program; `sets` come on top of its configuration.
    pub(crate) fn start(&self, log: &str, sets: &[&str]) -> Program {
        let log = self.path(log);
        let file = std::fs::File::create(&log).unwrap();
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.node])
            .arg(env!("CARGO_BIN_EXE_policy-agent"));
        let mut set = |text: String| {
            command.arg("--set").arg(text);
        };
        set(format!("node.name={NODE}"));
        set("node.cluster=c1".to_owned());
        set(format!("node.state_dir={}", self.path("state").display()));
        set(format!("node.socket={}", self.socket().display()));
        set(format!(
            "feed.manifests={}",
            self.path("manifests").display()
        ));
        set(format!(
            "policy.eni_config={}",
            self.path("eni-config").display()
        ));
        set(format!(
            "policy.owner_socket={}",
            self.owner_socket().display()
        ));
        set("policy.owner_wait_ms=500".to_owned());
        for text in sets {
            set((*text).to_owned());
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Program { child, log }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("policy.sock")
    }

    pub(crate) fn owner_socket(&self) -> PathBuf {
        self.path("owner.sock")
    }

    fn channel(&self) -> Channel {
        Channel::unix(&self.socket(), &Params::default())
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let mut client = PoliciesClient::new(self.channel());
        Ok(client.status(StatusRequest {}).await?.into_inner())
    }

    /// Waits until the agent says so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&StatusResponse) -> bool) {
        until(what, async || self.status().await.is_ok_and(|s| so(&s))).await;
    }

    pub(crate) async fn ready(&self, pod: &BedPod, sandbox: &str) -> Result<u64, Status> {
        let attached = pod.attached(sandbox);
        let request = ReadyRequest {
            pod: Some(LocalPod {
                attachment: Some(attachment(sandbox)),
                pod: Some(PodRef {
                    namespace: attached.pod.namespace,
                    name: attached.pod.name,
                    uid: String::new(),
                }),
                host_link: attached.host_link,
                netns: attached.netns,
                ips: attached.ips.iter().map(ToString::to_string).collect(),
            }),
        };
        let mut client = GateClient::new(self.channel());
        Ok(client.ready(request).await?.into_inner().generation)
    }

    pub(crate) async fn release(&self, sandbox: &str) -> Result<(), Status> {
        let request = ReleaseRequest {
            attachment: Some(attachment(sandbox)),
            host_link: String::new(),
        };
        let mut client = GateClient::new(self.channel());
        client.release(request).await.map(drop)
    }

    /// What a probe made for Felix is answered: the status line.
    pub(crate) fn probe(&self, path: &str) -> String {
        inside(&self.node, || {
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9099));
            let mut stream = TcpStream::connect_timeout(&at, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.lines().next().unwrap_or_default().to_owned()
        })
    }

    /// Holds the owner socket as node-agent does.
    pub(crate) fn hold(&self) -> Hold {
        let held = Arc::new(Mutex::new(None));
        let (path, holds) = (self.owner_socket(), Arc::clone(&held));
        let tasks = Tasks::new(Drain::new());
        let stopping = tasks.stopping();
        let attending = async move {
            let mut every = tokio::time::interval(Duration::from_millis(20));
            loop {
                // The agent comes and goes.
                drop(attend(&path, &holds).await);
                every.tick().await;
            }
        };
        tasks.spawn("holder", async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = attending => {}
            }
        });
        Hold { held, tasks }
    }
}

/// What node-agent does with the owner socket, seen from outside.
pub(crate) struct Hold {
    held: Arc<Mutex<Option<OwnedFd>>>,
    tasks: Tasks,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

impl Hold {
    /// Waits until a socket is held, or none.
    pub(crate) async fn until(&self, holds: bool) {
        until("the holder is told", async || {
            self.held.lock().unwrap().is_some() == holds
        })
        .await;
    }
}

async fn attend(path: &Path, held: &Mutex<Option<OwnedFd>>) -> Result<(), OwnerError> {
    let Ok(stream) = tokio::net::UnixStream::connect(path).await else {
        return Ok(());
    };
    let mut peer = Peer::new(stream);
    let copy = held
        .lock()
        .unwrap()
        .as_ref()
        .map(|socket| socket.try_clone().unwrap());
    peer.send(copy.as_ref().map(|c| c.as_fd())).await?;
    while let Some(socket) = peer.receive().await? {
        *held.lock().unwrap() = socket;
    }
    Ok(())
}

fn attachment(sandbox: &str) -> Attachment {
    Attachment {
        sandbox_id: sandbox.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

impl Program {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let mut status = None;
        let child = &mut self.child;
        until("the program ends", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        (status.unwrap(), self.log())
    }

    /// Ends it as a supervisor does.
    pub(crate) async fn terminate(self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let (status, log) = self.ended().await;
        assert!(status.success(), "{status}: {log}");
    }

    /// Ends it as a crash does.
    pub(crate) async fn kill(self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        drop(self.ended().await);
    }
}

/// A listener that is nothing but taken.
pub(crate) fn taken(node: &str, port: u16) -> std::net::TcpListener {
    inside(node, || {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
    })
}
