//! What nodes want written: checked to be about the caller's own Node and its pods, and written at once.
//!
//! Nothing waits here: a call that is answered is written, and a node whose call failed comes back. So a replica that
//! ends takes nothing with it, and the order of what one node says is its own.

pub mod event;
pub mod node;
pub mod pod;

use mesh::identity::Identity;
use mesh::status::{BAD_FIELD, IDENTITY_MISMATCH, NOT_READY, Refusal};
use proto::control::v1::node_reports_server::NodeReports;
use proto::control::v1::{
    AnnotatePodRequest, AnnotatePodResponse, PostEventRequest, PostEventResponse,
    ReportNodeRequest, ReportNodeResponse,
};
use proto::types::v1::Reason;
use tonic::{Code, Request, Response, Status};

use crate::config::Config;
use crate::kubernetes::{Failure, Kubernetes};
use crate::metrics::{Metrics, Outcome, Report};
use crate::nodes::Nodes;
use crate::phase::{Board, COMPONENTS};
use crate::reports::event::Events;
use crate::reports::node::Statements;
use crate::reports::pod::Pods;

/// Why nothing was written.
#[derive(Debug)]
pub enum Unwritten {
    /// The API server is away, or the node says too much.
    Later(Status),
    /// It will not be written.
    Refused(Status),
}

impl Unwritten {
    fn status(self) -> Status {
        match self {
            Self::Later(status) | Self::Refused(status) => status,
        }
    }

    const fn outcome(&self) -> Outcome {
        match self {
            Self::Later(_) => Outcome::Later,
            Self::Refused(_) => Outcome::Refused,
        }
    }
}

impl From<Failure> for Unwritten {
    fn from(failure: Failure) -> Self {
        Self::Later(failure.into_status())
    }
}

/// It is about somebody else.
fn mismatch(why: impl Into<String>) -> Unwritten {
    let refusal = Refusal::new(Code::PermissionDenied, IDENTITY_MISMATCH, why);
    Unwritten::Refused(refusal.into_status())
}

/// A field can not be used.
fn bad_field(field: &str, why: impl std::fmt::Display) -> Unwritten {
    let why = format!("{field}: {why}");
    let refusal = Refusal::new(Code::InvalidArgument, BAD_FIELD, why).with("field", field);
    Unwritten::Refused(refusal.into_status())
}

/// The pod is not there, or no more the same.
fn unknown_pod(why: impl Into<String>) -> Unwritten {
    let reason = Reason::PodUnknown.as_str_name();
    Unwritten::Refused(Refusal::new(Code::NotFound, reason, why).into_status())
}

/// The caller's Node object is not known yet.
fn unknown_node(instance: &str) -> Unwritten {
    let why = format!("no Node object with instance {instance} is known");
    Unwritten::Later(Refusal::new(Code::Unavailable, NOT_READY, why).into_status())
}

/// Who speaks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The instance of the certificate.
    pub(crate) instance: String,
}

/// The parts of the door.
#[derive(Debug)]
pub struct Parts {
    /// The API server.
    pub kubernetes: Kubernetes,
    /// Which Node is which instance.
    pub nodes: Nodes,
    /// Who has left.
    pub board: Board,
    /// Counters.
    pub metrics: Metrics,
}

/// Takes reports.
#[derive(Debug)]
pub struct Door {
    cluster: String,
    metrics: Metrics,
    statements: Statements,
    pods: Pods,
    events: Events,
}

