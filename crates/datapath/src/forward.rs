//! A FORWARD chain with the policy DROP, as Docker leaves it, and the two rules that let pods through.
//!
//! Accepting in a table of our own would not help: a packet must pass every chain of the hook. So the
//! rules go into the chain itself, at its end, where they stand in for the policy and for nothing
//! that its owner refuses by a rule. Looking costs two netlink dumps; a tool is started only when
//! there is something to add.

use std::process::{Command, Stdio};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use crate::desired::HostDesired;
use crate::error::DatapathError;

/// Marks our rules, as their comment.
const MARK: &str = "terway-pods";

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];

/// `NFNL_SUBSYS_NFTABLES << 8`.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = SUBSYSTEM | 4;
/// `NFT_MSG_GETRULE`.
const GET_RULE: u16 = SUBSYSTEM | 7;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// `NFTA_CHAIN_TABLE`, which `NFTA_RULE_TABLE` equals.
const A_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const A_RULE_CHAIN: u16 = 2;
/// `NFTA_CHAIN_NAME`.
const A_CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_POLICY`.
const A_CHAIN_POLICY: u16 = 5;
/// `NFTA_RULE_USERDATA`.
const A_RULE_USERDATA: u16 = 7;
/// `NF_DROP`.
const DROP: [u8; 4] = [0; 4];

/// Lets traffic of pods through each FORWARD chain whose policy is DROP. Returns what was added.
pub(crate) fn ensure(host: &HostDesired) -> Result<Vec<String>, DatapathError> {
    let mut added = Vec::new();
    for (family, word) in FAMILIES {
        if family == FAMILIES[1].0 && !host.v6 {
            continue;
        }
        if nft_policy_drops(family)? {
            let marks = nft_marks(family)?;
            added.extend(add_nft_rules(word, host, &marks)?);
        }
    }
    added.extend(ensure_legacy(host)?);
    Ok(added)
}

fn nft_policy_drops(family: u8) -> Result<bool, DatapathError> {
    let chains = dump(family, GET_CHAIN)?;
    Ok(chains.iter().any(|chain| {
        text(chain, A_TABLE) == Some("filter")
            && text(chain, A_CHAIN_NAME) == Some("FORWARD")
            && attribute(chain, A_CHAIN_POLICY) == Some(&DROP[..])
    }))
}

/// Comments of the rules in FORWARD, as raw user data.
fn nft_marks(family: u8) -> Result<Vec<Vec<u8>>, DatapathError> {
    let rules = dump(family, GET_RULE)?;
    let ours = rules.iter().filter(|rule| {
        text(rule, A_TABLE) == Some("filter") && text(rule, A_RULE_CHAIN) == Some("FORWARD")
    });
    Ok(ours
        .filter_map(|rule| attribute(rule, A_RULE_USERDATA))
        .map(<[u8]>::to_vec)
        .collect())
}

fn add_nft_rules(
    family: &str,
    host: &HostDesired,
    marks: &[Vec<u8>],
) -> Result<Vec<String>, DatapathError> {
    let mut added = Vec::new();
    for prefix in &host.veth_prefixes {
        for side in ["iifname", "oifname"] {
            let comment = format!("{MARK} {side} {prefix}");
            let there = |m: &Vec<u8>| m.windows(comment.len()).any(|w| w == comment.as_bytes());
            if marks.iter().any(there) {
                continue;
            }
            let rule = format!(
                "add rule {family} filter FORWARD {side} \"{prefix}*\" counter accept comment \"{comment}\""
            );
            run("nft", &[&rule])?;
            added.push(format!("node: {rule}"));
        }
    }
    Ok(added)
}

/// The same for kernels where the older iptables filters. Its tables exist once somebody used them.
fn ensure_legacy(host: &HostDesired) -> Result<Vec<String>, DatapathError> {
    let mut added = Vec::new();
    let kinds = [
        (
            "/proc/thread-self/net/ip_tables_names",
            "iptables-legacy",
            true,
        ),
        (
            "/proc/thread-self/net/ip6_tables_names",
            "ip6tables-legacy",
            host.v6,
        ),
    ];
    for (names, tool, wanted) in kinds {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if !wanted || !tables.lines().any(|t| t == "filter") {
            continue;
        }
        let rules = run(tool, &["-w", "5", "-S", "FORWARD"])?;
        if !rules.lines().any(|l| l == "-P FORWARD DROP") {
            continue;
        }
        for prefix in &host.veth_prefixes {
            for side in ["-i", "-o"] {
                let links = format!("{prefix}+");
                if rules.contains(&format!("{side} {links} -j ACCEPT")) {
                    continue;
                }
                run(
                    tool,
                    &["-w", "5", "-A", "FORWARD", side, &links, "-j", "ACCEPT"],
                )?;
                added.push(format!("node: {tool} FORWARD {side} {links} accept"));
            }
        }
    }
    Ok(added)
}

fn run(tool: &str, arguments: &[&str]) -> Result<String, DatapathError> {
    let failed = |message: String| DatapathError::Command {
        command: format!("{tool} {}", arguments.join(" ")),
        message: message.chars().take(400).collect(),
    };
    let output = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Attributes of each object of a kind, as raw bytes. A kernel without nf_tables has none.
fn dump(family: u8, kind: u16) -> Result<Vec<Vec<u8>>, DatapathError> {
    let error = |source| DatapathError::Socket {
        what: "nf_tables dump",
        source,
    };
    let Ok(mut socket) = Socket::new(NETLINK_NETFILTER) else {
        return Ok(Vec::new());
    };
    socket.bind_auto().map_err(error)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(error)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(10, 0)).map_err(|e| error(e.into()))?;
    let mut request = Vec::with_capacity(HEADER + FAMILY_HEADER);
    request.extend_from_slice(&20_u32.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    request.extend_from_slice(&1_u32.to_ne_bytes());
    request.extend_from_slice(&0_u32.to_ne_bytes());
    request.extend_from_slice(&[family, 0, 0, 0]);
    socket.send(&request, 0).map_err(error)?;
    let mut objects = Vec::new();
    let mut read: Vec<u8> = Vec::with_capacity(32 * 1024);
    loop {
        read.clear();
        socket.recv(&mut read, 0).map_err(error)?;
        let mut rest = read.as_slice();
        while let Some((kind, body)) = take_message(&mut rest) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(objects),
                _ => objects.push(body.get(FAMILY_HEADER..).unwrap_or_default().to_vec()),
            }
        }
    }
}

fn take_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The value of the first attribute of that kind.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        // The two upper bits are flags.
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn text(object: &[u8], wanted: u16) -> Option<&str> {
    let bytes = attribute(object, wanted)?;
    std::str::from_utf8(bytes)
        .ok()
        .map(|t| t.trim_end_matches('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_behind_a_padded_one_is_found() {
        let mut object = Vec::new();
        object.extend_from_slice(&11_u16.to_ne_bytes());
        object.extend_from_slice(&A_TABLE.to_ne_bytes());
        object.extend_from_slice(b"filter\0\0");
        object.extend_from_slice(&8_u16.to_ne_bytes());
        object.extend_from_slice(&A_CHAIN_POLICY.to_ne_bytes());
        object.extend_from_slice(&DROP);

        assert_eq!(text(&object, A_TABLE), Some("filter"));
        assert_eq!(attribute(&object, A_CHAIN_POLICY), Some(&DROP[..]));
        assert_eq!(attribute(&object, A_RULE_USERDATA), None);
    }

    #[test]
    fn message_cut_short_ends_the_walk() {
        let mut rest: &[u8] = &[40, 0, 0, 0, 3, 0];

        assert_eq!(take_message(&mut rest), None);
    }
}
