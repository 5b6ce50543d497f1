//! The cluster as people speak to it: by kubectl.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::Instant;

/// How long one command may take that does not wait by itself.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Who we are to the API server, and where it is.
#[derive(Debug, Clone)]
pub struct Kube {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kube {
    /// Speaks as this kubeconfig says.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
        }
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl with these words; gives what it printed.
    ///
    /// # Errors
    /// With what it said, when it failed or took too long.
    pub async fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        self.feed(words, None, LIMIT).await
    }

    /// As [`Kube::run`], with a limit of its own.
    ///
    /// # Errors
    /// As for [`Kube::run`].
    pub async fn run_for(&self, words: &[&str], limit: Duration) -> anyhow::Result<String> {
        self.feed(words, None, limit).await
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// As for [`Kube::run`].
    pub async fn get(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend_from_slice(words);
        let text = self.run(&all).await?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// The items of a list.
    ///
    /// # Errors
    /// As for [`Kube::run`].
    pub async fn list(&self, words: &[&str]) -> anyhow::Result<Vec<Value>> {
        let mut list = self.get(words).await?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            Some(_) | None => bail!("kubectl get {words:?} gave no list"),
        }
    }

    /// `kubectl apply` of objects.
    ///
    /// # Errors
    /// As for [`Kube::run`].
    pub async fn apply(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.feed(&["apply", "-f", "-"], Some(&list), LIMIT).await?;
        Ok(())
    }

    /// `kubectl apply` of a text, such as a sample of the documentation.
    ///
    /// # Errors
    /// As for [`Kube::run`].
    pub async fn apply_text(&self, text: &str) -> anyhow::Result<()> {
        self.feed(&["apply", "-f", "-"], Some(text), LIMIT).await?;
        Ok(())
    }

    /// Looks until it succeeds; then the last error is the answer.
    ///
    /// # Errors
    /// That of the last look.
    pub async fn until<T>(
        &self,
        limit: Duration,
        look: impl AsyncFn(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + limit;
        loop {
            let error = match tokio::time::timeout_at(end, look(self)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("the look itself took too long"),
            };
            if Instant::now() + LOOK >= end {
                return Err(error.context(format!("not within {limit:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The command line for a child of one's own, such as a watch.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn feed(
        &self,
        words: &[&str],
        input: Option<&str>,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let mut command = self.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().context("start kubectl")?;
        let talk = async {
            if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let said = words.join(" ");
        let output = tokio::time::timeout(limit, talk)
            .await
            .with_context(|| format!("kubectl {said} took more than {limit:?}"))?
            .with_context(|| format!("kubectl {said}"))?;
        if !output.status.success() {
            bail!(
                "kubectl {said}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
