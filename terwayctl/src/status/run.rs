//! The command's arguments, output and exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use crate::status::collect::{Which, collect};
use crate::status::judge::{is_healthy, judge};
use crate::status::print;
use crate::status::source::{ReadError, Source};

/// Exit code where nothing could be looked at.
const BLIND: u8 = 2;

/// Says whether the installation is healthy, and what to do if it is not. Exit code 0: healthy. 1: not. 2: it could not
/// be looked at.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration of the API server. Default: as kubectl finds it
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in it
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the release
    #[arg(long, short, value_name = "NAME", default_value = "kube-system")]
    namespace: String,
    /// Name of the release. Default: the one that is there
    #[arg(long, value_name = "NAME")]
    release: Option<String>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One screen
    Text,
    /// One object
    Json,
}

/// Looks, judges and prints.
///
/// # Errors
/// When the output can not be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(look(args, out))
}

async fn look(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let source = match Source::connect(args.kubeconfig.as_deref(), args.context.as_deref()).await {
        Ok(source) => source,
        Err(error) => {
            let what = format!("{error:#}");
            let todo = "say which cluster: --kubeconfig, or the variable KUBECONFIG";
            return blind(args, "NoKubeconfig", "configuration", &what, todo, out);
        }
    };
    let which = Which {
        namespace: args.namespace.clone(),
        release: args.release.clone(),
    };
    let picture = match collect(&source, &which).await {
        Ok(picture) => picture,
        Err(error) => {
            let what = error.to_string();
            let (name, todo) = match error {
                ReadError::Unreachable(_) => (
                    "ApiServerUnreachable",
                    "look whether the API server runs and can be reached from here, and at the address in the kubeconfig",
                ),
                ReadError::Refused { .. } => (
                    "ApiServerForbidden",
                    "use an account that may list deployments, statefulsets and daemonsets of the namespace",
                ),
            };
            return blind(args, name, source.server(), &what, todo, out);
        }
    };
    let lines = judge(&picture);
    match args.output {
        Output::Text => print::text(&picture, &lines, out)?,
        Output::Json => print::json(&picture, &lines, out)?,
    }
    Ok(if is_healthy(&lines) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Nothing could be looked at.
fn blind(
    args: &Args,
    name: &str,
    subject: &str,
    what: &str,
    todo: &str,
    out: &mut dyn Write,
) -> Result<ExitCode> {
    match args.output {
        Output::Text => writeln!(out, "{name}: {subject}: {what}\n  -> {todo}")?,
        Output::Json => {
            let line = json!({"name": name, "subject": subject, "what": what, "todo": todo});
            writeln!(out, "{}", json!({"healthy": null, "error": line}))?;
        }
    }
    Ok(ExitCode::from(BLIND))
}
