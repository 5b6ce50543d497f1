//! The network configuration on standard input.
//!
//! Keys that are not known are left to whoever put them there; a known key of the wrong type is an
//! error that names it. Terway's keys are accepted; those of modes that are not here are
//! refused when they ask for such a mode.

use std::path::PathBuf;

use serde_json::{Map, Value};
use types::journal::DEFAULT_FOLDER;
use types::pod::AttachmentKey;

use crate::failure::{Failure, code};
use crate::version::Version;

/// Where the agent listens unless the configuration says otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/terway/agent.sock";

/// Smallest MTU of IPv4.
const MIN_MTU: u64 = 68;
/// Greatest MTU of a link.
const MAX_MTU: u64 = 65535;

/// A configuration that was checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetConf {
    /// `cniVersion`.
    pub(crate) version: Version,
    /// `veth_prefix`; empty for the default.
    pub(crate) veth_prefix: String,
    /// `mtu` in bytes; 0 for the default.
    pub(crate) mtu: u32,
    /// `agent_socket`.
    pub(crate) agent_socket: PathBuf,
    /// `del_journal`.
    pub(crate) del_journal: PathBuf,
    /// `trace_file`.
    pub(crate) trace_file: Option<PathBuf>,
    /// `dns`, passed on in the result.
    pub(crate) dns: Value,
    /// `prevResult`.
    pub(crate) prev_result: Option<Map<String, Value>>,
    /// `cni.dev/valid-attachments`.
    pub(crate) valid: Option<Vec<AttachmentKey>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Flag,
    List,
    Object,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_u64(),
            Self::Flag => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Number => "a whole number",
            Self::Flag => "true or false",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

/// Known keys and their types.
///
/// Source: the keys of Terway's `10-terway.conf`, the CNI specification, and three of our own
/// (`agent_socket`, `del_journal`, `trace_file`).
const KEYS: [(&str, Kind); 24] = [
    ("cniVersion", Kind::Text),
    ("name", Kind::Text),
    ("type", Kind::Text),
    ("veth_prefix", Kind::Text),
    ("eniip_virtual_type", Kind::Text),
    ("host_stack_cidrs", Kind::List),
    ("disable_host_peer", Kind::Flag),
    ("vlan_strip_type", Kind::Text),
    ("mtu", Kind::Number),
    ("auto_mtu", Kind::Flag),
    ("bandwidth_mode", Kind::Text),
    ("enable_network_priority", Kind::Flag),
    ("debug", Kind::Flag),
    ("symmetric_routing", Kind::Flag),
    ("symmetric_routing_config", Kind::Object),
    ("network_policy_provider", Kind::Text),
    ("capabilities", Kind::Object),
    ("runtimeConfig", Kind::Object),
    ("dns", Kind::Object),
    ("prevResult", Kind::Object),
    ("cni.dev/valid-attachments", Kind::List),
    ("agent_socket", Kind::Text),
    ("del_journal", Kind::Text),
    ("trace_file", Kind::Text),
];

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(code::INVALID_CONFIG, message)
}

/// The JSON object on standard input.
///
/// # Errors
/// Code 6 with the place of the mistake.
pub(crate) fn object(text: &[u8]) -> Result<Map<String, Value>, Failure> {
    let fail = |details: String| {
        let message = "the network configuration on standard input is not a JSON object";
        Failure::new(code::DECODE, message).with(details)
    };
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(fail("it is another kind of JSON value".to_owned())),
        Err(e) => Err(fail(e.to_string())),
    }
}

