//! The door through which those come who have no certificate yet.

pub mod proof;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use mesh::ca::CaError;
use mesh::status::{BAD_FIELD, IDENTITY_MISMATCH, NOT_READY, OVERLOADED, Refusal};
use proto::control::v1::certificates_server::Certificates;
use proto::control::v1::{IssueRequest, IssueResponse};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Request, Response, Status};

use crate::authority::Signer;
use crate::certificates::proof::{Bad, Prover};
use crate::metrics::{Issue, Metrics};

/// Proofs that are looked at at a time: anybody can ask, and each costs the API server some requests.
const AT_ONCE: usize = 16;
/// How many may wait for one of these places.
const WAITING: usize = 256;
/// When to come back when these are taken, too.
const COME_BACK: Duration = Duration::from_secs(1);
/// Longest request for a certificate, in bytes. Ours have 300.
const CSR_MAX: usize = 8 << 10;
/// Longest token, in bytes.
const TOKEN_MAX: usize = 16 << 10;
/// Longest document and signature, in bytes.
const DOCUMENT_MAX: usize = 16 << 10;

/// Issues certificates.
#[derive(Debug)]
pub struct Door {
    prover: Prover,
    signer: watch::Receiver<Option<Arc<Signer>>>,
    lifetime: Duration,
    places: Semaphore,
    waiting: Semaphore,
    metrics: Metrics,
}

impl Door {
    /// Issues for `lifetime` to whom `prover` believes.
    pub const fn new(
        prover: Prover,
        signer: watch::Receiver<Option<Arc<Signer>>>,
        lifetime: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            prover,
            signer,
            lifetime,
            places: Semaphore::const_new(AT_ONCE),
            waiting: Semaphore::const_new(WAITING),
            metrics,
        }
    }

    async fn answer(&self, request: IssueRequest) -> Result<IssueResponse, (Issue, Status)> {
        check(&request).map_err(|refusal| (Issue::Refused, refusal.into_status()))?;
        let overloaded = || {
            let status = Refusal::new(
                Code::ResourceExhausted,
                OVERLOADED,
                "too many certificates are asked for at once",
            )
            .retry_after(COME_BACK)
            .into_status();
            (Issue::Shed, status)
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| overloaded())?;
        let _place = self.places.acquire().await.map_err(|_| overloaded())?;
        let signer = self.signer.borrow().clone().ok_or_else(|| {
            let why = "there is no authority yet";
            let refusal = Refusal::new(Code::Unavailable, NOT_READY, why).retry_after(COME_BACK);
            (Issue::Failed, refusal.into_status())
        })?;
        let proven = self
            .prover
            .proven(&request)
            .await
            .map_err(|bad| match bad {
                Bad::Away(failure) => (Issue::Failed, failure.into_status()),
                Bad::Proof(why) => {
                    tracing::warn!(why, "a certificate is refused");
                    let refusal = Refusal::new(Code::PermissionDenied, IDENTITY_MISMATCH, why);
                    (Issue::Refused, refusal.into_status())
                }
            })?;
        let certificate = signer
            .sign(&request.csr, &proven.identity, &proven.hosts, self.lifetime)
            .map_err(|error| match error {
                CaError::BadRequest { .. } => (
                    Issue::Refused,
                    Refusal::bad_field("csr", error).into_status(),
                ),
                CaError::BadName { .. }
                | CaError::Make { .. }
                | CaError::Exists { .. }
                | CaError::File { .. }
                | CaError::Malformed { .. } => {
                    tracing::error!(%error, "a certificate can not be made");
                    (
                        Issue::Failed,
                        Status::internal("the certificate can not be made"),
                    )
                }
            })?;
        tracing::info!(identity = %proven.identity, pod = proven.pod, "certificate issued");
        let end = certificate.not_after.duration_since(UNIX_EPOCH);
        Ok(IssueResponse {
            certificate_chain: certificate.chain,
            trust_bundle: certificate.bundle,
            not_after_ms: u64::try_from(end.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

fn check(request: &IssueRequest) -> Result<(), Refusal> {
    let fields = [
        ("csr", request.csr.len(), CSR_MAX, true),
        ("token", request.token.len(), TOKEN_MAX, true),
        (
            "instance_document",
            request.instance_document.len(),
            DOCUMENT_MAX,
            false,
        ),
        (
            "instance_signature",
            request.instance_signature.len(),
            DOCUMENT_MAX,
            false,
        ),
    ];
    for (field, length, max, wanted) in fields {
        if wanted && length == 0 {
            return Err(Refusal::bad_field(field, "is missing"));
        }
        if length > max {
            let why = format!("{field} is longer than {max} bytes");
            return Err(Refusal::new(Code::InvalidArgument, BAD_FIELD, why).with("field", field));
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl Certificates for Door {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        match self.answer(request.into_inner()).await {
            Ok(response) => {
                self.metrics.issued(Issue::Issued);
                Ok(Response::new(response))
            }
            Err((outcome, status)) => {
                self.metrics.issued(outcome);
                Err(status)
            }
        }
    }
}
