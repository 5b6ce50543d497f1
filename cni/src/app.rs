//! One call from beginning to end.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use proto::node::v1::{
    AddRequest, Attachment, CheckRequest, DelRequest, GcRequest, LinkOptions, PodRef, StatusRequest,
};
use proto::types::v1::Reason;
use serde_json::Value;
use types::journal::Entry;
use types::pod::{AttachmentKey, PodKey};

use crate::agent::{self, AgentError};
use crate::config::{self, NetConf};
use crate::environment::{self, Sandbox, Verb};
use crate::failure::{Failure, code};
use crate::trace::{self, Span};
use crate::version::{self, Version};
use crate::{journal, outcome};

/// Greatest configuration in bytes.
const MAX_INPUT: u64 = 1024 * 1024;

/// Longest ADD: the agent waits up to 60 s for a cold address, and says so itself when there is none.
const ADD_LIMIT: Duration = Duration::from_secs(65);
/// Longest DEL; after that it is written down.
const DEL_LIMIT: Duration = Duration::from_secs(20);
/// Longest CHECK.
const CHECK_LIMIT: Duration = Duration::from_secs(15);
/// Longest GC.
const GC_LIMIT: Duration = Duration::from_mins(1);
/// Longest STATUS.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// What goes back to the runtime.
#[derive(Debug)]
pub(crate) struct Reply {
    /// For standard output; may be empty.
    pub(crate) output: String,
    /// For the exit code.
    pub(crate) succeeded: bool,
}

/// Serves the call that this process was started for.
pub(crate) fn run() -> Reply {
    let mut version = version::NEWEST.to_owned();
    match serve(&mut version) {
        Ok(output) => Reply {
            output,
            succeeded: true,
        },
        Err(failure) => Reply {
            output: failure.to_json(&version),
            succeeded: false,
        },
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// `version` becomes what the runtime wrote, so that failures answer in it.
fn serve(version: &mut String) -> Result<String, Failure> {
    let verb = environment::verb(&variable)?;
    let mut input = Vec::new();
    std::io::stdin()
        .take(MAX_INPUT)
        .read_to_end(&mut input)
        .map_err(|e| {
            Failure::new(code::IO, "standard input can not be read").with(e.to_string())
        })?;
    if verb == Verb::Version && input.iter().all(u8::is_ascii_whitespace) {
        return Ok(outcome::versions(None));
    }
    let object = config::object(&input)?;
    let asked = object.get("cniVersion").and_then(Value::as_str);
    if let Some(asked) = asked {
        asked.clone_into(version);
    }
    if verb == Verb::Version {
        return Ok(outcome::versions(asked));
    }
    let conf = config::parse(&object)?;
    demand_version(verb, conf.version)?;
    let call = Call::new(verb, conf)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(code::IO, "no runtime").with(e.to_string()))?;
    runtime.block_on(call.run())
}

/// Source: CNI specification: CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn demand_version(verb: Verb, version: Version) -> Result<(), Failure> {
    let since = match verb {
        Verb::Add | Verb::Del | Verb::Version => Version::V030,
        Verb::Check => Version::V040,
        Verb::Gc | Verb::Status => Version::V110,
    };
    if version >= since {
        return Ok(());
    }
    Err(Failure::new(
        code::INCOMPATIBLE_VERSION,
        format!(
            "{} needs cniVersion {} or later, not {}",
            verb.as_str(),
            since.as_str(),
            version.as_str()
        ),
    ))
}

/// A call whose parts were all checked.
enum Task {
    Add(Sandbox),
    Del(Sandbox),
    Check(Sandbox, Vec<String>),
    Gc(Vec<AttachmentKey>),
    Status,
}

struct Call {
    conf: NetConf,
    task: Task,
    span: Span,
    trace_file: Option<PathBuf>,
}

impl Call {
    fn new(verb: Verb, conf: NetConf) -> Result<Self, Failure> {
        let task = match verb {
            Verb::Add => Task::Add(environment::sandbox(verb, &variable)?),
            Verb::Del => Task::Del(environment::sandbox(verb, &variable)?),
            Verb::Check => {
                let sandbox = environment::sandbox(verb, &variable)?;
                let ips = config::previous_ips(&conf, &sandbox.attachment.ifname)?;
                Task::Check(sandbox, ips)
            }
            Verb::Gc => Task::Gc(conf.valid.clone().ok_or_else(|| {
                let message =
                    "cni.dev/valid-attachments is missing, without which GC frees nothing";
                Failure::new(code::INVALID_CONFIG, message)
            })?),
            Verb::Status | Verb::Version => Task::Status,
        };
        let from_runtime = variable("TRACEPARENT").unwrap_or_default();
        let mut span = match task.sandbox() {
            Some(sandbox) => {
                Span::start(verb.span_name(), &[&from_runtime, &sandbox.pod.traceparent])
            }
            None => Span::start(verb.span_name(), &[&from_runtime]),
        };
        if let Some(sandbox) = task.sandbox() {
            span.record("k8s.namespace.name", &sandbox.pod.namespace);
            span.record("k8s.pod.name", &sandbox.pod.name);
            span.record("container.id", &sandbox.attachment.sandbox);
        }
        let trace_file = variable("TERWAY_TRACE_FILE")
            .map(PathBuf::from)
            .or_else(|| conf.trace_file.clone());
        Ok(Self {
            conf,
            task,
            span,
            trace_file,
        })
    }

