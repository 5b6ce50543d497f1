//! A node: a machine with containerd, kubelet and kube-proxy.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fabric::namespace::Namespace;
use fabric::shell;
use types::cloud::InstanceId;

use crate::k8s::boot::BootPlan;
use crate::k8s::machine::{Daemon, Machine};
use crate::k8s::pki::{Pki, kubeconfig};
use crate::k8s::{cgroup::Groups, node_config};
use crate::process::Process;

/// Where the node sees the programs of Kubernetes.
const PROGRAMS: &str = "/opt/kubernetes";
/// Where it sees the images that are imported.
const IMAGES: &str = "/opt/images";
/// Where its certificates and configurations are.
const ETC: &str = "/etc/kubernetes";
/// Where kubelet looks for CNI plug-ins.
pub const CNI_BIN: &str = "/opt/cni/bin";
/// Where kubelet looks for the CNI configuration.
pub const CNI_CONF: &str = "/etc/cni/net.d";
/// Debian's plug-ins.
const PLUGINS: &str = "/usr/lib/cni";
/// How long containerd may take to answer, and one image to be imported.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Files of the machine's /etc that programs want to see.
const ETC_FILES: &[&str] = &[
    "passwd",
    "group",
    "nsswitch.conf",
    "protocols",
    "services",
    "ld.so.cache",
    "ld.so.conf",
];
/// Folders of it.
const ETC_FOLDERS: &[&str] = &["alternatives", "ssl", "ca-certificates", "iproute2"];

/// A program of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodePart {
    /// The container runtime.
    Containerd,
    /// kubelet.
    Kubelet,
    /// kube-proxy.
    KubeProxy,
}

impl NodePart {
    /// All of them, in the order of starting.
    pub const ALL: [Self; 3] = [Self::Containerd, Self::Kubelet, Self::KubeProxy];

    /// Its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// What a node is, before it is one.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its number, from 1.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: InstanceId,
    /// Its instance's type.
    pub instance_type: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its instance's namespace.
    pub network: Namespace,
}

/// What nodes need of their surroundings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The run's folder.
    pub root: PathBuf,
    /// Where programs of Kubernetes are.
    pub programs: PathBuf,
    /// Where the archives of images are.
    pub images: PathBuf,
    /// This program.
    pub sandbox: PathBuf,
    /// Where the API server is.
    pub api: SocketAddr,
    /// Control groups of the run.
    pub groups: Groups,
}

/// A node that runs.
#[derive(Debug)]
pub struct BedNode {
    plan: NodePlan,
    around: Surroundings,
    machine: Option<Machine>,
    processes: BTreeMap<NodePart, Process>,
}

impl BedNode {
    /// Boots it, starts containerd, imports the images, and starts the rest. Does not wait until it is Ready.
    ///
    /// # Errors
    /// The first thing that did not work.
    pub async fn start(plan: NodePlan, around: Surroundings, pki: &Pki) -> anyhow::Result<Self> {
        let mut node = Self {
            plan,
            around,
            machine: None,
            processes: BTreeMap::new(),
        };
        node.write_files(pki)?;
        node.switch_on().await?;
        node.start_part(NodePart::Containerd).await?;
        node.import().await?;
        node.start_part(NodePart::Kubelet).await?;
        node.start_part(NodePart::KubeProxy).await?;
        Ok(node)
    }

    /// What it is.
    pub const fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Its machine.
    ///
    /// # Errors
    /// When it is switched off.
    pub fn machine(&self) -> anyhow::Result<&Machine> {
        let machine = self.machine.as_ref();
        machine.with_context(|| format!("{} is switched off", self.plan.name))
    }

    /// A file of the node, as this machine sees it.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// The log of a part.
    pub fn log(&self, part: &str) -> PathBuf {
        let name = format!("{}-{part}.log", self.plan.name);
        self.around.root.join("logs").join(name)
    }

    fn root(&self) -> PathBuf {
        self.around.root.join("nodes").join(&self.plan.name)
    }

