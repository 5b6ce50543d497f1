//! Between the wire and the agent's own types. Decoding names the field; encoding can not fail.

use std::net::IpAddr;

use mesh::causes;
use mesh::status::Refusal;
use policy_core::flow::Protocol;
use proto::node::v1::Attachment;
use proto::policy::v1::LocalPod;
use proto::types::v1::Reason;
use tonic::{Code, Status};
use types::pod::{AttachmentKey, PodKey};

use crate::attachments::Attached;
use crate::enforcer::Unready;
use crate::gate::GateError;

/// Most addresses of one attachment; a pod has two.
const IPS: usize = 64;

pub(super) fn attachment(wire: Option<Attachment>) -> Result<AttachmentKey, Status> {
    let wire = wire.ok_or_else(|| Refusal::bad_field("attachment", "is missing"))?;
    Ok(AttachmentKey::new(wire.sandbox_id, wire.ifname)
        .map_err(|e| Refusal::bad_field(e.field, e.why))?)
}

pub(super) fn attached(field: &str, wire: Option<LocalPod>) -> Result<Attached, Status> {
    let bad = |part: &str, why: &str| {
        let name = format!("{field}.{part}");
        Refusal::bad_field(&name, why).into_status()
    };
    let wire = wire.ok_or_else(|| Refusal::bad_field(field, "is missing"))?;
    let attachment = attachment(wire.attachment)?;
    let pod = wire.pod.ok_or_else(|| bad("pod", "is missing"))?;
    if pod.namespace.is_empty() || pod.name.is_empty() {
        return Err(bad("pod", "has no namespace or no name"));
    }
    // Longer ones are no names of links.
    if wire.host_link.len() > 15 || wire.host_link.contains(['/', '\0']) {
        return Err(bad("host_link", "is no name of a link"));
    }
    if wire.host_link.is_empty() && wire.netns.is_empty() {
        return Err(bad("netns", "is empty, and so is host_link"));
    }
    if wire.ips.len() > IPS {
        return Err(bad("ips", "are too many"));
    }
    let mut ips: Vec<IpAddr> = Vec::with_capacity(wire.ips.len());
    for text in &wire.ips {
        let ip = text
            .parse()
            .map_err(|_| bad("ips", &format!("{text:?} is no address")))?;
        ips.push(ip);
    }
    Ok(Attached {
        attachment,
        pod: PodKey::new(pod.namespace, pod.name),
        uid: pod.uid,
        host_link: wire.host_link,
        netns: wire.netns,
        ips,
    })
}

pub(super) fn gate_status(error: &GateError) -> Status {
    let (code, reason) = match error {
        GateError::NotReady(_) => (Code::Unavailable, Reason::NotReady),
        GateError::Unready(unready) => return unready_status(unready),
        GateError::List(_) | GateError::Lost => (Code::Unavailable, Reason::StoreUnavailable),
        GateError::Revoke(_) => (Code::Unavailable, Reason::KernelDrift),
    };
    Refusal::new(code, reason.as_str_name(), causes::text(error)).into_status()
}

pub(super) fn unready_status(unready: &Unready) -> Status {
    let (code, reason) = match unready {
        Unready::PodUnknown(_) => (Code::Unavailable, Reason::PodUnknown),
        Unready::NotInSync | Unready::Ending => (Code::Unavailable, Reason::NotReady),
        Unready::Waiting { .. } => (Code::Unavailable, Reason::KernelDrift),
        Unready::Released(_) => (Code::Aborted, Reason::Busy),
        Unready::Overloaded => (Code::ResourceExhausted, Reason::Overloaded),
    };
    Refusal::new(code, reason.as_str_name(), unready.to_string()).into_status()
}

/// A protocol's name; TCP when empty.
pub(super) fn protocol(text: &str, v6: bool) -> Result<Protocol, Status> {
    let upper = text.to_ascii_uppercase();
    match upper.as_str() {
        "" => Ok(Protocol::TCP),
        "ICMP" if v6 => Ok(Protocol::ICMPV6),
        "ICMP" => Ok(Protocol::ICMP),
        other => Protocol::from_name(other).ok_or_else(|| {
            let why = format!("{text:?} is none of tcp, udp, sctp and icmp");
            Refusal::bad_field("protocol", why).into_status()
        }),
    }
}

/// What an end of a flow is, as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Pod(PodKey),
    Address(IpAddr),
    /// By name; empty: this one.
    Node(String),
}

pub(super) fn end(field: &str, text: &str) -> Result<End, Status> {
    if text == "node" {
        return Ok(End::Node(String::new()));
    }
    if let Ok(ip) = text.parse() {
        return Ok(End::Address(ip));
    }
    match text.split_once('/') {
        Some(("node", name)) if !name.is_empty() => Ok(End::Node(name.to_owned())),
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(End::Pod(PodKey::new(namespace, name)))
        }
        Some(_) | None => {
            let why =
                format!("{text:?} is none of namespace/name, an address, \"node\" and node/name");
            Err(Refusal::bad_field(field, why).into_status())
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::node::v1::PodRef;

    use super::*;

    fn wire() -> LocalPod {
        LocalPod {
            attachment: Some(Attachment {
                sandbox_id: "s1".to_owned(),
                ifname: "eth0".to_owned(),
            }),
            pod: Some(PodRef {
                namespace: "x".to_owned(),
                name: "a".to_owned(),
                uid: String::new(),
            }),
            host_link: "cali1".to_owned(),
            netns: String::new(),
            ips: vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
        }
    }

    fn field(change: impl FnOnce(&mut LocalPod)) -> Option<String> {
        let mut wire = wire();
        change(&mut wire);
        let status = attached("pod", Some(wire)).err()?;
        mesh::status::metadata(&status, "field")
    }

    #[test]
    fn malformed_pod_names_the_field() {
        assert_eq!(field(|_| {}), None);
        assert_eq!(field(|w| w.host_link.clear()).unwrap(), "pod.netns");
        assert_eq!(
            field(|w| w.host_link = "a234567890123456".to_owned()).unwrap(),
            "pod.host_link"
        );
        assert_eq!(
            field(|w| w.ips.push("10.0.0.1/32".to_owned())).unwrap(),
            "pod.ips"
        );
        assert_eq!(field(|w| w.pod = None).unwrap(), "pod.pod");
        assert_eq!(field(|w| w.attachment = None).unwrap(), "attachment");
    }

    #[test]
    fn ends_of_a_flow_are_read_as_people_write_them() {
        assert_eq!(end("source", "node").unwrap(), End::Node(String::new()));
        assert_eq!(
            end("source", "node/n1").unwrap(),
            End::Node("n1".to_owned())
        );
        assert_eq!(
            end("source", "x/a").unwrap(),
            End::Pod(PodKey::new("x", "a"))
        );
        let ip = "fd00::1".parse().unwrap();
        assert_eq!(end("source", "fd00::1").unwrap(), End::Address(ip));
        for text in ["", "a", "/a", "x/", "10.0.0.256"] {
            assert!(end("source", text).is_err(), "{text}");
        }
    }

    #[test]
    fn protocol_is_tcp_when_nothing_is_said() {
        assert_eq!(protocol("", false).unwrap(), Protocol::TCP);
        assert_eq!(protocol("udp", false).unwrap(), Protocol::UDP);
        assert_eq!(protocol("icmp", true).unwrap(), Protocol::ICMPV6);
        assert!(protocol("igmp", false).is_err());
    }
}