    async fn run(self) -> Result<String, Failure> {
        let parent = self.span.traceparent();
        let result = match &self.task {
            Task::Add(sandbox) => add(&self.conf, sandbox, &parent).await,
            Task::Del(sandbox) => del(&self.conf, sandbox, &parent).await,
            Task::Check(sandbox, ips) => check(&self.conf, sandbox, ips, &parent).await,
            Task::Gc(valid) => gc(&self.conf, valid, &parent).await,
            Task::Status => status(&self.conf, &parent).await,
        };
        self.span.end(result.is_ok(), self.trace_file.as_deref());
        result
    }
}

impl Task {
    fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Self::Add(sandbox) | Self::Del(sandbox) | Self::Check(sandbox, _) => Some(sandbox),
            Self::Gc(_) | Self::Status => None,
        }
    }
}

fn attachment(key: &AttachmentKey) -> Attachment {
    Attachment {
        sandbox_id: key.sandbox.clone(),
        ifname: key.ifname.clone(),
    }
}

fn pod(sandbox: &Sandbox) -> PodRef {
    PodRef {
        namespace: sandbox.pod.namespace.clone(),
        name: sandbox.pod.name.clone(),
        uid: sandbox.pod.uid.clone(),
    }
}

fn link(conf: &NetConf) -> LinkOptions {
    LinkOptions {
        veth_prefix: conf.veth_prefix.clone(),
        mtu: conf.mtu,
    }
}

/// Whoever can not be reached may be later.
fn failure(error: AgentError) -> Failure {
    match error {
        AgentError::Refused(refusal) => refusal.failure(),
        error @ (AgentError::Absent { .. } | AgentError::Lost(_)) => {
            Failure::new(code::TRY_AGAIN, error.to_string())
        }
    }
}

async fn add(conf: &NetConf, sandbox: &Sandbox, parent: &str) -> Result<String, Failure> {
    let message = AddRequest {
        attachment: Some(attachment(&sandbox.attachment)),
        pod: Some(pod(sandbox)),
        netns: sandbox.netns.clone(),
        link: Some(link(conf)),
    };
    let request = agent::request(message, parent, ADD_LIMIT);
    let response = agent::call(&conf.agent_socket, ADD_LIMIT, |mut c| async move {
        c.add(request).await
    })
    .await
    .map_err(failure)?;
    Ok(outcome::add(conf, &response))
}

async fn del(conf: &NetConf, sandbox: &Sandbox, parent: &str) -> Result<String, Failure> {
    let message = DelRequest {
        attachment: Some(attachment(&sandbox.attachment)),
        pod: Some(pod(sandbox)),
        netns: sandbox.netns.clone(),
    };
    let request = agent::request(message, parent, DEL_LIMIT);
    let called = agent::call(&conf.agent_socket, DEL_LIMIT, |mut c| async move {
        c.del(request).await
    })
    .await;
    match called {
        Ok(_) => Ok(String::new()),
        // The call itself is wrong: writing it down would not make it right.
        Err(AgentError::Refused(refusal)) if refusal.reason == Reason::BadField => {
            Err(refusal.failure())
        }
        Err(error) => write_down(conf, sandbox, &error).map(|()| String::new()),
    }
}

/// A pod must be able to go while the agent can not help; the agent catches up.
fn write_down(conf: &NetConf, sandbox: &Sandbox, error: &AgentError) -> Result<(), Failure> {
    let named = !sandbox.pod.name.is_empty();
    let entry = Entry {
        attachment: sandbox.attachment.clone(),
        pod: named.then(|| PodKey::new(&sandbox.pod.namespace, &sandbox.pod.name)),
        netns: sandbox.netns.clone(),
        at_ms: u64::try_from(trace::now().as_millis()).unwrap_or(u64::MAX),
    };
    journal::append(&conf.del_journal, &entry).map_err(|e| {
        let folder = conf.del_journal.display();
        Failure::new(
            code::IO,
            format!("journal {folder} can not be written: {e}"),
        )
        .with(error.to_string())
    })
}

async fn check(
    conf: &NetConf,
    sandbox: &Sandbox,
    ips: &[String],
    parent: &str,
) -> Result<String, Failure> {
    let message = CheckRequest {
        attachment: Some(attachment(&sandbox.attachment)),
        pod: Some(pod(sandbox)),
        netns: sandbox.netns.clone(),
        link: Some(link(conf)),
        expected_ips: ips.to_vec(),
    };
    let request = agent::request(message, parent, CHECK_LIMIT);
    agent::call(&conf.agent_socket, CHECK_LIMIT, |mut c| async move {
        c.check(request).await
    })
    .await
    .map(|_| String::new())
    .map_err(failure)
}

async fn gc(conf: &NetConf, valid: &[AttachmentKey], parent: &str) -> Result<String, Failure> {
    let message = GcRequest {
        valid: valid.iter().map(attachment).collect(),
    };
    let request = agent::request(message, parent, GC_LIMIT);
    agent::call(&conf.agent_socket, GC_LIMIT, |mut c| async move {
        c.gc(request).await
    })
    .await
    .map(|_| String::new())
    .map_err(failure)
}

async fn status(conf: &NetConf, parent: &str) -> Result<String, Failure> {
    let request = agent::request(StatusRequest {}, parent, STATUS_LIMIT);
    agent::call(&conf.agent_socket, STATUS_LIMIT, |mut c| async move {
        c.status(request).await
    })
    .await
    .map(|_| String::new())
    .map_err(|error| Failure {
        code: code::NOT_AVAILABLE,
        ..failure(error)
    })
}
