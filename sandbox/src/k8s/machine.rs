//! A node as a machine: switched on, entered, switched off.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use fabric::namespace::Namespace;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::{Child, Command};

use crate::k8s::boot::{BootPlan, READY};
use crate::process::{Process, Spec};

/// How long a node may take to boot, and its last process to end.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Where programs are found on a node.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/kubernetes";

/// A node that is switched on. Dropping it switches it off.
#[derive(Debug)]
pub struct Machine {
    plan: BootPlan,
    network: Namespace,
    /// The process that holds the first one; that one dies with it, and with that one all others.
    holder: Process,
    /// The first process, as the machine numbers it.
    first: i32,
}

/// A program of a node.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// For messages.
    pub name: String,
    /// The program, as the node sees it.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where the machine keeps what it says.
    pub log: PathBuf,
}

impl Machine {
    /// Boots it. `program` is this program, whose `k8s boot` becomes the first process; `log` is appended to.
    ///
    /// # Errors
    /// When it does not boot; the end of the log says why.
    pub async fn boot(
        plan: BootPlan,
        network: Namespace,
        program: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        plan.prepare()?;
        let ready = plan.root.join(READY);
        if ready.exists() {
            fs::remove_file(&ready)?;
        }
        let file = plan.root.with_extension("plan.json");
        fs::write(&file, serde_json::to_vec(&plan)?)?;
        let words = ["--mount", "--pid", "--uts", "--fork", "--kill-child", "--"];
        let mut args: Vec<String> = words.map(str::to_owned).to_vec();
        args.extend([
            program.display().to_string(),
            "k8s".to_owned(),
            "boot".to_owned(),
        ]);
        args.push(file.display().to_string());
        let holder = Process::start(Spec {
            name: plan.name.clone(),
            namespace: network.clone(),
            program: PathBuf::from("unshare"),
            args,
            env: Vec::new(),
            log: log.to_owned(),
        })?;
        let booted = async {
            while !ready.exists() {
                holder.check()?;
                tokio::time::sleep(LOOK).await;
            }
            only_child(holder.pid())
        };
        let first = tokio::time::timeout(LIMIT, booted)
            .await
            .with_context(|| format!("{} did not boot", plan.name))??;
        Ok(Self {
            plan,
            network,
            holder,
            first,
        })
    }

    /// What it was made of.
    pub fn plan(&self) -> &BootPlan {
        &self.plan
    }

    /// Its network.
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// The process that holds it.
    pub fn holder(&self) -> i32 {
        self.holder.pid()
    }

    /// Starts a program on it that goes on until it is stopped.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(&self, daemon: Daemon) -> anyhow::Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&daemon.log)
            .with_context(|| daemon.log.display().to_string())?;
        let mut command = command(&daemon.program, &daemon.args);
        command.stdout(log.try_clone()?).stderr(log);
        let child = self.spawn(command).await?;
        Ok(Process::of_child(
            Spec {
                name: format!("{} of {}", daemon.name, self.plan.name),
                namespace: self.network.clone(),
                program: daemon.program,
                args: daemon.args,
                env: Vec::new(),
                log: daemon.log,
            },
            child,
        )?)
    }

    /// Runs a program on it to its end, at most for `limit`.
    ///
    /// # Errors
    /// When it does not start, or takes too long. How it ended is in the answer.
    pub async fn run(
        &self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> anyhow::Result<Output> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut command = command(Path::new(program), &args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command).await?;
        tokio::time::timeout(limit, child.wait_with_output())
            .await
            .with_context(|| format!("{program} {args:?} took more than {limit:?}"))?
            .with_context(|| format!("wait for {program}"))
    }

    /// As [`Machine::run`], and fails when the program does; gives what it printed.
    ///
    /// # Errors
    /// Also with what it said on standard error.
    pub async fn output(
        &self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> anyhow::Result<String> {
        let output = self.run(program, args, limit).await?;
        if !output.status.success() {
            bail!(
                "{program} {} on {} ended with {}: {}",
                args.join(" "),
                self.plan.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Pulls the plug: all its processes are killed, and its mounts are gone.
    ///
    /// # Errors
    /// When a process does not end.
    pub async fn switch_off(&self) -> anyhow::Result<()> {
        self.holder.kill().await?;
        let first = PathBuf::from(format!("/proc/{}", self.first));
        let ended = async {
            // The first one ends after all others.
            while first.exists() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(LIMIT, ended)
            .await
            .with_context(|| format!("processes of {} did not end", self.plan.name))
    }

    /// A child of ours that runs on the node. A thread goes there first, since a child is where its parent is.
    async fn spawn(&self, mut command: Command) -> anyhow::Result<Child> {
        let (first, name) = (self.first, self.plan.name.clone());
        let runtime = tokio::runtime::Handle::current();
        let thread = move || -> io::Result<Child> {
            go_to(first)?;
            let _runtime = runtime.enter();
            command.spawn()
        };
        let joined = tokio::task::spawn_blocking(move || std::thread::spawn(thread).join()).await?;
        match joined {
            Ok(child) => child.with_context(|| format!("start a program on {name}")),
            Err(_) => bail!("the thread that went to {name} ended"),
        }
    }
}

fn command(program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Moves the calling thread to where a process is; for a thread that ends soon.
fn go_to(process: i32) -> io::Result<()> {
    let open = |kind: &str| File::open(format!("/proc/{process}/ns/{kind}"));
    let (net, uts, pid, mnt) = (open("net")?, open("uts")?, open("pid")?, open("mnt")?);
    // Threads share where their root is, unless they say otherwise.
    unshare(CloneFlags::CLONE_FS)?;
    setns(&net, CloneFlags::CLONE_NEWNET)?;
    setns(&uts, CloneFlags::CLONE_NEWUTS)?;
    setns(&pid, CloneFlags::CLONE_NEWPID)?;
    setns(&mnt, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

fn only_child(process: i32) -> anyhow::Result<i32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let first = text.split_whitespace().next();
    Ok(first.with_context(|| format!("{path} is empty"))?.parse()?)
}
