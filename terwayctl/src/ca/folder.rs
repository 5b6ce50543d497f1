//! The three files that services read: `ca.crt`, `tls.crt`, `tls.key`.
//!
//! A new certificate is written beside them first, into `.next`, and looked at as a service will; then its files take
//! their places one by one. Whoever finds `.next` at a start finishes that, so that a power cut between two of them
//! does not part a key from its certificate.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use mesh::ca::{CA_CERT, Issued, LEAF_CERT, LEAF_KEY};
use mesh::identity::Identity;
use mesh::tls::lifetime::Lifetime;
use mesh::tls::{TlsConfig, TlsMaterial};

/// Where a new certificate is until it is whole.
const NEXT: &str = ".next";

/// In this order: a service that reads in between finds a key that does not fit, and looks again.
const FILES: [&str; 3] = [CA_CERT, LEAF_KEY, LEAF_CERT];

/// A certificate that services can use now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose it is.
    pub identity: Identity,
    /// From when until when.
    pub life: Lifetime,
}

/// The folder that services look into.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens it; it is made if it is not there, for its owner only. What a former process left unfinished is finished
    /// or thrown away.
    ///
    /// # Errors
    /// When it can not be made or written to.
    pub fn open(path: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make {}", path.display()))?;
        let folder = Self {
            path: path.to_owned(),
        };
        folder.finish().context("finish what was begun")?;
        Ok(folder)
    }

    /// What is in it, if a service could use it now.
    pub fn held(&self) -> Option<Held> {
        held(&TlsConfig::in_dir(&self.path)).ok()
    }

    /// Puts a new certificate there, once it has been looked at.
    ///
    /// # Errors
    /// When it is not one that services could use, or a file can not be written: what was there stays.
    pub fn put(&self, issued: &Issued) -> Result<Held> {
        let next = self.next();
        issued.write(&next).context("write the certificate")?;
        let held = match held(&TlsConfig::in_dir(&next)) {
            Ok(held) => held,
            Err(error) => {
                remove(&next)?;
                return Err(error.context("the certificate that was issued can not be used"));
            }
        };
        self.finish()?;
        Ok(held)
    }

    /// The authorities that services trust; nothing where there is no file.
    pub fn trust(&self) -> Option<Vec<u8>> {
        fs::read(self.path.join(CA_CERT)).ok()
    }

    /// Whether the certificate would still be good if services trusted the authorities in `bundle`, a file.
    pub fn accepts(&self, bundle: &Path) -> bool {
        let config = TlsConfig {
            ca: bundle.to_owned(),
            ..TlsConfig::in_dir(&self.path)
        };
        held(&config).is_ok()
    }

    /// Makes services trust these authorities.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn put_trust(&self, pem: &[u8]) -> Result<()> {
        let fresh = self.path.join(format!(".{CA_CERT}.new"));
        write_private(&fresh, pem).with_context(|| format!("write {}", fresh.display()))?;
        let place = self.path.join(CA_CERT);
        fs::rename(&fresh, &place).with_context(|| format!("replace {}", place.display()))
    }

    /// Takes the certificate away: services must not use it.
    ///
    /// # Errors
    /// When a file can not be removed.
    pub fn discard(&self) -> Result<()> {
        for name in [LEAF_CERT, LEAF_KEY] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> PathBuf {
        self.path.join(NEXT)
    }

    /// Moves what lies in `.next` into place, if the whole is good then; else throws it away.
    fn finish(&self) -> Result<()> {
        let next = self.next();
        if !next.is_dir() {
            return Ok(());
        }
        // Some of its files may have been moved already.
        let newest = |name: &str| {
            let fresh = next.join(name);
            if fresh.is_file() {
                fresh
            } else {
                self.path.join(name)
            }
        };
        let whole = TlsConfig {
            ca: newest(CA_CERT),
            cert: newest(LEAF_CERT),
            key: newest(LEAF_KEY),
        };
        if held(&whole).is_ok() {
            for name in FILES {
                let (fresh, place) = (next.join(name), self.path.join(name));
                if fresh.is_file() {
                    fs::rename(&fresh, &place)
                        .with_context(|| format!("replace {}", place.display()))?;
                }
            }
            sync(&self.path)?;
        }
        remove(&next)
    }
}

/// Reads it as a service does.
fn held(config: &TlsConfig) -> Result<Held> {
    let material = TlsMaterial::load(config)?;
    let pem = fs::read(&config.cert).with_context(|| config.cert.display().to_string())?;
    let life = Lifetime::of_pem(&pem).context("the certificate has no time")?;
    Ok(Held {
        identity: material.identity(),
        life,
    })
}

