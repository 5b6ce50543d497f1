//! What a node's kernel says of policy, read by `nft`: it answers whatever has become of the agents.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, bail};
use fabric::namespace::Namespace;
use serde_json::Value;

/// The table of policy.
pub const TABLE: &str = "terway_policy";
/// Beginnings of the names of tables of policy: rules, anti-spoof, traces, what the kernel was tried with.
const OURS: &[&str] = &[
    "terway_policy",
    "terway_spoof",
    "terway_trace",
    "terway_probe",
];

/// Runs `nft` with these words in a namespace; what it printed.
///
/// # Errors
/// When it can not be run, or fails: with what it said.
pub async fn nft(namespace: &Namespace, words: &[&str]) -> anyhow::Result<String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let said = words.join(" ");
    let output = namespace
        .enter_async(move || Command::new("nft").args(words).output())
        .await?
        .context("start nft")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("nft {said} ended with {}: {error}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Names of the tables of policy in a namespace; node-agent has tables of its own.
///
/// # Errors
/// As [`nft`].
pub async fn tables(namespace: &Namespace) -> anyhow::Result<Vec<String>> {
    let said = nft(namespace, &["-j", "list", "tables"]).await?;
    let listed: Value = serde_json::from_str(&said).context("read what nft printed")?;
    let listed = listed.get("nftables").and_then(Value::as_array);
    let names = listed.into_iter().flatten();
    let names = names.filter_map(|object| object.pointer("/table/name")?.as_str());
    let ours = names.filter(|name| OURS.iter().any(|ours| name.starts_with(ours)));
    Ok(ours.map(ToOwned::to_owned).collect())
}

/// Packets from `source` to `destination` that policy dropped in this namespace lately.
///
/// # Errors
/// As [`nft`]; also when there is no policy.
pub async fn dropped(
    namespace: &Namespace,
    source: IpAddr,
    destination: IpAddr,
) -> anyhow::Result<u64> {
    let set = if source.is_ipv4() {
        "denied4"
    } else {
        "denied6"
    };
    let said = nft(namespace, &["-j", "list", "set", "inet", TABLE, set]).await?;
    let listed: Value = serde_json::from_str(&said).context("read what nft printed")?;
    Ok(count(&listed, source, destination))
}

/// Adds up the counters of elements with both addresses.
fn count(listed: &Value, source: IpAddr, destination: IpAddr) -> u64 {
    let objects = listed.get("nftables").and_then(Value::as_array);
    let elements = objects
        .into_iter()
        .flatten()
        .filter_map(|object| object.pointer("/set/elem")?.as_array())
        .flatten();
    let ends = [source, destination];
    let of_both = elements.filter(|element| {
        let parts = element
            .pointer("/elem/val/concat")
            .and_then(Value::as_array);
        let found: Vec<IpAddr> = parts
            .into_iter()
            .flatten()
            .filter_map(|part| part.as_str()?.parse().ok())
            .collect();
        found == ends
    });
    of_both
        .filter_map(|element| element.pointer("/elem/counter/packets")?.as_u64())
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn packets_are_those_of_elements_with_both_addresses() {
        let element = |from: &str, to: &str, packets: u64| {
            json!({"elem": {
                "val": {"concat": ["cali0", from, to, "tcp", 7000]},
                "timeout": 60,
                "counter": {"packets": packets, "bytes": 1},
            }})
        };
        let listed = json!({"nftables": [
            {"metainfo": {}},
            {"set": {"name": "denied4", "elem": [
                element("10.0.0.1", "10.0.0.2", 3),
                element("10.0.0.2", "10.0.0.1", 50),
                element("10.0.0.1", "10.0.0.2", 4),
            ]}},
        ]});

        let packets = count(
            &listed,
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
        );

        assert_eq!(packets, 7);
    }
}
