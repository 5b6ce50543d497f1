//! Programs of Kubernetes: found where people keep them, or built from their Go modules.
//!
//! Built ones are kept outside of the tree, in a folder named by their version, so that a clean checkout has them at
//! once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::k8s::loud;
use crate::step::{has, output, root, say};

/// What is built, and what others must be of. Staging modules have the same numbers behind v0.
const KUBERNETES: &str = "v1.34.4";
const STAGING: &str = "v0.34.4";
/// What must be in the answer to `--version` of those that are found; their patches may differ.
const MINOR: &str = "v1.34.";
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.19.2";
const COREDNS: &str = "v1.12.4";

/// Programs that are Kubernetes' own, the longest build first: what follows finds most in Go's cache.
const OWN: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];
/// Theirs too, and of any version that speaks with the server.
const KUBECTL: &str = "kubectl";

/// CoreDNS with the few plug-ins that a cluster needs; all of them would be three times the work.
const COREDNS_MAIN: &str = r#"package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func init() {
	dnsserver.Directives = []string{"ready", "health", "errors", "cache", "kubernetes"}
}

func main() {
	coremain.Run()
}
"#;

/// Why the programs can not be had on this machine: some are missing, and there is no `go`.
///
/// # Errors
/// When the cache's folder can not be named.
pub(crate) fn out_of_reach() -> Result<Option<String>> {
    if has("go") {
        return Ok(None);
    }
    let cache = cache()?;
    let missing: Vec<&str> = OWN
        .iter()
        .copied()
        .chain(["helm", "coredns", KUBECTL])
        .filter(|program| find(program, &cache).is_none())
        .collect();
    Ok((!missing.is_empty()).then(|| {
        format!(
            "These are neither in TERWAY_KUBERNETES, KUBEBUILDER_ASSETS, PATH nor {}, and there is no go to build them with: {}",
            cache.display(),
            missing.join(" ")
        )
    }))
}

/// Finds or builds helm alone.
///
/// # Errors
/// When there is none and no `go` either.
pub(crate) fn helm() -> Result<PathBuf> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    if find("helm", &cache).is_none() {
        build_helm(&cache)?;
    }
    find("helm", &cache).context("helm was built and is not there")
}

/// One build at a time; held until it is dropped.
fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
    let path = cache.join("lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    if lock.try_lock().is_err() {
        say("another build of Kubernetes is under way; waiting for it");
        lock.lock().context("wait for another build")?;
    }
    Ok(lock)
}

/// Finds or builds all of them; gives a folder that has them under their names.
///
/// # Errors
/// When one is missing and can not be built.
pub(crate) fn provide() -> Result<PathBuf> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let missing = |program: &&str| find(program, &cache).is_none();
    let own: Vec<&str> = OWN
        .iter()
        .copied()
        .chain([KUBECTL])
        .filter(missing)
        .collect();
    if !own.is_empty() {
        build_kubernetes(&own, &cache)?;
    }
    if find("helm", &cache).is_none() {
        build_helm(&cache)?;
    }
    if find("coredns", &cache).is_none() {
        build_coredns(&cache)?;
    }
    gather(&cache)
}

/// One folder for all, wherever they are.
fn gather(cache: &Path) -> Result<PathBuf> {
    let folder = root()?.join("target/k8s/programs");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for program in OWN.iter().copied().chain([KUBECTL, "helm", "coredns"]) {
        let at = find(program, cache).with_context(|| format!("{program} is missing"))?;
        let link = folder.join(program);
        if fs::read_link(&link).is_ok_and(|target| target == at) {
            continue;
        }
        let fresh = folder.join(format!(".{program}"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(&at, &fresh)?;
        fs::rename(&fresh, &link)?;
    }
    Ok(folder)
}

/// Where a program is, if its version fits.
fn find(program: &str, cache: &Path) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = ["TERWAY_KUBERNETES", "KUBEBUILDER_ASSETS"]
        .into_iter()
        .filter_map(folder)
        .collect();
    folders.extend(std::env::split_paths(&path));
    let found = folders.iter().map(|folder| folder.join(program));
    // What lies in the cache was built for it.
    let ours = cache.join(program);
    found
        .filter(|file| file.is_file() && *file != ours)
        .find(|file| fits(program, file))
        .or_else(|| ours.is_file().then_some(ours))
}

fn fits(program: &str, file: &Path) -> bool {
    if !OWN.contains(&program) {
        return true;
    }
    let said = Command::new(file).arg("--version").output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(MINOR))
}

/// Where binaries of Kubernetes are kept, outside the tree.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base
        .join("terway-mesh")
        .join(format!("kubernetes-{KUBERNETES}")))
}

