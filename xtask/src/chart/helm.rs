//! The real helm: found, or built where `go` exists.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::chart::Rendered;
use crate::k8s::binaries;
use crate::step::root;

/// Kubernetes for which the chart is rendered: that of the test bed.
const KUBERNETES: &str = "v1.34.4";

/// A helm that works.
#[derive(Debug)]
pub(crate) struct Helm {
    program: PathBuf,
    root: PathBuf,
}

impl Helm {
    /// Takes the one in the path, or the cached one, or builds it.
    ///
    /// # Errors
    /// When there is none and no `go` either.
    pub(crate) fn find() -> Result<Self> {
        let root = root()?;
        let program = binaries::helm()?;
        Ok(Self { program, root })
    }

    /// The manifests that the chart makes of a set of values and more settings, or helm's complaint.
    ///
    /// # Errors
    /// When helm can not be started.
    pub(crate) fn template(&self, set: &str, more: &[&str]) -> Result<Result<String, String>> {
        let mut helm = Command::new(&self.program);
        helm.args(["template", "terway"])
            .arg(self.root.join("helm/terway"))
            .args(["--namespace", "kube-system"])
            .args(["--kube-version", KUBERNETES])
            .arg("--values")
            .arg(values(&self.root, set));
        for setting in more {
            helm.args(["--set", setting]);
        }
        let out = helm.output().with_context(|| format!("start {helm:?}"))?;
        if !out.status.success() {
            return Ok(Err(String::from_utf8_lossy(&out.stderr).into_owned()));
        }
        Ok(Ok(
            String::from_utf8(out.stdout).context("helm's output is not UTF-8")?
        ))
    }

    /// `helm lint --strict` of every set; gives its complaints.
    ///
    /// # Errors
    /// When helm can not be started.
    pub(crate) fn lint(&self, sets: &[Rendered]) -> Result<Vec<String>> {
        let mut breaches = Vec::new();
        for set in sets {
            let mut helm = Command::new(&self.program);
            helm.args(["lint", "--strict", "--quiet"])
                .args(["--kube-version", KUBERNETES])
                .arg(self.root.join("helm/terway"))
                .arg("--values")
                .arg(values(&self.root, &set.name));
            let out = helm.output().with_context(|| format!("start {helm:?}"))?;
            if !out.status.success() {
                let text = String::from_utf8_lossy(&out.stdout);
                breaches.push(format!("helm lint {}: {}", set.name, text.trim()));
            }
        }
        Ok(breaches)
    }
}

fn values(root: &Path, set: &str) -> PathBuf {
    root.join("helm/tests/values").join(format!("{set}.yaml"))
}
