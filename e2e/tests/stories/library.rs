//! The real CNI library calls us: `cnitool`, with and without Debian's `portmap` behind us.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::audit;
use e2e::story::tell;
use sandbox::cluster::Cluster;
use sandbox::options::ClusterOptions;
use sandbox::pods::Pod;
use sandbox::reachability::all_pairs;
use serde_json::json;

/// Where `cargo xtask test` builds it, or where the machine has it.
fn cnitool() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no workspace")?;
    let built = root.join("target").join("tools").join("cnitool");
    if built.is_file() {
        return Ok(built);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|d| d.join("cnitool"))
        .find(|p| p.is_file());
    found.context("cnitool is neither in target/tools nor in the path: run `cargo xtask test`")
}

struct Tool<'a> {
    cluster: &'a Cluster,
    confs: PathBuf,
    plugins: PathBuf,
}

impl<'a> Tool<'a> {
    /// Writes `conflist` where cnitool looks, and puts all plug-ins into one folder.
    fn new(cluster: &'a Cluster, dir: &Path, plugins: &[&str]) -> Result<Self> {
        let confs = dir.join("net.d");
        let bins = dir.join("bin");
        std::fs::create_dir_all(&confs)?;
        std::fs::create_dir_all(&bins)?;
        std::os::unix::fs::symlink(cluster.bin_dir().join("terway"), bins.join("terway"))?;
        let mut own = cluster.network_conf(1);
        let fields = own
            .as_object_mut()
            .context("the configuration is no object")?;
        fields.remove("cniVersion");
        fields.remove("name");
        let mut list = vec![own.clone()];
        for plugin in plugins {
            std::os::unix::fs::symlink(Path::new("/usr/lib/cni").join(plugin), bins.join(plugin))?;
            list.push(json!({"type": plugin, "capabilities": {*plugin: true}}));
        }
        for plugin in list.iter_mut().skip(1) {
            if plugin["type"] == "portmap" {
                *plugin = json!({"type": "portmap", "capabilities": {"portMappings": true}});
            }
        }
        let conf = json!({"cniVersion": "1.0.0", "name": "terway", "plugins": list});
        std::fs::write(confs.join("10-terway.conflist"), conf.to_string())?;
        Ok(Self {
            cluster,
            confs,
            plugins: bins,
        })
    }

    async fn run(&self, verb: &str, pod: &Pod, args: &str) -> Result<String> {
        let program = cnitool()?;
        let mut command = Command::new(program);
        let pod_args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}",
            pod.key.namespace, pod.key.name
        );
        command
            .args([verb, "terway"])
            .arg(pod.netns.path())
            .env("NETCONFPATH", &self.confs)
            .env("CNI_PATH", &self.plugins)
            .env("CNI_ARGS", pod_args)
            .env("CNI_IFNAME", "eth0")
            .env("CAP_ARGS", args);
        let node = self.cluster.node(1)?.namespace.clone();
        let output = node.enter_async(move || command.output()).await??;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            bail!("cnitool {verb}: {text}");
        }
        Ok(text)
    }
}

fn one() -> ClusterOptions {
    ClusterOptions {
        nodes: 2,
        zones: 1,
        plain_hosts: 0,
        ..ClusterOptions::default()
    }
}

#[test]
fn cnitool_adds_checks_and_deletes() {
    tell(one(), async |cluster| {
        let dir = tempfile::tempdir()?;
        let tool = Tool::new(cluster, dir.path(), &[])?;
        let mut pod = cluster.prepare_pod(1, "default", "a").await?;
        let other = cluster.create_pod(2, "default", "b").await?;

        let added = tool.run("add", &pod, "").await?;
        tool.run("check", &pod, "").await?;

        let result: serde_json::Value = serde_json::from_str(&added)?;
        let ips = result["ips"].as_array().context("no ips")?;
        for ip in ips {
            let text = ip["address"].as_str().context("no address")?;
            pod.addresses
                .push(text.split('/').next().unwrap_or_default().parse()?);
        }
        let ends = [pod.place(), other.place()];
        let matrix = all_pairs(&ends, &ends, Duration::from_secs(5)).await?;
        ensure!(matrix.failures().is_empty(), "{:?}", matrix.failures());
        tool.run("del", &pod, "").await?;
        audit::clean(cluster).await
    });
}

#[test]
fn portmap_behind_us_forwards_a_host_port() {
    tell(one(), async |cluster| {
        let dir = tempfile::tempdir()?;
        let tool = Tool::new(cluster, dir.path(), &["portmap"])?;
        let pod = cluster.prepare_pod(1, "default", "a").await?;
        let port = sandbox::echo::PORT;
        let caps = json!({"portMappings": [
            {"hostPort": 30080, "containerPort": port, "protocol": "tcp"}
        ]});

        // No CHECK here: portmap of Debian's 1.1.1 looks for IPv4 rules among ip6tables' when a pod has both families.
        tool.run("add", &pod, &caps.to_string()).await?;

        let node = cluster.node(1)?;
        let address = node
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4())
            .context("no IPv4")?;
        // From the node: an answer to somebody outside would leave by the pod's ENI with the node's address, which
        // the VPC drops (docs/gaps.md, symmetric routing).
        let dialer = node.namespace.clone();
        let target = std::net::SocketAddr::from((*address, 30080));
        let wanted = pod.answer();
        let heard = dialer
            .enter_async(move || -> std::io::Result<String> {
                use std::io::Read as _;
                let limit = Duration::from_secs(5);
                let mut stream = std::net::TcpStream::connect_timeout(&target, limit)?;
                stream.set_read_timeout(Some(limit))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            })
            .await??;
        ensure!(heard.contains(&wanted), "{heard:?} instead of {wanted:?}");
        tool.run("del", &pod, &caps.to_string()).await?;
        audit::clean(cluster).await
    });
}
