//! Ends, protocols and ports as people type them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// `namespace/name`, or `name` in the namespace `default`.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// `node/name`: a process of the node itself.
    Node(String),
    /// An address.
    Address(IpAddr),
}

/// Text that is no end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither namespace/pod, node/name, nor an address")]
pub struct NoEnd {
    text: String,
}

impl FromStr for End {
    type Err = NoEnd;

    fn from_str(text: &str) -> Result<Self, NoEnd> {
        let refuse = || NoEnd {
            text: text.to_owned(),
        };
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains(['/', ':']) {
            return Err(refuse());
        }
        Ok(if namespace == "node" {
            Self::Node(name.to_owned())
        } else {
            Self::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A protocol that a flow can have here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Echo request of the family.
    Icmp,
}

impl Protocol {
    /// The word on the wire and in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct Question {
    /// Who opens the connection: namespace/pod, node/name, or an address
    #[arg(value_name = "SRC")]
    pub source: End,
    /// Who is called; behind a Service the pod, not the Service's address
    #[arg(value_name = "DST")]
    pub destination: End,
    /// Port of the destination: a number, or the name the destination pod gives it
    #[arg(value_name = "PORT")]
    pub port: String,
    /// Protocol
    #[arg(
        value_name = "PROTO",
        value_enum,
        default_value = "tcp",
        ignore_case = true
    )]
    pub protocol: Protocol,
    /// Address family, 4 or 6; the first that both ends have when absent
    #[arg(long, value_name = "4|6", value_parser = clap::value_parser!(u32).range(4..=6))]
    pub family: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_people_type_them() {
        let pod = |namespace: &str, name: &str| End::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };

        assert_eq!("shop/web-0".parse(), Ok(pod("shop", "web-0")));
        assert_eq!("web-0".parse(), Ok(pod("default", "web-0")));
        assert_eq!("node/n1".parse(), Ok(End::Node("n1".to_owned())));
        assert_eq!(
            "fd00::1".parse(),
            Ok(End::Address("fd00::1".parse().unwrap()))
        );
    }

    #[test]
    fn text_that_is_no_end_is_repeated_in_the_error() {
        let error = "a/b/c".parse::<End>().unwrap_err();

        assert!(error.to_string().starts_with("\"a/b/c\""), "{error}");
        assert!("".parse::<End>().is_err());
        assert!("10.0.0.300:80".parse::<End>().is_err());
    }
}
