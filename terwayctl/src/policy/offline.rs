//! Answers from manifests alone, by the reference evaluator.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use policy_oracle::probe::{Decision, End as OracleEnd, Probe, Protocol as OracleProtocol};
use policy_oracle::world::World;
use serde_json::Value;

use crate::policy::question::{End, Protocol, Question};

/// Largest manifest that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Objects of a folder, and what can be asked of them.
#[derive(Debug)]
pub struct Manifests {
    documents: Vec<Value>,
    world: World,
}

impl Manifests {
    /// Reads every `*.yaml`, `*.yml` and `*.json` of the folder, or one file.
    ///
    /// # Errors
    /// The file that can not be read.
    pub fn read(path: &Path) -> Result<Self> {
        let mut documents = Vec::new();
        if path.is_dir() {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
                files.push(entry?.path());
            }
            files.sort();
            for file in files {
                let extension = file.extension().and_then(|e| e.to_str());
                if matches!(extension, Some("yaml" | "yml" | "json")) {
                    documents.extend(read_file(&file)?);
                }
            }
        } else {
            documents.extend(read_file(path)?);
        }
        let world = World::from_documents(documents.iter().cloned());
        Ok(Self { documents, world })
    }

    /// What could not be read in policies, each a sentence.
    pub fn problems(&self) -> Vec<String> {
        self.world
            .problems()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// The decision, and the question as it was understood.
    ///
    /// # Errors
    /// An end or a port that the manifests do not know.
    pub fn decide(&self, question: &Question) -> Result<(Probe, Decision)> {
        let (source, destination) = self.addresses(question)?;
        let probe = Probe::new(
            end(&question.source, source),
            end(&question.destination, destination),
            match question.protocol {
                Protocol::Tcp => OracleProtocol::Tcp,
                Protocol::Udp => OracleProtocol::Udp,
                Protocol::Sctp => OracleProtocol::Sctp,
                Protocol::Icmp => OracleProtocol::Icmp,
            },
            self.port(question)?,
        );
        let decision = self.world.decide(&probe);
        Ok((probe, decision))
    }

    fn addresses(&self, question: &Question) -> Result<(IpAddr, IpAddr)> {
        let sources = self.addresses_of(&question.source)?;
        let destinations = self.addresses_of(&question.destination)?;
        let wanted = |a: &IpAddr| match question.family {
            Some(4) => a.is_ipv4(),
            Some(_) => a.is_ipv6(),
            None => true,
        };
        for source in sources.iter().copied().filter(wanted) {
            let same = destinations
                .iter()
                .find(|d| d.is_ipv4() == source.is_ipv4());
            if let Some(destination) = same {
                return Ok((source, *destination));
            }
        }
        bail!(
            "{} and {} have no address of one family in common",
            question.source,
            question.destination
        )
    }

    fn addresses_of(&self, end: &End) -> Result<Vec<IpAddr>> {
        let (what, addresses) = match end {
            End::Address(address) => return Ok(vec![*address]),
            End::Pod { namespace, name } => {
                let pod = self
                    .document("Pod", namespace, name)
                    .with_context(|| format!("no manifest of pod {namespace}/{name}"))?;
                let many = texts(pod, "/status/podIPs", "ip");
                let one = pod.pointer("/status/podIP").and_then(Value::as_str);
                let many = if many.is_empty() {
                    one.into_iter().map(str::to_owned).collect()
                } else {
                    many
                };
                (format!("pod {namespace}/{name}"), many)
            }
            End::Node(name) => {
                let node = self
                    .document("Node", "", name)
                    .with_context(|| format!("no manifest of node {name}"))?;
                (
                    format!("node {name}"),
                    texts(node, "/status/addresses", "address"),
                )
            }
        };
        let addresses: Vec<IpAddr> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        if addresses.is_empty() {
            bail!("{what} has no address in its status");
        }
        Ok(addresses)
    }

    fn document(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.documents.iter().rev().find(|d| {
            let meta = |key: &str| {
                d.pointer(&format!("/metadata/{key}"))
                    .and_then(Value::as_str)
            };
            let home =
                meta("namespace").unwrap_or(if namespace.is_empty() { "" } else { "default" });
            d.get("kind").and_then(Value::as_str) == Some(kind)
                && meta("name") == Some(name)
                && home == namespace
        })
    }

    fn port(&self, question: &Question) -> Result<u16> {
        let text = question.port.as_str();
        if question.protocol == Protocol::Icmp {
            return Ok(0);
        }
        if let Ok(number) = text.parse() {
            return Ok(number);
        }
        let End::Pod { namespace, name } = &question.destination else {
            bail!("PORT {text:?} is not a number from 0 to 65535, and only pods name ports");
        };
        let found = self
            .document("Pod", namespace, name)
            .and_then(|pod| named_port(pod, text, question.protocol));
        found.with_context(|| {
            let protocol = question.protocol.word();
            format!("PORT: pod {namespace}/{name} names no {protocol} port {text:?}")
        })
    }
}

