//! Who a peer is: SPIFFE-style names in certificates, and the one caller without a certificate.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The trust domain of every identity of this project.
///
/// Source: design, §11.15.
pub const TRUST_DOMAIN: &str = "terway.local";

/// Longest segment of a name, in bytes. Instance ids and user names are far shorter; the bound
/// keeps a whole name within the 2048 bytes that SPIFFE allows.
const SEGMENT_MAX: usize = 128;

/// A service or a person that holds a certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A node-agent: `/cluster/<cluster>/node/<instance>`.
    Node {
        /// Cluster id.
        cluster: Box<str>,
        /// Instance id that the cloud gave the node; never the node's name.
        instance: Box<str>,
    },
    /// A replica of the ipam service: `/ipam/replica/<replica>`.
    Ipam {
        /// Name of the replica.
        replica: Box<str>,
    },
    /// A cloud gateway: `/gateway/<id>`.
    Gateway {
        /// Name of the gateway.
        id: Box<str>,
    },
    /// A cluster's controller: `/controller/<cluster>`.
    Controller {
        /// Cluster id.
        cluster: Box<str>,
    },
    /// A relay of policy: `/relay/<id>`.
    Relay {
        /// Name of the relay.
        id: Box<str>,
    },
    /// A person: `/admin/<user>`.
    Admin {
        /// Login name.
        user: Box<str>,
    },
    /// A member of the etcd cluster: `/etcd/<id>`.
    Etcd {
        /// Name of the member.
        id: Box<str>,
    },
}

impl Identity {
    /// The kind, without the names.
    pub const fn kind(&self) -> IdentityKind {
        match self {
            Self::Node { .. } => IdentityKind::Node,
            Self::Ipam { .. } => IdentityKind::Ipam,
            Self::Gateway { .. } => IdentityKind::Gateway,
            Self::Controller { .. } => IdentityKind::Controller,
            Self::Relay { .. } => IdentityKind::Relay,
            Self::Admin { .. } => IdentityKind::Admin,
            Self::Etcd { .. } => IdentityKind::Etcd,
        }
    }

    /// A node's identity.
    pub fn node(cluster: impl Into<Box<str>>, instance: impl Into<Box<str>>) -> Self {
        Self::Node {
            cluster: cluster.into(),
            instance: instance.into(),
        }
    }

    /// An ipam replica's identity.
    pub fn ipam(replica: impl Into<Box<str>>) -> Self {
        Self::Ipam {
            replica: replica.into(),
        }
    }

    /// A gateway's identity.
    pub fn gateway(id: impl Into<Box<str>>) -> Self {
        Self::Gateway { id: id.into() }
    }

    /// A controller's identity.
    pub fn controller(cluster: impl Into<Box<str>>) -> Self {
        Self::Controller {
            cluster: cluster.into(),
        }
    }

    /// A relay's identity.
    pub fn relay(id: impl Into<Box<str>>) -> Self {
        Self::Relay { id: id.into() }
    }

    /// A person's identity.
    pub fn admin(user: impl Into<Box<str>>) -> Self {
        Self::Admin { user: user.into() }
    }

    /// An etcd member's identity.
    pub fn etcd(id: impl Into<Box<str>>) -> Self {
        Self::Etcd { id: id.into() }
    }

    /// Reads the identity from a certificate in DER.
    ///
    /// # Errors
    /// [`IdentityError`] unless the certificate has exactly one URI among its subject
    /// alternative names and that URI is an identity of our trust domain.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NoCertificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::NoCertificate)?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            (None, _) => Err(IdentityError::NoUri),
            (Some(_), Some(_)) => Err(IdentityError::SeveralUris),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{TRUST_DOMAIN}")?;
        match self {
            Self::Node { cluster, instance } => write!(f, "/cluster/{cluster}/node/{instance}"),
            Self::Ipam { replica } => write!(f, "/ipam/replica/{replica}"),
            Self::Gateway { id } => write!(f, "/gateway/{id}"),
            Self::Controller { cluster } => write!(f, "/controller/{cluster}"),
            Self::Relay { id } => write!(f, "/relay/{id}"),
            Self::Admin { user } => write!(f, "/admin/{user}"),
            Self::Etcd { id } => write!(f, "/etcd/{id}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = text.strip_prefix("spiffe://") else {
            return Err(IdentityError::NotSpiffe { text: text.into() });
        };
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        if domain != TRUST_DOMAIN {
            return Err(IdentityError::ForeignDomain {
                domain: domain.into(),
            });
        }
        let segments: Vec<&str> = path.split('/').collect();
        if !segments.iter().all(|segment| is_segment(segment)) {
            return Err(IdentityError::UnknownForm { text: text.into() });
        }
        match segments.as_slice() {
            ["cluster", cluster, "node", instance] => Ok(Self::node(*cluster, *instance)),
            ["ipam", "replica", replica] => Ok(Self::ipam(*replica)),
            ["gateway", id] => Ok(Self::gateway(*id)),
            ["controller", cluster] => Ok(Self::controller(*cluster)),
            ["relay", id] => Ok(Self::relay(*id)),
            ["admin", user] => Ok(Self::admin(*user)),
            ["etcd", id] => Ok(Self::etcd(*id)),
            _ => Err(IdentityError::UnknownForm { text: text.into() }),
        }
    }
}

