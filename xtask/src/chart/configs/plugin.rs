//! The CNI configuration is one that the plug-in takes: it then looks for the agent, and finds none.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::chart::{Rendered, title};

/// The file's key in `eni-config`.
const KEY: &str = "10-terway.conflist";
/// CNI's code for "try again later", which a missing agent is.
const TRY_AGAIN: u64 = 11;

/// Gives the file of each `eni-config` in the set to the plug-in.
pub(crate) fn check(set: &Rendered, bin: &Path, scratch: &Path) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for object in &set.objects {
        let data = object.get("data").and_then(|data| data.get(KEY));
        let Some(text) = data.and_then(Value::as_str) else {
            continue;
        };
        let list: Value = serde_json::from_str(text).context(KEY)?;
        let plugins = list.get("plugins").and_then(Value::as_array);
        let first = plugins.and_then(|plugins| plugins.first());
        let Some(mut ours) = first.and_then(Value::as_object).cloned() else {
            bail!("{}: {} has no plug-in", set.name, title(object));
        };
        for key in ["cniVersion", "name"] {
            ours.insert(key.to_owned(), list.get(key).cloned().unwrap_or_default());
        }
        // A socket of this machine must not be met by chance.
        ours.insert("agent_socket".to_owned(), json!(scratch.join("none.sock")));
        let answer = ask(bin, &Value::Object(ours))?;
        if answer.get("code").and_then(Value::as_u64) != Some(TRY_AGAIN) {
            breaches.push(format!("{}: {}: {KEY}: {answer}", set.name, title(object)));
        }
    }
    Ok(breaches)
}

fn ask(bin: &Path, configuration: &Value) -> Result<Value> {
    let mut plugin = Command::new(bin.join("terway"))
        .env_clear()
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "sandbox")
        .env("CNI_NETNS", "/run/netns/none")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", bin)
        .env(
            "CNI_ARGS",
            "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_POD_UID=c",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the plug-in")?;
    let mut input = plugin.stdin.take().context("no input")?;
    input
        .write_all(configuration.to_string().as_bytes())
        .context("tell the plug-in")?;
    drop(input);
    let out = plugin.wait_with_output().context("wait for the plug-in")?;
    serde_json::from_slice(&out.stdout).context("the plug-in's answer")
}
