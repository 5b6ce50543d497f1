//! News from the kernel: foreign changes of our tables, and traced packets.

use std::time::Duration;

use nft_wire::change::Change;
use nft_wire::trace::Trace;
use policy_core::layout::Settings;
use policy_core::plan::Target;
use tokio::runtime::Handle as Runtime;

use super::{OpenError, Place};
use crate::enforcer::Handle;
use crate::kernel;
use crate::kernel::monitor::{Event, Group, Listener};
use crate::kernel::nft::Socket;
use crate::trace::Packets;

/// How long one wait for news takes at most, so that an end is noticed.
const WAIT: Duration = Duration::from_millis(500);

fn listener(place: &Place, group: Group) -> Result<Listener, kernel::OpenError> {
    match place {
        Place::Here => Listener::open(group),
        Place::At(path) => Listener::open_at(path, group),
    }
}

/// Tells the enforcer when somebody other than the socket `ours` changes our tables, until drain. On a thread of its
/// own. To be started before the first dump, so that nothing falls in between.
///
/// # Errors
/// [`OpenError::Socket`].
pub fn watch(
    place: &Place,
    settings: &Settings,
    ours: u32,
    enforcer: Handle,
    tasks: &mesh::tasks::Tasks,
) -> Result<(), OpenError> {
    let mut listener = listener(place, Group::Rules)?;
    let tables = super::tables(settings);
    let (place, stopping, runtime) = (place.clone(), tasks.stopping(), Runtime::current());
    let work = move || {
        while !stopping.is_cancelled() {
            let foreign = match listener.read(WAIT) {
                Ok(events) => events.iter().any(|event| match event {
                    Event::Changed { table, port } => {
                        *port != ours && table.as_ref().is_none_or(|t| tables.contains(t))
                    }
                    Event::Lost => true,
                    Event::Trace(_) => false,
                }),
                Err(error) => {
                    tracing::warn!(%error, "the watch of the kernel begins anew");
                    match self::listener(&place, Group::Rules) {
                        Ok(fresh) => listener = fresh,
                        Err(error) => return Err(error),
                    }
                    // Whatever happened in between was not heard.
                    true
                }
            };
            if foreign {
                runtime.block_on(enforcer.mistrust(Target::Host));
            }
        }
        Ok(())
    };
    let watching = tasks.spawn_blocking(work);
    tasks.spawn_fallible("kernel watch", async move {
        match watching.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(mesh::causes::text(&error)),
            Err(error) => Err(error.to_string()),
        }
    });
    Ok(())
}

/// A socket that writes the marking rules, and one that hears of marked packets.
pub(super) struct Traced {
    socket: Socket,
    listener: Listener,
}

impl Traced {
    pub(super) fn open(place: &Place) -> Result<Self, kernel::OpenError> {
        Ok(Self {
            socket: place.socket()?,
            listener: listener(place, Group::Traces)?,
        })
    }
}

impl Packets for Traced {
    fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        match self.socket.commit(changes) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(&mut self, wait: Duration) -> Result<Vec<Trace>, String> {
        let events = self.listener.read(wait).map_err(|e| e.to_string())?;
        let traces = events.into_iter().filter_map(|event| match event {
            Event::Trace(trace) => Some(trace),
            // Steps that were lost are not told.
            Event::Changed { .. } | Event::Lost => None,
        });
        Ok(traces.collect())
    }
}
