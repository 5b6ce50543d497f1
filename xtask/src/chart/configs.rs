//! Every configuration that the chart writes is read by the real service, with the arguments and variables of its
//! container: `--check-config`. The CNI configuration is given to the real plug-in.

mod container;
mod plugin;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::chart::Rendered;
use crate::chart::configs::container::{Started, started};
use crate::step::{cargo, root, run as run_step, say};

/// The service that looks at more than its file, and who it wants to be.
const GATEWAY: &str = "cloud-gateway";
const IDENTITY: &str = "spiffe://terway.local/gateway/terway";

/// Builds the services and lets them read; gives how many different files they read, and every breach.
pub(crate) fn check(sets: &[Rendered]) -> Result<(usize, Vec<String>)> {
    let root = root()?;
    say("building the services");
    run_step(cargo()?.args(["build", "--locked", "-q"]).args([
        "-p=cloud-gateway",
        "-p=ipam-service",
        "-p=node-agent",
        "-p=policy-agent",
        "-p=controlplane",
        "-p=cni",
        "-p=terwayctl",
    ]))?;
    let reader = Reader {
        bin: &root.join("target/debug"),
        scratch: tempfile::tempdir().context("make a folder")?,
    };
    let mut breaches = Vec::new();
    let mut read = BTreeSet::new();
    for set in sets {
        for started in started(set, &root)? {
            if !read.insert(started.clone()) {
                continue;
            }
            let told = reader.read(&started)?;
            breaches.extend(told.iter().map(|what| format!("{}: {what}", set.name)));
        }
        breaches.extend(plugin::check(set, reader.bin, reader.scratch.path())?);
    }
    if read.is_empty() {
        bail!("the chart configures nothing");
    }
    Ok((read.len(), breaches))
}

/// What ack-pod-identity-webhook puts into the gateway's container.
const WEBHOOK: [(&str, &str); 3] = [
    ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1234567890:role/terway"),
    (
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
        "acs:ram::1234567890:oidc-provider/ack-rrsa",
    ),
    (
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
        "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token",
    ),
];

/// Whether the file leaves role, provider and token to the webhook.
fn is_for_the_webhook(table: &toml::Table) -> bool {
    let oidc = table.get("credentials").and_then(|keys| keys.get("oidc"));
    oidc.and_then(toml::Value::as_table)
        .is_some_and(toml::Table::is_empty)
}

struct Reader<'a> {
    bin: &'a Path,
    scratch: tempfile::TempDir,
}

impl Reader<'_> {
    /// Lets the service read the file.
    fn read(&self, started: &Started) -> Result<Vec<String>> {
        let Started { service, .. } = started;
        let table: toml::Table = match started.text.parse() {
            Ok(table) => table,
            Err(error) => return Ok(vec![format!("{service}: {error}")]),
        };
        Ok(match self.ask(started, &table)? {
            Ok(()) => Vec::new(),
            Err(complaint) => vec![format!("{service} refuses its file: {complaint}")],
        })
    }

    /// The gateway looks at its certificate at once: it is put there.
    fn gateways_files(&self) -> Result<Vec<String>> {
        let tls = self.scratch.path().join("tls");
        if !tls.exists() {
            let authority = self.scratch.path().join("authority");
            let ctl = || Command::new(self.bin.join("terwayctl"));
            run_step(ctl().args(["ca", "init", "--dir"]).arg(&authority))?;
            run_step(
                ctl()
                    .args(["ca", "issue", "--identity", IDENTITY, "--dir"])
                    .arg(&authority)
                    .arg("--out")
                    .arg(&tls),
            )?;
        }
        let file = |name: &str| tls.join(name).display().to_string();
        Ok(vec![
            format!("tls.ca={}", file("ca.crt")),
            format!("tls.cert={}", file("tls.crt")),
            format!("tls.key={}", file("tls.key")),
        ])
    }

    /// Runs the service on the file; gives its complaint, if it has one.
    fn ask(&self, started: &Started, table: &toml::Table) -> Result<Result<(), String>> {
        let mut variables = started.variables.clone();
        let mut sets = started.sets.clone();
        if let (Some(eni_conf), Some(key)) = (&started.eni_conf, started.eni_conf_key()) {
            let file = self.scratch.path().join("eni_conf");
            std::fs::write(&file, eni_conf).with_context(|| file.display().to_string())?;
            sets.push(format!("{key}={}", file.display()));
        }
        if started.service == GATEWAY {
            sets.extend(self.gateways_files()?);
            if is_for_the_webhook(table) {
                let given = WEBHOOK.map(|(name, value)| (name.to_owned(), value.to_owned()));
                variables.extend(given);
            }
        }
        let file = self
            .scratch
            .path()
            .join(format!("{}.toml", started.service));
        std::fs::write(&file, table.to_string()).with_context(|| file.display().to_string())?;
        let mut service = Command::new(self.bin.join(&started.service));
        service
            .env_clear()
            .envs(variables)
            .arg("--config")
            .arg(&file);
        for set in &sets {
            service.args(["--set", set]);
        }
        service.arg("--check-config");
        let out = service
            .output()
            .with_context(|| format!("start {service:?}"))?;
        Ok(if out.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
        })
    }
}
