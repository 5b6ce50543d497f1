//! The command's arguments and output.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::policy::agent::Agent;
use crate::policy::offline::Manifests;
use crate::policy::question::{End, Question};

/// Where the agent's door is when nobody says otherwise.
const SOCKET: &str = "/run/terway/policy.sock";

/// Says why flows are allowed or denied.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Why a flow is allowed or denied; exit code 1 when it is denied
    Explain {
        #[command(flatten)]
        question: Question,
        /// Answer from this folder (or file) of manifests alone, without an agent
        #[arg(long, value_name = "PATH")]
        manifests: Option<PathBuf>,
        #[command(flatten)]
        door: Door,
    },
    /// The policies that apply to a pod of this node, and their counters
    Pod {
        /// namespace/name
        #[arg(value_name = "POD")]
        pod: End,
        #[command(flatten)]
        door: Door,
    },
    /// What should be in the kernel against what is; exit code 1 when they differ
    Diff {
        #[command(flatten)]
        door: Door,
    },
    /// Follows the packets of one flow through the rules
    Trace {
        #[command(flatten)]
        question: Question,
        /// How long
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        #[command(flatten)]
        door: Door,
    },
    /// The newest flows that were denied at this node
    Denied {
        /// At most this many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        door: Door,
    },
    /// What the agent of this node does; exit code 1 when it is on and can not enforce
    Status {
        #[command(flatten)]
        door: Door,
    },
}

#[derive(Debug, clap::Args)]
struct Door {
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// Asks and prints; `false` where a shell should see a failure.
///
/// # Errors
/// What kept the question from an answer.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    if let What::Explain {
        question,
        manifests: Some(path),
        ..
    } = &args.what
    {
        return explain_offline(&Manifests::read(path)?, question, out);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(ask(&args.what, out))
}

async fn ask(what: &What, out: &mut dyn Write) -> Result<bool> {
    match what {
        What::Explain { question, door, .. } => {
            explain(&Agent::at(&door.socket), question, out).await
        }
        What::Pod { pod, door } => show_pod(&Agent::at(&door.socket), pod, out).await,
        What::Diff { door } => {
            let lines = Agent::at(&door.socket).diff().await?;
            for line in &lines {
                writeln!(out, "{line}")?;
            }
            writeln!(out, "{} differences", lines.len())?;
            Ok(lines.is_empty())
        }
        What::Trace {
            question,
            seconds,
            door,
        } => {
            let agent = Agent::at(&door.socket);
            let tell = |line: &str| Ok(writeln!(out, "{line}")?);
            agent.trace(question, *seconds, tell).await?;
            Ok(true)
        }
        What::Denied { limit, door } => denied(&Agent::at(&door.socket), *limit, out).await,
        What::Status { door } => status(&Agent::at(&door.socket), out).await,
    }
}

fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "DENIED" }
}

fn explain_offline(
    manifests: &Manifests,
    question: &Question,
    out: &mut dyn Write,
) -> Result<bool> {
    let (probe, decision) = manifests.decide(question)?;
    writeln!(out, "{probe}: {}", verdict(decision.allowed))?;
    for (name, side) in [("egress", &decision.egress), ("ingress", &decision.ingress)] {
        writeln!(out, "{name}: {}", verdict(side.allowed))?;
        for reason in &side.reasons {
            writeln!(out, "  {reason}")?;
        }
    }
    for problem in manifests.problems() {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(decision.allowed)
}

async fn explain(agent: &Agent, question: &Question, out: &mut dyn Write) -> Result<bool> {
    let answer = agent.explain(question).await?;
    let Question {
        source,
        destination,
        port,
        protocol,
        ..
    } = question;
    let protocol = protocol.word();
    writeln!(
        out,
        "{source} -> {destination} {protocol} {port}: {}",
        verdict(answer.allowed)
    )?;
    for reason in &answer.reasons {
        writeln!(out, "  {reason}")?;
    }
    facts(&answer.kernel, out)?;
    for difference in &answer.differences {
        writeln!(out, "DIFFERENCE: {difference}")?;
    }
    Ok(answer.allowed)
}

fn facts(facts: &[proto::policy::v1::KernelFact], out: &mut dyn Write) -> Result<()> {
    if !facts.is_empty() {
        writeln!(out, "kernel:")?;
    }
    for fact in facts {
        writeln!(
            out,
            "  {} ({} packets, {} bytes)",
            fact.what, fact.packets, fact.bytes
        )?;
    }
    Ok(())
}

async fn show_pod(agent: &Agent, pod: &End, out: &mut dyn Write) -> Result<bool> {
    let End::Pod { namespace, name } = pod else {
        bail!("POD: {pod} is not namespace/name");
    };
    let answer = agent.pod(namespace, name).await?;
    writeln!(out, "pod {namespace}/{name} uid {}", answer.uid)?;
    writeln!(
        out,
        "link {} addresses {}",
        answer.host_link,
        answer.ips.join(" ")
    )?;
    for (name, lines) in [("ingress", &answer.ingress), ("egress", &answer.egress)] {
        writeln!(out, "{name}:")?;
        for line in lines {
            writeln!(out, "  {line}")?;
        }
    }
    facts(&answer.kernel, out)?;
    Ok(true)
}

async fn denied(agent: &Agent, limit: u32, out: &mut dyn Write) -> Result<bool> {
    for flow in agent.denied(limit).await?.flows {
        writeln!(
            out,
            "{} {} ({}): {} -> {} {} {}, {} packets",
            flow.direction,
            flow.pod,
            flow.host_link,
            flow.source,
            flow.destination,
            flow.protocol,
            flow.port,
            flow.packets
        )?;
    }
    Ok(true)
}

async fn status(agent: &Agent, out: &mut dyn Write) -> Result<bool> {
    let s = agent.status().await?;
    let word = if s.enabled { "on" } else { "off" };
    writeln!(out, "policy: {word} {}", s.reason)?;
    writeln!(
        out,
        "in sync: {} (read {}, in the kernel {})",
        s.in_sync, s.seen, s.applied
    )?;
    writeln!(
        out,
        "cluster: {} pods, {} namespaces, {} policies",
        s.pods, s.namespaces, s.policies
    )?;
    writeln!(
        out,
        "node: {} pods, {} failed closed; {} chains, {} sets, {} members; {} transactions, {} revocations",
        s.local_pods,
        s.failed_closed,
        s.chains,
        s.sets,
        s.set_members,
        s.transactions,
        s.revocations
    )?;
    writeln!(out, "table: owned {}, persistent {}", s.owned, s.persistent)?;
    for problem in &s.problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(!s.enabled || s.in_sync && s.failed_closed == 0)
}
