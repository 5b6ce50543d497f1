//! What people get wrong, through the real binaries: each error names the thing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::story::{eventually, tell};
use sandbox::options::{ClusterOptions, Service};

const LIMIT: Duration = Duration::from_secs(20);

/// Folder of the binaries: two levels above the running test program.
fn bin_dir() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let dir = me
        .parent()
        .and_then(Path::parent)
        .context("the test program has no folder")?;
    Ok(dir.to_owned())
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    text
}

#[test]
fn unknown_configuration_key_is_named_by_every_service() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[servise]\nx = 1\n").unwrap();
    for service in ["cloud-gateway", "ipam-service", "node-agent"] {
        let program = bin_dir().unwrap().join(service);

        let output = Command::new(&program)
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap();

        let text = said(&output);
        assert_eq!(output.status.code(), Some(64), "{service}: {text}");
        assert!(text.contains("servise"), "{service}: {text}");
    }
}

#[test]
fn unknown_override_is_named_by_every_service() {
    for service in ["cloud-gateway", "ipam-service", "node-agent"] {
        let program = bin_dir().unwrap().join(service);

        let output = Command::new(&program)
            .args(["--set", "no.such.key=1"])
            .output()
            .unwrap();

        let text = said(&output);
        assert_eq!(output.status.code(), Some(64), "{service}: {text}");
        assert!(text.contains("no"), "{service}: {text}");
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

async fn log_says(path: &Path, words: &[&str]) -> Result<()> {
    eventually(LIMIT, async || {
        let text = std::fs::read_to_string(path)?;
        for word in words {
            ensure!(text.contains(word), "{word:?} is not in {}", path.display());
        }
        Ok(())
    })
    .await
}

#[test]
fn unknown_vswitch_is_named_by_ipam() {
    tell(one(), async |cluster| {
        let path = cluster.run_dir().eni_conf();
        let text = std::fs::read_to_string(&path)?;
        let mut conf: serde_json::Value = serde_json::from_str(&text)?;
        let zones = conf["vswitches"].as_object_mut().context("no vswitches")?;
        for (_, list) in zones.iter_mut() {
            list.as_array_mut()
                .context("no list")?
                .push(serde_json::json!("vsw-doesnotexist"));
        }
        std::fs::write(&path, conf.to_string())?;

        cluster.restart(Service::Ipam(1)).await?;

        log_says(
            &cluster.run_dir().log(Service::Ipam(1)),
            &["vsw-doesnotexist"],
        )
        .await
    });
}

#[test]
fn agent_with_the_certificate_of_another_node_says_so_and_ends() {
    tell(one(), async |cluster| {
        let own = cluster.run_dir().service(Service::Agent(1))?.join("tls");
        let other = cluster.run_dir().service(Service::Agent(2))?.join("tls");
        for file in ["tls.crt", "tls.key"] {
            std::fs::copy(other.join(file), own.join(file))?;
        }

        cluster.restart(Service::Agent(1)).await?;

        ensure!(
            cluster.wait_exit(Service::Agent(1), LIMIT).await,
            "the agent runs on"
        );
        let mine = cluster.node(1)?.instance.to_string();
        let theirs = cluster.node(2)?.instance.to_string();
        let log = cluster.run_dir().log(Service::Agent(1));
        log_says(&log, &["the certificate is for", &mine, &theirs]).await
    });
}

#[test]
fn agent_with_a_certificate_of_a_foreign_authority_says_so_and_ends() {
    tell(one(), async |cluster| {
        let own = cluster.run_dir().service(Service::Agent(1))?.join("tls");
        let dir = tempfile::tempdir()?;
        let instance = cluster.node(1)?.instance.to_string();
        let identity = format!("spiffe://terway.local/cluster/sandbox/node/{instance}");
        let authority = dir.path().join("ca");
        let issued = dir.path().join("leaf");
        let terwayctl = cluster.bin_dir().join("terwayctl");
        let made = Command::new(&terwayctl)
            .args(["ca", "init", "--dir"])
            .arg(&authority)
            .output()?;
        ensure!(made.status.success(), "{}", said(&made));
        let made = Command::new(&terwayctl)
            .args(["ca", "issue", "--identity", &identity, "--dir"])
            .arg(&authority)
            .arg("--out")
            .arg(&issued)
            .output()?;
        ensure!(made.status.success(), "{}", said(&made));
        for file in ["tls.crt", "tls.key"] {
            std::fs::copy(issued.join(file), own.join(file))?;
        }

        cluster.restart(Service::Agent(1)).await?;

        ensure!(
            cluster.wait_exit(Service::Agent(1), LIMIT).await,
            "the agent runs on"
        );
        log_says(&cluster.run_dir().log(Service::Agent(1)), &["tls.crt"]).await
    });
}

#[test]
fn pod_that_nobody_scheduled_here_asks_to_try_again_later() {
    tell(one(), async |cluster| {
        let pod = cluster.prepare_quiet_pod(1, "default", "known").await?;
        let key = types::pod::PodKey::new("default", "unknown");

        let output = cluster
            .cni(1, "ADD", &key, "00112233445566", Some(&pod.netns))
            .await?;

        ensure!(output.error_code() == Some(11), "{}", output.text());
        ensure!(
            output.text().contains("default/unknown"),
            "{}",
            output.text()
        );
        cluster.remove_pod(pod).await
    });
}
