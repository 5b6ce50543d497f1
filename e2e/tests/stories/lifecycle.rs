//! Sandboxes come and go, the agent too.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::audit;
use e2e::check::check;
use e2e::story::{eventually, tell};
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};
use sandbox::plugin::CniCall;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);

fn small() -> ClusterOptions {
    ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        ..ClusterOptions::default()
    }
}

async fn bound(cluster: &Cluster) -> Result<usize> {
    Ok(cluster.node_dump(1).await?.bindings.len())
}

// I4: the same sandbox gets the same answer.
#[test]
fn add_twice_gives_the_same_addresses() {
    tell(small(), async |cluster| {
        let mut pod = cluster.create_pod(1, "default", "a").await?;
        let first = pod.addresses.clone();

        let again = cluster.add_pod(&mut pod).await?;

        ensure!(again.is_ok(), "{}", again.text());
        ensure!(
            pod.addresses == first,
            "{first:?} became {:?}",
            pod.addresses
        );
        ensure!(bound(cluster).await? == 1);
        audit::clean(cluster).await
    });
}

// R: DEL is repeated by kubelet until it succeeds, in any order with anything else.
#[test]
fn del_twice_without_netns_and_of_the_unknown_succeeds_and_frees() {
    tell(small(), async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;

        let without_netns = cluster.del_pod(&pod, false).await?;
        let twice = cluster.del_pod(&pod, true).await?;
        let unknown = cluster
            .cni(1, "DEL", &pod.key, "0123456789abcdef", Some(&pod.netns))
            .await?;

        for output in [&without_netns, &twice, &unknown] {
            ensure!(output.is_ok(), "{}", output.text());
        }
        ensure!(bound(cluster).await? == 0);
        audit::clean(cluster).await
    });
}

#[test]
fn late_del_of_an_old_sandbox_leaves_its_successor_alone() {
    tell(small(), async |cluster| {
        let mut pod = cluster.create_pod(1, "default", "a").await?;
        let old = std::mem::replace(&mut pod.sandbox, "feedfacefeedface".to_owned());
        // kubelet made a new sandbox of the same pod; its DEL of the old one comes late.
        let mut successor = cluster.prepare_quiet_pod(1, "default", "a").await?;
        let added = cluster.add_pod(&mut successor).await?;
        ensure!(added.is_ok(), "{}", added.text());

        let late = cluster.cni(1, "DEL", &pod.key, &old, None).await?;

        ensure!(late.is_ok(), "{}", late.text());
        let checked = check(cluster, &successor).await?;
        ensure!(
            checked.is_ok(),
            "the successor was hurt: {}",
            checked.text()
        );
        ensure!(bound(cluster).await? == 1);
        cluster.remove_pod(pod).await
    });
}

#[test]
fn del_with_the_agent_down_succeeds_and_is_replayed() {
    tell(small(), async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;
        cluster.kill(Service::Agent(1)).await?;

        let output = cluster.del_pod(&pod, true).await?;

        ensure!(output.is_ok(), "{}", output.text());
        cluster.remove_pod(pod).await?;
        cluster.restart(Service::Agent(1)).await?;
        eventually(LIMIT, async || {
            let left = bound(cluster).await?;
            ensure!(left == 0, "{left} still bound");
            Ok(())
        })
        .await?;
        audit::clean(cluster).await
    });
}

#[test]
fn add_with_the_agent_down_asks_to_try_again_later() {
    tell(small(), async |cluster| {
        cluster.kill(Service::Agent(1)).await?;
        let mut pod = cluster.prepare_quiet_pod(1, "default", "a").await?;

        let output = cluster.add_pod(&mut pod).await?;

        ensure!(output.error_code() == Some(11), "{}", output.text());
        Ok(())
    });
}

#[test]
fn gc_frees_what_is_not_in_its_list() {
    tell(small(), async |cluster| {
        let kept = cluster.create_pod(1, "default", "kept").await?;
        let lost = cluster.create_pod(1, "default", "lost").await?;
        let mut conf = cluster.network_conf(1);
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] =
            json!([{"containerID": kept.sandbox, "ifname": "eth0"}]);

        let output = cluster.cni_call(1, &call("GC", conf)).await?;

        ensure!(output.is_ok(), "{}", output.text());
        let dump = cluster.node_dump(1).await?;
        let left: Vec<_> = dump.bindings.iter().filter_map(|b| b.pod.clone()).collect();
        ensure!(left.len() == 1 && left[0].name == "kept", "{left:?}");
        cluster.remove_pod(lost).await?;
        audit::clean(cluster).await
    });
}

