//! The older iptables (legacy xtables). It has no netlink: without its own tool it can not even be looked at, and that
//! is said instead.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::Settled;
use crate::desired::HostDesired;
use crate::error::DatapathError;

/// Where the kernel lists tables of a family in use, and the tool for them.
const KINDS: [(&str, &str, bool); 2] = [
    (
        "/proc/thread-self/net/ip_tables_names",
        "iptables-legacy",
        false,
    ),
    (
        "/proc/thread-self/net/ip6_tables_names",
        "ip6tables-legacy",
        true,
    ),
];

/// Its tables exist once somebody used them.
pub(super) fn ensure(host: &HostDesired, settled: &mut Settled) -> Result<(), DatapathError> {
    for (names, tool, of_v6) in KINDS {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if (of_v6 && !host.v6) || !tables.lines().any(|table| table == "filter") {
            continue;
        }
        match run(tool, &["-w", "5", "-S", "FORWARD"])? {
            Some(rules) => add(tool, &rules, host, settled)?,
            None => settled.complaints.push(unseen(tool, host)),
        }
    }
    Ok(())
}

fn unseen(tool: &str, host: &HostDesired) -> String {
    let prefix = host.veth_prefixes.first().map_or("cali", String::as_str);
    format!(
        "legacy xtables filter what this node forwards, and their FORWARD chain can not be looked at: {tool} is not \
         there. If its policy is DROP, pods are cut off; then run {tool} -A FORWARD -i {prefix}+ -j ACCEPT and \
         {tool} -A FORWARD -o {prefix}+ -j ACCEPT on the node, or move to iptables-nft"
    )
}

fn add(
    tool: &str,
    rules: &str,
    host: &HostDesired,
    settled: &mut Settled,
) -> Result<(), DatapathError> {
    if !rules.lines().any(|rule| rule == "-P FORWARD DROP") {
        return Ok(());
    }
    for prefix in &host.veth_prefixes {
        for side in ["-i", "-o"] {
            let links = format!("{prefix}+");
            if rules.contains(&format!("{side} {links} -j ACCEPT")) {
                continue;
            }
            let arguments = ["-w", "5", "-A", "FORWARD", side, &links, "-j", "ACCEPT"];
            if run(tool, &arguments)?.is_some() {
                settled
                    .done
                    .push(format!("node: {tool} FORWARD {side} {links} accept"));
            }
        }
    }
    Ok(())
}

/// What the tool says; nothing where there is no such tool.
fn run(tool: &str, arguments: &[&str]) -> Result<Option<String>, DatapathError> {
    let failed = |message: String| DatapathError::Command {
        command: format!("{tool} {}", arguments.join(" ")),
        message: message.chars().take(400).collect(),
    };
    let output = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tool_is_told_from_one_that_fails() {
        assert!(matches!(run("no-such-tool-of-any-kind", &[]), Ok(None)));
        assert!(matches!(
            run("false", &[]),
            Err(DatapathError::Command { .. })
        ));
    }

    #[test]
    fn complaint_names_what_it_is_about_and_what_to_run() {
        let host = HostDesired {
            v6: false,
            veth_prefixes: vec!["cali".to_owned()],
            node_addresses: Vec::new(),
        };

        let text = unseen("iptables-legacy", &host);

        for word in [
            "legacy xtables",
            "FORWARD",
            "iptables-legacy -A FORWARD -i cali+ -j ACCEPT",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}