    fn boot_plan(&self) -> anyhow::Result<BootPlan> {
        let mut binds = Vec::new();
        for part in [NodePart::Kubelet, NodePart::KubeProxy] {
            let program = self.around.programs.join(part.program());
            let program = program
                .canonicalize()
                .with_context(|| program.display().to_string())?;
            binds.push((program, Path::new(PROGRAMS).join(part.program())));
        }
        binds.push((self.around.images.clone(), PathBuf::from(IMAGES)));
        for folder in ETC_FOLDERS {
            let path = Path::new("/etc").join(folder);
            if path.is_dir() {
                binds.push((path.clone(), path));
            }
        }
        Ok(BootPlan {
            name: self.plan.name.clone(),
            root: self.root(),
            binds,
        })
    }

    fn write_files(&self, pki: &Pki) -> anyhow::Result<()> {
        let name = &self.plan.name;
        let user = format!("system:node:{name}");
        pki.client(&format!("{name}-kubelet"), &user, Some("system:nodes"))?;
        pki.client(&format!("{name}-kube-proxy"), "system:kube-proxy", None)?;
        let etc = self.file(ETC);
        fs::create_dir_all(&etc)?;
        fs::copy(pki.file("ca.crt"), etc.join("ca.crt"))?;
        let server = format!("https://{}", self.around.api);
        for user in ["kubelet", "kube-proxy"] {
            for kind in ["crt", "key"] {
                let from = pki.file(&format!("{name}-{user}.{kind}"));
                fs::copy(from, etc.join(format!("{user}.{kind}")))?;
            }
            let text = kubeconfig(&server, Path::new(ETC), user).to_string();
            fs::write(etc.join(format!("{user}.kubeconfig")), text)?;
        }
        let groups = self.around.groups.root_of(name);
        let kubelet = node_config::kubelet(&self.plan, &groups).to_string();
        fs::write(etc.join("kubelet.json"), kubelet)?;
        fs::write(
            etc.join("kube-proxy.json"),
            node_config::kube_proxy(&self.plan).to_string(),
        )?;
        fs::write(etc.join("containerd.toml"), node_config::containerd())?;
        for file in ETC_FILES {
            let from = Path::new("/etc").join(file);
            if from.is_file() {
                fs::copy(&from, self.file(&format!("/etc/{file}")))?;
            }
        }
        let hosts = format!("127.0.0.1 localhost\n{} {name}\n", self.plan.ip);
        fs::write(self.file("/etc/hosts"), hosts)?;
        // Nobody outside of the VPC can be asked for names.
        fs::write(self.file("/etc/resolv.conf"), "")?;
        fs::write(self.file("/etc/hostname"), format!("{name}\n"))?;
        fs::write(
            self.file("/etc/machine-id"),
            format!("{:032x}\n", self.plan.number),
        )?;
        fs::create_dir_all(self.file(CNI_CONF))?;
        fs::create_dir_all(self.file(CNI_BIN))?;
        for plugin in fs::read_dir(PLUGINS).context(PLUGINS)? {
            let plugin = plugin?;
            symlink(plugin.path(), self.file(CNI_BIN).join(plugin.file_name()))?;
        }
        Ok(())
    }

    /// Boots the machine; what runs on it is started one by one.
    async fn switch_on(&mut self) -> anyhow::Result<()> {
        self.around.groups.create(&self.plan.name)?;
        let machine = Machine::boot(
            self.boot_plan()?,
            self.plan.network.clone(),
            &self.around.sandbox,
            &self.log("boot"),
        )
        .await?;
        // As any node's boot scripts do.
        machine
            .network()
            .set_sysctls(vec![
                ("ipv4/ip_forward".to_owned(), "1"),
                ("ipv6/conf/all/forwarding".to_owned(), "1"),
            ])
            .await?;
        self.machine = Some(machine);
        Ok(())
    }

