//! The binary: killed between any two steps, started with mistakes, and what it writes of its work.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use cloud_gateway::eni::CRASH_POINTS;
use ecs_api::action::Action;
use mesh::client::{Channel, Params as ClientParams};
use mesh::identity::{Identity, IdentityKind};
use mesh::tasks::Tasks;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::cloud::v1::cloud_client::CloudClient;
use proto::cloud::v1::{
    AssignAddressesRequest, AttachEniRequest, DeleteEniRequest, DetachEniRequest,
    UnassignAddressesRequest,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::Status;

use crate::world::{INSTANCE, World, issue, new_eni, op, texts};

const BINARY: &str = env!("CARGO_BIN_EXE_cloud-gateway");
/// The operation that is interrupted; what it needs is prepared under lower numbers.
const OP: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(20);

struct Process {
    child: Child,
    address: String,
}

impl Process {
    async fn start(world: &World, crash_at: Option<&str>, sets: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command
            .arg("--config")
            .arg(world.dir.path().join("gateway.toml"))
            .args(["--set", "listen.grpc=127.0.0.1:0"])
            .args(["--set", "service.health.listen=127.0.0.1:0"])
            .args(["--set", "service.admin.listen=127.0.0.1:0"])
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for set in sets {
            command.args(["--set", set]);
        }
        if let Some(point) = crash_at {
            command.env(mesh::crash::VARIABLE, point);
        }
        let mut child = command.spawn().unwrap();
        let address = listening(&mut child, &world.tasks).await;
        Self { child, address }
    }

    fn client(&self, world: &World) -> CloudClient<Channel> {
        let dir = world.dir.path().join("ipam");
        issue(&world.ca, &Identity::ipam("r-1"), &dir);
        let tls = TlsMaterial::load(&TlsConfig::in_dir(&dir)).unwrap();
        let expect = Expect::Kind(IdentityKind::Gateway);
        let channel = Channel::tcp(&self.address, tls, expect, &ClientParams::default());
        CloudClient::new(channel.unwrap())
    }

    async fn ended(mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap().unwrap()
    }
}

/// Reads the log until the port is open. The rest is read away.
async fn listening(child: &mut Child, tasks: &Tasks) -> String {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = String::new();
    let address = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("grpc server listens") {
                let (_, port) = line.rsplit_once("127.0.0.1:").unwrap();
                let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                return Some(format!("127.0.0.1:{port}"));
            }
            log.push_str(&line);
            log.push('\n');
        }
        None
    });
    let address = address.await.unwrap().unwrap_or_else(|| panic!("{log}"));
    tasks.spawn_once("log", async move {
        while let Ok(Some(_)) = lines.next_line().await {}
    });
    address
}

/// Asks for the operation of the crash points that begin with `gw.<verb>`.
async fn ask(client: &mut CloudClient<Channel>, verb: &str, eni: &str) -> Result<(), Status> {
    let (op, eni_id) = (Some(op(OP, 1)), eni.to_owned());
    let instance_id = INSTANCE.to_owned();
    match verb {
        "create" => client.create_eni(new_eni(OP, "10.0.0.100")).await.map(drop),
        "attach" => {
            let request = AttachEniRequest {
                op,
                eni_id,
                instance_id,
                ..AttachEniRequest::default()
            };
            client.attach_eni(request).await.map(drop)
        }
        "detach" => {
            let request = DetachEniRequest {
                op,
                eni_id,
                instance_id,
                ..DetachEniRequest::default()
            };
            client.detach_eni(request).await.map(drop)
        }
        "delete" => {
            let request = DeleteEniRequest {
                op,
                eni_id,
                ..DeleteEniRequest::default()
            };
            client.delete_eni(request).await.map(drop)
        }
        "assign" => {
            let request = AssignAddressesRequest {
                op,
                eni_id,
                ipv4: texts(&["10.0.0.50"]),
                ipv6: texts(&["2001:db8::50"]),
                ..AssignAddressesRequest::default()
            };
            client.assign_addresses(request).await.map(drop)
        }
        "unassign" => {
            let request = UnassignAddressesRequest {
                op,
                eni_id,
                ipv4: texts(&["10.0.0.50"]),
                ipv6: texts(&["2001:db8::50"]),
                ..UnassignAddressesRequest::default()
            };
            client.unassign_addresses(request).await.map(drop)
        }
        other => panic!("{other}"),
    }
}

/// Brings about what the verb starts from.
async fn prepare(world: &World, verb: &str) -> String {
    match verb {
        "create" => String::new(),
        "attach" | "delete" => world.made(1, "10.0.0.10").await,
        "detach" | "assign" => world.attached(1, "10.0.0.10").await,
        "unassign" => {
            let id = world.attached(1, "10.0.0.10").await;
            world
                .assign(3, &id, &["10.0.0.50"], &["2001:db8::50"])
                .await
                .unwrap();
            id
        }
        other => panic!("{other}"),
    }
}

