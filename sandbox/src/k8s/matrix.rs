//! Who reaches whom: asked of the pods themselves, all of all.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fabric::namespace::Namespace;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use crate::k8s::bed::{Bed, name_of, text};
use crate::k8s::workload::{HOST_PORT, MAPPED_PORT, NODE_PORT, PORT};

/// How long one pod may take for all that it tries.
const LIMIT: Duration = Duration::from_mins(2);
/// Pods that try at a time.
const AT_ONCE: usize = 6;
/// Longest answer, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its workload, by its label `app`.
    pub app: String,
    /// Its address.
    pub ip: IpAddr,
    /// Whether the address is its node's.
    pub host_network: bool,
}

impl Seen {
    /// Where it answers; HTTP is one above.
    pub const fn port(&self) -> u16 {
        if self.host_network { HOST_PORT } else { PORT }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matrix {
    /// Connections that reached whom they should.
    pub reached: usize,
    /// Those that did not: who, whom, why.
    pub failed: Vec<String>,
}

impl Bed {
    /// The running pods of a namespace that serve.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self, namespace: &str) -> anyhow::Result<Vec<Seen>> {
        let pods = self.kube().list(&["pods", "-n", namespace]).await?;
        let running = pods
            .iter()
            .filter(|pod| text(pod, "/status/phase") == "Running");
        // One that is being deleted has its address for a moment more.
        let staying = running.filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
        staying.map(seen).collect()
    }

    /// Every pod tries every other, over TCP and UDP, and each of `more` (`KIND HOST:PORT [NAME]`).
    ///
    /// # Errors
    /// When a pod can not be asked at all.
    pub async fn matrix(&self, pods: &[Seen], more: &[String]) -> anyhow::Result<Matrix> {
        let outcomes: Vec<Matrix> = stream::iter(pods)
            .map(|from| self.ask_one(from, pods, more))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let mut all = Matrix::default();
        for one in outcomes {
            all.reached += one.reached;
            all.failed.extend(one.failed);
        }
        Ok(all)
    }

    async fn ask_one(&self, from: &Seen, pods: &[Seen], more: &[String]) -> anyhow::Result<Matrix> {
        let mut lines = Vec::new();
        for to in pods.iter().filter(|to| to.name != from.name) {
            for kind in ["tcp", "udp"] {
                let at = SocketAddr::from((to.ip, to.port()));
                lines.push(format!("{kind} {at} {}", to.name));
            }
        }
        lines.extend_from_slice(more);
        let at = SocketAddr::from((from.ip, from.port().saturating_add(1)));
        let answer = post(self.services(), at, "/dial", lines.join("\n")).await;
        let answer = answer.with_context(|| format!("ask {} at {at}", from.name))?;
        let mut failed: Vec<String> = answer
            .lines()
            .map(|line| format!("{}: {line}", from.name))
            .collect();
        // The last line says how many were reached.
        let count = failed.pop().unwrap_or_default();
        let reached = count
            .split_whitespace()
            .rev()
            .nth(1)
            .and_then(|n| n.parse().ok());
        let reached: usize =
            reached.with_context(|| format!("{} answered {count:?}", from.name))?;
        ensure!(
            reached + failed.len() == lines.len(),
            "{} tried {} of {}",
            from.name,
            reached + failed.len(),
            lines.len()
        );
        Ok(Matrix { reached, failed })
    }

    /// What pods can try besides each other: the Service `web` by its address, by its name and by every node, and every
    /// node's mapped port.
    ///
    /// # Errors
    /// When the Service is not there.
    pub async fn services_of(&self, namespace: &str) -> anyhow::Result<Vec<String>> {
        let web = self
            .kube()
            .get(&["service", "web", "-n", namespace])
            .await?;
        let ip = text(&web, "/spec/clusterIP");
        let mut lines = vec![
            format!("tcp {ip}:{PORT}"),
            format!("udp {ip}:{PORT}"),
            format!("http {ip}:80"),
        ];
        for node in &self.nodes {
            let node = node.plan().ip;
            for port in [NODE_PORT, MAPPED_PORT] {
                lines.push(format!("tcp {node}:{port}"));
            }
            lines.push(format!("udp {node}:{NODE_PORT}"));
        }
        Ok(lines)
    }
}

/// Names that pods of the pod network can ask for.
pub fn names(namespace: &str) -> Vec<String> {
    vec![
        format!("tcp web:{PORT}"),
        format!("tcp web.{namespace}.svc.cluster.local:{PORT}"),
        format!("tcp db-0.db:{PORT} db-0"),
    ]
}

fn seen(pod: &Value) -> anyhow::Result<Seen> {
    let ip = text(pod, "/status/podIP");
    Ok(Seen {
        name: name_of(pod).to_owned(),
        node: text(pod, "/spec/nodeName").to_owned(),
        app: text(pod, "/metadata/labels/app").to_owned(),
        ip: ip
            .parse()
            .with_context(|| format!("{} has the address {ip:?}", name_of(pod)))?,
        host_network: pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)),
    })
}

/// `POST` of a text from inside a namespace; gives the answer's text.
async fn post(
    namespace: &Namespace,
    at: SocketAddr,
    path: &str,
    body: String,
) -> anyhow::Result<String> {
    let path = path.to_owned();
    let ask = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut text)?;
        let answer = text
            .split_once("\r\n\r\n")
            .map(|(_, answer)| answer.to_owned());
        answer.ok_or_else(|| std::io::Error::other("not an HTTP answer"))
    };
    Ok(namespace.enter_async(ask).await??)
}
