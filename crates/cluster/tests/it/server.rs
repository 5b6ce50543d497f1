//! A small API server of our own, held to the contract in each way of answering.

use std::time::Duration;

use cluster::documents::{Documents, Wanted};
use cluster::pods::Pods;
use cluster::server::Server;
use cluster::server::pace::Pace;
use mesh::backoff::Params;
use serde_json::Value;

use crate::contract::{self, World, for_each_case};
use crate::fake::Fake;
use crate::reader::Run;

/// The usual pace, a hundred times as quick.
pub(crate) fn quick() -> Pace {
    Pace {
        retry: Params {
            first_ms: 5,
            max_ms: 100,
        },
        spread: Duration::from_millis(50),
        absent: Duration::from_millis(100),
        // Long enough for a busy machine, and bookmarks come far more often.
        silence: Duration::from_secs(5),
        ..Pace::default()
    }
}

/// A client of the fake, as the services make it.
pub(crate) async fn connect(fake: &Fake) -> Server {
    mesh::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let file = fake.kubeconfig(dir.path());
    Server::connect(Some(&file)).await.unwrap().at(quick())
}

struct ServerWorld {
    fake: Fake,
    server: Server,
}

impl World for ServerWorld {
    async fn put(&mut self, object: Value) {
        self.fake.put(object);
    }

    async fn delete(&mut self, object: &Value) {
        self.fake.delete(object);
    }

    async fn documents(&self, wanted: Wanted) -> (Run, Documents) {
        let (source, documents) = self.server.documents(wanted);
        (Box::new(|drain| Box::pin(source.run(drain))), documents)
    }

    async fn pods(&self, node: &str) -> (Run, Pods) {
        let (source, pods) = self.server.pods(node);
        (Box::new(|drain| Box::pin(source.run(drain))), pods)
    }
}

async fn world(pace: Pace, set: impl FnOnce(&Fake)) -> ServerWorld {
    let fake = Fake::start().await;
    set(&fake);
    let server = connect(&fake).await.at(pace);
    ServerWorld { fake, server }
}

/// A server that streams lists.
mod streamed {
    use super::*;

    macro_rules! tests {
        ($($case:ident)*) => {$(
            #[tokio::test]
            async fn $case() {
                contract::$case(&mut world(quick(), |_| {}).await).await;
            }
        )*};
    }
    for_each_case!(tests);
}

/// A server that could stream lists and was told not to.
mod refused {
    use super::*;

    macro_rules! tests {
        ($($case:ident)*) => {$(
            #[tokio::test]
            async fn $case() {
                contract::$case(&mut world(quick(), |fake| fake.set_release(34, Some(422))).await).await;
            }
        )*};
    }
    for_each_case!(tests);
}

/// A server whose etcd is too old to stream lists.
mod old_etcd {
    use super::*;

    macro_rules! tests {
        ($($case:ident)*) => {$(
            #[tokio::test]
            async fn $case() {
                contract::$case(&mut world(quick(), |fake| fake.set_release(34, Some(500))).await).await;
            }
        )*};
    }
    for_each_case!(tests);
}

/// An old server, read in small pages.
mod paged {
    use super::*;

    macro_rules! tests {
        ($($case:ident)*) => {$(
            #[tokio::test]
            async fn $case() {
                let pace = Pace { page: 3, ..quick() };
                contract::$case(&mut world(pace, |fake| fake.set_release(26, None)).await).await;
            }
        )*};
    }
    for_each_case!(tests);
}

/// A server that ends its watches after a second, from time to time in the middle of something.
mod short {
    use super::*;

    macro_rules! tests {
        ($($case:ident)*) => {$(
            #[tokio::test]
            async fn $case() {
                let pace = Pace { watch: Duration::from_secs(1), ..quick() };
                contract::$case(&mut world(pace, |fake| fake.set_bookmarks(false)).await).await;
            }
        )*};
    }
    for_each_case!(tests);
}