/// The state that the verb reaches, and that it was brought about once.
fn check(world: &World, verb: &str, eni: &str, point: &str) {
    let once = |action| assert_eq!(world.succeeded(action), 1, "{point}: {action}");
    match verb {
        "create" => {
            let enis = world.enis();
            assert_eq!(enis.len(), 1, "{point}: {enis:?}");
        }
        "attach" => {
            once(Action::AttachNetworkInterface);
            assert_eq!(world.eni(eni).unwrap().status, "InUse", "{point}");
        }
        "detach" => {
            once(Action::DetachNetworkInterface);
            assert_eq!(world.eni(eni).unwrap().status, "Available", "{point}");
        }
        "delete" => {
            once(Action::DeleteNetworkInterface);
            assert!(world.enis().is_empty(), "{point}");
        }
        "assign" => {
            let eni = world.eni(eni).unwrap();
            assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (2, 1), "{point}");
        }
        "unassign" => {
            once(Action::UnassignPrivateIpAddresses);
            once(Action::UnassignIpv6Addresses);
            let eni = world.eni(eni).unwrap();
            assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (1, 0), "{point}");
        }
        other => panic!("{other}"),
    }
}

// Done means 5: killed at each of its points, the gateway does each operation exactly once.
async fn survives_its_crash_points(verb: &str) {
    let points: Vec<_> = CRASH_POINTS
        .into_iter()
        .filter(|point| point.split('.').nth(1) == Some(verb))
        .collect();
    assert_eq!(points.len(), 3);
    for point in points {
        let world = World::new().await;
        let eni = prepare(&world, verb).await;

        let doomed = Process::start(&world, Some(point), &[]).await;
        let mut client = doomed.client(&world);
        let interrupted = ask(&mut client, verb, &eni).await;
        assert!(interrupted.is_err(), "{point}");
        let status = doomed.ended().await;
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "{point}"
        );

        let fresh = Process::start(&world, None, &[]).await;
        let mut client = fresh.client(&world);
        ask(&mut client, verb, &eni).await.unwrap();
        world.sim.settled().await;
        check(&world, verb, &eni, point);
    }
}

#[tokio::test]
async fn create_survives_a_kill_at_each_point() {
    survives_its_crash_points("create").await;
}

#[tokio::test]
async fn attach_survives_a_kill_at_each_point() {
    survives_its_crash_points("attach").await;
}

#[tokio::test]
async fn detach_survives_a_kill_at_each_point() {
    survives_its_crash_points("detach").await;
}

#[tokio::test]
async fn delete_survives_a_kill_at_each_point() {
    survives_its_crash_points("delete").await;
}

#[tokio::test]
async fn assign_survives_a_kill_at_each_point() {
    survives_its_crash_points("assign").await;
}

#[tokio::test]
async fn unassign_survives_a_kill_at_each_point() {
    survives_its_crash_points("unassign").await;
}

async fn refused(sets: &[&str], config: &Path) -> String {
    let mut command = Command::new(BINARY);
    command.arg("--config").arg(config);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(64), "{sets:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// Issue: bad input.
#[tokio::test]
async fn binary_with_a_bad_configuration_exits_64_and_names_the_key() {
    let world = World::new().await;
    let config = world.dir.path().join("gateway.toml");
    for (set, key) in [
        ("credentials.ram_role=auto", "credentials.ram_role"),
        ("cloud.endpoint=nonsense", "cloud.endpoint"),
        ("cloud.regin=x", "cloud.regin"),
        ("tls.key=/nowhere", "tls"),
    ] {
        let text = refused(&[set], &config).await;

        assert!(text.contains(key), "{set}: {text}");
        assert!(!text.contains("secret-1"), "{text}");
    }
}

#[tokio::test]
async fn binary_writes_spans_from_the_call_to_the_request_id() {
    let world = World::new().await;
    let spans = world.dir.path().join("spans.jsonl");
    let set = format!("service.telemetry.span_file={}", spans.display());
    let process = Process::start(&world, None, &[&set]).await;
    let mut client = process.client(&world);

    let made = client.create_eni(new_eni(OP, "10.0.0.100")).await.unwrap();
    let pid = process.child.id().unwrap().to_string();
    let term = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(term.unwrap().success());
    assert!(process.ended().await.success());

    let text = std::fs::read_to_string(&spans).unwrap();
    let id = made.into_inner().request_id;
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let named = |name: &str| {
        let found = lines.iter().find(|span| span["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}: {text}")).clone()
    };
    let call = named("cloud.CreateNetworkInterface");
    assert!(call.to_string().contains(&id), "{call}");
    for name in ["gw.queue", "gw.readback", "cloud.DescribeNetworkInterfaces"] {
        assert_eq!(named(name)["trace_id"], call["trace_id"], "{name}: {text}");
    }
}
