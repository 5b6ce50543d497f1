//! The one layer of an image: files by path.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::image::tar::Tar;

/// Users of an image: root, the one under which the chart runs services that need nothing of the node, and nobody.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/:/sbin/nologin\n\
                      terway:x:65532:65532:terway:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nterway:x:65532:\n";
/// Names are looked up in /etc/hosts and by DNS: both parts are inside the C library.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Files that will be a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Layer {
    files: BTreeMap<String, File>,
}

#[derive(Debug, PartialEq, Eq)]
struct File {
    mode: u32,
    content: Vec<u8>,
}

impl Layer {
    /// Adds a file; its path has no slash in front. Folders come by themselves.
    pub(crate) fn add(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.files.insert(path.to_owned(), File { mode, content });
    }

    /// Adds what programs expect to know of users and names.
    pub(crate) fn add_identity(&mut self) {
        for (path, text) in [
            ("etc/passwd", PASSWD),
            ("etc/group", GROUP),
            ("etc/nsswitch.conf", NSSWITCH),
        ] {
            self.add(path, 0o644, text.into());
        }
    }

    /// Adds the certificates of public authorities, where every TLS library looks for them.
    pub(crate) fn add_roots(&mut self, pem: &[u8]) {
        self.add("etc/ssl/certs/ca-certificates.crt", 0o644, pem.to_vec());
    }

    /// The layer as an archive, sorted by path; folders are root's, mode 0755.
    ///
    /// # Errors
    /// When a path is too long or a file too large.
    pub(crate) fn to_tar(&self) -> Result<Vec<u8>> {
        let mut entries: BTreeMap<&str, Option<&File>> = BTreeMap::new();
        for (path, file) in &self.files {
            for (slash, _) in path.match_indices('/') {
                if let Some((folder, _)) = path.split_at_checked(slash) {
                    entries.insert(folder, None);
                }
            }
            entries.insert(path, Some(file));
        }
        let mut tar = Tar::default();
        for (path, entry) in entries {
            match entry {
                None => tar.directory(path, 0o755)?,
                Some(file) => tar.file(path, file.mode, &file.content)?,
            }
        }
        Ok(tar.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar::reading::entries;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut layer = Layer::default();
        layer.add("lib/x/libc.so.6", 0o755, Vec::new());
        layer.add("agent", 0o755, Vec::new());
        layer.add("lib/ld.so", 0o755, Vec::new());

        let tar = layer.to_tar().unwrap();

        let paths: Vec<String> = entries(&tar).into_iter().map(|e| e.path).collect();
        assert_eq!(
            paths,
            ["agent", "lib/", "lib/ld.so", "lib/x/", "lib/x/libc.so.6"]
        );
    }
}
