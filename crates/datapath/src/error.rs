//! Why kernel state could not be had, by what the caller does next.

use std::path::PathBuf;

use nix::errno::Errno;
use types::address::MacAddr;

/// A failed operation on the kernel.
///
/// No variant leaves the outcome open: netlink answers each request before the next step, and a
/// repeat finishes what a failed call left undone.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The network namespace does not exist (any more): nothing to set up.
    #[error("network namespace {path} does not exist")]
    NetnsGone {
        /// As it was given.
        path: PathBuf,
    },
    /// The path exists and is no network namespace: the caller's argument is wrong.
    #[error("{path} is not a network namespace")]
    NotANetns {
        /// As it was given.
        path: PathBuf,
    },
    /// No link has that hardware address (yet): wait for the hot plug.
    #[error("no link has the hardware address {mac}")]
    EniMissing {
        /// The ENI's.
        mac: MacAddr,
    },
    /// The pod already has an interface of that name which is not ours.
    #[error("the pod already has an interface {ifname} that was made by somebody else")]
    InterfaceTaken {
        /// Name inside the pod.
        ifname: String,
    },
    /// The kernel refused one operation.
    #[error("{op}: {errno}")]
    Refused {
        /// What was tried.
        op: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A setting under `/proc/sys` could not be written.
    #[error("setting {key}: {source}")]
    Setting {
        /// Path below `/proc/sys`.
        key: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tool that edits somebody else's firewall chain failed.
    #[error("{command}: {message}")]
    Command {
        /// What was run.
        command: String,
        /// What it wrote, cut.
        message: String,
    },
    /// The netlink socket itself failed: repeat.
    #[error("netlink {what}: {source}")]
    Socket {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel sent what could not be understood.
    #[error("netlink answer: {0}")]
    Garbled(String),
    /// The thread that did the work ended without an answer: look at the kernel, then repeat.
    #[error("the worker thread could not be started or ended early")]
    WorkerLost,
}
