//! One agent per node: whoever has the file of the state folder locked. The kernel lets the lock go with the process
//! that has it, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Name of the file below the state folder.
pub const FILE: &str = "policy-agent.lock";
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);

/// The lock; let go when it is dropped.
#[derive(Debug)]
#[must_use = "a lock that is dropped is let go"]
pub struct Lock {
    _file: File,
}

/// There is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
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
    /// Somebody else has it.
    #[error("another policy agent runs on this node: it has {} locked", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
}

impl Lock {
    /// Takes the lock of `folder`, which is made; waits up to `wait` for who has it.
    ///
    /// # Errors
    /// [`LockError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is locked then.
    pub async fn take(folder: &Path, wait: Duration) -> Result<Self, LockError> {
        let path = folder.join(FILE);
        let io = |what, source| LockError::Io {
            what,
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(|e| io("make the folder of", e))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io("open", e))?;
        let until = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(TryLockError::WouldBlock) => return Err(LockError::Taken { path }),
                Err(TryLockError::Error(source)) => return Err(io("lock", source)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lock_is_one_hands_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), Duration::ZERO).await.unwrap();

        let refused = Lock::take(dir.path(), Duration::ZERO).await.unwrap_err();

        assert!(matches!(refused, LockError::Taken { .. }), "{refused}");
        assert!(refused.to_string().contains(FILE), "{refused}");
        drop(first);
        drop(Lock::take(dir.path(), Duration::ZERO).await.unwrap());
    }
}
