//! Who enforces policy on the nodes of a bed.

use serde_json::Value;

use crate::bed::agents::Agents;
use crate::bed::hand::{Hands, Manner};
use crate::bed::topology::{Node, Standing};

/// Which enforcer a bed gets.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Nobody: everything passes.
    Nobody,
    /// An agent process per node; the value is laid over its configuration.
    Agents(Value),
    /// The engine in this process, whose steps are written so.
    Hands(Manner),
}

/// Who enforces policy.
#[derive(Debug)]
pub enum Enforcer {
    /// Nobody.
    Nobody,
    /// An agent process per node.
    Agents(Box<Agents>),
    /// The engine in this process.
    Hands(Box<Hands>),
}

impl Enforcer {
    /// Starts it.
    ///
    /// # Errors
    /// What did not start.
    pub async fn start(kind: &Kind, nodes: &[Node]) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Nobody => Self::Nobody,
            Kind::Agents(overrides) => {
                Self::Agents(Box::new(Agents::start(nodes, overrides).await?))
            }
            Kind::Hands(manner) => Self::Hands(Box::new(Hands::start(nodes, *manner).await?)),
        })
    }

    /// Makes documents the whole of the cluster.
    ///
    /// # Errors
    /// What was refused.
    #[expect(
        clippy::unused_async,
        reason = "like the rest of an enforcer: who takes documents in may have to wait"
    )]
    pub async fn publish(&mut self, documents: &[Value]) -> anyhow::Result<()> {
        match self {
            Self::Nobody => {}
            Self::Agents(agents) => agents.publish(documents),
            Self::Hands(hands) => hands.publish(documents),
        }
        Ok(())
    }

    /// Waits until what was published is in every node's kernel.
    ///
    /// # Errors
    /// A node did not come so far.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::Agents(agents) => agents.settle().await,
            Self::Hands(hands) => hands.settle(),
        }
    }

    /// A pod's link stands: returns when its policy is in force.
    ///
    /// # Errors
    /// The gate refuses.
    pub async fn ready(&mut self, pod: &Standing) -> anyhow::Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::Agents(agents) => agents.ready(pod).await.map(drop),
            Self::Hands(hands) => hands.ready(pod),
        }
    }

    /// A pod's attachment ends.
    ///
    /// # Errors
    /// What was refused.
    pub async fn release(&mut self, pod: &Standing) -> anyhow::Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::Agents(agents) => agents.release(pod).await,
            Self::Hands(hands) => hands.release(pod),
        }
    }
}
