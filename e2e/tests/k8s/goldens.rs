//! Every set of values of the chart's tests is taken by the real API server, without being put in force.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use sandbox::k8s::bed::{Bed, text};
use serde_json::{Value, json};

use crate::Story;

/// Least sets of values that there must be.
const SETS: usize = 8;

/// An address of a Service of the bed, for the one member of a set that fixes it.
const OWN_ETCD: &str = "etcd.clusterIPs={172.16.255.41}";

/// Kinds of others that the chart can make, and who defines them. The bed has neither of these.
const FOREIGN: &[(&str, &str, &str)] = &[
    ("monitoring.coreos.com", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
    ("cert-manager.io", "Certificate", "certificates"),
    ("cert-manager.io", "Issuer", "issuers"),
];

pub(crate) fn stories() -> Vec<Story> {
    vec![(
        "every_set_of_values_is_accepted_by_the_api_server_in_a_dry_run",
        |bed| accepted(bed).boxed_local(),
    )]
}

async fn accepted(bed: &Bed) -> Result<()> {
    let kube = bed.kube();
    let foreign: Vec<Value> = FOREIGN.iter().map(|kind| definition(*kind)).collect();
    kube.apply(&foreign).await?;
    for (group, _, plural) in FOREIGN {
        let name = format!("crd/{plural}.{group}");
        kube.run(&["wait", "--for=condition=Established", &name])
            .await?;
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("the package has no parent folder")?;
    let mut sets: Vec<PathBuf> = std::fs::read_dir(root.join("helm/tests/values"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    sets.sort();
    ensure!(sets.len() >= SETS, "only {} sets of values", sets.len());
    let (chart, file) = (
        root.join("helm/terway"),
        bed.options().dir.join("dry-run.yaml"),
    );
    let mut kinds = BTreeSet::new();
    for set in &sets {
        let name = set.display();
        let (chart, values) = (chart.display().to_string(), name.to_string());
        let version = ["--kube-version", "1.34.4"];
        let template = ["template", "dry", &chart, "--no-hooks", "--values", &values];
        // Addresses of Services that a set asks for must be of this cluster's network.
        let fixed = if std::fs::read_to_string(set)?.contains("clusterIPs") {
            vec!["--set", OWN_ETCD]
        } else {
            Vec::new()
        };
        let template = [&template[..], &version[..], &fixed[..]].concat();
        std::fs::write(&file, bed.helm(&template).await?)?;
        let path = file.display().to_string();
        // The API server's own validation and admission, of all but what is kept.
        let words = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--output=json",
            "--filename",
            &path,
        ];
        let answer = kube.run(&words).await;
        let answer = answer.with_context(|| format!("{name}"))?;
        let list: Value = serde_json::from_str(&answer).with_context(|| format!("{name}"))?;
        let items = list.get("items").and_then(Value::as_array);
        let items = items.with_context(|| format!("{name}: no list in the answer"))?;
        ensure!(items.len() > 10, "{name}: only {} objects", items.len());
        kinds.extend(items.iter().map(|item| text(item, "/kind").to_owned()));
    }
    for kind in [
        "DaemonSet",
        "Deployment",
        "ClusterRole",
        "Certificate",
        "PodMonitor",
    ] {
        ensure!(kinds.contains(kind), "no {kind} among {kinds:?}");
    }
    for (group, _, plural) in FOREIGN {
        let name = format!("crd/{plural}.{group}");
        kube.run(&["delete", "--wait=true", &name]).await?;
    }
    Ok(())
}

/// A definition that takes everything: what is held here is our part, that the kind and its place are right.
fn definition((group, kind, plural): (&str, &str, &str)) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}
            }]
        }
    })
}
