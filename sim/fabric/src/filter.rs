//! Anti-spoofing: an ENI may only send IP packets from addresses it owns.
//!
//! nftables in the router's namespace, keyed by (port, source address). ARP and neighbour discovery are not
//! filtered, and link-local and unspecified IPv6 sources pass.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Name of the table.
const TABLE: &str = "inet fabric";

/// The table as it is at the start: nobody owns anything, everything foreign is dropped and counted.
pub(crate) fn table(check: bool) -> String {
    let verdict = verdict(check);
    format!(
        "table {TABLE} {{
  set owned4 {{ type ifname . ipv4_addr; }}
  set owned6 {{ type ifname . ipv6_addr; }}
  counter spoofed {{ }}
  chain foreign {{
    {verdict};
  }}
  chain from_port {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"lo\" accept
    iifname . ip saddr @owned4 accept
    iifname . ip6 saddr @owned6 accept
    ip6 saddr fe80::/10 accept
    ip6 saddr :: meta l4proto ipv6-icmp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    meta protocol {{ ip, ip6 }} jump foreign
  }}
}}
"
    )
}

/// Turns dropping on or off in one transaction. Off means: not counted either.
pub(crate) fn switch(check: bool) -> String {
    let verdict = verdict(check);
    format!("flush chain {TABLE} foreign\nadd rule {TABLE} foreign {verdict}\n")
}

fn verdict(check: bool) -> &'static str {
    if check {
        "counter name spoofed drop"
    } else {
        "accept"
    }
}

/// Lets `port` send from `added` and no longer from `removed`.
pub(crate) fn change(port: &str, added: &[IpAddr], removed: &[IpAddr]) -> String {
    let mut script = String::new();
    for (verb, addresses) in [("delete", removed), ("add", added)] {
        for (set, v4) in [("owned4", true), ("owned6", false)] {
            let elements: Vec<_> = addresses
                .iter()
                .filter(|ip| ip.is_ipv4() == v4)
                .map(|ip| format!("\"{port}\" . {ip}"))
                .collect();
            if !elements.is_empty() {
                let elements = elements.join(", ");
                // Writing to a string can not fail.
                let _infallible = writeln!(script, "{verb} element {TABLE} {set} {{ {elements} }}");
            }
        }
    }
    script
}

/// Packets dropped so far, from the answer of `nft -j list counter`.
pub(crate) fn counted(json: &str) -> Option<u64> {
    let answer: serde_json::Value = serde_json::from_str(json).ok()?;
    answer
        .get("nftables")?
        .as_array()?
        .iter()
        .find_map(|item| item.get("counter")?.get("packets")?.as_u64())
}

/// The arguments for reading the counter.
pub(crate) const COUNTER: &[&str] = &["list", "counter", "inet", "fabric", "spoofed"];

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn change_of_both_families_has_one_line_per_set() {
        let script = change("p1", &ips(&["10.0.0.1", "10.0.0.2", "fd00::1"]), &[]);

        assert_eq!(
            script,
            "add element inet fabric owned4 { \"p1\" . 10.0.0.1, \"p1\" . 10.0.0.2 }\n\
             add element inet fabric owned6 { \"p1\" . fd00::1 }\n"
        );
    }

    #[test]
    fn change_without_addresses_is_empty() {
        assert_eq!(change("p1", &[], &[]), "");
    }

    #[test]
    fn counted_reads_the_packets_of_the_counter() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"counter": {"name": "spoofed", "packets": 3, "bytes": 9}}]}"#;

        assert_eq!(counted(json), Some(3));
        assert_eq!(counted("{}"), None);
    }
}
