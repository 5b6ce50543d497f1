//! How a container of the chart starts its service.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::chart::{Rendered, title};

/// A ConfigMap of Terway's form, for the sets that take one as it is.
const TERWAYS: &str = "helm/tests/eni-config.yaml";
/// What every Service of ours has for an address here, and every node.
const ADDRESS: &str = "10.0.0.1";

/// One start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Started {
    /// Name of the binary; its file is called like it.
    pub(crate) service: String,
    /// Its file.
    pub(crate) text: String,
    /// Variables, with what kubelet puts into them.
    pub(crate) variables: BTreeMap<String, String>,
    /// `key=value` of `--set`.
    pub(crate) sets: Vec<String>,
    /// Terway's `eni_conf`, if it is mounted.
    pub(crate) eni_conf: Option<String>,
}

impl Started {
    /// The key that names `eni_conf`.
    pub(crate) fn eni_conf_key(&self) -> Option<&'static str> {
        match self.service.as_str() {
            "ipam-service" => Some("cluster.eni_conf"),
            "node-agent" => Some("node.eni_conf"),
            _ => None,
        }
    }
}

/// All starts of services in a set.
pub(crate) fn started(set: &Rendered, root: &Path) -> Result<Vec<Started>> {
    let mut found = Vec::new();
    for object in &set.objects {
        let Some(pod) = object.pointer("/spec/template/spec") else {
            continue;
        };
        for list in ["initContainers", "containers"] {
            for container in items(pod, list) {
                if let Some(started) = start(set, root, pod, container)
                    .with_context(|| format!("{}: {}", set.name, title(object)))?
                {
                    found.push(started);
                }
            }
        }
    }
    Ok(found)
}

fn start(set: &Rendered, root: &Path, pod: &Value, container: &Value) -> Result<Option<Started>> {
    let args: Vec<&str> = items(container, "args").filter_map(Value::as_str).collect();
    let Some(path) = after(&args, "--config").next() else {
        return Ok(None);
    };
    let file = path.rsplit('/').next().unwrap_or(path);
    let service = file.strip_suffix(".toml").context("no TOML")?;
    let data = mounted(set, root, pod, "config")?.context("no volume `config`")?;
    let text = data.get(file).and_then(Value::as_str);
    let eni_conf = mounted(set, root, pod, "eni-config")?
        .and_then(|data| data.get("eni_conf")?.as_str().map(str::to_owned));
    Ok(Some(Started {
        service: service.to_owned(),
        text: text.with_context(|| format!("no file {file}"))?.to_owned(),
        variables: variables(container)?,
        sets: after(&args, "--set").map(str::to_owned).collect(),
        eni_conf,
    }))
}

/// Arguments that follow a word.
fn after<'a>(args: &'a [&'a str], word: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = args.iter().zip(args.iter().skip(1));
    pairs
        .filter(move |(first, _)| **first == word)
        .map(|(_, second)| *second)
}

/// The data of the ConfigMap behind a volume.
fn mounted(set: &Rendered, root: &Path, pod: &Value, volume: &str) -> Result<Option<Value>> {
    let named = |item: &&Value| item.get("name").and_then(Value::as_str) == Some(volume);
    let Some(found) = items(pod, "volumes").find(named) else {
        return Ok(None);
    };
    let name = found.pointer("/configMap/name").and_then(Value::as_str);
    let name = name.context("a volume without a ConfigMap")?;
    let title = format!("ConfigMap {name}");
    if let Some(object) = set.objects.iter().find(|o| crate::chart::title(o) == title) {
        return Ok(object.get("data").cloned());
    }
    let text = std::fs::read_to_string(root.join(TERWAYS)).context(TERWAYS)?;
    let terways: Value = serde_saphyr::from_str(&text).context(TERWAYS)?;
    if crate::chart::title(&terways) != title {
        bail!("nobody makes the {title}");
    }
    Ok(terways.get("data").cloned())
}

/// Variables as kubelet makes them.
fn variables(container: &Value) -> Result<BTreeMap<String, String>> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for entry in items(container, "env") {
        let name = entry
            .get("name")
            .and_then(Value::as_str)
            .context("no name")?;
        let value = match entry.get("value").and_then(Value::as_str) {
            Some(value) => expanded(value, &known)?,
            None => field(entry)?.to_owned(),
        };
        known.insert(name.to_owned(), value);
    }
    Ok(known)
}

fn field(entry: &Value) -> Result<&'static str> {
    let path = entry.pointer("/valueFrom/fieldRef/fieldPath");
    Ok(match path.and_then(Value::as_str) {
        Some("metadata.name") => "terway-0",
        Some("spec.nodeName") => "node-1",
        Some("status.hostIP") => ADDRESS,
        other => bail!("a variable from {other:?}"),
    })
}

/// Puts values for `$(NAME)`: of variables before, and of Services in the namespace.
fn expanded(value: &str, known: &BTreeMap<String, String>) -> Result<String> {
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("$(") {
        let (name, after) = after.split_once(')').context("$( without )")?;
        text.push_str(before);
        match known.get(name) {
            Some(value) => text.push_str(value),
            None if name.ends_with("_SERVICE_HOST") => text.push_str(ADDRESS),
            None => bail!("{name} is no variable"),
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubelet_does() {
        let known = BTreeMap::from([("HOST_IP".to_owned(), "10.0.0.9".to_owned())]);

        assert_eq!(expanded("$(HOST_IP):1", &known).unwrap(), "10.0.0.9:1");
        assert_eq!(
            expanded("[\"$(A_SERVICE_HOST):1\"]", &known).unwrap(),
            "[\"10.0.0.1:1\"]"
        );
        assert!(expanded("$(OTHER)", &known).is_err());
    }

    #[test]
    fn arguments_after_a_word_are_found() {
        let args = ["--config", "f", "--set", "a=1", "--set", "b=2"];

        assert_eq!(after(&args, "--set").collect::<Vec<_>>(), ["a=1", "b=2"]);
    }
}