/// Source: SPIFFE-ID standard, §2.2 (letters, digits, dot, dash, underscore; no dot segments).
fn is_segment(text: &str) -> bool {
    (1..=SEGMENT_MAX).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Why a text or a certificate names no identity of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not a SPIFFE URI at all.
    #[error("{text:?} is not a spiffe:// URI")]
    NotSpiffe {
        /// What was read.
        text: Box<str>,
    },
    /// The URI belongs to somebody else.
    #[error("trust domain {domain:?} is not {TRUST_DOMAIN:?}")]
    ForeignDomain {
        /// What was read.
        domain: Box<str>,
    },
    /// Our trust domain, but no kind we know, or a character that names do not have.
    #[error("{text:?} names no known kind of identity")]
    UnknownForm {
        /// What was read.
        text: Box<str>,
    },
    /// The certificate has no URI among its subject alternative names.
    #[error("certificate has no URI among its subject alternative names")]
    NoUri,
    /// The certificate has more than one.
    #[error("certificate has more than one URI among its subject alternative names")]
    SeveralUris,
    /// The bytes are not a certificate.
    #[error("bytes are not an X.509 certificate")]
    NoCertificate,
}

/// What an identity is, without the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityKind {
    /// A node-agent.
    Node,
    /// An ipam replica.
    Ipam,
    /// A cloud gateway.
    Gateway,
    /// A cluster's controller.
    Controller,
    /// A relay of policy.
    Relay,
    /// A person.
    Admin,
    /// An etcd member.
    Etcd,
}

impl IdentityKind {
    /// The word for messages and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Ipam => "ipam",
            Self::Gateway => "gateway",
            Self::Controller => "controller",
            Self::Relay => "relay",
            Self::Admin => "admin",
            Self::Etcd => "etcd",
        }
    }
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Somebody with a certificate, over TCP.
    Mesh(Identity),
    /// A process of this machine's root, over the unix socket.
    LocalRoot,
    /// Somebody without a certificate, over TCP, at a server that lets such callers in.
    Anonymous,
}

impl Peer {
    /// The kind, as the authorization table names callers.
    pub const fn kind(&self) -> CallerKind {
        match self {
            Self::Mesh(identity) => CallerKind::Mesh(identity.kind()),
            Self::LocalRoot => CallerKind::LocalRoot,
            Self::Anonymous => CallerKind::Anonymous,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(identity) => identity.fmt(f),
            Self::LocalRoot => f.write_str("local root"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// What a caller is, without the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// Somebody with a certificate.
    Mesh(IdentityKind),
    /// A process of this machine's root.
    LocalRoot,
    /// Somebody without a certificate.
    Anonymous,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(kind) => kind.fmt(f),
            Self::LocalRoot => f.write_str("local root"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, IdentityError};

    #[test]
    fn identity_round_trips_through_its_uri() {
        for identity in [
            Identity::node("c1", "i-bp1abc"),
            Identity::ipam("r-0"),
            Identity::gateway("g_1"),
            Identity::controller("c1"),
            Identity::relay("relay-1"),
            Identity::admin("jane.doe"),
            Identity::etcd("etcd-0"),
        ] {
            let text = identity.to_string();

            assert_eq!(text.parse::<Identity>(), Ok(identity), "{text}");
        }
    }

    #[test]
    fn identity_of_another_trust_domain_is_refused() {
        let parsed = "spiffe://evil.local/gateway/g1".parse::<Identity>();

        assert_eq!(
            parsed,
            Err(IdentityError::ForeignDomain {
                domain: "evil.local".into()
            })
        );
    }

    #[test]
    fn identity_with_an_odd_form_is_refused() {
        for text in [
            "",
            "https://terway.local/gateway/g1",
            "spiffe://terway.local",
            "spiffe://terway.local/",
            "spiffe://terway.local/gateway",
            "spiffe://terway.local/gateway/",
            "spiffe://terway.local/gateway/a/b",
            "spiffe://terway.local/gateway/a b",
            "spiffe://terway.local/gateway/..",
            "spiffe://terway.local/gateway/a%2fb",
            "spiffe://terway.local/gateway/a?x=y",
            "spiffe://terway.local//gateway/a",
            "spiffe://terway.local/cluster/c/node/",
            "spiffe://TERWAY.LOCAL/gateway/a",
            "SPIFFE://terway.local/gateway/a",
            "spiffe://terway.local:443/gateway/a",
            "spiffe://terway.local/ipam/r1",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
        let long = format!("spiffe://terway.local/gateway/{}", "x".repeat(129));
        assert!(long.parse::<Identity>().is_err());
    }
}
