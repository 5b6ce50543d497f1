//! What a case needs of a store: replicas that live and die, answers that get lost, restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ipam_service::log::Replica;
use ipam_service::log::chaos::{Chaos, Fault};
use ipam_service::log::etcd::EtcdKv;
use ipam_service::log::keys::Keys;
use ipam_service::log::kv::Kv;
use ipam_service::log::memory::MemoryKv;
use ipam_service::log::redb::RedbKv;
use ipam_service::log::shards::KvLog;
use tempfile::TempDir;

use crate::etcd;
use crate::etcd::proxy::{Fate, Proxy};

/// A session in tests: long, since none of them waits for its end.
const TTL: Duration = Duration::from_mins(1);

/// A store as the cases see it.
#[async_trait]
pub(crate) trait LogFixture: Send + Sync {
    /// The keys with faults in between, as services use them.
    fn kv(&self) -> Arc<dyn Kv>;

    /// The keys as they are, to plant damage and strays.
    fn bare(&self) -> Arc<dyn Kv>;

    /// What the keys begin with.
    fn keys(&self) -> Keys;

    /// The log under test.
    fn log(&self) -> KvLog {
        KvLog::new(self.kv(), self.keys())
    }

    /// A replica with a session.
    async fn replica(&self, name: &str) -> Replica {
        Replica {
            id: name.parse().unwrap(),
            address: format!("{name}:7301"),
            session: self.bare().open_session(TTL).await.unwrap(),
        }
    }

    /// The replica dies: its session ends.
    async fn end(&self, replica: &Replica) {
        self.bare().close_session(replica.session).await.unwrap();
    }

    /// The next write is carried out, its answer does not come. `reads` come before it.
    fn lose_answer(&self, reads: usize);

    /// The next write does not arrive, and nobody learns that.
    fn lose_request(&self);

    /// The next write is held back, and nobody learns that.
    fn hold_request(&self);

    /// What is held back arrives now. Panics if nothing was.
    async fn deliver_late(&self);

    /// The service's process ends and starts again.
    async fn restart(&mut self);
}

/// [`MemoryKv`] and [`RedbKv`] behind [`Chaos`].
pub(crate) struct MemoryFixture {
    bare: Arc<MemoryKv>,
    chaos: Arc<Chaos>,
}

impl MemoryFixture {
    pub(crate) fn start() -> std::future::Ready<Self> {
        let bare = Arc::new(MemoryKv::new());
        let chaos = Arc::new(Chaos::new(Arc::<MemoryKv>::clone(&bare)));
        std::future::ready(Self { bare, chaos })
    }
}

#[async_trait]
impl LogFixture for MemoryFixture {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::<Chaos>::clone(&self.chaos)
    }

    fn bare(&self) -> Arc<dyn Kv> {
        Arc::<MemoryKv>::clone(&self.bare)
    }

    fn keys(&self) -> Keys {
        Keys::new("/test/").unwrap()
    }

    fn lose_answer(&self, _reads: usize) {
        self.chaos.next_write(Fault::LoseAnswer);
    }

    fn lose_request(&self) {
        self.chaos.next_write(Fault::LoseRequest);
    }

    fn hold_request(&self) {
        self.chaos.next_write(Fault::Late);
    }

    async fn deliver_late(&self) {
        assert_eq!(self.chaos.deliver_late().await.len(), 1);
    }

    async fn restart(&mut self) {
        // The keys stay, as those of a process next door would.
        self.chaos = Arc::new(Chaos::new(self.bare()));
    }
}

/// A file behind [`Chaos`].
pub(crate) struct RedbFixture {
    /// None only while it restarts.
    open: Option<(Arc<RedbKv>, Arc<Chaos>)>,
    dir: TempDir,
}

impl RedbFixture {
    pub(crate) async fn start() -> Self {
        let mut fixture = Self {
            open: None,
            dir: tempfile::tempdir().unwrap(),
        };
        fixture.restart().await;
        fixture
    }

    fn chaos(&self) -> &Arc<Chaos> {
        &self.open.as_ref().unwrap().1
    }
}

#[async_trait]
impl LogFixture for RedbFixture {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::<Chaos>::clone(self.chaos())
    }

    fn bare(&self) -> Arc<dyn Kv> {
        Arc::<RedbKv>::clone(&self.open.as_ref().unwrap().0)
    }

    fn keys(&self) -> Keys {
        Keys::new("/test/").unwrap()
    }

    fn lose_answer(&self, _reads: usize) {
        self.chaos().next_write(Fault::LoseAnswer);
    }

    fn lose_request(&self) {
        self.chaos().next_write(Fault::LoseRequest);
    }

    fn hold_request(&self) {
        self.chaos().next_write(Fault::Late);
    }

    async fn deliver_late(&self) {
        assert_eq!(self.chaos().deliver_late().await.len(), 1);
    }

    async fn restart(&mut self) {
        // The lock of the file goes with the last handle.
        self.open = None;
        let bare = Arc::new(RedbKv::open(&self.dir.path().join("ipam.redb")).unwrap());
        let chaos = Arc::new(Chaos::new(Arc::<RedbKv>::clone(&bare)));
        self.open = Some((bare, chaos));
    }
}

/// A real etcd behind a proxy, below a prefix of its own.
pub(crate) struct EtcdFixture {
    server: Arc<etcd::Server>,
    proxy: Proxy,
    bare: Arc<EtcdKv>,
    proxied: Arc<EtcdKv>,
    keys: Keys,
}

impl EtcdFixture {
    pub(crate) async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = etcd::shared();
        let bare = Arc::new(etcd::client(vec![server.url()]).await);
        etcd::until_ready(&*bare).await;
        let proxy = Proxy::start(([127, 0, 0, 1], server.port).into()).await;
        let proxied = Arc::new(proxied(&proxy).await);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let keys = Keys::new(&format!("/test/{number}/")).unwrap();
        Self {
            server,
            proxy,
            bare,
            proxied,
            keys,
        }
    }
}

async fn proxied(proxy: &Proxy) -> EtcdKv {
    etcd::client(vec![format!("http://{}", proxy.address)]).await
}

#[async_trait]
impl LogFixture for EtcdFixture {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::<EtcdKv>::clone(&self.proxied)
    }

    fn bare(&self) -> Arc<dyn Kv> {
        Arc::<EtcdKv>::clone(&self.bare)
    }

    fn keys(&self) -> Keys {
        self.keys.clone()
    }

    fn lose_answer(&self, reads: usize) {
        self.proxy.next(std::iter::repeat_n(Fate::Pass, reads));
        self.proxy.next([Fate::LoseAnswer]);
    }

    fn lose_request(&self) {
        self.proxy.next([Fate::LoseRequest]);
    }

    fn hold_request(&self) {
        self.proxy.next([Fate::Late]);
    }

    async fn deliver_late(&self) {
        assert_eq!(self.proxy.deliver_late().await, 1);
    }

    async fn restart(&mut self) {
        self.bare = Arc::new(etcd::client(vec![self.server.url()]).await);
        self.proxied = Arc::new(proxied(&self.proxy).await);
    }
}
