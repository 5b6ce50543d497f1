//! etcd, API server, controller manager and scheduler, on one host of the VPC.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use fabric::namespace::Namespace;

use crate::k8s::kube::Kube;
use crate::k8s::pki::{Pki, kubeconfig};
use crate::process::{Process, Spec};

/// Port of the API server.
pub const API_PORT: u16 = 6443;
/// Network of Services. The VPC has 10.0.0.0/8.
pub const SERVICES: &str = "172.16.0.0/16";
/// The first address of it, which is the API server's.
const API_SERVICE: &str = "172.16.0.1";
/// How long the API server may take to be ready.
const READY_LIMIT: Duration = Duration::from_mins(1);

/// A part of the control plane, in the order of starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controller manager.
    Controllers,
    /// The scheduler.
    Scheduler,
}

impl Part {
    const ALL: [Self; 4] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Controllers,
        Self::Scheduler,
    ];

    /// Its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// Where everything is.
#[derive(Debug)]
pub struct ControlPlane {
    host: Namespace,
    ip: Ipv4Addr,
    programs: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
    processes: BTreeMap<Part, Process>,
}

impl ControlPlane {
    /// Writes certificates and kubeconfigs, and starts nothing.
    ///
    /// # Errors
    /// When a file can not be written.
    pub fn prepare(
        pki: &Pki,
        (host, ip): (Namespace, Ipv4Addr),
        programs: &Path,
        dir: &Path,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let address = ip.to_string();
        pki.server(
            "apiserver",
            &[
                "127.0.0.1",
                &address,
                API_SERVICE,
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
        )?;
        let folder = pki.file("");
        pki.client("admin", "terway-test-bed", Some("system:masters"))?;
        pki.client(
            "kubelet-client",
            "apiserver-kubelet",
            Some("system:masters"),
        )?;
        for name in ["controllers", "scheduler"] {
            let user = match name {
                "scheduler" => "system:kube-scheduler",
                _ => "system:kube-controller-manager",
            };
            pki.client(name, user, None)?;
            let server = format!("https://{}", SocketAddr::from((ip, API_PORT)));
            let text = kubeconfig(&server, &folder, name).to_string();
            fs::write(dir.join(format!("{name}.kubeconfig")), text)?;
        }
        Ok(Self {
            host,
            ip,
            programs: programs.to_owned(),
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            processes: BTreeMap::new(),
        })
    }

    /// Where the API server is in the VPC.
    pub fn api(&self) -> SocketAddr {
        SocketAddr::from((self.ip, API_PORT))
    }

    /// Starts what does not run, and waits until the API server is ready.
    ///
    /// # Errors
    /// When a part ends, or the API server does not get ready.
    pub async fn start(&mut self, pki: &Pki, kube: &Kube) -> anyhow::Result<()> {
        for part in Part::ALL {
            if self
                .processes
                .get(&part)
                .is_some_and(|p| p.exit_status().is_none())
            {
                continue;
            }
            let process = Process::start(Spec {
                name: part.program().to_owned(),
                namespace: self.host.clone(),
                program: self.program(part),
                args: self.args(part, pki),
                env: Vec::new(),
                log: self.logs.join(format!("{}.log", part.program())),
            })?;
            self.processes.insert(part, process);
            if part == Part::ApiServer {
                self.ready(kube).await?;
            }
        }
        Ok(())
    }

    async fn ready(&self, kube: &Kube) -> anyhow::Result<()> {
        kube.until(READY_LIMIT, async |kube| {
            self.check()?;
            kube.run(&["get", "--raw", "/readyz"]).await
        })
        .await
        .context("the API server is not ready")?;
        Ok(())
    }

    /// Fails when a part has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check(&self) -> anyhow::Result<()> {
        for process in self.processes.values() {
            process.check()?;
        }
        Ok(())
    }

    /// Kills a part; [`ControlPlane::start`] brings it back.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self, part: Part) -> anyhow::Result<()> {
        if let Some(process) = self.processes.remove(&part) {
            process.kill().await?;
        }
        Ok(())
    }

    /// Ends all of it, the last that was started first.
    ///
    /// # Errors
    /// When a process does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        while let Some((_, process)) = self.processes.pop_last() {
            // Nothing of this store is wanted again.
            process.kill().await?;
        }
        Ok(())
    }

    fn program(&self, part: Part) -> PathBuf {
        match part {
            Part::Etcd => PathBuf::from(part.program()),
            Part::ApiServer | Part::Controllers | Part::Scheduler => {
                self.programs.join(part.program())
            }
        }
    }

    fn args(&self, part: Part, pki: &Pki) -> Vec<String> {
        let file = |name: &str| pki.file(name).display().to_string();
        let config = |name: &str| {
            self.dir
                .join(format!("{name}.kubeconfig"))
                .display()
                .to_string()
        };
        let ip = self.ip;
        match part {
            Part::Etcd => vec![
                format!("--data-dir={}", self.dir.join("etcd").display()),
                // Nobody else is on this host, and it ends with the run.
                "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
                "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
                "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
            Part::ApiServer => vec![
                "--etcd-servers=http://127.0.0.1:2379".to_owned(),
                format!("--service-cluster-ip-range={SERVICES}"),
                "--bind-address=0.0.0.0".to_owned(),
                format!("--advertise-address={ip}"),
                format!("--secure-port={API_PORT}"),
                format!("--tls-cert-file={}", file("apiserver.crt")),
                format!("--tls-private-key-file={}", file("apiserver.key")),
                format!("--client-ca-file={}", file("ca.crt")),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                format!(
                    "--kubelet-client-certificate={}",
                    file("kubelet-client.crt")
                ),
                format!("--kubelet-client-key={}", file("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--enable-aggregator-routing=true".to_owned(),
                "--profiling=false".to_owned(),
                "--v=1".to_owned(),
            ],
            Part::Controllers => vec![
                format!("--kubeconfig={}", config("controllers")),
                format!("--service-account-private-key-file={}", file("sa.key")),
                format!("--root-ca-file={}", file("ca.crt")),
                "--use-service-account-credentials=true".to_owned(),
                "--leader-elect=false".to_owned(),
                "--allocate-node-cidrs=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                // As fast as the machine: nobody waits for a large cluster here.
                "--kube-api-qps=200".to_owned(),
                "--kube-api-burst=400".to_owned(),
                "--v=1".to_owned(),
            ],
            Part::Scheduler => vec![
                format!("--kubeconfig={}", config("scheduler")),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                "--kube-api-qps=200".to_owned(),
                "--kube-api-burst=400".to_owned(),
                "--v=1".to_owned(),
            ],
        }
    }
}
