//! The attachments of this node, in a small file: a restart of the agent opens and closes nothing.
//!
//! node-agent says them again when it starts; until then, and without it, the file is what is known of
//! links, namespaces and addresses that no API object carries.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use policy_core::plan::Target;
use serde::{Deserialize, Serialize};
use types::pod::{AttachmentKey, PodKey};

/// Name of the file below the state folder.
pub const FILE: &str = "policy-attachments.json";
/// Version of the format.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes: some thousand attachments have a megabyte.
const MAX_BYTES: u64 = 64 << 20;

/// One attachment of a pod to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Sandbox and interface: what a release names.
    pub attachment: AttachmentKey,
    /// The pod.
    pub pod: PodKey,
    /// UID of the pod; empty when the runtime did not say.
    pub uid: String,
    /// The host-side link; empty when the pod's link is in its own namespace alone.
    pub host_link: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

impl Attached {
    /// The pod's own namespace, if that is where its rules stand.
    pub fn own_namespace(&self) -> Option<Target> {
        self.host_link
            .is_empty()
            .then(|| Target::Namespace(self.netns.as_str().into()))
    }
}

/// The list could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentsError {
    /// A call of the system failed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what we wrote.
    #[error("{}: {why}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    attached: Vec<Attached>,
}

/// The list, in memory and in the file. Every change is on the disk before it returns.
#[derive(Debug)]
pub struct Attachments {
    path: PathBuf,
    all: BTreeMap<AttachmentKey, Attached>,
}

