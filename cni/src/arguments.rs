//! What a person or the installer's container may ask of the binary. A runtime gives no arguments.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::version;

/// How it is used.
pub(crate) const USAGE: &str = "usage: terway install --to DIR | terway --version\n\
                                Without arguments it is a CNI plug-in, started by a runtime.";

/// What the binary was started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// A call of a runtime.
    Cni,
    /// Put the plug-in into this folder.
    Install(PathBuf),
    /// Say which version it is.
    Version,
}

/// What the arguments ask for; nothing where they are not understood.
pub(crate) fn parse(arguments: &[OsString]) -> Option<Task> {
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    match words.as_slice() {
        [] => Some(Task::Cni),
        [flag] if *flag == "--version" => Some(Task::Version),
        [verb, to, folder] if *verb == "install" && *to == "--to" && !folder.is_empty() => {
            Some(Task::Install(PathBuf::from(folder)))
        }
        [verb, to] if *verb == "install" => {
            let folder = to.to_str()?.strip_prefix("--to=")?;
            (!folder.is_empty()).then(|| Task::Install(PathBuf::from(folder)))
        }
        _ => None,
    }
}

/// Name, version, and what it speaks.
pub(crate) fn version() -> String {
    format!(
        "terway {} (CNI {})",
        env!("CARGO_PKG_VERSION"),
        version::names().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(words: &[&str]) -> Option<Task> {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&arguments)
    }

    #[test]
    fn no_argument_means_a_call_of_a_runtime() {
        assert_eq!(task(&[]), Some(Task::Cni));
    }

    #[test]
    fn folder_is_taken_in_both_forms() {
        let install = Some(Task::Install(PathBuf::from("/host/opt/cni/bin")));

        assert_eq!(task(&["install", "--to=/host/opt/cni/bin"]), install);
        assert_eq!(task(&["install", "--to", "/host/opt/cni/bin"]), install);
    }

    #[test]
    fn arguments_that_are_not_understood_are_nothing() {
        for words in [
            &["install"][..],
            &["install", "--to"],
            &["install", "--to="],
            &["install", "--to", ""],
            &["install", "--into=/x"],
            &["install", "--to=/x", "more"],
            &["ADD"],
        ] {
            assert_eq!(task(words), None, "{words:?}");
        }
    }
}
