//! Network namespaces, and threads that work inside them.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::error::DatapathError;

/// Stack of a worker thread in bytes. They hold a few buffers on the heap and little else.
const WORKER_STACK: usize = 256 * 1024;

/// An open network namespace. It stays alive as long as this does.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
    path: PathBuf,
}

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`] when `/proc` is not mounted.
    pub fn current() -> Result<Self, DatapathError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace at `path`.
    ///
    /// # Errors
    /// [`DatapathError::NetnsGone`] when nothing is there, [`DatapathError::NotANetns`] when it can not
    /// be opened.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let file = File::open(path).map_err(|e| {
            let path = path.to_owned();
            if e.kind() == ErrorKind::NotFound {
                DatapathError::NetnsGone { path }
            } else {
                DatapathError::NotANetns { path }
            }
        })?;
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
        })
    }

    /// Moves the calling thread into it. Only for threads that end soon: there is no way back here.
    ///
    /// # Errors
    /// [`DatapathError::NotANetns`] when the file is something else, [`DatapathError::Refused`] without
    /// the right to enter.
    pub(crate) fn enter(&self) -> Result<(), DatapathError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            if errno == Errno::EINVAL {
                let path = self.path.clone();
                return DatapathError::NotANetns { path };
            }
            DatapathError::Refused {
                op: format!("enter {}", self.path.display()),
                errno,
            }
        })
    }

    /// The file, for handing its number to the kernel.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Runs `work` on a thread of its own, which may change namespaces and ends afterwards. `turn` is held
/// until the work is done, even when nobody waits for the answer any more.
///
/// # Errors
/// What `work` says; [`DatapathError::WorkerLost`] when there is no thread to be had.
pub(crate) async fn on_thread<T, G, F>(turn: G, work: F) -> Result<T, DatapathError>
where
    T: Send + 'static,
    G: Send + 'static,
    F: FnOnce() -> Result<T, DatapathError> + Send + 'static,
{
    let (answer, done) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("datapath".to_owned())
        .stack_size(WORKER_STACK)
        .spawn(move || {
            let result = work();
            drop(turn);
            // Whoever asked may be gone; the kernel state is what counts then.
            drop(answer.send(result));
        })
        .map_err(|_| DatapathError::WorkerLost)?;
    done.await.map_err(|_| DatapathError::WorkerLost)?
}