impl Attachments {
    /// Reads the file below `folder`; without one the list is empty. Makes the folder.
    ///
    /// # Errors
    /// [`AttachmentsError`]. A file that is not ours is never written over: somebody should look at it.
    pub fn open(folder: &Path) -> Result<Self, AttachmentsError> {
        std::fs::create_dir_all(folder).map_err(io("make folder", folder))?;
        let path = folder.join(FILE);
        let mut all = BTreeMap::new();
        if let Some(text) = read(&path)? {
            let garbled = |why: String| AttachmentsError::Garbled {
                path: path.clone(),
                why,
            };
            let document: Document =
                serde_json::from_slice(&text).map_err(|e| garbled(e.to_string()))?;
            if document.version != VERSION {
                return Err(garbled(format!("version {} is unknown", document.version)));
            }
            for attached in document.attached {
                all.insert(attached.attachment.clone(), attached);
            }
        }
        Ok(Self { path, all })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Attached> {
        self.all.values()
    }

    /// One.
    pub fn get(&self, attachment: &AttachmentKey) -> Option<&Attached> {
        self.all.get(attachment)
    }

    /// The one in force under a host-side link, if there is one.
    pub fn on_link(&self, link: &str) -> Option<&Attached> {
        self.all
            .values()
            .find(|a| !link.is_empty() && a.host_link == link)
    }

    /// Adds or replaces one. Another one under the same host-side link is over: the link's name is the pod's, and
    /// a pod has one sandbox at a time. Returns what went for it.
    ///
    /// # Errors
    /// [`AttachmentsError::Io`]; the list is then as before.
    pub fn insert(&mut self, attached: Attached) -> Result<Vec<Attached>, AttachmentsError> {
        if self.all.get(&attached.attachment) == Some(&attached) {
            return Ok(Vec::new());
        }
        let mut next = self.all.clone();
        let over: Vec<AttachmentKey> = next
            .values()
            .filter(|a| !a.host_link.is_empty() && a.host_link == attached.host_link)
            .filter(|a| a.attachment != attached.attachment)
            .map(|a| a.attachment.clone())
            .collect();
        let gone = over.iter().filter_map(|key| next.remove(key)).collect();
        next.insert(attached.attachment.clone(), attached);
        self.replace(next)?;
        Ok(gone)
    }

    /// Takes one out and returns it.
    ///
    /// # Errors
    /// [`AttachmentsError::Io`]; the list is then as before.
    pub fn remove(
        &mut self,
        attachment: &AttachmentKey,
    ) -> Result<Option<Attached>, AttachmentsError> {
        if !self.all.contains_key(attachment) {
            return Ok(None);
        }
        let mut next = self.all.clone();
        let gone = next.remove(attachment);
        self.replace(next)?;
        Ok(gone)
    }

    /// Makes the list exactly this one. Returns what went.
    ///
    /// # Errors
    /// [`AttachmentsError::Io`]; the list is then as before.
    pub fn restore(&mut self, list: Vec<Attached>) -> Result<Vec<Attached>, AttachmentsError> {
        let next: BTreeMap<_, _> = list
            .into_iter()
            .map(|a| (a.attachment.clone(), a))
            .collect();
        let gone = self
            .all
            .values()
            .filter(|a| !next.contains_key(&a.attachment))
            .cloned()
            .collect();
        if next != self.all {
            self.replace(next)?;
        }
        Ok(gone)
    }

    fn replace(&mut self, next: BTreeMap<AttachmentKey, Attached>) -> Result<(), AttachmentsError> {
        write(&self.path, next.values().cloned().collect())?;
        self.all = next;
        Ok(())
    }
}

fn io<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> AttachmentsError + 'a {
    move |source| AttachmentsError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, AttachmentsError> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => Err(AttachmentsError::Garbled {
            path: path.to_owned(),
            why: format!("{} bytes are too many", found.len()),
        }),
        Ok(_) => std::fs::read(path).map(Some).map_err(io("read", path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// Writes a new file, makes it durable, and puts it in the old one's place: a reader finds one of the two, whole.
fn write(path: &Path, attached: Vec<Attached>) -> Result<(), AttachmentsError> {
    let document = Document {
        version: VERSION,
        attached,
    };
    let text = serde_json::to_vec(&document).map_err(|e| AttachmentsError::Garbled {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(io("open", &fresh))?;
    file.write_all(&text).map_err(io("write", &fresh))?;
    file.sync_all().map_err(io("sync", &fresh))?;
    std::fs::rename(&fresh, path).map_err(io("put in place", path))?;
    if let Some(folder) = path.parent() {
        let folder_file = File::open(folder).map_err(io("open", folder))?;
        folder_file.sync_all().map_err(io("sync", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(sandbox: &str, link: &str) -> Attached {
        Attached {
            attachment: AttachmentKey::new(sandbox, "eth0").unwrap(),
            pod: PodKey::new("x", "a"),
            uid: "u1".to_owned(),
            host_link: link.to_owned(),
            netns: "/run/netns/a".to_owned(),
            ips: vec!["10.0.0.5".parse().unwrap()],
        }
    }

    #[test]
    fn list_is_the_same_after_it_was_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path()).unwrap();

        list.insert(attached("s1", "cali1")).unwrap();
        list.insert(attached("s2", "")).unwrap();
        list.remove(&AttachmentKey::new("s2", "eth0").unwrap())
            .unwrap();

        let again = Attachments::open(dir.path()).unwrap();
        let all: Vec<_> = again.iter().cloned().collect();
        assert_eq!(all, [attached("s1", "cali1")]);
    }

    #[test]
    fn successor_under_the_same_link_ends_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path()).unwrap();
        list.insert(attached("old", "cali1")).unwrap();

        let gone = list.insert(attached("new", "cali1")).unwrap();

        assert_eq!(gone, [attached("old", "cali1")]);
        let on_link = list.on_link("cali1").unwrap();
        assert_eq!(on_link.attachment.sandbox, "new");
    }

    #[test]
    fn late_removal_of_an_old_sandbox_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path()).unwrap();
        list.insert(attached("old", "cali1")).unwrap();
        list.insert(attached("new", "cali1")).unwrap();

        let gone = list
            .remove(&AttachmentKey::new("old", "eth0").unwrap())
            .unwrap();

        assert_eq!(gone, None);
        assert!(list.on_link("cali1").is_some());
    }

    #[test]
    fn garbled_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", r#"{"version":2,"attached":[]}"#, "[]"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();

            let error = Attachments::open(dir.path()).unwrap_err();

            assert!(matches!(error, AttachmentsError::Garbled { .. }), "{text}");
            let kept = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
            assert_eq!(kept, text);
        }
    }

    #[test]
    fn restore_says_what_went() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path()).unwrap();
        list.insert(attached("s1", "cali1")).unwrap();

        let gone = list.restore(vec![attached("s2", "cali2")]).unwrap();

        assert_eq!(gone, [attached("s1", "cali1")]);
        assert_eq!(list.iter().count(), 1);
    }
}
