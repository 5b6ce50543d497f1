//! Arrows only go down: between packages by a table, between the modules of a package by having no cycle.
//!
//! Also checked: packages that only one place may depend on, packages nobody may bring in, and licences.

mod packages;
mod sources;

use std::process::ExitCode;

use anyhow::Result;

use crate::step::{root, say};

/// Checks the workspace and tells every breach.
pub(crate) fn run() -> Result<ExitCode> {
    let root = root()?;
    let mut breaches = packages::check(&packages::read(&root)?);
    let (files, arrows, more) = sources::check(&root)?;
    breaches.extend(more);
    if breaches.is_empty() {
        say(&format!(
            "layers: {files} files, {arrows} arrows between modules, none backwards"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    for breach in &breaches {
        say(&format!("layers: {breach}"));
    }
    Ok(ExitCode::FAILURE)
}
