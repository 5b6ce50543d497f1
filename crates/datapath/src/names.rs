//! Names and hardware addresses that are derived, so that every process comes to the same.

use sha1::{Digest, Sha1};
use types::address::MacAddr;
use types::pod::{AttachmentKey, PodKey};

/// Prefix of host links when the network configuration names none.
pub const DEFAULT_VETH_PREFIX: &str = "cali";

/// Longest name of a link in bytes.
///
/// Source: `IFNAMSIZ` of the kernel is 16 with the closing zero.
pub const MAX_LINK_NAME: usize = 15;

/// Hex digits of the hash that a host link's name carries.
const HASH_DIGITS: usize = 11;

/// What every alias of ours starts with.
const ALIAS_PREFIX: &str = "terway:";

/// A prefix that can not start a link's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("veth_prefix {prefix:?} {why}")]
pub struct InvalidPrefix {
    /// What was given, cut to 40 characters.
    pub prefix: String,
    /// The rule that is broken.
    pub why: &'static str,
}

/// Name of the host side of a pod's veth: `prefix` (`cali` when empty), then the first 11 hex digits
/// of SHA-1 over `namespace.name`, with the interface name appended unless it is `eth0`.
///
/// Felix and Cilium recognise links by this name.
///
/// # Errors
/// [`InvalidPrefix`] when the prefix is longer than 4 bytes or holds what a link's name may not.
pub fn host_link(prefix: &str, pod: &PodKey, ifname: &str) -> Result<String, InvalidPrefix> {
    let prefix = if prefix.is_empty() {
        DEFAULT_VETH_PREFIX
    } else {
        prefix
    };
    check_prefix(prefix)?;
    let mut hash = Sha1::new();
    hash.update(pod.namespace.as_bytes());
    hash.update(b".");
    hash.update(pod.name.as_bytes());
    if ifname != "eth0" {
        hash.update(ifname.as_bytes());
    }
    let mut name = String::with_capacity(MAX_LINK_NAME);
    name.push_str(prefix);
    push_hex(&mut name, &hash.finalize(), HASH_DIGITS);
    Ok(name)
}

fn check_prefix(prefix: &str) -> Result<(), InvalidPrefix> {
    let fail = |why| {
        Err(InvalidPrefix {
            prefix: prefix.chars().take(40).collect(),
            why,
        })
    };
    if prefix.len().saturating_add(HASH_DIGITS) > MAX_LINK_NAME {
        return fail("is longer than 4 bytes");
    }
    if prefix
        .bytes()
        .any(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'_' | b'.'))
    {
        return fail("may hold letters, digits, '-', '_' and '.' alone");
    }
    Ok(())
}

fn push_hex(out: &mut String, bytes: &[u8], digits: usize) {
    let nibbles = bytes.iter().flat_map(|b| [b >> 4, b & 0x0f]);
    out.extend(
        nibbles
            .take(digits)
            .filter_map(|n| char::from_digit(u32::from(n), 16)),
    );
}

/// Alias of a pod's host link: `terway:<sandbox>/<ifname>`. It says whose link it is when the name,
/// which is derived from a reusable pod name, does not.
pub fn alias(attachment: &AttachmentKey) -> String {
    format!("{ALIAS_PREFIX}{}/{}", attachment.sandbox, attachment.ifname)
}

/// The attachment that an alias names; nothing when the alias is not one of ours.
pub fn attachment_of(alias: &str) -> Option<AttachmentKey> {
    let (sandbox, ifname) = alias.strip_prefix(ALIAS_PREFIX)?.rsplit_once('/')?;
    AttachmentKey::new(sandbox, ifname).ok()
}

/// Which end of a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VethEnd {
    /// The end on the node.
    Host,
    /// The end in the pod.
    Pod,
}

/// Hardware address that a new veth of `attachment` gets at `end`: locally administered, and the
/// same on each try.
///
/// Setting it at creation keeps udev's MAC policy away from the link, and saves reading it back.
pub fn veth_mac(attachment: &AttachmentKey, end: VethEnd) -> MacAddr {
    let mut hash = Sha1::new();
    hash.update(alias(attachment).as_bytes());
    hash.update(match end {
        VethEnd::Host => b"#host".as_slice(),
        VethEnd::Pod => b"#pod".as_slice(),
    });
    let hash = hash.finalize();
    let mut mac = [0_u8; 6];
    mac.copy_from_slice(hash.get(..6).unwrap_or(&[0; 6]));
    mac[0] = (mac[0] & 0xfc) | 0x02;
    MacAddr(mac)
}

/// Name on the node of an ENI's link that came back from a pod: `eni` and the hardware address. Names of links that
/// are plugged in are the system's affair; this one meets none of them.
pub fn returned_link(mac: MacAddr) -> String {
    let mut name = String::with_capacity(MAX_LINK_NAME);
    name.push_str("eni");
    push_hex(&mut name, &mac.0, HASH_DIGITS.saturating_add(1));
    name
}

/// Routing table of the ENI with this interface index: 1000 + index.
pub fn eni_table(ifindex: u32) -> u32 {
    FIRST_ENI_TABLE.saturating_add(ifindex)
}

/// Tables of ENIs are numbered from here.
pub const FIRST_ENI_TABLE: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> AttachmentKey {
        AttachmentKey::new("0a1b2c", "eth0").unwrap()
    }

    #[test]
    fn host_link_of_eth0_is_prefix_and_11_digits_of_sha1() {
        // printf 'default.web-0' | sha1sum
        let name = host_link("", &PodKey::new("default", "web-0"), "eth0").unwrap();

        assert_eq!(name, "cali0d7763386da");
        assert_eq!(name.len(), MAX_LINK_NAME);
    }

    #[test]
    fn host_link_of_another_interface_differs() {
        let pod = PodKey::new("default", "web-0");

        assert_ne!(
            host_link("cali", &pod, "eth0").unwrap(),
            host_link("cali", &pod, "eth1").unwrap()
        );
    }

    #[test]
    fn host_link_with_a_long_prefix_is_refused() {
        let err = host_link("calico", &PodKey::new("a", "b"), "eth0").unwrap_err();

        assert_eq!(
            err.to_string(),
            "veth_prefix \"calico\" is longer than 4 bytes"
        );
        assert!(host_link("a/b", &PodKey::new("a", "b"), "eth0").is_err());
    }

    #[test]
    fn returned_link_carries_the_whole_hardware_address() {
        let name = returned_link(MacAddr([0, 0x16, 0x3e, 0x0a, 1, 0xff]));

        assert_eq!(name, "eni00163e0a01ff");
        assert_eq!(name.len(), MAX_LINK_NAME);
    }

    #[test]
    fn alias_round_trips() {
        assert_eq!(attachment_of(&alias(&attachment())), Some(attachment()));
        assert_eq!(attachment_of("uplink to switch 3"), None);
    }

    #[test]
    fn veth_macs_are_unicast_local_and_differ_per_end() {
        let (host, pod) = (
            veth_mac(&attachment(), VethEnd::Host),
            veth_mac(&attachment(), VethEnd::Pod),
        );

        assert_ne!(host, pod);
        assert_eq!((host.0[0] & 3, pod.0[0] & 3), (2, 2));
    }
}
