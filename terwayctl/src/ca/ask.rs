//! One question to the control plane: a fresh key, a request for it, and what proves who asks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh::ca::{Issued, Request};
use mesh::client::{Channel, Params};
use mesh::identity::IdentityKind;
use mesh::secret::Secret;
use mesh::tls::Trust;
use mesh::tls::verify::Expect;
use proto::control::v1::IssueRequest;
use proto::control::v1::certificates_client::CertificatesClient;

use crate::ca::proof::Proof;

/// Longest answer: the control plane asks the API server in between.
const ANSWER: Duration = Duration::from_secs(20);

/// Whom to ask, and with what.
#[derive(Debug, Clone)]
pub struct Asker {
    /// `host:port` of the control plane.
    pub controlplane: String,
    /// File with a token of the service account; read each time, since kubelet replaces it.
    pub token: PathBuf,
    /// File with the authorities that the control plane's certificate may come from.
    pub trust: PathBuf,
}

impl Asker {
    /// Asks for a certificate. The token goes to nobody but a controller of a trusted authority.
    ///
    /// # Errors
    /// What failed, without the token.
    pub async fn ask(&self, proof: Proof) -> Result<Issued> {
        let token = self.token()?;
        let request = Request::new()?;
        // A channel of its own each time: hours lie between two questions, and the trust may have changed.
        let channel = Channel::anonymous(
            &self.controlplane,
            Trust::new(&self.trust),
            Expect::Kind(IdentityKind::Controller),
            &Params::default(),
        )?
        .with_deadline(ANSWER);
        let answer = CertificatesClient::new(channel)
            .issue(IssueRequest {
                csr: request.der,
                token: token.expose().to_owned(),
                instance_document: proof.document,
                instance_signature: proof.signature,
            })
            .await
            .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
            .context("the control plane issues no certificate")?
            .into_inner();
        Ok(Issued {
            ca: answer.trust_bundle,
            certificate: answer.certificate_chain,
            key: request.key,
        })
    }

    fn token(&self) -> Result<Secret> {
        let path = self.token.display();
        let text = std::fs::read_to_string(&self.token).with_context(|| format!("read {path}"))?;
        let token = text.trim();
        if token.is_empty() {
            bail!("{path} is empty");
        }
        Ok(Secret::new(token))
    }
}
