//! The kernel's rules, flows and traces as the other parts want them: by netlink, in the node's namespace and in
//! those of pods.

mod flows;
mod handover;
mod netlink;
mod watch;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nft_wire::name::TableRef;
use nix::sched::{CloneFlags, setns};
use policy_core::layout::{Settings, names};

use crate::enforcer::port::Rules;
use crate::kernel::nft::{CommitError, QueryError, Socket};
use crate::kernel::{self, address, probe};
use crate::revoker::port::Flows;
use crate::switches::ForeignChain;
use crate::trace::Packets;

pub use self::handover::Handover;
pub use self::watch::watch;

/// The node's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// This process is in it.
    #[default]
    Here,
    /// It is elsewhere: several nodes share a machine.
    At(PathBuf),
}

/// The kernel's rules can not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] kernel::OpenError),
    /// The kernel can not do what is needed.
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    /// The table has another owner, who did not give it up in time.
    #[error("{0}")]
    Owned(String),
    /// Nobody can hand the socket over that owns the table.
    #[error("hand-over at {}", path.display())]
    Handover {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("{0}")]
    Commit(#[from] CommitError),
    /// The kernel did not answer.
    #[error("{0}")]
    Query(#[from] QueryError),
    /// There is no thread to be had.
    #[error("the thread that opens the kernel is lost")]
    Lost,
}

/// The enforcer's way to the rules.
pub struct Opened {
    /// The rules.
    pub rules: Box<dyn Rules + Send>,
    /// As asked, without the flags that this kernel does not have.
    pub settings: Settings,
    /// The kernel's number for the socket: who makes changes of ours.
    pub port: u32,
    /// A copy of the socket, where it owns the table: for holders.
    pub owner: Option<OwnedFd>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

impl Place {
    fn socket(&self) -> Result<Socket, kernel::OpenError> {
        match self {
            Self::Here => Socket::open(),
            Self::At(path) => Socket::open_at(path),
        }
    }

    /// The addresses of the node's own links, but for loopback.
    fn addresses(&self) -> Vec<std::net::IpAddr> {
        let found = match self {
            Self::Here => address::local(),
            Self::At(path) => inside(path, address::local),
        };
        match found {
            Ok(mut all) => {
                all.retain(|ip| !ip.is_loopback());
                all
            }
            Err(error) => {
                tracing::warn!(%error, "the node's addresses are not known");
                Vec::new()
            }
        }
    }
}

/// Runs `work` on a thread that enters the namespace and ends.
fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    let entered = move || {
        let file = std::fs::File::open(path)?;
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, entered)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}

/// Our tables of the node's namespace.
fn tables(settings: &Settings) -> [TableRef; 2] {
    [names::inet(settings), names::netdev(settings)]
}

/// Looks what the kernel can do, and takes our tables over if they are there; with the socket that somebody handed
/// over, if he did. Blocks.
///
/// # Errors
/// [`OpenError`]; [`OpenError::Owned`] while somebody else has the table.
pub fn open(
    place: &Place,
    settings: &Settings,
    handed: Option<OwnedFd>,
) -> Result<Opened, OpenError> {
    let mut socket = match handed {
        Some(fd) => Socket::from_fd(fd)?,
        None => place.socket()?,
    };
    probe::features(&mut socket)?;
    let able = probe::ownership(&mut socket)?;
    let mut settings = settings.clone();
    // A table that is owned and does not outlive its owner would open the node when the agent ends.
    if settings.owner && !(able.owner && able.persist) {
        tracing::info!(
            ?able,
            "this kernel keeps no owned table: others are watched instead"
        );
        settings.owner = false;
    }
    settings.persist = settings.owner;
    if settings.owner && !netlink::claim(&mut socket, &tables(&settings))? {
        tracing::info!("our table was made without an owner: others are watched instead");
        settings.owner = false;
        settings.persist = false;
    }
    let port = socket.port();
    let owner = if settings.owner {
        Some(socket.as_fd().try_clone_to_owned().map_err(copy)?)
    } else {
        None
    };
    let rules = netlink::Netlink::new(place.clone(), socket, settings.clone());
    Ok(Opened {
        rules: Box::new(rules),
        settings,
        port,
        owner,
    })
}

fn copy(source: std::io::Error) -> kernel::OpenError {
    let what = "copy the owner socket";
    kernel::OpenError::Refused { what, source }
}

/// Opens a way to read the rules. Blocks.
///
/// # Errors
/// In words.
pub fn reader(place: &Place, settings: &Settings) -> Result<Box<dyn Rules + Send>, String> {
    let socket = place.socket().map_err(|e| mesh::causes::text(&e))?;
    let mut settings = settings.clone();
    settings.owner = false;
    Ok(Box::new(netlink::Netlink::new(
        place.clone(),
        socket,
        settings,
    )))
}

/// Opens a way to the node's flows. Blocks.
///
/// # Errors
/// [`OpenError::Socket`].
pub fn flows(place: &Place) -> Result<Box<dyn Flows + Send>, OpenError> {
    Ok(Box::new(flows::Conntrack::open(place)?))
}

/// Opens a way to trace packets. Blocks.
///
/// # Errors
/// In words.
pub fn packets(place: &Place) -> Result<Box<dyn Packets + Send>, String> {
    let packets = watch::Traced::open(place).map_err(|e| mesh::causes::text(&e))?;
    Ok(Box::new(packets))
}

/// The number of the ruleset's generation: it grows with every transaction, whoever made it. Blocks.
///
/// # Errors
/// [`OpenError`].
pub fn generation(place: &Place) -> Result<u32, OpenError> {
    Ok(place.socket()?.generation()?.id)
}

/// Chains of tables that are not ours. Blocks.
///
/// # Errors
/// [`OpenError`].
pub fn foreign_chains(place: &Place, settings: &Settings) -> Result<Vec<ForeignChain>, OpenError> {
    let mut socket = place.socket()?;
    let ours = tables(settings);
    let mut found = Vec::new();
    for table in socket.tables()? {
        if ours.contains(&table.at) {
            continue;
        }
        // It may have gone meanwhile.
        let Some(content) = socket.dump(&table.at)? else {
            continue;
        };
        found.extend(content.chains.keys().map(|chain| ForeignChain {
            table: table.at.to_string(),
            chain: chain.to_string(),
        }));
    }
    Ok(found)
}

/// Removes our tables from the node's namespace and from those of pods; with the socket that somebody handed over,
/// if he did. Namespaces that are gone need nothing. Blocks.
///
/// # Errors
/// [`OpenError::Owned`] while somebody else has them.
pub fn remove(
    place: &Place,
    settings: &Settings,
    namespaces: &[String],
    handed: Option<OwnedFd>,
) -> Result<(), OpenError> {
    let mut socket = match handed {
        Some(fd) => Socket::from_fd(fd)?,
        None => place.socket()?,
    };
    for table in tables(settings) {
        netlink::remove(&mut socket, &table)?;
    }
    for namespace in namespaces {
        match Socket::open_at(Path::new(namespace)) {
            Ok(mut socket) => netlink::remove(&mut socket, &names::inet(settings))?,
            Err(kernel::OpenError::NamespaceGone(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Does something that blocks on a thread for that.
///
/// # Errors
/// What `work` says.
pub async fn blocking<T, F>(tasks: &mesh::tasks::Tasks, work: F) -> Result<T, OpenError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, OpenError> + Send + 'static,
{
    tasks
        .spawn_blocking(work)
        .await
        .map_err(|_| OpenError::Lost)?
}
