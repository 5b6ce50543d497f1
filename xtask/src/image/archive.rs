//! An image as one file, in the layout of `docker save`: a configuration, a layer, and a manifest that names both.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::image::layer::Layer;
use crate::image::tar::Tar;

/// An image that is ready to be written.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its whole name with tag.
    pub(crate) reference: String,
    /// Absolute path of the program that runs.
    pub(crate) entry: String,
    /// Its files.
    pub(crate) layer: Layer,
}

impl Image {
    /// Writes the archive under another name first, and says how large it is, in bytes.
    ///
    /// # Errors
    /// When something is too long for an archive, or the file can not be written.
    pub(crate) fn write(&self, path: &Path) -> Result<usize> {
        let archive = self.to_tar()?;
        let fresh = path.with_extension("tar.new");
        std::fs::write(&fresh, &archive).with_context(|| fresh.display().to_string())?;
        std::fs::rename(&fresh, path).with_context(|| path.display().to_string())?;
        Ok(archive.len())
    }

    /// The archive.
    ///
    /// Source: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
    pub(crate) fn to_tar(&self) -> Result<Vec<u8>> {
        let layer = self.layer.to_tar()?;
        let digest = sha256(&layer);
        let config = serde_json::to_vec(&self.config(&digest))?;
        let config_name = format!("{}.json", sha256(&config));
        let layer_name = format!("{digest}/layer.tar");
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.reference],
            "Layers": [layer_name],
        }]);
        let mut tar = Tar::default();
        tar.file(&config_name, 0o644, &config)?;
        tar.directory(&digest, 0o755)?;
        tar.file(&layer_name, 0o644, &layer)?;
        tar.file("manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
        Ok(tar.finish())
    }

    /// Source: OCI image specification, "Image Configuration".
    fn config(&self, layer: &str) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": [self.entry],
                "Env": ["PATH=/"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
        })
    }
}

/// The machine's, in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let nibbles = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles
        .filter_map(|nibble| char::from_digit(u32::from(nibble), 16))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_that_everybody_computes() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
