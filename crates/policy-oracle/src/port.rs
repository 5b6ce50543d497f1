//! Protocol and port of a rule.

use std::fmt;

use serde_json::Value;

use crate::document::{self, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::Pod;
use crate::probe::Protocol;

/// One entry of a rule's list of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortRule {
    /// `None`: any protocol that gives the port this name.
    protocol: Option<Protocol>,
    ports: Ports,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ports {
    All,
    /// First and last.
    Range(u16, u16),
    Named(String),
}

impl PortRule {
    /// Reads an entry of a NetworkPolicy's `ports`.
    pub(crate) fn of_network_policy(value: &Value) -> Result<Self, String> {
        let object = document::as_object(value, "port")?;
        document::only(object, &["protocol", "port", "endPort"], "port")?;
        let protocol = protocol_of(document::text(object, "protocol")?.unwrap_or("TCP"))?;
        let end = document::field(object, "endPort");
        let ports = match (document::field(object, "port"), end) {
            (None, None) => Ports::All,
            (None, Some(_)) => return Err("endPort without a port".to_owned()),
            (Some(Value::String(_)), Some(_)) => return Err("endPort of a named port".to_owned()),
            (Some(Value::String(name)), None) => named(name)?,
            (Some(first), end) => {
                let first = document::port_number(first, "port")?;
                let last = end.map_or(Ok(first), |end| document::port_number(end, "endPort"))?;
                range(first, last)?
            }
        };
        Ok(Self {
            protocol: Some(protocol),
            ports,
        })
    }

    /// Reads an entry of `protocols` of a v1alpha2 rule.
    pub(crate) fn of_cluster_policy(value: &Value) -> Result<Self, String> {
        let known = ["tcp", "udp", "sctp", "destinationNamedPort"];
        let (key, value) = document::one_of(value, &known, "protocol")?;
        let protocol = match key {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Self::any_protocol_named(value),
        };
        let object = document::as_object(value, key)?;
        document::only(object, &["destinationPort"], key)?;
        let ports = match document::field(object, "destinationPort") {
            None => Ports::All,
            Some(port) => match document::one_of(port, &["number", "range"], "destinationPort")? {
                ("number", number) => {
                    let number = document::port_number(number, "number")?;
                    Ports::Range(number, number)
                }
                (_, both) => {
                    let both = document::as_object(both, "range")?;
                    document::only(both, &["start", "end"], "range")?;
                    range_of(both)?
                }
            },
        };
        Ok(Self {
            protocol: Some(protocol),
            ports,
        })
    }

    /// Reads an entry of `ports` of a v1alpha1 rule.
    pub(crate) fn of_admin_policy(value: &Value) -> Result<Self, String> {
        let known = ["portNumber", "namedPort", "portRange"];
        let (key, value) = document::one_of(value, &known, "port")?;
        if key == "namedPort" {
            return Self::any_protocol_named(value);
        }
        let object = document::as_object(value, key)?;
        let protocol = protocol_of(document::text(object, "protocol")?.unwrap_or("TCP"))?;
        let ports = if key == "portNumber" {
            document::only(object, &["protocol", "port"], key)?;
            let number = document::field(object, "port").ok_or("portNumber has no port")?;
            let number = document::port_number(number, "port")?;
            Ports::Range(number, number)
        } else {
            document::only(object, &["protocol", "start", "end"], key)?;
            range_of(object)?
        };
        Ok(Self {
            protocol: Some(protocol),
            ports,
        })
    }

    fn any_protocol_named(value: &Value) -> Result<Self, String> {
        let name = value.as_str().ok_or("the name of a port is not a string")?;
        Ok(Self {
            protocol: None,
            ports: named(name)?,
        })
    }

    /// Whether this is a name rather than numbers.
    pub(crate) fn is_named(&self) -> bool {
        match self.ports {
            Ports::Named(_) => true,
            Ports::All | Ports::Range(..) => false,
        }
    }

    /// Whether the flow's protocol and port are meant.
    ///
    /// A name is looked up on the pod that receives: the subject itself for ingress, else those of
    /// the pods behind the other side's address that `eligible` admits.
    pub(crate) fn matches(&self, flow: Flow<'_>, eligible: impl Fn(&Pod) -> bool) -> bool {
        if !flow.protocol.has_ports() || self.protocol.is_some_and(|p| p != flow.protocol) {
            return false;
        }
        match &self.ports {
            Ports::All => true,
            Ports::Range(first, last) => (*first..=*last).contains(&flow.port),
            Ports::Named(name) => match flow.direction {
                Direction::Ingress => flow.subject.has_port(name, flow.protocol, flow.port),
                Direction::Egress => flow
                    .peers()
                    .any(|pod| eligible(pod) && pod.has_port(name, flow.protocol, flow.port)),
            },
        }
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(protocol) = self.protocol {
            write!(f, "{protocol}")?;
        }
        match &self.ports {
            Ports::All => Ok(()),
            Ports::Range(first, last) if first == last => write!(f, " {first}"),
            Ports::Range(first, last) => write!(f, " {first}-{last}"),
            Ports::Named(name) if self.protocol.is_none() => write!(f, "any port named {name:?}"),
            Ports::Named(name) => write!(f, " port named {name:?}"),
        }
    }
}

fn protocol_of(name: &str) -> Result<Protocol, String> {
    match name {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(format!("protocol {name:?} is not known")),
    }
}

fn named(name: &str) -> Result<Ports, String> {
    if name.is_empty() {
        Err("the name of a port is empty".to_owned())
    } else {
        Ok(Ports::Named(name.to_owned()))
    }
}

fn range(first: u16, last: u16) -> Result<Ports, String> {
    if first <= last {
        Ok(Ports::Range(first, last))
    } else {
        Err(format!("port range {first}-{last} ends before it starts"))
    }
}

fn range_of(object: &Object) -> Result<Ports, String> {
    let bound = |key: &str| {
        let value = document::field(object, key).ok_or_else(|| format!("range has no {key}"))?;
        document::port_number(value, key)
    };
    range(bound("start")?, bound("end")?)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    // D1, D2
    #[rstest]
    #[case(json!({}), Some(Protocol::Tcp), Ports::All)]
    #[case(json!({"protocol": "UDP"}), Some(Protocol::Udp), Ports::All)]
    #[case(json!({"port": 80}), Some(Protocol::Tcp), Ports::Range(80, 80))]
    #[case(json!({"port": 80, "endPort": 80}), Some(Protocol::Tcp), Ports::Range(80, 80))]
    #[case(json!({"port": 80, "endPort": 90}), Some(Protocol::Tcp), Ports::Range(80, 90))]
    #[case(json!({"port": "80"}), Some(Protocol::Tcp), Ports::Named("80".to_owned()))]
    fn network_policy_port_is_read(
        #[case] value: Value,
        #[case] protocol: Option<Protocol>,
        #[case] ports: Ports,
    ) {
        assert_eq!(
            PortRule::of_network_policy(&value),
            Ok(PortRule { protocol, ports })
        );
    }

    // D2
    #[rstest]
    #[case(json!({"endPort": 80}))]
    #[case(json!({"port": "web", "endPort": 80}))]
    #[case(json!({"port": 80, "endPort": 79}))]
    #[case(json!({"port": 0}))]
    #[case(json!({"port": 65536}))]
    #[case(json!({"port": ""}))]
    #[case(json!({"port": true}))]
    #[case(json!({"protocol": "ICMP"}))]
    #[case(json!({"protocol": "tcp"}))]
    #[case(json!({"ports": [80]}))]
    fn network_policy_port_that_makes_no_sense_is_refused(#[case] value: Value) {
        assert!(PortRule::of_network_policy(&value).is_err());
    }

    // F6
    #[test]
    fn cluster_named_port_has_no_protocol() {
        let rule = PortRule::of_cluster_policy(&json!({"destinationNamedPort": "web"})).unwrap();
        assert_eq!(rule.protocol, None);
        assert!(rule.is_named());
    }

    #[rstest]
    #[case(json!({"tcp": {"destinationPort": {"number": 80}}}), Ports::Range(80, 80))]
    #[case(json!({"tcp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}), Ports::Range(1, 9))]
    #[case(json!({"tcp": {}}), Ports::All)]
    fn cluster_protocol_is_read(#[case] value: Value, #[case] ports: Ports) {
        let protocol = Some(Protocol::Tcp);
        assert_eq!(
            PortRule::of_cluster_policy(&value),
            Ok(PortRule { protocol, ports })
        );
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"icmp": {}}))]
    #[case(json!({"tcp": {}, "udp": {}}))]
    #[case(json!({"tcp": {"sourcePort": {"number": 80}}}))]
    #[case(json!({"tcp": {"destinationPort": {}}}))]
    #[case(json!({"tcp": {"destinationPort": {"range": {"start": 9, "end": 1}}}}))]
    fn cluster_protocol_that_is_not_known_is_refused(#[case] value: Value) {
        assert!(PortRule::of_cluster_policy(&value).is_err());
    }
}
