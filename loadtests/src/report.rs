//! What a person reads.

use std::process::ExitCode;

/// Prints a line of the result.
#[expect(clippy::print_stdout, reason = "the result is the product")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Says why there is no result.
#[expect(clippy::print_stderr, reason = "a person waits for it")]
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("loadtests: {error:#}");
    ExitCode::FAILURE
}
