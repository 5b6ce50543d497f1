//! The CNI plug-in, run as a container runtime runs it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fabric::namespace::Namespace;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long one call may take. kubelet gives a sandbox two minutes.
const LIMIT: Duration = Duration::from_mins(2);

/// The interface of every pod.
pub const IFNAME: &str = "eth0";

/// One call.
#[derive(Debug, Clone)]
pub struct CniCall {
    /// `ADD`, `DEL`, `CHECK`, `GC`, `STATUS`, `VERSION`.
    pub command: String,
    /// Sandbox id; none for `GC`, `STATUS` and `VERSION`.
    pub sandbox: Option<String>,
    /// Path of the pod's namespace; none when it is gone.
    pub netns: Option<PathBuf>,
    /// Namespace and name of the pod.
    pub pod: Option<(String, String)>,
    /// The network configuration on standard input.
    pub conf: serde_json::Value,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
}

/// What came of a call.
#[derive(Debug, Clone)]
pub struct CniOutput {
    /// Standard output, if it is JSON: the result, or the error.
    pub json: Option<serde_json::Value>,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 if it was killed.
    pub exit: i32,
    /// From start to end of the process.
    pub duration: Duration,
}

impl CniOutput {
    /// Whether the call succeeded.
    pub fn is_ok(&self) -> bool {
        self.exit == 0
    }

    /// Code of a CNI error.
    pub fn error_code(&self) -> Option<u64> {
        self.json.as_ref()?.get("code")?.as_u64()
    }

    /// Everything that it said, for messages.
    pub fn text(&self) -> String {
        let json = self.json.as_ref().map(ToString::to_string);
        format!(
            "exit {}, {}, {}",
            self.exit,
            json.unwrap_or_default(),
            self.stderr.trim()
        )
    }

    /// Addresses of a successful ADD, without prefix lengths.
    pub fn addresses(&self) -> Vec<std::net::IpAddr> {
        let ips = self.json.as_ref().and_then(|json| json.get("ips"));
        let ips = ips.and_then(serde_json::Value::as_array);
        ips.into_iter()
            .flatten()
            .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
            .collect()
    }
}

/// Runs the plug-in `program` in a node's namespace.
pub async fn run(
    node: &Namespace,
    program: &std::path::Path,
    call: &CniCall,
) -> std::io::Result<CniOutput> {
    let mut words = node.entry().into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .arg(program)
        .env("CNI_COMMAND", &call.command)
        .env("CNI_IFNAME", IFNAME)
        .env(
            "CNI_PATH",
            program.parent().unwrap_or(std::path::Path::new("/")),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(sandbox) = &call.sandbox {
        command.env("CNI_CONTAINERID", sandbox);
    }
    if let Some(netns) = &call.netns {
        command.env("CNI_NETNS", netns);
    }
    if let Some(traceparent) = &call.traceparent {
        command.env("TRACEPARENT", traceparent);
    }
    if let Some((namespace, name)) = &call.pod {
        let sandbox = call.sandbox.as_deref().unwrap_or_default();
        command.env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={sandbox}"
            ),
        );
    }
    let start = Instant::now();
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(call.conf.to_string().as_bytes()).await?;
    }
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the plug-in hangs"))??;
    Ok(CniOutput {
        json: serde_json::from_slice(&output.stdout).ok(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        exit: output.status.code().unwrap_or(-1),
        duration: start.elapsed(),
    })
}