impl Door {
    /// Puts it together.
    pub fn new(parts: Parts, config: &Config) -> Self {
        let Parts {
            kubernetes,
            nodes,
            board,
            metrics,
        } = parts;
        Self {
            cluster: config.cluster.id.clone(),
            metrics,
            statements: Statements::new(
                kubernetes.clone(),
                nodes.clone(),
                board,
                config.nodes.startup_taint.clone(),
            ),
            pods: Pods::new(kubernetes.clone(), nodes.clone()),
            events: Events::new(kubernetes, nodes),
        }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Unwritten> {
        match mesh::server::peer(request).map_err(Unwritten::Refused)? {
            Identity::Node { cluster, instance } if **cluster == *self.cluster => Ok(Caller {
                instance: instance.as_ref().to_owned(),
            }),
            other @ (Identity::Node { .. }
            | Identity::Ipam { .. }
            | Identity::Gateway { .. }
            | Identity::Controller { .. }
            | Identity::Relay { .. }
            | Identity::Admin { .. }
            | Identity::Etcd { .. }) => Err(mismatch(format!(
                "{other} is no node of cluster {}",
                self.cluster
            ))),
        }
    }

    fn told<T>(
        &self,
        what: Report,
        answer: Result<Outcome, Unwritten>,
        response: T,
    ) -> Result<Response<T>, Status> {
        match answer {
            Ok(outcome) => {
                self.metrics.reported(what, outcome);
                Ok(Response::new(response))
            }
            Err(why) => {
                self.metrics.reported(what, why.outcome());
                let status = why.status();
                tracing::debug!(?what, why = status.message(), "a report is not written");
                Err(status)
            }
        }
    }
}

fn component(name: &str) -> Result<&'static str, Unwritten> {
    let known = COMPONENTS.iter().find(|known| **known == name);
    known
        .copied()
        .ok_or_else(|| bad_field("component", format!("{name:?} is none of {COMPONENTS:?}")))
}

/// One word, as reasons and types of conditions are.
fn word(field: &str, text: &str) -> Result<(), Unwritten> {
    let letter =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if (1..=128).contains(&text.len()) && text.bytes().all(letter) {
        Ok(())
    } else {
        Err(bad_field(field, "is not one word of at most 128 letters"))
    }
}

/// As much of a text as may stand in the API server.
fn cut(text: &str, max: usize) -> String {
    let end = text
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8());
    let end = end.take_while(|end| *end <= max).last().unwrap_or_default();
    text.get(..end).unwrap_or_default().to_owned()
}

#[tonic::async_trait]
impl NodeReports for Door {
    async fn report_node(
        &self,
        request: Request<ReportNodeRequest>,
    ) -> Result<Response<ReportNodeResponse>, Status> {
        let answer = async {
            let caller = self.caller(&request)?;
            self.statements.take(&caller, request.into_inner()).await
        };
        let answer = Box::pin(answer).await;
        self.told(Report::Node, answer, ReportNodeResponse {})
    }

    async fn annotate_pod(
        &self,
        request: Request<AnnotatePodRequest>,
    ) -> Result<Response<AnnotatePodResponse>, Status> {
        let answer = async {
            let caller = self.caller(&request)?;
            self.pods.annotate(&caller, request.into_inner()).await
        };
        let answer = Box::pin(answer).await;
        self.told(Report::Annotation, answer, AnnotatePodResponse {})
    }

    async fn post_event(
        &self,
        request: Request<PostEventRequest>,
    ) -> Result<Response<PostEventResponse>, Status> {
        let answer = async {
            let caller = self.caller(&request)?;
            self.events.post(&caller, request.into_inner()).await
        };
        let answer = Box::pin(answer).await;
        self.told(Report::Event, answer, PostEventResponse {})
    }
}

#[cfg(test)]
mod tests {
    use super::{component, cut, word};

    #[test]
    fn text_is_cut_between_letters() {
        assert_eq!(cut("abc", 5), "abc");
        assert_eq!(cut("aüb", 2), "a");
        assert_eq!(cut("aüb", 3), "aü");
        assert_eq!(cut("", 3), "");
    }

    #[test]
    fn only_words_are_words_and_only_agents_speak() {
        assert!(word("reason", "AllocIPFailed").is_ok());
        for bad in ["", "two words", "ü", &"x".repeat(129)] {
            assert!(word("reason", bad).is_err(), "{bad}");
        }
        assert!(component("policy-agent").is_ok() && component("kubelet").is_err());
    }
}
