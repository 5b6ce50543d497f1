//! `terwayctl ca keep` against a control plane that issues, refuses and changes its authority as it is told.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use mesh::clock;
use mesh::identity::Identity;
use mesh::tls::{TlsConfig, TlsMaterial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::issuer::{Issuer, Metadata};

const DAY: Duration = Duration::from_hours(24);
/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_mins(1);

/// The folder of one keeper: token, trust, certificate, log.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(issuer: &Issuer) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.write("token", "token-1\n");
        bench.write("trust", &issuer.bundle());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As kubelet does it: whole or not at all.
    fn write(&self, name: &str, text: &str) {
        let fresh = self.path("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.path(name)).unwrap();
    }

    fn out(&self) -> PathBuf {
        self.path("tls")
    }

    fn keep(&self, issuer: &Issuer, more: &[&str]) -> Keeper {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_terwayctl"))
            .args(["ca", "keep", "--controlplane", &issuer.target()])
            .arg("--token")
            .arg(self.path("token"))
            .arg("--trust")
            .arg(self.path("trust"))
            .arg("--out")
            .arg(self.out())
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Keeper { child }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn certificate(&self) -> Option<Vec<u8>> {
        std::fs::read(self.out().join("tls.crt")).ok()
    }

    fn bundle(&self) -> String {
        std::fs::read_to_string(self.out().join("ca.crt")).unwrap_or_default()
    }

    fn material(&self) -> Option<TlsMaterial> {
        TlsMaterial::load(&TlsConfig::in_dir(&self.out())).ok()
    }

    fn check(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_terwayctl"))
            .args(["ca", "check", "--dir"])
            .arg(self.out())
            .output()
            .unwrap()
    }

    /// Waits for it; tells what the keeper said when it does not come.
    async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "never: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A keeper that runs; ended when it is dropped.
struct Keeper {
    child: Child,
}

impl Keeper {
    fn end(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn modes(dir: &Path) -> Vec<(String, u32)> {
    let mut modes: Vec<(String, u32)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let mode = entry.metadata().unwrap().permissions().mode();
            (entry.file_name().into_string().unwrap(), mode & 0o777)
        })
        .collect();
    modes.sort();
    modes
}

#[tokio::test]
async fn certificate_is_fetched_with_the_token_and_neither_key_nor_token_is_told() {
    let issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    let bench = Bench::new(&issuer);
    assert_eq!(bench.check().status.code(), Some(1));

    let keeper = bench.keep(&issuer, &[]);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;

    assert_eq!(issuer.tokens(), ["token-1"]);
    assert_eq!(bench.material().unwrap().identity(), issuer.gives());
    let private = ["ca.crt", "tls.crt", "tls.key"].map(|name| (name.to_owned(), 0o600));
    assert_eq!(modes(&bench.out()), private);
    bench
        .until("a line", || bench.log().contains("certificate issued"))
        .await;
    assert_eq!(keeper.end().code(), Some(0));
    let log = bench.log();
    assert!(
        !log.contains("token-1") && !log.contains("PRIVATE"),
        "{log}"
    );
    let said = String::from_utf8(bench.check().stdout).unwrap();
    assert!(said.contains(&issuer.gives().to_string()), "{said}");
}

#[tokio::test]
async fn certificate_is_renewed_before_its_end_with_the_token_of_that_time() {
    let issuer = Issuer::start(Identity::controller("c1"), Duration::from_secs(16)).await;
    let bench = Bench::new(&issuer);
    let _keeper = bench.keep(&issuer, &[]);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;
    let first = bench.certificate();
    let first_ends = bench.material().unwrap().not_after();

    bench.write("token", "token-2");
    bench
        .until("another one", || {
            bench.certificate() != first && bench.material().is_some()
        })
        .await;

    assert_eq!(issuer.tokens(), ["token-1", "token-2"]);
    assert!(clock::wall() < first_ends, "renewed too late");
}

#[tokio::test]
async fn keeper_that_is_refused_asks_again_and_says_why() {
    let issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    issuer.refuse(2);
    let bench = Bench::new(&issuer);
    let _keeper = bench.keep(&issuer, &[]);

    bench
        .until("a certificate", || bench.material().is_some())
        .await;

    assert_eq!(issuer.tokens().len(), 3);
    let log = bench.log();
    assert!(log.contains("PermissionDenied: as told"), "{log}");
    assert!(!log.contains("token-1"), "{log}");
}

#[tokio::test]
async fn token_is_not_given_to_a_server_that_is_no_controller_or_of_another_authority() {
    let gateway = Issuer::start(Identity::gateway("g"), DAY).await;
    let controller = Issuer::start(Identity::controller("c1"), DAY).await;
    let of_gateway = Bench::new(&gateway);
    // It trusts the gateway's authority, and finds the controller of another one.
    let of_stranger = Bench::new(&gateway);

    let _first = of_gateway.keep(&gateway, &[]);
    let _second = of_stranger.keep(&controller, &[]);

    for bench in [&of_gateway, &of_stranger] {
        bench
            .until("three failures", || {
                bench.log().matches("no new certificate").count() >= 3
            })
            .await;
        assert_eq!(bench.certificate(), None);
    }
    assert!(gateway.tokens().is_empty() && controller.tokens().is_empty());
    let log = of_gateway.log();
    assert!(
        log.contains("expected a server of kind controller"),
        "{log}"
    );
}

#[tokio::test]
async fn changed_trust_reaches_services_and_a_new_authority_brings_a_new_certificate() {
    let mut issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    let bench = Bench::new(&issuer);
    let _keeper = bench.keep(&issuer, &[]);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;
    let first = bench.certificate();

    // The new authority is trusted besides, as at the beginning of a rotation.
    let next = issuer.next_authority();
    let both = format!("{}{next}", issuer.bundle());
    bench.write("trust", &both);
    bench
        .until("both authorities", || bench.bundle() == both)
        .await;
    assert_eq!(bench.certificate(), first);
    assert_eq!(issuer.tokens().len(), 1);

    // The old one is trusted no more.
    issuer.rotate();
    bench.write("trust", &issuer.bundle());
    bench
        .until("a certificate of the new authority", || {
            bench.certificate() != first && bench.material().is_some()
        })
        .await;

    assert_eq!(bench.bundle(), issuer.bundle());
    assert_eq!(issuer.tokens().len(), 2);
}

#[tokio::test]
async fn keeper_that_starts_again_uses_the_certificate_that_is_there() {
    let issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    let bench = Bench::new(&issuer);
    let keeper = bench.keep(&issuer, &[]);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;
    bench
        .until("a line", || bench.log().contains("certificate issued"))
        .await;
    keeper.end();

    let again = bench.keep(&issuer, &[]);
    bench
        .until("a line", || {
            bench.log().contains("certificate is there already")
        })
        .await;

    assert_eq!(again.end().code(), Some(0));
    assert_eq!(issuer.tokens().len(), 1);
}

#[tokio::test]
async fn instance_speaks_for_itself_and_a_certificate_of_another_instance_is_thrown_away() {
    let issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    issuer.give(Identity::node("c1", "i-1"));
    let metadata = Metadata::start("i-1").await;
    let bench = Bench::new(&issuer);
    let proof = |metadata: &Metadata| {
        [
            "--instance-proof".to_owned(),
            format!("--metadata={}", metadata.url()),
        ]
    };
    let keep = |metadata: &Metadata| {
        let more = proof(metadata);
        bench.keep(&issuer, &more.each_ref().map(String::as_str))
    };
    let keeper = keep(&metadata);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;
    assert_eq!(issuer.documents(), [metadata.document()]);
    keeper.end();

    // The same disk on another instance.
    let other = Metadata::start("i-2").await;
    issuer.give(Identity::node("c1", "i-2"));
    let _keeper = keep(&other);
    bench
        .until("a certificate of its own", || {
            let identity = bench.material().map(|material| material.identity());
            identity == Some(Identity::node("c1", "i-2"))
        })
        .await;

    assert_eq!(issuer.documents(), [metadata.document(), other.document()]);
    assert!(bench.log().contains("thrown away"), "{}", bench.log());
}

#[tokio::test]
async fn keeper_without_a_metadata_service_asks_without_the_instances_word() {
    let issuer = Issuer::start(Identity::controller("c1"), DAY).await;
    let bench = Bench::new(&issuer);

    // Nobody listens there: the port is that of a listener which is gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let metadata = format!("--metadata=http://{gone}");
    let _keeper = bench.keep(&issuer, &["--instance-proof", &metadata]);
    bench
        .until("a certificate", || bench.material().is_some())
        .await;

    assert_eq!(issuer.documents(), [""]);
    assert!(
        bench.log().contains("no word of the instance itself"),
        "{}",
        bench.log()
    );
}

#[test]
fn check_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();

    let out = Command::new(env!("CARGO_BIN_EXE_terwayctl"))
        .args(["ca", "check", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();

    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("ca.crt"), "{said}");
}
