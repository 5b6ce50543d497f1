//! What is checked of the other side's certificate, beyond its chain: that it names one identity
//! of ours, and that a server is what the client came for.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::identity::{Identity, IdentityKind};

/// Whom a client wants to find at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Any service of this kind, whatever its name.
    Kind(IdentityKind),
    /// This very identity.
    Identity(Identity),
    /// A server with this DNS name or IP address in its certificate, as for etcd.
    Name(ServerName<'static>),
}

impl Expect {
    /// Whether the server's name is part of the check.
    pub(crate) const fn has_name(&self) -> bool {
        match self {
            Self::Name(_) => true,
            Self::Kind(_) | Self::Identity(_) => false,
        }
    }

    /// The name for the handshake; not looked at unless [`Expect::has_name`].
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Name(name) => name.clone(),
            Self::Kind(_) | Self::Identity(_) => {
                ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
            }
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a server of kind {kind}"),
            Self::Identity(identity) => write!(f, "{identity}"),
            Self::Name(name) => write!(f, "a server named {}", name.to_str()),
        }
    }
}

/// The chain is good, but it is somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct WrongServer {
    /// Whom the client wants.
    pub expected: String,
    /// Who answered.
    pub found: Identity,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Checks that a server's chain leads to one of `roots`, and that it may be a server.
pub(crate) fn server_chain(
    roots: &RootCertStore,
    provider: &CryptoProvider,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

/// Checks clients: a chain to our bundle, and exactly one identity of ours.
#[derive(Debug)]
pub(crate) struct ClientIdentity {
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientIdentity {
    pub(crate) fn verifier(chain: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self { chain })
    }
}

impl ClientCertVerifier for ClientIdentity {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        Identity::of_certificate(leaf).map_err(other)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks servers by what they are, not by where they are.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expect: Expect,
}

impl ServerIdentity {
    pub(crate) fn verifier(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        expect: Expect,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        match &expect {
            Expect::Name(_) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?;
                Ok(verifier)
            }
            Expect::Kind(_) | Expect::Identity(_) => Ok(Arc::new(Self {
                roots,
                provider,
                expect,
            })),
        }
    }

    fn is_expected(&self, found: &Identity) -> bool {
        match &self.expect {
            Expect::Kind(kind) => found.kind() == *kind,
            Expect::Identity(identity) => found == identity,
            // Such a verifier is not made here.
            Expect::Name(_) => false,
        }
    }
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        server_chain(&self.roots, &self.provider, leaf, intermediates, now)?;
        let found = Identity::of_certificate(leaf).map_err(other)?;
        if self.is_expected(&found) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(other(WrongServer {
                expected: self.expect.to_string(),
                found,
            }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
