//! `terway install --to DIR`: puts this plug-in where kubelet looks for plug-ins.
//!
//! kubelet may start a plug-in at any time, so it is written under another name, synced, and renamed. One that is the
//! same already is left as it is, so that a restart of the DaemonSet changes nothing; other files are not touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the plug-in is called, in its folder and in CNI configurations ("type").
const NAME: &str = "terway";
/// What the names of unfinished copies begin and end with.
const UNFINISHED: (&str, &str) = (".terway-", ".new");
/// Age from which an unfinished copy is nobody's any more.
const ABANDONED: Duration = Duration::from_hours(1);
/// Everybody may start it.
const MODE: u32 = 0o755;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// There was none.
    Installed,
    /// There was another one: an older or newer one, or Terway's own, which has the same name.
    Replaced,
    /// It was there already.
    Unchanged,
}

impl Done {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Replaced => "installed in the place of another one",
            Self::Unchanged => "is there already",
        }
    }
}

/// It could not be installed; what was there still is.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub(crate) struct InstallError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { what, path, source }
}

/// Puts the plug-in `this` into `folder`, which must be there; gives its path.
///
/// # Errors
/// [`InstallError`], naming the file.
pub(crate) fn install(this: &Path, folder: &Path) -> Result<(PathBuf, Done), InstallError> {
    let ours = fs::read(this).map_err(failed("read", this))?;
    let place = folder.join(NAME);
    let before = read(&place).map_err(failed("read", &place))?;
    sweep(folder).map_err(failed("look into", folder))?;
    if before.as_ref().is_some_and(|before| before.is(&ours)) {
        return Ok((place, Done::Unchanged));
    }
    let (fresh, mut file) = create(folder).map_err(failed("make a file in", folder))?;
    let written = file
        .write_all(&ours)
        // Whatever the mask of this process.
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(MODE)))
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &fresh))
        .and_then(|()| fs::rename(&fresh, &place).map_err(failed("replace", &place)));
    if let Err(error) = written {
        // What is left over is swept away by a later run.
        drop(fs::remove_file(&fresh));
        return Err(error);
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed("sync", folder))?;
    let done = before.map_or(Done::Installed, |_| Done::Replaced);
    Ok((place, done))
}

/// What lies where the plug-in is to be.
struct Before {
    content: Vec<u8>,
    mode: u32,
    is_link: bool,
}

impl Before {
    fn is(&self, ours: &[u8]) -> bool {
        !self.is_link && self.mode & 0o7777 == MODE && self.content == ours
    }
}

fn read(place: &Path) -> io::Result<Option<Before>> {
    let metadata = match fs::symlink_metadata(place) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    if metadata.is_file() {
        File::open(place)?.read_to_end(&mut content)?;
    }
    Ok(Some(Before {
        content,
        mode: metadata.mode(),
        is_link: metadata.is_symlink(),
    }))
}

/// A file that nobody else writes: two pods of a DaemonSet may be here at a time, each as process 1.
fn create(folder: &Path) -> io::Result<(PathBuf, File)> {
    let (head, tail) = UNFINISHED;
    for number in 0..1000_u32 {
        let fresh = folder.join(format!("{head}{number}{tail}"));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&fresh);
        match made {
            Ok(file) => return Ok((fresh, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("a thousand unfinished copies lie there"))
}

/// Removes copies that somebody left unfinished long ago.
fn sweep(folder: &Path) -> io::Result<()> {
    let (head, tail) = UNFINISHED;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_unfinished = name
            .to_str()
            .is_some_and(|name| name.starts_with(head) && name.ends_with(tail));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_unfinished && age().is_some_and(|age| age > ABANDONED) {
            // Somebody else may have been quicker.
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        this: PathBuf,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let this = folder.path().join("plugin-in-the-image");
            fs::write(&this, "new plug-in").unwrap();
            fs::create_dir(folder.path().join("bin")).unwrap();
            Self { folder, this }
        }

        fn bin(&self) -> PathBuf {
            self.folder.path().join("bin")
        }

        fn install(&self) -> Done {
            let (place, done) = install(&self.this, &self.bin()).unwrap();
            assert_eq!(place, self.bin().join("terway"));
            assert_eq!(fs::read_to_string(&place).unwrap(), "new plug-in");
            let metadata = fs::symlink_metadata(&place).unwrap();
            assert!(metadata.is_file());
            assert_eq!(metadata.mode() & 0o7777, 0o755);
            done
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.bin())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn plugin_is_put_into_an_empty_folder_and_nothing_besides() {
        let bench = Bench::new();

        assert_eq!(bench.install(), Done::Installed);

        assert_eq!(bench.names(), ["terway"]);
    }

    #[test]
    fn plugin_that_is_there_is_left_alone() {
        let bench = Bench::new();
        bench.install();
        let place = bench.bin().join("terway");
        let before = fs::metadata(&place).unwrap().ino();

        assert_eq!(bench.install(), Done::Unchanged);

        assert_eq!(fs::metadata(&place).unwrap().ino(), before);
    }

    #[test]
    fn other_plugin_of_that_name_is_replaced_while_it_runs_and_others_stay() {
        let bench = Bench::new();
        fs::write(bench.bin().join("terway"), "old plug-in").unwrap();
        fs::write(bench.bin().join("portmap"), "portmap").unwrap();
        let mut running = File::open(bench.bin().join("terway")).unwrap();

        assert_eq!(bench.install(), Done::Replaced);

        let mut seen = String::new();
        running.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "old plug-in");
        assert_eq!(bench.names(), ["portmap", "terway"]);
    }

    #[test]
    fn plugin_that_nobody_may_start_is_replaced() {
        let bench = Bench::new();
        bench.install();
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(bench.bin().join("terway"), mode).unwrap();

        assert_eq!(bench.install(), Done::Replaced);
    }

    #[test]
    fn link_of_that_name_is_replaced_and_its_target_stays() {
        let bench = Bench::new();
        let target = bench.folder.path().join("elsewhere");
        fs::write(&target, "new plug-in").unwrap();
        std::os::unix::fs::symlink(&target, bench.bin().join("terway")).unwrap();

        assert_eq!(bench.install(), Done::Replaced);

        assert_eq!(fs::read_to_string(&target).unwrap(), "new plug-in");
    }

    #[test]
    fn unfinished_copy_of_somebody_else_stays_while_it_is_young() {
        let bench = Bench::new();
        let young = bench.bin().join(".terway-0.new");
        let old = bench.bin().join(".terway-1.new");
        fs::write(&young, "half").unwrap();
        let file = File::create(&old).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_hours(24))
            .unwrap();

        bench.install();

        assert_eq!(bench.names(), [".terway-0.new", "terway"]);
        assert_eq!(fs::read_to_string(&young).unwrap(), "half");
    }

    #[test]
    fn folder_in_the_place_of_the_plugin_is_named_and_nothing_is_left_over() {
        let bench = Bench::new();
        fs::create_dir(bench.bin().join("terway")).unwrap();

        let error = install(&bench.this, &bench.bin()).unwrap_err().to_string();

        assert!(
            error.starts_with("replace ") && error.contains("bin/terway"),
            "{error}"
        );
        assert_eq!(bench.names(), ["terway"]);
    }

    #[test]
    fn folder_that_is_not_there_is_named() {
        let bench = Bench::new();

        let error = install(&bench.this, Path::new("/nonexistent/bin")).unwrap_err();

        assert!(error.to_string().contains("/nonexistent/bin"), "{error}");
    }
}
