//! The plug-in's configuration: written last, when the node can serve, and removed first when it leaves. kubelet
//! starts pods as soon as it finds the file.
//!
//! Terway's names and rule: `10-terway.conflist` wins over `10-terway.conf`, and what is written is a list, beside
//! which no older single configuration stays.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A list of plug-ins.
const LIST: &str = "10-terway.conflist";
/// A single plug-in.
const SINGLE: &str = "10-terway.conf";
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Name and version of a list that is made of a single configuration that names none; Terway's.
const NAME: &str = "terway-chainer";
const VERSION: &str = "0.4.0";

/// The configuration can not be read, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
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
    /// There is neither file.
    #[error("{} has neither {LIST} nor {SINGLE}", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// It is not a configuration of ours.
    #[error("{}: {why}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> ConflistError + 'a {
    move |source| ConflistError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Where it comes from, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// Folder of Terway's `eni-config`.
    pub source: PathBuf,
    /// Folder where the runtime looks.
    pub dir: PathBuf,
}

impl Conflist {
    /// Makes the file so, if it is not. Says whether it was changed.
    ///
    /// # Errors
    /// [`ConflistError`]; a file that was there is as it was.
    pub fn put(&self) -> Result<bool, ConflistError> {
        let text = self.text()?;
        let path = self.dir.join(LIST);
        let same = read(&path)?.is_some_and(|now| now == text);
        if !same {
            write(&path, &text)?;
        }
        // A single configuration from before would be found by runtimes that sort by other rules.
        let removed = remove(&self.dir.join(SINGLE))?;
        Ok(removed || !same)
    }

    /// Removes the file. Says whether there was one.
    ///
    /// # Errors
    /// [`ConflistError::Io`].
    pub fn take_away(&self) -> Result<bool, ConflistError> {
        let list = remove(&self.dir.join(LIST))?;
        let single = remove(&self.dir.join(SINGLE))?;
        Ok(list || single)
    }

    /// Whether the file is there.
    pub fn is_there(&self) -> bool {
        self.dir.join(LIST).exists()
    }

    /// What is to be written.
    fn text(&self) -> Result<String, ConflistError> {
        let list = self.source.join(LIST);
        if let Some(text) = read(&list)? {
            let document = parse(&list, &text)?;
            let plugins = document.get("plugins").and_then(Value::as_array);
            return match plugins {
                Some(plugins) if plugins.iter().any(is_ours) => Ok(text),
                Some(_) | None => Err(garbled(&list, "has no plug-in of type terway")),
            };
        }
        let single = self.source.join(SINGLE);
        let Some(text) = read(&single)? else {
            let folder = self.source.clone();
            return Err(ConflistError::Missing { folder });
        };
        let plugin = parse(&single, &text)?;
        if !is_ours(&plugin) {
            return Err(garbled(&single, "is not of type terway"));
        }
        let of = |key: &str, usual: &str| {
            let said = plugin.get(key).and_then(Value::as_str);
            said.unwrap_or(usual).to_owned()
        };
        let list = json!({
            "cniVersion": of("cniVersion", VERSION),
            "name": of("name", NAME),
            "plugins": [plugin],
        });
        Ok(format!("{list:#}\n"))
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some("terway")
}

fn garbled(path: &Path, why: impl Into<String>) -> ConflistError {
    ConflistError::Garbled {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn parse(path: &Path, text: &str) -> Result<Value, ConflistError> {
    serde_json::from_str(text).map_err(|error| garbled(path, error.to_string()))
}

fn read(path: &Path) -> Result<Option<String>, ConflistError> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => Err(garbled(path, "is larger than 1 MiB")),
        Ok(_) => std::fs::read_to_string(path)
            .map(Some)
            .map_err(io("read", path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn remove(path: &Path) -> Result<bool, ConflistError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io("remove", path)(error)),
    }
}

/// Under a name that runtimes pass over, durably, and then in place: nobody finds half of it.
fn write(path: &Path, text: &str) -> Result<(), ConflistError> {
    let fresh = path.with_file_name(".10-terway.fresh");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&fresh)
        .map_err(io("open", &fresh))?;
    file.write_all(text.as_bytes())
        .map_err(io("write", &fresh))?;
    file.sync_all().map_err(io("sync", &fresh))?;
    std::fs::rename(&fresh, path).map_err(io("put in place", path))?;
    if let Some(folder) = path.parent() {
        let opened = File::open(folder).map_err(io("open", folder))?;
        opened.sync_all().map_err(io("sync", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    struct Folders {
        _dir: tempfile::TempDir,
        conflist: Conflist,
    }

    fn folders(files: &[(&str, &str)]) -> Folders {
        let dir = tempfile::tempdir().unwrap();
        let conflist = Conflist {
            source: dir.path().join("eni"),
            dir: dir.path().join("net.d"),
        };
        std::fs::create_dir(&conflist.source).unwrap();
        std::fs::create_dir(&conflist.dir).unwrap();
        for (name, text) in files {
            std::fs::write(conflist.source.join(name), text).unwrap();
        }
        Folders {
            _dir: dir,
            conflist,
        }
    }

    const CHAIN: &str = r#"{"cniVersion":"1.0.0","name":"terway","plugins":[{"type":"terway"},{"type":"portmap"}]}"#;

    #[test]
    fn list_is_written_as_it_stands_and_only_when_it_differs() {
        let folders = folders(&[(LIST, CHAIN), (SINGLE, "{")]);
        let conflist = &folders.conflist;
        let path = conflist.dir.join(LIST);
        std::fs::write(conflist.dir.join(SINGLE), "old").unwrap();

        assert!(conflist.put().unwrap());
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert!(!conflist.put().unwrap());

        assert_eq!(std::fs::read_to_string(&path).unwrap(), CHAIN);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        let names: Vec<_> = std::fs::read_dir(&conflist.dir).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(conflist.take_away().unwrap());
        assert!(!conflist.is_there());
        assert!(!conflist.take_away().unwrap());
    }

    // Terway's documented 10-terway.conf.
    #[test]
    fn single_configuration_becomes_a_list() {
        let single =
            r#"{"cniVersion":"0.3.0","name":"terway","type":"terway","eniip_virtual_type":"Veth"}"#;
        let folders = folders(&[(SINGLE, single)]);

        folders.conflist.put().unwrap();

        let text = std::fs::read_to_string(folders.conflist.dir.join(LIST)).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["cniVersion"], "0.3.0");
        assert_eq!(list["name"], "terway");
        assert_eq!(list["plugins"][0]["eniip_virtual_type"], "Veth");
    }

    #[test]
    fn configuration_that_is_not_ours_is_refused_and_what_is_there_stays() {
        let other = r#"{"name":"x","plugins":[{"type":"bridge"}]}"#;
        for files in [&[(LIST, other)][..], &[(LIST, "{")], &[(SINGLE, "{}")], &[]] {
            let folders = folders(files);
            std::fs::write(folders.conflist.dir.join(LIST), CHAIN).unwrap();

            folders.conflist.put().unwrap_err();

            let kept = std::fs::read_to_string(folders.conflist.dir.join(LIST)).unwrap();
            assert_eq!(kept, CHAIN, "{files:?}");
        }
    }
}
