//! The first process of a node: makes its file system and its devices, then reaps what is left to it.
//!
//! A node has its own processes, mounts, host name and network; programs come from the machine's `/usr`. What it
//! mounts is seen by nobody else and goes away with it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{chdir, pivot_root};
use serde::{Deserialize, Serialize};

/// What the first process says by this file that it is done.
pub const READY: &str = "booted";
/// Where the machine's own tree is while the node's is made.
const OLD: &str = ".old";
/// What links into /usr where distributions have merged it.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Folders that there are from the start.
const FOLDERS: &[&str] = &[
    "dev",
    "etc",
    "opt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "var/lib",
    "var/log",
    "var/cache",
    OLD,
];

/// What the node is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootPlan {
    /// Its host name.
    pub name: String,
    /// Folder of the machine that becomes its root; what is written there outlives a reboot.
    pub root: PathBuf,
    /// Files and folders of the machine, and where the node sees them.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

impl BootPlan {
    /// Makes the folders below the root, and empty files where files are to be seen.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for folder in FOLDERS {
            fs::create_dir_all(self.root.join(folder))
                .with_context(|| format!("{folder} in {}", self.root.display()))?;
        }
        for name in MERGED {
            let (ours, inside) = (Path::new("/").join(name), self.root.join(name));
            if inside.symlink_metadata().is_ok() {
                continue;
            }
            if let Ok(target) = fs::read_link(&ours) {
                symlink(target, inside)?;
            } else if ours.is_dir() {
                fs::create_dir_all(inside)?;
            }
        }
        let var_run = self.root.join("var/run");
        if var_run.symlink_metadata().is_err() {
            symlink("/run", var_run)?;
        }
        for (outside, inside) in &self.binds {
            let inside = self.inside(inside)?;
            if outside.is_dir() {
                fs::create_dir_all(&inside)?;
            } else {
                fs::create_dir_all(inside.parent().context("a file has a folder")?)?;
                File::options().create(true).append(true).open(&inside)?;
            }
        }
        Ok(())
    }

    fn inside(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let relative = path
            .strip_prefix("/")
            .with_context(|| format!("{} is not absolute", path.display()))?;
        Ok(self.root.join(relative))
    }
}

/// Becomes the first process of a node; to be called in namespaces of its own. Does not return unless it fails.
///
/// # Errors
/// When the kernel refuses a mount.
pub fn boot(plan: &Path) -> anyhow::Result<()> {
    let text = fs::read(plan).with_context(|| plan.display().to_string())?;
    let plan: BootPlan = serde_json::from_slice(&text)?;
    if std::process::id() != 1 {
        bail!("a node is booted in a process namespace of its own");
    }
    // Before anything else, so that no child can be missed.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    fs::write("/proc/sys/kernel/hostname", &plan.name).context("set the host name")?;
    build(&plan).context("make the node's file system")?;
    enter(&plan.root)?;
    fs::write(Path::new("/").join(READY), b"")?;
    loop {
        children.wait()?;
        reap();
    }
}

fn reap() {
    let again = WaitPidFlag::WNOHANG;
    loop {
        match waitpid(None, Some(again)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(_) => {}
        }
    }
}

fn build(plan: &BootPlan) -> anyhow::Result<()> {
    let root = plan.root.as_path();
    // Nothing of what follows reaches the machine.
    flags("/", MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    bind(root, root)?;
    let usr = root.join("usr");
    bind(Path::new("/usr"), &usr)?;
    // Programs are the machine's; nobody on a node may change them.
    mount(
        None::<&str>,
        &usr,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .context("make /usr read-only")?;
    for name in MERGED {
        let ours = Path::new("/").join(name);
        if ours.is_dir() && !ours.is_symlink() {
            bind(&ours, &root.join(name))?;
        }
    }
    bind(Path::new("/dev"), &root.join("dev"))?;
    file_system("proc", &root.join("proc"), None)?;
    // One of its own, because it shows the devices of the network that it was mounted in.
    file_system("sysfs", &root.join("sys"), None)?;
    bind(Path::new("/sys/fs/cgroup"), &root.join("sys/fs/cgroup"))?;
    file_system("tmpfs", &root.join("run"), Some("mode=0755"))?;
    file_system("tmpfs", &root.join("tmp"), Some("mode=1777"))?;
    for (outside, inside) in &plan.binds {
        bind(outside, &plan.inside(inside)?)?;
    }
    Ok(())
}

/// Makes the folder the root of everything, and lets go of the machine's tree.
fn enter(root: &Path) -> anyhow::Result<()> {
    let old = Path::new("/").join(OLD);
    pivot_root(root, &root.join(OLD)).context("change the root")?;
    chdir("/")?;
    umount2(&old, MntFlags::MNT_DETACH).context("let go of the machine's tree")?;
    // Containers that ask for it see mounts that come later, as on any node.
    flags("/", MsFlags::MS_SHARED | MsFlags::MS_REC)
}

fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn file_system(kind: &str, at: &Path, options: Option<&str>) -> anyhow::Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} at {}", at.display()))
}

fn flags(at: &str, flags: MsFlags) -> anyhow::Result<()> {
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("set {flags:?} of {at}"))
}