fn call(command: &str, conf: serde_json::Value) -> CniCall {
    CniCall {
        command: command.to_owned(),
        sandbox: None,
        netns: None,
        pod: None,
        conf,
        traceparent: None,
    }
}

#[test]
fn status_says_whether_the_node_can_serve() {
    tell(small(), async |cluster| {
        let mut conf = cluster.network_conf(1);
        conf["cniVersion"] = json!("1.1.0");
        let serving = cluster.cni_call(1, &call("STATUS", conf.clone())).await?;
        ensure!(serving.is_ok(), "{}", serving.text());

        cluster.kill(Service::Agent(1)).await?;
        let down = cluster.cni_call(1, &call("STATUS", conf)).await?;

        ensure!(down.error_code() == Some(50), "{}", down.text());
        Ok(())
    });
}

// I7: a reboot leaks nothing. All sandboxes are gone and the boot id is another one.
#[test]
fn reboot_leaks_nothing_and_new_pods_start() {
    tell(small(), async |cluster| {
        for name in ["a", "b", "c"] {
            let pod = cluster.create_pod(1, "default", name).await?;
            // The kernel forgets links and namespaces; nobody sends DEL.
            cluster.remove_pod(pod).await?;
        }
        cluster.kill(Service::Agent(1)).await?;

        cluster
            .restart_with(Service::Agent(1), Vec::new(), &[("node.boot_id", "boot-2")])
            .await?;

        cluster.wait_ready(Service::Agent(1), LIMIT).await?;
        ensure!(bound(cluster).await? == 0, "bindings outlived the reboot");
        cluster.create_pod(1, "default", "d").await?;
        audit::clean(cluster).await
    });
}

#[test]
fn sandbox_that_vanished_without_del_is_freed() {
    let options = ClusterOptions {
        set: [(
            Service::Agent(1),
            vec![
                ("reconcile.every_ms".to_owned(), "300".to_owned()),
                ("reconcile.gone_after_ms".to_owned(), "600".to_owned()),
            ],
        )]
        .into(),
        ..small()
    };
    tell(options, async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;
        let kept = cluster.create_pod(1, "default", "kept").await?;
        cluster.remove_pod(pod).await?;

        eventually(LIMIT, async || {
            let left = bound(cluster).await?;
            ensure!(left == 1, "{left} bound");
            Ok(())
        })
        .await?;
        let checked = check(cluster, &kept).await?;
        ensure!(checked.is_ok(), "{}", checked.text());
        audit::clean(cluster).await
    });
}

/// Rules, routes and neighbours that somebody deletes, as `ip` words; `{4}` and `{6}` stand for the pod's addresses.
const LOSSES: &[&[&str]] = &[
    &["rule", "del", "priority", "512", "to", "{4}"],
    &["-6", "rule", "del", "priority", "2048", "from", "{6}"],
    &["route", "del", "{4}"],
    &["-6", "route", "del", "{6}"],
];

#[test]
fn lost_rules_and_routes_are_put_back() {
    tell(small(), async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;
        let node = cluster.node(1)?.namespace.clone();
        let v4 = pod.address(true).context("no IPv4 address")?.to_string();
        let v6 = pod.address(false).context("no IPv6 address")?.to_string();
        for words in LOSSES {
            let words: Vec<String> = words
                .iter()
                .map(|w| w.replace("{4}", &v4).replace("{6}", &v6))
                .collect();
            let said = words.join(" ");
            let done = node
                .enter_async(move || std::process::Command::new("ip").args(words).status())
                .await??;
            ensure!(done.success(), "ip {said} did not work");

            eventually(LIMIT, async || {
                let checked = check(cluster, &pod).await?;
                if !checked.is_ok() {
                    bail!("after ip {said}: {}", checked.text());
                }
                Ok(())
            })
            .await?;
        }
        audit::clean(cluster).await
    });
}

#[test]
fn check_names_what_is_lost_while_nobody_repairs() {
    let options = ClusterOptions {
        set: [(
            Service::Agent(1),
            vec![("reconcile.repair".to_owned(), "false".to_owned())],
        )]
        .into(),
        ..small()
    };
    tell(options, async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;
        let v4 = pod.address(true).context("no IPv4 address")?.to_string();
        let node = cluster.node(1)?.namespace.clone();
        let to = v4.clone();
        node.enter_async(move || {
            let rule = ["rule", "del", "priority", "512", "to", to.as_str()];
            std::process::Command::new("ip").args(rule).status()
        })
        .await??;

        let checked = check(cluster, &pod).await?;

        ensure!(!checked.is_ok(), "CHECK saw nothing");
        ensure!(
            checked.text().contains("512") && checked.text().contains(&v4),
            "{}",
            checked.text()
        );
        Ok(())
    });
}
