//! Rules by netlink: one socket per namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::element::Element;
use nft_wire::name::TableRef;
use nft_wire::table::{Table, TableFlags};
use nix::errno::Errno;
use policy_core::layout::{Settings, names};
use policy_core::plan::{Failure, Target};

use super::{OpenError, Place};
use crate::enforcer::port::{Dump, DumpError, Ownership, Refused, Rules};
use crate::kernel;
use crate::kernel::nft::{Claim, CommitError, QueryError, Socket};

/// Our rules everywhere.
pub(super) struct Netlink {
    place: Place,
    host: Socket,
    pods: BTreeMap<Arc<str>, Socket>,
    settings: Settings,
}

impl Netlink {
    pub(super) const fn new(place: Place, host: Socket, settings: Settings) -> Self {
        Self {
            place,
            host,
            pods: BTreeMap::new(),
            settings,
        }
    }

    fn socket(&mut self, target: &Target) -> Result<&mut Socket, OpenError> {
        let path = match target {
            Target::Host => return Ok(&mut self.host),
            Target::Namespace(path) => path,
        };
        if !self.pods.contains_key(path) {
            let mut socket = Socket::open_at(Path::new(&**path))?;
            if self.settings.owner {
                claim(&mut socket, &[names::inet(&self.settings)])?;
            }
            self.pods.insert(Arc::clone(path), socket);
        }
        self.pods.get_mut(path).ok_or(OpenError::Lost)
    }
}

impl Rules for Netlink {
    fn commit(&mut self, target: &Target, changes: &[Change]) -> Result<(), Refused> {
        let socket = self.socket(target).map_err(|error| Refused {
            failure: Failure::NotSent,
            namespace_gone: is_gone(&error),
            text: mesh::causes::text(&error),
        })?;
        match socket.commit(changes) {
            Ok(_) => Ok(()),
            Err(error) => Err(Refused {
                failure: failure(&error),
                namespace_gone: false,
                text: error.to_string(),
            }),
        }
    }

    fn dump(&mut self, target: &Target) -> Result<Dump, DumpError> {
        let [policy, spoof] = super::tables(&self.settings);
        let host = matches!(target, Target::Host);
        let socket = self.socket(target).map_err(|e| unreadable(&e))?;
        let failed = |e: QueryError| DumpError::Failed(e.to_string());
        let mut found: Dump = socket.dump(&policy).map_err(failed)?.into_iter().collect();
        if host {
            found.extend(socket.dump(&spoof).map_err(failed)?);
        }
        Ok(found)
    }

    fn elements(&mut self, target: &Target, name: &str) -> Result<Option<Vec<Element>>, DumpError> {
        let table = names::inet(&self.settings);
        let socket = self.socket(target).map_err(|e| unreadable(&e))?;
        let mut elements = Vec::new();
        match socket.elements(&table, name, &mut |element| elements.push(element)) {
            Ok(()) => Ok(Some(elements)),
            Err(QueryError::Missing) => Ok(None),
            Err(error) => Err(DumpError::Failed(error.to_string())),
        }
    }

    fn forget(&mut self, target: &Target) {
        if let Target::Namespace(path) = target {
            // A socket keeps its namespace alive.
            self.pods.remove(path);
        }
    }

    fn node_addresses(&mut self) -> Vec<IpAddr> {
        self.place.addresses()
    }

    fn ownership(&mut self) -> Ownership {
        let port = self.host.port();
        match self.host.table(&names::inet(&self.settings)) {
            Ok(Some(table)) => Ownership {
                owned: table.owner == Some(port),
                persistent: table.flags.persist,
            },
            Ok(None) | Err(_) => Ownership::default(),
        }
    }
}

/// Takes over those of the tables that are there. False when one of them can not be owned.
pub(super) fn claim(socket: &mut Socket, tables: &[TableRef]) -> Result<bool, OpenError> {
    let mut all = true;
    for at in tables {
        let found = socket.table(at)?;
        if found.is_none() {
            // It is made with the first rules.
            continue;
        }
        let mut table = Table::new(at.clone());
        table.flags = TableFlags {
            owner: true,
            persist: true,
            dormant: false,
        };
        match socket.claim(&table) {
            Ok(Claim::Created | Claim::Adopted | Claim::Kept) => {}
            Ok(Claim::Unowned) => all = false,
            Err(error) => return Err(owned(error)),
        }
    }
    Ok(all)
}

/// Removes a table; one that is not there is fine.
pub(super) fn remove(socket: &mut Socket, at: &TableRef) -> Result<(), OpenError> {
    socket.remove(at).map_err(owned)
}

fn owned(error: CommitError) -> OpenError {
    match error {
        CommitError::Owned { what, .. } => {
            OpenError::Owned(format!("{what}: the table belongs to another process"))
        }
        error @ (CommitError::Encode(_)
        | CommitError::Refused { .. }
        | CommitError::Forbidden
        | CommitError::NotSent(_)
        | CommitError::Unknown(_)) => error.into(),
    }
}

fn is_gone(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::Socket(kernel::OpenError::NamespaceGone(_))
    )
}

fn unreadable(error: &OpenError) -> DumpError {
    if is_gone(error) {
        DumpError::NamespaceGone
    } else {
        DumpError::Failed(mesh::causes::text(error))
    }
}

/// What the engine has to know of a failure. A table that somebody else owns is no fault of an object in it.
const fn failure(error: &CommitError) -> Failure {
    match error {
        CommitError::Refused {
            index: Some(index),
            errno,
            ..
        } => Failure::Change {
            index: *index,
            errno: number(*errno),
        },
        CommitError::Refused {
            index: None, errno, ..
        } => Failure::Whole {
            errno: number(*errno),
        },
        CommitError::Encode(_) => Failure::Whole {
            errno: number(Errno::EINVAL),
        },
        CommitError::Owned { .. } | CommitError::Forbidden | CommitError::NotSent(_) => {
            Failure::NotSent
        }
        CommitError::Unknown(_) => Failure::Unknown,
    }
}

#[expect(clippy::as_conversions, reason = "an errno is its number")]
const fn number(errno: Errno) -> i32 {
    errno as i32
}