    /// Starts a part that does not run; containerd is waited for.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_part(&mut self, part: NodePart) -> anyhow::Result<()> {
        let program = match part {
            NodePart::Containerd => PathBuf::from("/usr/bin/containerd"),
            NodePart::Kubelet | NodePart::KubeProxy => Path::new(PROGRAMS).join(part.program()),
        };
        let process = self
            .machine()?
            .start(Daemon {
                name: part.program().to_owned(),
                program,
                args: self.args(part),
                log: self.log(part.program()),
            })
            .await?;
        self.processes.insert(part, process);
        if part == NodePart::Containerd {
            self.wait_for_containerd().await?;
        }
        Ok(())
    }

    fn args(&self, part: NodePart) -> Vec<String> {
        let plan = &self.plan;
        match part {
            NodePart::Containerd => vec![format!("--config={ETC}/containerd.toml")],
            NodePart::Kubelet => vec![
                format!("--config={ETC}/kubelet.json"),
                format!("--kubeconfig={ETC}/kubelet.kubeconfig"),
                "--root-dir=/var/lib/kubelet".to_owned(),
                format!("--hostname-override={}", plan.name),
                format!("--node-ip={}", plan.ip),
                format!("--node-labels={}", node_config::labels(plan)),
                "--v=2".to_owned(),
            ],
            NodePart::KubeProxy => vec![
                format!("--config={ETC}/kube-proxy.json"),
                "--v=1".to_owned(),
            ],
        }
    }

    /// Kills a part; its children go on.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_part(&mut self, part: NodePart) -> anyhow::Result<()> {
        if let Some(process) = self.processes.remove(&part) {
            process.kill().await?;
        }
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

    /// containerd's client.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub async fn ctr(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["--namespace", "k8s.io"];
        all.extend_from_slice(words);
        self.machine()?.output("/usr/bin/ctr", &all, LIMIT).await
    }

    async fn wait_for_containerd(&self) -> anyhow::Result<()> {
        let answers = async {
            while self.ctr(&["version"]).await.is_err() {
                self.check()?;
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LIMIT, answers)
            .await
            .with_context(|| format!("containerd of {} does not answer", self.plan.name))?
    }

    /// Imports all archives that there are, anew if they are known already.
    ///
    /// # Errors
    /// When there is none, or one is refused.
    pub async fn import(&self) -> anyhow::Result<()> {
        let mut archives = Vec::new();
        for entry in fs::read_dir(&self.around.images)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tar") {
                archives.push(path);
            }
        }
        archives.sort();
        ensure!(
            !archives.is_empty(),
            "no images in {}",
            self.around.images.display()
        );
        for archive in archives {
            let name = archive.file_name().unwrap_or_default();
            let inside = Path::new(IMAGES).join(name).display().to_string();
            self.ctr(&["images", "import", &inside]).await?;
        }
        Ok(())
    }

    /// Pulls the plug and boots again: processes, mounts and what the kernel had of the network are gone; what is on
    /// disks, and ENIs, stay.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn reboot(&mut self) -> anyhow::Result<()> {
        self.switch_off().await?;
        self.switch_on().await?;
        for part in NodePart::ALL {
            self.start_part(part).await?;
        }
        Ok(())
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// When processes do not end.
    pub async fn switch_off(&mut self) -> anyhow::Result<()> {
        if let Some(machine) = self.machine.take() {
            machine.switch_off().await?;
        }
        for process in std::mem::take(&mut self.processes).into_values() {
            process.kill().await?;
        }
        self.around.groups.remove_node(&self.plan.name).await?;
        forget_network(&self.plan.network).await
    }
}

/// What a kernel does not know after a boot: rules, tables, and all links but those of the hardware.
async fn forget_network(network: &Namespace) -> anyhow::Result<()> {
    shell::nft(network, "flush ruleset\n").await?;
    let text = shell::ip_json(network, &["link", "show"]).await?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let mut steps = Vec::new();
    for link in &links {
        let name = link.get("ifname").and_then(serde_json::Value::as_str);
        match name {
            Some("lo" | "eth0") | None => {}
            Some(hardware) if hardware.starts_with("eth") => {
                steps.push(format!("link set {hardware} down"));
                steps.push(format!("addr flush dev {hardware}"));
            }
            Some(other) => steps.push(format!("link del {other}")),
        }
    }
    for family in ["-4", "-6"] {
        steps.push(format!("{family} rule flush"));
        steps.push(format!("{family} rule add pref 0 lookup local"));
        steps.push(format!("{family} rule add pref 32766 lookup main"));
    }
    // As the kernel has it at a boot.
    steps.push("-4 rule add pref 32767 lookup default\n".to_owned());
    let script = steps.join("\n");
    shell::ip_batch_lenient(network, &script).await?;
    Ok(())
}