fn named_port(pod: &Value, name: &str, protocol: Protocol) -> Option<u16> {
    ["/spec/containers", "/spec/initContainers"]
        .iter()
        .filter_map(|path| pod.pointer(path).and_then(Value::as_array))
        .flatten()
        .filter_map(|container| container.get("ports").and_then(Value::as_array))
        .flatten()
        .find(|port| {
            let text = |key: &str| port.get(key).and_then(Value::as_str);
            let same = text("protocol").unwrap_or("TCP");
            text("name") == Some(name) && same.eq_ignore_ascii_case(protocol.word())
        })
        .and_then(|port| port.get("containerPort").and_then(Value::as_u64))
        .and_then(|number| u16::try_from(number).ok())
}

fn texts(document: &Value, list: &str, key: &str) -> Vec<String> {
    document
        .pointer(list)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|row| row.get(key).and_then(Value::as_str))
        .map(str::to_owned)
        .collect()
}

fn end(end: &End, address: IpAddr) -> OracleEnd {
    match end {
        End::Pod { namespace, name } => OracleEnd::pod(namespace, name, address),
        End::Node(name) => OracleEnd::node(name, address),
        End::Address(address) => OracleEnd::Address(*address),
    }
}

fn read_file(path: &Path) -> Result<Vec<Value>> {
    let named = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(named)?.len();
    if size > MAX_FILE {
        bail!("{}: {size} bytes are more than 64 MiB", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(named)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(named)?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "{kind: Pod, apiVersion: v1, metadata: {name: web, namespace: shop}, \
        spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, \
        status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}";

    fn manifests(more: &str) -> (tempfile::TempDir, Manifests) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), format!("{POD}\n---\n{more}\n")).unwrap();
        let read = Manifests::read(dir.path()).unwrap();
        (dir, read)
    }

    fn question(port: &str, family: Option<u32>) -> Question {
        Question {
            source: "192.0.2.1".parse().unwrap(),
            destination: "shop/web".parse().unwrap(),
            port: port.to_owned(),
            protocol: Protocol::Tcp,
            family,
        }
    }

    const DENY: &str = "{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, \
        metadata: {name: deny-all, namespace: shop}, spec: {podSelector: {}, policyTypes: [Ingress]}}";

    #[test]
    fn pod_without_policies_is_reached_by_the_name_of_its_port() {
        let (_dir, manifests) = manifests("");

        let (probe, decision) = manifests.decide(&question("http", None)).unwrap();

        assert_eq!(probe.port, 8080);
        assert!(decision.allowed);
    }

    #[test]
    fn policy_that_denies_is_named_in_the_reasons() {
        let (_dir, manifests) = manifests(DENY);

        let (_, decision) = manifests.decide(&question("8080", None)).unwrap();

        assert!(!decision.allowed);
        let reasons = decision.ingress.reasons.join(" ");
        assert!(reasons.contains("deny-all"), "{reasons}");
    }

    #[test]
    fn port_that_the_pod_does_not_name_is_refused_by_name() {
        let (_dir, manifests) = manifests("");

        let error = manifests.decide(&question("smtp", None)).unwrap_err();

        assert!(error.to_string().contains("\"smtp\""), "{error}");
    }

    #[test]
    fn family_that_one_end_lacks_is_said() {
        let (_dir, manifests) = manifests("");

        let error = manifests.decide(&question("80", Some(6))).unwrap_err();

        assert!(error.to_string().contains("no address of one family"));
    }

    #[test]
    fn file_that_is_no_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();

        let error = Manifests::read(dir.path()).unwrap_err();

        assert!(error.to_string().contains("broken.yaml"), "{error}");
    }
}