fn go(dir: &Path) -> Result<Command> {
    if !has("go") {
        bail!("programs of Kubernetes are missing, and there is no go to build them with");
    }
    let mut go = Command::new("go");
    go.current_dir(dir)
        .env("GOFLAGS", "-mod=mod -trimpath")
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off");
    Ok(go)
}

/// A module of its own requires Kubernetes and repeats the replacements that Kubernetes has for its staging modules:
/// `go install` refuses modules that replace others.
fn build_kubernetes(programs: &[&str], cache: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("folder for a module")?;
    let dir = scratch.path();
    say(&format!(
        "building {} of Kubernetes {KUBERNETES} (about eight minutes the first time)",
        programs.join(", ")
    ));
    crate::step::run(go(dir)?.args(["mod", "init", "testbed"]))?;
    let require = format!("-require=k8s.io/kubernetes@{KUBERNETES}");
    crate::step::run(go(dir)?.args(["mod", "edit", &require]))?;
    let module = format!("k8s.io/kubernetes@{KUBERNETES}");
    let told = output(go(dir)?.args(["mod", "download", "-json", &module]))?;
    let told: serde_json::Value = serde_json::from_str(&told).context("go's JSON")?;
    let at = told.pointer("/Dir").and_then(serde_json::Value::as_str);
    let mods = Path::new(at.context("go does not say where the module is")?).join("go.mod");
    let mods = fs::read_to_string(&mods).with_context(|| mods.display().to_string())?;
    let mut edit = go(dir)?;
    edit.args(["mod", "edit"]);
    for module in staging(&mods) {
        edit.arg(format!("-replace={module}={module}@{STAGING}"));
    }
    crate::step::run(&mut edit)?;
    let imports: Vec<String> = programs
        .iter()
        .map(|program| format!("\t_ \"k8s.io/kubernetes/cmd/{program}\"\n"))
        .collect();
    let tools = format!(
        "//go:build tools\n\npackage tools\n\nimport (\n{})\n",
        imports.concat()
    );
    fs::write(dir.join("tools.go"), tools)?;
    loud("go mod tidy", go(dir)?.args(["mod", "tidy"]))?;
    let (major, minor) = ("1", MINOR.trim_start_matches("v1.").trim_end_matches('.'));
    let version = "-X k8s.io/component-base/version.";
    let flags = format!(
        "-s -w {version}gitVersion={KUBERNETES} {version}gitMajor={major} {version}gitMinor={minor}"
    );
    for program in programs {
        let package = format!("k8s.io/kubernetes/cmd/{program}");
        build(dir, program, &package, &flags, cache)?;
    }
    Ok(())
}

/// `k8s.io/api => ./staging/src/k8s.io/api` gives `k8s.io/api`.
fn staging(mods: &str) -> Vec<&str> {
    mods.lines()
        .filter_map(|line| line.trim().split_once(" => "))
        .filter(|(_, target)| target.starts_with("./staging/"))
        .map(|(module, _)| module.trim_start_matches("replace "))
        .collect()
}

fn build_helm(cache: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(cache).context("folder for helm")?;
    loud(
        "building helm (two minutes)",
        go(cache)?
            .env("GOFLAGS", "-trimpath")
            .env("GOBIN", scratch.path())
            .args(["install", HELM]),
    )?;
    fs::rename(scratch.path().join("helm"), cache.join("helm")).context("keep helm")
}

fn build_coredns(cache: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("folder for a module")?;
    let dir = scratch.path();
    say(&format!("building CoreDNS {COREDNS} (two minutes)"));
    crate::step::run(go(dir)?.args(["mod", "init", "testbed"]))?;
    let require = format!("-require=github.com/coredns/coredns@{COREDNS}");
    crate::step::run(go(dir)?.args(["mod", "edit", &require]))?;
    fs::write(dir.join("main.go"), COREDNS_MAIN)?;
    build(dir, "coredns", ".", "-s -w", cache)
}

/// Builds into the cache, where it appears whole or not at all.
fn build(dir: &Path, program: &str, package: &str, flags: &str, cache: &Path) -> Result<()> {
    let fresh = cache.join(format!(".{program}"));
    loud(
        &format!("building {program}"),
        go(dir)?
            .args(["build", "-ldflags", flags, "-o"])
            .arg(&fresh)
            .arg(package),
    )?;
    fs::rename(&fresh, cache.join(program)).with_context(|| format!("keep {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_are_those_that_are_replaced_by_a_folder() {
        let mods = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tx => y v1\n)\nreplace k8s.io/cri-api => ./staging/src/k8s.io/cri-api\n";

        assert_eq!(staging(mods), ["k8s.io/api", "k8s.io/cri-api"]);
    }
}
