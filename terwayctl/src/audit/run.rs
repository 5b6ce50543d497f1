//! The command's arguments and output.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use mesh::tls::{TlsConfig, TlsMaterial};
use serde_json::json;

use crate::audit::collect::{NodeSource, Sources, collect};
use crate::audit::compare::{Finding, compare};
use crate::audit::picture::Picture;

/// Compares cloud, shard logs, agents and kernels; exit code 1 when they differ.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with ca.crt, tls.crt and tls.key of an admin identity
    #[arg(long, value_name = "DIR")]
    tls: PathBuf,
    /// A gateway
    #[arg(long, value_name = "HOST:PORT")]
    gateway: String,
    /// Every ipam replica
    #[arg(long, value_name = "HOST:PORT", required = true)]
    ipam: Vec<String>,
    /// A node: name, the agent's socket, and the node's network namespace if it is not this one
    #[arg(long, value_name = "NAME=SOCKET[,NETNS]", value_parser = node)]
    node: Vec<NodeSource>,
    /// A tag that marks ENIs as ours
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag, default_value = "creator=terway-mesh")]
    tag: Vec<(String, String)>,
    /// Print findings as JSON
    #[arg(long)]
    json: bool,
}

fn node(text: &str) -> Result<NodeSource, String> {
    let (name, doors) = text.split_once('=').ok_or("no '=' in it")?;
    let (socket, netns) = match doors.split_once(',') {
        Some((socket, netns)) => (socket, Some(PathBuf::from(netns))),
        None => (doors, None),
    };
    if name.is_empty() || socket.is_empty() {
        return Err("name or socket is empty".to_owned());
    }
    Ok(NodeSource {
        name: name.to_owned(),
        socket: PathBuf::from(socket),
        netns,
    })
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("no '=' in it")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Asks, compares and prints; whether all agree.
///
/// # Errors
/// Whoever did not answer, by name.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let tls = TlsMaterial::load(&TlsConfig::in_dir(&args.tls)).context("certificates")?;
    let sources = Sources {
        gateway: args.gateway.clone(),
        ipam: args.ipam.clone(),
        nodes: args.node.clone(),
        tags: args.tag.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let picture = runtime.block_on(collect(&sources, &tls))?;
    let findings = compare(&picture);
    if args.json {
        print_json(&findings, out)?;
    } else {
        print_text(&picture, &findings, out)?;
    }
    Ok(findings.is_empty())
}

fn print_json(findings: &[Finding], out: &mut dyn Write) -> Result<()> {
    let rows: Vec<_> = findings
        .iter()
        .map(|f| json!({"kind": format!("{:?}", f.kind), "subject": f.subject, "detail": f.detail}))
        .collect();
    writeln!(out, "{}", serde_json::Value::Array(rows))?;
    Ok(())
}

fn print_text(picture: &Picture, findings: &[Finding], out: &mut dyn Write) -> Result<()> {
    let addresses: usize = picture.shards.values().map(|s| s.slots.len()).sum();
    let bindings: usize = picture.nodes.values().map(|n| n.bindings.len()).sum();
    writeln!(
        out,
        "{} ENIs in the cloud, {} shards with {addresses} slots in use, {} nodes with {bindings} sandboxes",
        picture.cloud.len(),
        picture.shards.len(),
        picture.nodes.len(),
    )?;
    for finding in findings {
        writeln!(out, "{finding}")?;
    }
    let verdict = if findings.is_empty() {
        "all agree"
    } else {
        "they differ"
    };
    writeln!(out, "{verdict}: {} findings", findings.len())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_with_a_namespace_is_read() {
        let source = node("n1=/run/agent.sock,/run/netns/n1").unwrap();

        assert_eq!(source.name, "n1");
        assert_eq!(source.netns, Some(PathBuf::from("/run/netns/n1")));
    }

    #[test]
    fn node_without_a_socket_is_refused() {
        assert!(node("n1").is_err());
        assert!(node("n1=").is_err());
    }
}
