//! Deletions that could not be delivered, written down for the agent.
//!
//! The format is [`types::journal`]'s: one file per attachment, whole once it has its name.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use types::journal::{Entry, UNFINISHED};

/// Writes an entry so that it survives a power cut.
///
/// # Errors
/// What the system says; nothing was promised then.
pub(crate) fn append(folder: &Path, entry: &Entry) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let name = entry.file_name();
    // Two runs for the same attachment must not write the same file.
    let unfinished = folder.join(format!("{name}.{}{UNFINISHED}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    serde_json::to_writer(&mut file, entry)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&unfinished, folder.join(name))?;
    File::open(folder)?.sync_all()
}
