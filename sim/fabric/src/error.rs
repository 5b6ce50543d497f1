//! What can go wrong under the simulated VPC.

use std::io;

use types::cloud::{EniId, InstanceId};

/// Errors of the fabric, by what the caller does about them.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// Namespaces need root.
    #[error("the fabric makes network namespaces, which needs root (effective uid is {uid})")]
    NotRoot {
        /// Who we are instead.
        uid: u32,
    },
    /// A program that must be installed is not there.
    #[error("{program} is not installed: {source}")]
    Missing {
        /// Its name, such as `nft`.
        program: &'static str,
        /// What starting it said.
        source: io::Error,
    },
    /// The kernel refused; the text names the line.
    #[error("{program} in {namespace}: {stderr}; script:\n{script}")]
    Refused {
        /// Which program.
        program: &'static str,
        /// The namespace it ran in.
        namespace: String,
        /// What it wrote to standard error.
        stderr: String,
        /// What it was asked.
        script: String,
    },
    /// A program did not end in time.
    #[error("{program} in {namespace} did not end within {seconds} s")]
    Hung {
        /// Which program.
        program: &'static str,
        /// The namespace it ran in.
        namespace: String,
        /// How long it was given.
        seconds: u64,
    },
    /// An input or output error beside the above.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The instance has no namespace: call `add_instance` first.
    #[error("instance {instance} has no namespace in the fabric")]
    UnknownInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// The ENI is not plugged.
    #[error("ENI {eni} is not plugged into any instance")]
    NotPlugged {
        /// The ENI.
        eni: EniId,
    },
    /// `stop` was called.
    #[error("the fabric has stopped")]
    Stopped,
}

impl FabricError {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
