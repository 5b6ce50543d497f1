//! The child processes by which the fabric speaks to the kernel: `ip -batch` and `nft -f`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::FabricError;
use crate::namespace::Namespace;

/// Longest run of one script, seconds. A script takes milliseconds; this only bounds a hang.
const LIMIT_SECONDS: u64 = 20;

/// Runs lines of `ip` commands (without the word `ip`) inside a namespace; stops at the first that fails.
pub async fn ip_batch(namespace: &Namespace, script: &str) -> Result<(), FabricError> {
    if script.is_empty() {
        return Ok(());
    }
    run(namespace, "ip", &["-batch", "-"], script).await?;
    Ok(())
}

/// Runs lines of `ip` commands and goes on after one that fails: for taking things away that may be gone.
pub async fn ip_batch_lenient(namespace: &Namespace, script: &str) -> Result<(), FabricError> {
    match run(namespace, "ip", &["-force", "-batch", "-"], script).await {
        Ok(_) | Err(FabricError::Refused { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

/// The JSON that `ip -json` prints for `args`.
pub async fn ip_json(namespace: &Namespace, args: &[&str]) -> Result<String, FabricError> {
    let mut all = vec!["-json"];
    all.extend_from_slice(args);
    run(namespace, "ip", &all, "").await
}

/// Runs an nft script as one transaction inside a namespace.
pub async fn nft(namespace: &Namespace, script: &str) -> Result<(), FabricError> {
    if script.is_empty() {
        return Ok(());
    }
    run(namespace, "nft", &["-f", "-"], script).await?;
    Ok(())
}

/// The JSON that `nft -j` prints for `args`.
pub async fn nft_json(namespace: &Namespace, args: &[&str]) -> Result<String, FabricError> {
    let mut all = vec!["-j"];
    all.extend_from_slice(args);
    run(namespace, "nft", &all, "").await
}

async fn run(
    namespace: &Namespace,
    program: &'static str,
    args: &[&str],
    script: &str,
) -> Result<String, FabricError> {
    let attempt = run_unbounded(namespace, program, args, script);
    match tokio::time::timeout(Duration::from_secs(LIMIT_SECONDS), attempt).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(FabricError::Hung {
            program,
            namespace: namespace.name().to_owned(),
            seconds: LIMIT_SECONDS,
        }),
    }
}

async fn run_unbounded(
    namespace: &Namespace,
    program: &'static str,
    args: &[&str],
    script: &str,
) -> Result<String, FabricError> {
    let entry = namespace.entry();
    let (first, rest) = entry.split_first().ok_or(FabricError::Stopped)?;
    let missing = |source| FabricError::Missing { program, source };
    let mut child = Command::new(first)
        .args(rest)
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that failed early has closed its input; its exit status says why.
        match stdin.write_all(script.as_bytes()).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(program, %error, "script was not read to its end"),
        }
    }
    let output = child
        .wait_with_output()
        .await
        .map_err(FabricError::io(format!("wait for {program}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(FabricError::Refused {
        program,
        namespace: namespace.name().to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        // What only looks has no script; its question is in its arguments.
        script: if script.is_empty() {
            args.join(" ")
        } else {
            script.to_owned()
        },
    })
}