/// Checks the object.
///
/// # Errors
/// Code 1 for the version, 2 for a mode that is not here, 7 for anything else, naming the key.
pub(crate) fn parse(object: &Map<String, Value>) -> Result<NetConf, Failure> {
    // The version comes first: it says how to read the rest.
    let version = match object.get("cniVersion") {
        Some(Value::String(text)) => Version::parse(text)?,
        Some(_) => return Err(invalid("cniVersion must be a string")),
        // Source: CNI specification, a configuration without a version is of 0.1.0.
        None => Version::parse("0.1.0").map_err(|f| {
            Failure::new(f.code, "cniVersion is missing, which means 0.1.0").with(f.details)
        })?,
    };
    for (key, kind) in KEYS {
        if let Some(value) = object.get(key).filter(|v| !v.is_null())
            && !kind.fits(value)
        {
            return Err(invalid(format!("{key} must be {}", kind.name())));
        }
    }
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("name").is_empty() {
        return Err(invalid("name is missing"));
    }
    virtual_type(text("eniip_virtual_type"))?;
    let path = |key: &str| Some(text(key)).filter(|t| !t.is_empty()).map(PathBuf::from);
    Ok(NetConf {
        version,
        veth_prefix: text("veth_prefix").to_owned(),
        mtu: mtu(object
            .get("mtu")
            .and_then(Value::as_u64)
            .unwrap_or_default())?,
        agent_socket: path("agent_socket").unwrap_or_else(|| DEFAULT_SOCKET.into()),
        del_journal: path("del_journal").unwrap_or_else(|| DEFAULT_FOLDER.into()),
        trace_file: path("trace_file"),
        dns: object
            .get("dns")
            .filter(|v| v.is_object())
            .cloned()
            .unwrap_or_else(|| Value::Object(Map::new())),
        prev_result: object.get("prevResult").and_then(Value::as_object).cloned(),
        valid: object
            .get("cni.dev/valid-attachments")
            .and_then(Value::as_array)
            .map(|list| valid(list))
            .transpose()?,
    })
}

fn virtual_type(text: &str) -> Result<(), Failure> {
    if text.is_empty() || text.eq_ignore_ascii_case("veth") {
        return Ok(());
    }
    let known = ["ipvlan", "datapathv2"]
        .iter()
        .any(|k| text.eq_ignore_ascii_case(k));
    if known {
        let message = format!("eniip_virtual_type {text:?} is not supported; veth is");
        return Err(Failure::new(code::UNSUPPORTED_FIELD, message));
    }
    Err(invalid(format!("eniip_virtual_type {text:?} is not known")))
}

fn mtu(value: u64) -> Result<u32, Failure> {
    if value != 0 && !(MIN_MTU..=MAX_MTU).contains(&value) {
        return Err(invalid(format!(
            "mtu {value} is not within {MIN_MTU} and {MAX_MTU}"
        )));
    }
    u32::try_from(value).map_err(|_| invalid("mtu is too great"))
}

fn valid(list: &[Value]) -> Result<Vec<AttachmentKey>, Failure> {
    let one = |(n, value): (usize, &Value)| {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let place = format!("cni.dev/valid-attachments[{n}]");
        let (Some(sandbox), Some(ifname)) = (text("containerID"), text("ifname")) else {
            return Err(invalid(format!("{place} needs containerID and ifname")));
        };
        AttachmentKey::new(sandbox, ifname).map_err(|e| invalid(format!("{place}: {e}")))
    };
    list.iter().enumerate().map(one).collect()
}

/// Addresses that the runtime believes the interface `ifname` of the container to have, with prefix
/// lengths. Those of other interfaces are left out.
///
/// # Errors
/// Code 7, naming what is missing in `prevResult`.
pub(crate) fn previous_ips(conf: &NetConf, ifname: &str) -> Result<Vec<String>, Failure> {
    let Some(result) = &conf.prev_result else {
        return Err(invalid("prevResult is missing, which CHECK needs"));
    };
    let list = |key: &str| {
        result
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let interfaces = list("interfaces");
    let mut found = Vec::new();
    for (n, ip) in list("ips").iter().enumerate() {
        let of = ip
            .get("interface")
            .and_then(Value::as_u64)
            .and_then(|n| interfaces.get(usize::try_from(n).ok()?));
        let name = of.and_then(|i| i.get("name")).and_then(Value::as_str);
        if name.is_some_and(|n| n != ifname) {
            continue;
        }
        let Some(address) = ip.get("address").and_then(Value::as_str) else {
            return Err(invalid(format!(
                "prevResult.ips[{n}].address must be a string"
            )));
        };
        found.push(address.to_owned());
    }
    Ok(found)
}
