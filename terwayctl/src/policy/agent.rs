//! Asks the agent of a node, on its unix socket.

use std::path::Path;

use anyhow::{Context as _, Result};
use mesh::client::{Channel, Params};
use proto::policy::v1::policies_client::PoliciesClient;
use proto::policy::v1::{
    DeniedRequest, DeniedResponse, DiffRequest, ExplainRequest, ExplainResponse, ShowPodRequest,
    ShowPodResponse, StatusRequest, StatusResponse, TraceRequest,
};

use crate::policy::question::{End, Question};

/// A connection to one agent.
#[derive(Debug)]
pub struct Agent {
    socket: String,
    channel: Channel,
}

impl Agent {
    /// Connects when it is asked something.
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.display().to_string(),
            channel: Channel::unix(socket, &Params::default()),
        }
    }

    fn client(&self) -> PoliciesClient<Channel> {
        PoliciesClient::new(self.channel.clone())
    }

    fn named(&self) -> String {
        format!("policy-agent at {}", self.socket)
    }

    /// Why the flow is allowed or denied.
    pub async fn explain(&self, question: &Question) -> Result<ExplainResponse> {
        let answer = self
            .client()
            .explain(ExplainRequest {
                source: word(&question.source),
                destination: word(&question.destination),
                protocol: question.protocol.word().to_owned(),
                port: question.port.clone(),
                family: question.family.unwrap_or_default(),
            })
            .await
            .map_err(|e| said(&e))
            .with_context(|| self.named())?;
        Ok(answer.into_inner())
    }

    /// The policies of one pod.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<ShowPodResponse> {
        let request = ShowPodRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let answer = self.client().show_pod(request).await;
        let answer = answer.map_err(|e| said(&e)).with_context(|| self.named())?;
        Ok(answer.into_inner())
    }

    /// Differences between what should be in the kernel and what is.
    pub async fn diff(&self) -> Result<Vec<String>> {
        let answer = self.client().diff(DiffRequest {}).await;
        let answer = answer.map_err(|e| said(&e)).with_context(|| self.named())?;
        Ok(answer.into_inner().lines)
    }

    /// What the agent does.
    pub async fn status(&self) -> Result<StatusResponse> {
        let answer = self.client().status(StatusRequest {}).await;
        let answer = answer.map_err(|e| said(&e)).with_context(|| self.named())?;
        Ok(answer.into_inner())
    }

    /// The newest denied flows.
    pub async fn denied(&self, limit: u32) -> Result<DeniedResponse> {
        let answer = self.client().denied(DeniedRequest { limit }).await;
        let answer = answer.map_err(|e| said(&e)).with_context(|| self.named())?;
        Ok(answer.into_inner())
    }

    /// Hands every line of a trace to `tell` until the time is over.
    pub async fn trace(
        &self,
        question: &Question,
        seconds: u32,
        mut tell: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let request = TraceRequest {
            source: word(&question.source),
            destination: word(&question.destination),
            protocol: question.protocol.word().to_owned(),
            port: question.port.clone(),
            seconds,
        };
        let mut client = PoliciesClient::new(self.channel.clone().without_deadline());
        let answer = client.trace(request).await;
        let mut lines = answer
            .map_err(|e| said(&e))
            .with_context(|| self.named())?
            .into_inner();
        while let Some(event) = lines.message().await.map_err(|e| said(&e))? {
            tell(&event.line)?;
        }
        Ok(())
    }
}

/// The agent knows its own node by name.
fn word(end: &End) -> String {
    end.to_string()
}

fn said(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
