//! The call as the environment states it.

use types::pod::AttachmentKey;

use crate::failure::{Failure, code};

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is the attachment as it should be?
    Check,
    /// Free what is not in use.
    Gc,
    /// Would an ADD succeed?
    Status,
    /// Which versions?
    Version,
}

impl Verb {
    /// As `CNI_COMMAND` has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Name of the span of such a call.
    pub(crate) fn span_name(self) -> &'static str {
        match self {
            Self::Add => "cni.ADD",
            Self::Del => "cni.DEL",
            Self::Check => "cni.CHECK",
            Self::Gc => "cni.GC",
            Self::Status => "cni.STATUS",
            Self::Version => "cni.VERSION",
        }
    }
}

const VERBS: [Verb; 6] = [
    Verb::Add,
    Verb::Del,
    Verb::Check,
    Verb::Gc,
    Verb::Status,
    Verb::Version,
];

/// Reads one variable. Empty counts as missing.
pub(crate) type Reader<'a> = &'a dyn Fn(&str) -> Option<String>;

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(code::INVALID_ENVIRONMENT, message)
}

/// `CNI_COMMAND`.
///
/// # Errors
/// Code 4, naming the variable.
pub(crate) fn verb(read: Reader<'_>) -> Result<Verb, Failure> {
    let text = read("CNI_COMMAND").ok_or_else(|| wrong("CNI_COMMAND is missing"))?;
    let known = VERBS.into_iter().find(|v| v.as_str() == text);
    known.ok_or_else(|| wrong(format!("CNI_COMMAND {text:?} is not a command")))
}

/// The attachment and the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub(crate) attachment: AttachmentKey,
    /// `CNI_NETNS`; may be empty for DEL.
    pub(crate) netns: String,
    /// From `CNI_ARGS`.
    pub(crate) pod: Pod,
}

/// What `CNI_ARGS` says; empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub(crate) namespace: String,
    /// `K8S_POD_NAME`.
    pub(crate) name: String,
    /// `K8S_POD_UID`.
    pub(crate) uid: String,
    /// `TRACEPARENT`.
    pub(crate) traceparent: String,
}

/// Reads and checks what ADD, DEL and CHECK need. A DEL needs neither the namespace nor the pod.
///
/// # Errors
/// Code 4, naming each variable that is missing, or the one that is wrong.
pub(crate) fn sandbox(verb: Verb, read: Reader<'_>) -> Result<Sandbox, Failure> {
    let mut missing = Vec::new();
    let mut required = |name: &'static str, needed: bool| {
        let value = read(name);
        if value.is_none() && needed {
            missing.push(name);
        }
        value.unwrap_or_default()
    };
    let del = verb == Verb::Del;
    let container = required("CNI_CONTAINERID", true);
    let netns = required("CNI_NETNS", !del);
    let ifname = required("CNI_IFNAME", true);
    if !missing.is_empty() {
        let list = missing.join(", ");
        let is = if missing.len() == 1 { "is" } else { "are" };
        return Err(wrong(format!("{list} {is} missing")));
    }
    let attachment = AttachmentKey::new(container, ifname).map_err(|e| wrong(e.to_string()))?;
    let pod = pod(&read("CNI_ARGS").unwrap_or_default())?;
    if !del {
        for (key, value) in [
            ("K8S_POD_NAMESPACE", &pod.namespace),
            ("K8S_POD_NAME", &pod.name),
        ] {
            if value.is_empty() {
                return Err(wrong(format!("CNI_ARGS: {key} is missing")));
            }
        }
    }
    Ok(Sandbox {
        attachment,
        netns,
        pod,
    })
}

/// Parses `CNI_ARGS`: `KEY=value;KEY=value`.
pub(crate) fn pod(args: &str) -> Result<Pod, Failure> {
    let mut pod = Pod::default();
    let mut ignore_unknown = false;
    let mut unknown = None;
    for pair in args.split(';').filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong(format!("CNI_ARGS: {pair:?} is not KEY=value")))?;
        match key {
            "IgnoreUnknown" => ignore_unknown = flag(value)?,
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            "TRACEPARENT" => value.clone_into(&mut pod.traceparent),
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            key => unknown = Some(key),
        }
    }
    match unknown {
        Some(key) if !ignore_unknown => Err(wrong(format!("CNI_ARGS: {key} is not known"))),
        _ => Ok(pod),
    }
}

fn flag(value: &str) -> Result<bool, Failure> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong(format!(
            "CNI_ARGS: IgnoreUnknown={value} is neither true nor false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_of_containerd_are_read() {
        let pod = pod(
            "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;FOO=bar",
        )
        .unwrap();

        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("default", "web-0", "u-1")
        );
    }

    #[test]
    fn unknown_arg_is_named_unless_it_may_be_ignored() {
        let message = |args| pod(args).unwrap_err().message;

        assert_eq!(message("FOO=1"), "CNI_ARGS: FOO is not known");
        assert_eq!(message("FOO"), "CNI_ARGS: \"FOO\" is not KEY=value");
        assert_eq!(
            message("IgnoreUnknown=perhaps"),
            "CNI_ARGS: IgnoreUnknown=perhaps is neither true nor false"
        );
    }
}
