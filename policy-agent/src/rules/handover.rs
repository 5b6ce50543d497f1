//! The socket that owns our table, in two hands: the agent's and node-agent's. While one of them lives the table has
//! an owner, and nobody else can change it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh::tasks::Tasks;
use policy_core::layout::Settings;
use tokio::time::Instant;

use super::{OpenError, Opened, Place, blocking, open, remove};
use crate::kernel::owner::{self, Holder, Listener};

/// Where the socket is handed over.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    listener: Listener,
    holder: Option<Holder>,
}

impl Handover {
    /// Listens for holders at `path`, whose folder is made.
    ///
    /// # Errors
    /// What the system said.
    pub fn listen(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(Self {
            path: path.to_owned(),
            listener: Listener::bind(path)?,
            holder: None,
        })
    }

    /// Opens the rules; while somebody else owns the table, with the socket that a holder offers within `wait`.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Owned`] when nobody offered the right one in time.
    pub async fn open(
        &mut self,
        place: &Place,
        settings: &Settings,
        wait: Duration,
        tasks: &Tasks,
    ) -> Result<Opened, OpenError> {
        let until = Instant::now() + wait;
        let mut offered = None;
        loop {
            let why = match try_open(place, settings, offered.take(), tasks).await {
                Err(OpenError::Owned(why)) => why,
                opened => return opened,
            };
            offered = Some(self.offer(until, &why).await?);
        }
    }

    /// Removes our tables, by the socket that a holder offers where that owns them.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Owned`] when nobody offered the right one in time.
    pub async fn remove(
        &mut self,
        place: &Place,
        settings: &Settings,
        namespaces: &[String],
        wait: Duration,
        tasks: &Tasks,
    ) -> Result<(), OpenError> {
        let until = Instant::now() + wait;
        let mut offered = None;
        loop {
            let (place, settings) = (place.clone(), settings.clone());
            let (namespaces, socket) = (namespaces.to_vec(), offered.take());
            let removing = blocking(tasks, move || {
                remove(&place, &settings, &namespaces, socket)
            });
            match removing.await {
                Err(OpenError::Owned(why)) => offered = Some(self.offer(until, &why).await?),
                Ok(()) => break,
                Err(error) => return Err(error),
            }
        }
        if let Some(holder) = &mut self.holder
            && let Err(error) = holder.hand(None).await
        {
            tracing::warn!(%error, "the holder was not told to let go");
        }
        Ok(())
    }

    /// The next socket that a holder offers.
    async fn offer(&mut self, until: Instant, why: &str) -> Result<OwnedFd, OpenError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let came = self.listener.accept_within(left).await;
            let came = came.map_err(|source| OpenError::Handover {
                path: self.path.clone(),
                source,
            })?;
            let Some(mut holder) = came else {
                return Err(OpenError::Owned(format!(
                    "{why}, and nobody handed it over at {} in time; is another policy agent running, or \
                     node-agent down while it holds it?",
                    self.path.display()
                )));
            };
            let offer = holder.take_offer();
            self.holder = Some(holder);
            if let Some(socket) = offer {
                return Ok(socket);
            }
        }
    }

    /// Gives every holder a copy of `socket`, until drain.
    pub fn keep(self, socket: OwnedFd, tasks: &Tasks) {
        let stopping = tasks.stopping();
        tasks.spawn_fallible("owner socket", async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => Ok(()),
                ended = owner::keep(&self.listener, self.holder, socket) => match ended {
                    Ok(never) => match never {},
                    Err(error) => Err(error),
                },
            }
        });
    }
}

async fn try_open(
    place: &Place,
    settings: &Settings,
    offered: Option<OwnedFd>,
    tasks: &Tasks,
) -> Result<Opened, OpenError> {
    let (place, settings) = (place.clone(), settings.clone());
    blocking(tasks, move || open(&place, &settings, offered)).await
}