/// What a service would make of the files in `dir`, and how long for.
///
/// # Errors
/// What is wrong with them, naming the file.
pub fn check(dir: &Path) -> Result<(Identity, SystemTime)> {
    let held = held(&TlsConfig::in_dir(dir))?;
    Ok((held.identity, held.life.not_after))
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

fn sync(dir: &Path) -> Result<()> {
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("sync {}", dir.display()))
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use mesh::ca::{Authority, Leaf};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    struct Bench {
        dir: tempfile::TempDir,
        authority: Authority,
    }

    impl Bench {
        fn new() -> Self {
            mesh::tls::install_provider();
            Self {
                dir: tempfile::tempdir().unwrap(),
                authority: Authority::new(DAY).unwrap(),
            }
        }

        fn out(&self) -> PathBuf {
            self.dir.path().join("tls")
        }

        fn issued(&self, instance: &str) -> Issued {
            let leaf = Leaf::new(&Identity::node("c1", instance), DAY);
            self.authority.issue(&leaf).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.out())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn instance(held: Option<Held>) -> String {
        held.unwrap()
            .identity
            .to_string()
            .rsplit_once('/')
            .unwrap()
            .1
            .to_owned()
    }

    #[test]
    fn certificate_is_put_for_its_owner_alone_and_nothing_is_left_over() {
        let bench = Bench::new();
        let folder = Folder::open(&bench.out()).unwrap();
        assert_eq!(folder.held(), None);

        folder.put(&bench.issued("i-1")).unwrap();
        folder.put(&bench.issued("i-2")).unwrap();

        assert_eq!(instance(folder.held()), "i-2");
        assert_eq!(bench.names(), ["ca.crt", "tls.crt", "tls.key"]);
        for name in bench.names() {
            let mode = fs::metadata(bench.out().join(&name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn certificate_that_services_could_not_use_is_not_put() {
        let bench = Bench::new();
        let folder = Folder::open(&bench.out()).unwrap();
        folder.put(&bench.issued("i-1")).unwrap();
        let stranger = Bench::new();

        let other_key = Issued {
            key: bench.issued("i-2").key,
            ..bench.issued("i-2")
        };
        let other_authority = Issued {
            ca: stranger.issued("i-2").ca,
            ..bench.issued("i-2")
        };

        for bad in [other_key, other_authority] {
            assert!(folder.put(&bad).is_err());
            assert_eq!(instance(folder.held()), "i-1");
            assert_eq!(bench.names(), ["ca.crt", "tls.crt", "tls.key"]);
        }
    }

    #[test]
    fn power_cut_at_any_point_leaves_a_certificate_with_its_own_key() {
        for moved in 0..=FILES.len() {
            let bench = Bench::new();
            let folder = Folder::open(&bench.out()).unwrap();
            folder.put(&bench.issued("i-1")).unwrap();
            bench.issued("i-2").write(&folder.next()).unwrap();
            for name in FILES.iter().take(moved) {
                fs::rename(folder.next().join(name), bench.out().join(name)).unwrap();
            }

            let again = Folder::open(&bench.out()).unwrap();

            assert_eq!(instance(again.held()), "i-2", "{moved} files moved");
            assert_eq!(bench.names(), ["ca.crt", "tls.crt", "tls.key"]);
        }
    }

    #[test]
    fn power_cut_while_the_new_one_is_written_leaves_the_old_one() {
        for written in 0..FILES.len() {
            let bench = Bench::new();
            let folder = Folder::open(&bench.out()).unwrap();
            folder.put(&bench.issued("i-1")).unwrap();
            bench.issued("i-2").write(&folder.next()).unwrap();
            for name in FILES.iter().skip(written) {
                fs::remove_file(folder.next().join(name)).unwrap();
            }

            let again = Folder::open(&bench.out()).unwrap();

            assert_eq!(instance(again.held()), "i-1", "{written} files written");
            assert_eq!(bench.names(), ["ca.crt", "tls.crt", "tls.key"]);
        }
    }

    #[test]
    fn trust_is_replaced_where_the_certificate_is_still_good() {
        let bench = Bench::new();
        let folder = Folder::open(&bench.out()).unwrap();
        folder.put(&bench.issued("i-1")).unwrap();
        let (both, other) = (
            bench.dir.path().join("both"),
            bench.dir.path().join("other"),
        );
        let stranger = Bench::new().authority.certificate().to_owned();
        fs::write(
            &both,
            format!("{}{stranger}", bench.authority.certificate()),
        )
        .unwrap();
        fs::write(&other, &stranger).unwrap();

        assert!(folder.accepts(&both));
        assert!(!folder.accepts(&other));
        folder.put_trust(&fs::read(&both).unwrap()).unwrap();

        assert_eq!(folder.trust(), Some(fs::read(&both).unwrap()));
        assert_eq!(instance(folder.held()), "i-1");
    }

    #[test]
    fn discarded_certificate_is_gone_and_the_trust_stays() {
        let bench = Bench::new();
        let folder = Folder::open(&bench.out()).unwrap();
        folder.put(&bench.issued("i-1")).unwrap();

        folder.discard().unwrap();
        folder.discard().unwrap();

        assert_eq!(bench.names(), ["ca.crt"]);
    }
}
