//! Deletions that the CNI plug-in could not deliver, for the node-agent to make up for.
//!
//! A folder holds one file per attachment, named by [`Entry::file_name`], with one JSON object
//! in it. The plug-in writes a file beside it (ending in [`UNFINISHED`]), syncs it, renames it, and
//! syncs the folder: a file with the final name is whole. The agent carries the deletion out, which
//! may be repeated, and then removes the file. Writing an entry that is there already replaces it
//! by the same.

use serde::{Deserialize, Serialize};

use crate::pod::{AttachmentKey, PodKey};

/// Where the journal is unless somebody says otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/terway/del-journal";

/// End of the names of entries.
pub const SUFFIX: &str = ".json";

/// End of the names of files that are being written, or were when the plug-in died. They mean nothing:
/// the runtime was not answered and repeats its call.
pub const UNFINISHED: &str = ".tmp";

/// A deletion that was promised to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which attachment is gone.
    pub attachment: AttachmentKey,
    /// The pod, if the runtime named it. For people: it decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// Path of the network namespace; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// When, in milliseconds since 1970 by the node's clock.
    pub at_ms: u64,
}

impl Entry {
    /// Name of the entry's file in the folder.
    pub fn file_name(&self) -> String {
        // Neither part holds a '/', and a sandbox id holds no '@'.
        let AttachmentKey { sandbox, ifname } = &self.attachment;
        format!("{sandbox}@{ifname}{SUFFIX}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_different_attachments_have_different_files() {
        let entry = |sandbox, ifname| Entry {
            attachment: AttachmentKey::new(sandbox, ifname).unwrap(),
            pod: None,
            netns: String::new(),
            at_ms: 0,
        };

        assert_eq!(entry("a1", "eth0").file_name(), "a1@eth0.json");
        assert_ne!(
            entry("a1", "eth0").file_name(),
            entry("a", "1@eth0").file_name()
        );
    }
}
