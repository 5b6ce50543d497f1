//! Which source is read: what a configuration says, and the streams that come of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::documents::{DocumentSource, Documents, Wanted};
use crate::files::FolderError;
use crate::folder::FolderSource;
use crate::health::Health;
use crate::object::{FolderObject, Seen, Which};
use crate::pods::Pods;
use crate::server::{ConnectError, Server, ServerDocuments, ServerObject, ServerPods};

/// Table `cluster` of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What is read; a folder when one is named and this is not set.
    pub source: Option<Kind>,
    /// Folder of manifests.
    pub folder: Option<PathBuf>,
    /// File that says where the API server is and who we are; the service account of the pod when it is not set.
    pub kubeconfig: Option<PathBuf>,
}

/// What can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A folder of manifests.
    Folder,
    /// The cluster's API server.
    Kubernetes,
}

/// Settings that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {why}")]
pub struct Contradiction {
    /// The key.
    pub key: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// This folder.
    Folder(PathBuf),
    /// The API server, found by this file or by the service account of the pod.
    Kubernetes(Option<PathBuf>),
}

impl Settings {
    /// The place that is meant. `older` is the folder that another key names, which is older than this table. Nothing
    /// when nothing is said.
    ///
    /// # Errors
    /// [`Contradiction`] when two places are meant, or one is half said.
    pub fn place(&self, older: Option<&Path>) -> Result<Option<Place>, Contradiction> {
        let wrong = |key, why| Err(Contradiction { key, why });
        if self.folder.is_some() && older.is_some() {
            return wrong(
                "cluster.folder",
                "is set, and the older key for the same too",
            );
        }
        let folder = self.folder.as_deref().or(older);
        match (self.source, folder) {
            (Some(Kind::Kubernetes), Some(_)) => {
                wrong("cluster.source", "is kubernetes, but a folder is named")
            }
            (Some(Kind::Kubernetes), None) => Ok(Some(Place::Kubernetes(self.kubeconfig.clone()))),
            _ if self.kubeconfig.is_some() => wrong(
                "cluster.kubeconfig",
                "is set, but cluster.source is not kubernetes",
            ),
            (Some(Kind::Folder), None) => wrong("cluster.folder", "is missing"),
            (Some(Kind::Folder) | None, Some(folder)) => Ok(Some(Place::Folder(folder.to_owned()))),
            (None, None) => Ok(None),
        }
    }
}

/// The place can not be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The API server.
    #[error(transparent)]
    Kubernetes(#[from] ConnectError),
}

/// Fills [`Documents`] while it runs.
#[derive(Debug)]
pub enum DocumentsSource {
    /// From a folder.
    Folder(Box<DocumentSource>),
    /// From an API server.
    Kubernetes(ServerDocuments),
}

/// Fills [`Pods`] while it runs.
#[derive(Debug)]
pub enum PodsSource {
    /// From a folder.
    Folder(Box<FolderSource>),
    /// From an API server.
    Kubernetes(ServerPods),
}

/// Follows one object while it runs.
#[derive(Debug)]
pub enum ObjectSource {
    /// Of a folder.
    Folder(Box<FolderObject>),
    /// Of an API server.
    Kubernetes(Box<ServerObject>),
}

impl Place {
    /// Opens it for one object. An API server is not spoken to before the source runs.
    ///
    /// # Errors
    /// [`OpenError`] when the folder, the kubeconfig file or the service account can not be used.
    pub async fn object(
        &self,
        which: Which,
    ) -> Result<(ObjectSource, watch::Receiver<Seen>), OpenError> {
        match self {
            Self::Folder(folder) => {
                let (source, seen) = FolderObject::open(folder, which)?;
                Ok((ObjectSource::Folder(Box::new(source)), seen))
            }
            Self::Kubernetes(kubeconfig) => {
                let server = Server::connect(kubeconfig.as_deref()).await?;
                let (source, seen) = server.object(which);
                Ok((ObjectSource::Kubernetes(Box::new(source)), seen))
            }
        }
    }

