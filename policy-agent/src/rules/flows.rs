//! The node's flows by netlink.

use std::net::IpAddr;

use nft_wire::conntrack::{Filter, Flow, Mark};

use super::Place;
use crate::kernel;
use crate::kernel::conntrack::{FlowError, Socket};
use crate::revoker::port::{Flows, FlowsError};

/// A socket, and whose addresses are the node's.
pub(super) struct Conntrack {
    place: Place,
    socket: Socket,
}

impl Conntrack {
    pub(super) fn open(place: &Place) -> Result<Self, kernel::OpenError> {
        let socket = match place {
            Place::Here => Socket::open(),
            Place::At(path) => Socket::open_at(path),
        };
        Ok(Self {
            place: place.clone(),
            socket: socket?,
        })
    }
}

fn said(error: &FlowError) -> FlowsError {
    FlowsError(error.to_string())
}

impl Flows for Conntrack {
    fn dump(&mut self, filter: &Filter, each: &mut dyn FnMut(&Flow)) -> Result<(), FlowsError> {
        self.socket.dump(filter, each).map_err(|e| said(&e))
    }

    fn mark(&mut self, changes: &[(Flow, Mark)]) -> Result<(), FlowsError> {
        let changes = changes.iter().map(|(flow, mark)| (flow, *mark));
        let done = self.socket.mark(changes).map_err(|e| said(&e))?;
        tracing::debug!(?done, "flows marked");
        Ok(())
    }

    fn delete(&mut self, flows: &[Flow]) -> Result<(), FlowsError> {
        let done = self.socket.delete(flows).map_err(|e| said(&e))?;
        tracing::debug!(?done, "flows deleted");
        Ok(())
    }

    fn node_addresses(&mut self) -> Vec<IpAddr> {
        self.place.addresses()
    }
}
