//! Starts the plug-in.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;

pub(crate) const NETNS: &str = "/var/run/netns/cni-test";

/// What the plug-in said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) succeeded: bool,
    pub(crate) output: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap()
    }

    /// Code and message of a failure; fails when it was none.
    pub(crate) fn failure(&self) -> (u64, String) {
        assert!(!self.succeeded, "{}", self.output);
        let json = self.json();
        (
            json["code"].as_u64().unwrap(),
            json["msg"].as_str().unwrap().to_owned(),
        )
    }
}

/// A call in the making: complete and right until something is changed.
pub(crate) struct Call {
    pub(crate) environment: BTreeMap<&'static str, String>,
    pub(crate) input: Vec<u8>,
}

/// A folder of its own, with the socket's place, the journal and the configuration.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::start(self.folder.path())
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    pub(crate) fn trace_file(&self) -> PathBuf {
        self.folder.path().join("spans.jsonl")
    }

    pub(crate) fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "terway",
            "type": "terway",
            "agent_socket": self.folder.path().join("agent.sock"),
            "del_journal": self.journal(),
        })
    }

    /// A call with `version` and whatever `change` does to the configuration.
    pub(crate) fn call(&self, verb: &str, version: &str, change: impl FnOnce(&mut Value)) -> Call {
        let mut conf = self.conf(version);
        change(&mut conf);
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "0a1b2c"),
            ("CNI_NETNS", NETNS),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;OTHER=x",
            ),
        ];
        Call {
            environment: environment.map(|(k, v)| (k, v.to_owned())).into(),
            input: serde_json::to_vec(&conf).unwrap(),
        }
    }
}

impl Call {
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.insert(name, value.to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.environment.remove(name);
        self
    }

    pub(crate) fn input(mut self, input: &[u8]) -> Self {
        self.input = input.to_vec();
        self
    }

    pub(crate) fn run(&self) -> Said {
        run(
            Path::new(env!("CARGO_BIN_EXE_terway")),
            &self.environment,
            &self.input,
        )
    }
}

/// Runs a plug-in, ours or another.
pub(crate) fn run(
    program: &Path,
    environment: &BTreeMap<&'static str, String>,
    input: &[u8],
) -> Said {
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A plug-in that refuses its environment does not read.
    drop(child.stdin.take().unwrap().write_all(input));
    let output = child.wait_with_output().unwrap();
    Said {
        succeeded: output.status.success(),
        output: String::from_utf8(output.stdout).unwrap(),
    }
}