    /// Opens it for all documents of the kinds asked for. An API server is not spoken to before the source runs.
    ///
    /// # Errors
    /// [`OpenError`] when the folder, the kubeconfig file or the service account can not be used.
    pub async fn documents(
        &self,
        wanted: Wanted,
    ) -> Result<(DocumentsSource, Documents), OpenError> {
        match self {
            Self::Folder(folder) => {
                let (source, documents) = DocumentSource::open(folder, wanted)?;
                Ok((DocumentsSource::Folder(Box::new(source)), documents))
            }
            Self::Kubernetes(kubeconfig) => {
                let server = Server::connect(kubeconfig.as_deref()).await?;
                let (source, documents) = server.documents(wanted);
                Ok((DocumentsSource::Kubernetes(source), documents))
            }
        }
    }

    /// Opens it for the pods of one node. An API server is not spoken to before the source runs.
    ///
    /// # Errors
    /// [`OpenError`] when the folder, the kubeconfig file or the service account can not be used.
    pub async fn pods(&self, node: &str) -> Result<(PodsSource, Pods), OpenError> {
        match self {
            Self::Folder(folder) => {
                let (source, pods) = FolderSource::open(folder, node)?;
                Ok((PodsSource::Folder(Box::new(source)), pods))
            }
            Self::Kubernetes(kubeconfig) => {
                let server = Server::connect(kubeconfig.as_deref()).await?;
                let (source, pods) = server.pods(node);
                Ok((PodsSource::Kubernetes(source), pods))
            }
        }
    }
}

impl ObjectSource {
    /// How it fares; nothing for a folder, which can not be away.
    pub fn health(&self) -> Option<watch::Receiver<Health>> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(source) => Some(source.health()),
        }
    }

    /// Follows the source until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        match self {
            Self::Folder(source) => source.run(drain).await,
            Self::Kubernetes(source) => source.run(drain).await,
        }
    }
}

impl DocumentsSource {
    /// How it fares; nothing for a folder, which can not be away.
    pub fn health(&self) -> Option<watch::Receiver<Health>> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(source) => Some(source.health()),
        }
    }

    /// Follows the source until `drain` is cancelled or nobody reads any more.
    pub async fn run(self, drain: CancellationToken) {
        match self {
            Self::Folder(source) => source.run(drain).await,
            Self::Kubernetes(source) => source.run(drain).await,
        }
    }
}

impl PodsSource {
    /// How it fares; nothing for a folder, which can not be away.
    pub fn health(&self) -> Option<watch::Receiver<Health>> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(source) => Some(source.health()),
        }
    }

    /// Follows the source until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        match self {
            Self::Folder(source) => source.run(drain).await,
            Self::Kubernetes(source) => source.run(drain).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn place_is_what_is_said_by_the_table_or_by_the_older_key() {
        let (f, older) = (PathBuf::from("/f"), Path::new("/older"));
        let place = |text: &str, older: Option<&Path>| settings(text).place(older).unwrap();

        assert_eq!(place("{}", None), None);
        assert_eq!(
            place("{}", Some(older)),
            Some(Place::Folder(older.to_owned()))
        );
        assert_eq!(
            place(r#"{"folder": "/f"}"#, None),
            Some(Place::Folder(f.clone()))
        );
        let both = r#"{"source": "folder", "folder": "/f"}"#;
        assert_eq!(place(both, None), Some(Place::Folder(f)));
        let pod = r#"{"source": "kubernetes"}"#;
        assert_eq!(place(pod, None), Some(Place::Kubernetes(None)));
        let file = r#"{"source": "kubernetes", "kubeconfig": "/k"}"#;
        assert_eq!(
            place(file, None),
            Some(Place::Kubernetes(Some(PathBuf::from("/k"))))
        );
    }

    #[test]
    fn places_that_contradict_each_other_name_the_key() {
        for (text, older, key) in [
            (r#"{"folder": "/f"}"#, true, "cluster.folder"),
            (r#"{"source": "folder"}"#, false, "cluster.folder"),
            (
                r#"{"source": "kubernetes", "folder": "/f"}"#,
                false,
                "cluster.source",
            ),
            (r#"{"source": "kubernetes"}"#, true, "cluster.source"),
            (r#"{"kubeconfig": "/k"}"#, false, "cluster.kubeconfig"),
            (r#"{"kubeconfig": "/k"}"#, true, "cluster.kubeconfig"),
        ] {
            let wrong = settings(text).place(older.then_some(Path::new("/older")));
            assert_eq!(wrong.unwrap_err().key, key, "{text}");
        }
        serde_json::from_str::<Settings>(r#"{"foldr": "/f"}"#).unwrap_err();
    }
}
