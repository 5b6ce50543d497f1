//! Access keys from files, read again when they change.
//!
//! A directory as a Kubernetes secret is mounted: `access-key-id`, `access-key-secret`, and `security-token` for
//! temporary keys. Nothing here prints a secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ecs_api::sign::Credentials;
use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// File with the AccessKey id.
pub const FILE_ID: &str = "access-key-id";
/// File with the AccessKey secret.
pub const FILE_SECRET: &str = "access-key-secret";
/// File with the session token of temporary keys; absent with lasting ones.
pub const FILE_TOKEN: &str = "security-token";

/// The link under which a secret's mount holds its files: all of them change in one step behind it.
const MOUNT_LINK: &str = "..data";

/// The files hold no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file or the directory cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is empty, or holds what no header can.
    #[error("{path}: {why}", path = path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// The credentials in a directory.
#[derive(Debug)]
pub struct CredentialFiles {
    dir: PathBuf,
    every: Duration,
    current: ArcSwap<Credentials>,
    looked: Mutex<Instant>,
    metrics: Arc<Metrics>,
}

impl CredentialFiles {
    /// Reads the files; looks at them again after `every` when somebody asks.
    pub async fn open(
        dir: &Path,
        every: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, CredentialError> {
        let first = read_aside(dir).await?;
        Ok(Self {
            dir: dir.to_owned(),
            every,
            current: ArcSwap::from_pointee(first),
            looked: Mutex::new(Instant::now()),
            metrics,
        })
    }

    /// The credentials to sign with.
    pub async fn current(&self) -> Arc<Credentials> {
        // Whoever finds the lock taken uses what is there: one look at a time is enough.
        if let Ok(mut looked) = self.looked.try_lock()
            && looked.elapsed() >= self.every
        {
            self.look().await;
            *looked = Instant::now();
        }
        self.current.load_full()
    }

    /// The cloud refused `used`. Looks at the files at once; whether there are other credentials now.
    pub async fn renewed_since(&self, used: &Credentials) -> bool {
        let mut looked = self.looked.lock().await;
        if same(&self.current.load(), used) {
            self.look().await;
            *looked = Instant::now();
        }
        drop(looked);
        !same(&self.current.load(), used)
    }

    async fn look(&self) {
        match read_aside(&self.dir).await {
            Ok(read) if same(&self.current.load(), &read) => {}
            Ok(read) => {
                tracing::info!(access_key_id = read.access_key_id, "other credentials read");
                self.current.store(Arc::new(read));
                self.metrics.credentials(true);
            }
            // The old ones may well be good for longer than the files are broken.
            Err(error) => {
                tracing::warn!(%error, "credentials kept, their files cannot be read");
                self.metrics.credentials(false);
            }
        }
    }
}

fn same(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id == b.access_key_id && a.secret() == b.secret() && a.token() == b.token()
}

/// Whether the directory holds credentials.
pub fn check(dir: &Path) -> Result<(), CredentialError> {
    read(dir).map(drop)
}

async fn read_aside(dir: &Path) -> Result<Credentials, CredentialError> {
    let owned = dir.to_owned();
    let read = tokio::task::spawn_blocking(move || read(&owned)).await;
    read.unwrap_or_else(|stopped| {
        Err(CredentialError::Unreadable {
            path: dir.to_owned(),
            source: std::io::Error::other(stopped),
        })
    })
}

fn read(dir: &Path) -> Result<Credentials, CredentialError> {
    // Behind the link the three files are of one age.
    let from = fs::canonicalize(dir.join(MOUNT_LINK)).unwrap_or_else(|_| dir.to_owned());
    let id = read_file(&from.join(FILE_ID))?;
    let secret = read_file(&from.join(FILE_SECRET))?;
    let token = match read_file(&from.join(FILE_TOKEN)) {
        Ok(token) => Some(SecretString::from(token)),
        Err(CredentialError::Unreadable { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            None
        }
        Err(error) => return Err(error),
    };
    Ok(Credentials {
        access_key_id: id,
        access_key_secret: SecretString::from(secret),
        security_token: token,
    })
}

fn read_file(path: &Path) -> Result<String, CredentialError> {
    let text = fs::read_to_string(path).map_err(|source| CredentialError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim();
    let malformed = |why| CredentialError::Malformed {
        path: path.to_owned(),
        why,
    };
    if text.is_empty() {
        return Err(malformed("the file is empty"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed("only printable ASCII without spaces is allowed"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_hours(1);

    fn write(dir: &Path, id: &str, secret: &str) {
        fs::write(dir.join(FILE_ID), id).unwrap();
        fs::write(dir.join(FILE_SECRET), secret).unwrap();
    }

    async fn open(dir: &Path, every: Duration) -> CredentialFiles {
        CredentialFiles::open(dir, every, Arc::new(Metrics::default()))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn keys_are_read_without_their_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "id-1\n", "hush\n");

        let current = open(dir.path(), NEVER).await.current().await;

        assert_eq!(current.access_key_id, "id-1");
        assert_eq!((current.secret(), current.token()), ("hush", None));
    }

    #[tokio::test]
    async fn missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();

        let error = CredentialFiles::open(dir.path(), NEVER, Arc::new(Metrics::default()))
            .await
            .unwrap_err();

        let text = error.to_string();
        assert!(text.contains(FILE_ID), "{text}");
    }

    #[tokio::test]
    async fn changed_files_are_read_when_they_are_due() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "id-1", "hush");
        let files = open(dir.path(), Duration::ZERO).await;

        write(dir.path(), "id-2", "hush2");

        assert_eq!(files.current().await.access_key_id, "id-2");
    }

    #[tokio::test]
    async fn refused_keys_are_looked_up_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "id-1", "hush");
        let files = open(dir.path(), NEVER).await;
        let used = files.current().await;
        assert!(!files.renewed_since(&used).await);

        write(dir.path(), "id-2", "hush2");

        assert!(files.renewed_since(&used).await);
        assert_eq!(files.current().await.access_key_id, "id-2");
    }

    #[tokio::test]
    async fn broken_files_leave_the_old_keys_in_use() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "id-1", "hush");
        let files = open(dir.path(), Duration::ZERO).await;

        write(dir.path(), "", "hush2");

        assert_eq!(files.current().await.access_key_id, "id-1");
    }

    #[tokio::test]
    async fn mounted_secret_is_read_behind_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("..2026");
        fs::create_dir(&inner).unwrap();
        write(&inner, "id-1", "hush");
        fs::write(inner.join(FILE_TOKEN), "token").unwrap();
        std::os::unix::fs::symlink(&inner, dir.path().join(MOUNT_LINK)).unwrap();

        let current = open(dir.path(), NEVER).await.current().await;

        assert_eq!(current.token(), Some("token"));
    }
}
