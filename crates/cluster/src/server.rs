//! An API server as the source: the same streams as a folder gives.
//!
//! One request follows each resource. It reads the whole (as a stream where the server serves that, else page by
//! page), then changes. Only what readers look at is decoded, and of what was told only names and hashes are kept.
//! While the server is away nothing is told, and everything stays; [`crate::health::Health`] says since when.

mod api;
mod collect;
mod follow;
mod kinds;
mod note;
pub mod pace;
mod shape;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::documents::{self, Documents, Wanted};
use crate::health::Health;
use crate::object::{self, Seen, Which};
use crate::pods::{self, Pods};
use crate::server::api::Api;
use crate::server::collect::{Batches, Picture};
use crate::server::follow::{Follower, Part, State, Told};
use crate::server::kinds::{CONFIG_MAPS, Kind, NODES, PODS};
use crate::server::note::Note;
use crate::server::pace::Pace;

/// Changes between the followers and who puts them together, at most.
const DEPTH: usize = 512;

/// No client for the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file can not be used.
    #[error("kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// There is no kubeconfig, and this is no pod with a service account.
    #[error("service account of this pod")]
    ServiceAccount(#[source] kube::config::InClusterError),
    /// The client can not be made.
    #[error("client for the API server")]
    Client(#[source] kube::Error),
}

/// An API server. Clones share connections.
#[derive(Clone)]
pub struct Server {
    client: kube::Client,
    pace: Pace,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Makes a client: as the kubeconfig file says, or with the service account of this pod, whose token is read
    /// again when it is replaced. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ConnectError`] when the file, the service account or a certificate in it can not be used.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let mut config = match kubeconfig {
            Some(path) => {
                let fail = |source| ConnectError::Kubeconfig {
                    path: path.to_owned(),
                    source,
                };
                let file = Kubeconfig::read_from(path).map_err(fail)?;
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(fail)?
            }
            None => kube::Config::incluster().map_err(ConnectError::ServiceAccount)?,
        };
        // We retry by ourselves, at our own pace.
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(ConnectError::Client)?;
        Ok(Self {
            client,
            pace: Pace::default(),
        })
    }

    /// The same server, asked at another pace.
    #[must_use = "it is another handle"]
    pub const fn at(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// For requests of others.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// All objects of the kinds asked for, as changes. Kinds that no source knows are left out.
    pub fn documents(&self, wanted: Wanted) -> (ServerDocuments, Documents) {
        let (out, documents) = documents::channel();
        let kinds = kinds::all().filter(|kind| {
            let mut places = std::iter::once(&kind.place).chain(kind.elsewhere);
            places.any(|place| wanted(&place.api_version(), kind.name))
        });
        let (followers, told, health) = self.followers(kinds, &Part::All);
        let batches = Batches::new(followers.len(), told, out);
        let source = ServerDocuments {
            followers,
            batches,
            health,
        };
        (source, documents)
    }

    /// The pods of one node, as a picture.
    pub fn pods(&self, node: &str) -> (ServerPods, Pods) {
        let (writer, pods) = pods::channel();
        let part = Part::Node(node.to_owned());
        let (followers, told, health) = self.followers(std::iter::once(&PODS), &part);
        let source = ServerPods {
            followers,
            picture: Picture::new(told, writer),
            health,
        };
        (source, pods)
    }

    /// One object, as a picture.
    pub fn object(&self, which: Which) -> (ServerObject, watch::Receiver<Seen>) {
        let (kind, part) = match which.clone() {
            Which::Node(name) => (
                &NODES,
                Part::Named {
                    namespace: None,
                    name,
                },
            ),
            Which::ConfigMap { namespace, name } => (
                &CONFIG_MAPS,
                Part::Named {
                    namespace: Some(namespace),
                    name,
                },
            ),
        };
        let (latest, seen) = watch::channel(Seen::Unknown);
        let (followers, told, health) = self.followers(std::iter::once(kind), &part);
        let source = ServerObject {
            followers,
            told,
            picture: object::Picture::new(which, latest),
            health,
        };
        (source, seen)
    }

    fn followers(
        &self,
        kinds: impl Iterator<Item = &'static Kind>,
        part: &Part,
    ) -> (Vec<Follower>, mpsc::Receiver<Told>, watch::Receiver<Health>) {
        let (out, told) = mpsc::channel(DEPTH);
        let health = Arc::new(watch::Sender::new(Health::default()));
        let watched = health.subscribe();
        let followers = kinds
            .enumerate()
            .map(|(number, kind)| Follower {
                number,
                api: Api::new(self.client.clone()),
                kind,
                part: part.clone(),
                pace: self.pace,
                note: Note::new(&health, kind.place.resource(kind.plural)),
                out: out.clone(),
                state: State::new(kind, &self.pace),
            })
            .collect();
        (followers, told, watched)
    }
}

/// Follows an API server for [`Documents`].
#[derive(Debug)]
pub struct ServerDocuments {
    followers: Vec<Follower>,
    batches: Batches,
    health: watch::Receiver<Health>,
}

impl ServerDocuments {
    /// How it fares.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Follows until `drain` is cancelled or nobody reads any more.
    pub async fn run(self, drain: CancellationToken) {
        follow(self.followers, self.batches.run(), drain).await;
    }
}

/// Follows an API server for [`Pods`].
#[derive(Debug)]
pub struct ServerPods {
    followers: Vec<Follower>,
    picture: Picture,
    health: watch::Receiver<Health>,
}

impl ServerPods {
    /// How it fares.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Follows until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        follow(self.followers, self.picture.run(), drain).await;
    }
}

/// Follows one object of an API server.
#[derive(Debug)]
pub struct ServerObject {
    followers: Vec<Follower>,
    told: mpsc::Receiver<Told>,
    picture: object::Picture,
    health: watch::Receiver<Health>,
}

impl ServerObject {
    /// How it fares.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Follows until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        let Self {
            followers,
            mut told,
            mut picture,
            ..
        } = self;
        let collect = async {
            let mut whole = false;
            while let Some(told) = told.recv().await {
                match told {
                    Told::Whole(_) => whole = true,
                    Told::Change(change) => picture.take(change),
                }
                picture.show(whole);
            }
        };
        follow(followers, collect, drain).await;
    }
}

async fn follow(
    followers: Vec<Follower>,
    collect: impl Future<Output = ()>,
    drain: CancellationToken,
) {
    let following = join_all(
        followers
            .into_iter()
            .map(|follower| Box::pin(follower.run())),
    );
    tokio::select! {
        biased;
        () = drain.cancelled() => return,
        ((), _) = async { tokio::join!(collect, following) } => {}
    }
    // The reader is gone for good; who reads ends with the same drain.
    drain.cancelled().await;
}
