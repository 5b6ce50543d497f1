//! `sandbox k8s`: up, down, status.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::k8s::args::{DirArgs, K8sCommand, UpArgs};
use crate::k8s::audit::BedTraces;
use crate::k8s::bed::Bed;
use crate::k8s::cgroup::Groups;
use crate::k8s::kube::Kube;
use crate::k8s::{check, release};
use crate::process::tail;
use crate::report::Report;

/// How long `up` waits, and `down`.
const UP_LIMIT: Duration = Duration::from_mins(8);
const DOWN_LIMIT: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What runs, as a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    /// The process that holds it.
    pid: i32,
    /// What the names of its network namespaces begin with.
    prefix: String,
    /// Its control groups.
    groups: String,
    /// Its folder.
    dir: PathBuf,
    /// Folder of Kubernetes' programs.
    kubernetes: PathBuf,
    /// Whether it can be used.
    ready: bool,
}

impl State {
    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::read(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        crate::run_dir::write_atomically(path, &serde_json::to_vec(self)?)?;
        Ok(())
    }

    /// Whether the process is there and is still the one that wrote the file.
    fn runs(&self) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains("k8s serve")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }
}

/// Does what the command line says. False: something did not hold.
///
/// # Errors
/// What could not be done.
pub async fn run<W: Write>(command: &K8sCommand, out: W) -> anyhow::Result<bool> {
    let mut report = Report::new(out);
    match command {
        K8sCommand::Up(args) if args.check => up_and_check(args, &mut report).await,
        K8sCommand::Up(args) => up(args, &mut report).await,
        K8sCommand::Down(args) => down(args, &mut report).await,
        K8sCommand::Status(args) => status(args, &mut report).await,
        K8sCommand::Serve(args) => serve(args, &mut report).await,
        K8sCommand::Boot { .. } => bail!("a node is booted before there is a runtime"),
    }
}

async fn up_and_check<W: Write>(args: &UpArgs, report: &mut Report<W>) -> anyhow::Result<bool> {
    let bed = Bed::start(args.options()?, report).await?;
    let traces = BedTraces::of(&bed)?;
    let checked = check::check(&bed, args.long, report).await;
    if let Err(error) = &checked {
        report.check(false, &format!("{error:#}"));
        explain(&bed, report).await;
    }
    report.step("tear-down");
    let stopped = bed.stop().await;
    let left = traces.left(args.keep || stopped.is_err())?;
    report.check(stopped.is_ok(), "everything ended");
    report.check(
        left.is_empty(),
        "nothing is left on this machine: processes, namespaces, mounts, control groups, links, files",
    );
    report.details(&left, 20);
    stopped?;
    report.close();
    Ok(report.holds())
}

/// What people would look at first.
async fn explain<W: Write>(bed: &Bed, report: &mut Report<W>) {
    for words in [
        &["get", "nodes", "-o", "wide"][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "events", "-A", "--field-selector", "type=Warning"],
    ] {
        let text = bed
            .kube()
            .run(words)
            .await
            .unwrap_or_else(|error| error.to_string());
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        report.details(&lines, 60);
    }
}

async fn up<W: Write>(args: &UpArgs, report: &mut Report<W>) -> anyhow::Result<bool> {
    let path = args.place.state();
    if let Some(state) = State::read(&path)? {
        ensure!(!state.runs(), "it is up already; `status` says how it is");
        report.step("what a run left that has died is removed");
        clean(&state, &path).await?;
    }
    let log = args.place.log();
    let said = File::create(&log).with_context(|| log.display().to_string())?;
    let mut words = vec!["k8s".to_owned(), "serve".to_owned()];
    words.extend(std::env::args().skip(3));
    let mut child = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .context("start setsid")?;
    let end = Instant::now() + UP_LIMIT;
    let mut told = 0;
    let state = loop {
        tokio::time::sleep(LOOK).await;
        // What it says is said here, too.
        let text = fs::read_to_string(&log).unwrap_or_default();
        for line in text.lines().skip(told) {
            report.line(line);
            told += 1;
        }
        if let Some(state) = State::read(&path)?.filter(|state| state.ready) {
            break state;
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}):\n{}", tail(&log));
        }
        ensure!(
            Instant::now() < end,
            "it is not up after {UP_LIMIT:?}; {} says more",
            log.display()
        );
    };
    report.line("");
    report.line(&format!(
        "export KUBECONFIG={}",
        state.kubeconfig().display()
    ));
    Ok(true)
}

async fn serve<W: Write>(args: &UpArgs, report: &mut Report<W>) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = args.place.state();
    let bed = Bed::start(args.options()?, report).await?;
    let mut state = State {
        pid: i32::try_from(std::process::id())?,
        prefix: bed.fabric().prefix().to_owned(),
        groups: format!("{}k8s", bed.fabric().prefix()),
        dir: bed.options().dir.clone(),
        kubernetes: bed.options().kubernetes.clone(),
        ready: false,
    };
    state.write(&path)?;
    let installed = async {
        if args.bare {
            return Ok(());
        }
        report.step("the chart, by helm install");
        bed.install(&release::values(&bed)).await
    };
    let installed = tokio::select! {
        installed = installed => installed,
        _ = terminate.recv() => Err(anyhow::anyhow!("ended before it was up")),
    };
    if let Err(error) = installed {
        // It can be looked at until `down`.
        report.check(false, &format!("{error:#}"));
    }
    report.step("the cluster is up");
    state.ready = true;
    state.write(&path)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let stopped = bed.stop().await;
    fs::remove_file(&path)?;
    stopped?;
    Ok(true)
}

async fn down<W: Write>(args: &DirArgs, report: &mut Report<W>) -> anyhow::Result<bool> {
    let path = args.state();
    let Some(state) = State::read(&path)? else {
        report.line("nothing is up");
        return Ok(true);
    };
    if state.runs() {
        kill(Pid::from_raw(state.pid), Signal::SIGTERM).context("end it")?;
        let end = Instant::now() + DOWN_LIMIT;
        while state.runs() && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        if state.runs() {
            report.line("it does not end by itself; killing it");
            kill(Pid::from_raw(state.pid), Signal::SIGKILL)?;
        }
    }
    clean(&state, &path).await?;
    report.line("down, and nothing is left");
    Ok(true)
}

/// Removes what a run may have left. Its processes died with it.
async fn clean(state: &State, path: &Path) -> anyhow::Result<()> {
    for namespace in fabric::namespace::with_prefix(&state.prefix) {
        namespace.delete()?;
    }
    Groups::named(state.groups.as_str()).remove().await?;
    for gone in [
        fs::remove_dir_all(&state.dir),
        fs::remove_file(path),
        fs::remove_file(path.with_extension("log")),
    ] {
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

async fn status<W: Write>(args: &DirArgs, report: &mut Report<W>) -> anyhow::Result<bool> {
    let Some(state) = State::read(&args.state())? else {
        report.line("nothing is up");
        return Ok(false);
    };
    if !state.runs() {
        report.line("the process that held it has died; `down` removes what is left");
        return Ok(false);
    }
    report.line(&format!(
        "export KUBECONFIG={}",
        state.kubeconfig().display()
    ));
    let kube = Kube::new(state.kubernetes.join("kubectl"), state.kubeconfig());
    for words in [
        &["get", "nodes", "-o", "wide"][..],
        &["get", "pods", "-A", "-o", "wide"],
    ] {
        report.line("");
        report.line(kube.run(words).await?.trim_end());
    }
    Ok(true)
}
