//! The router of the VPC and everything plugged into it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ecs_sim::plane::{DataPlane, PlaneError, Port};
use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::cloud::{EniId, InstanceId};

use crate::error::FabricError;
use crate::namespace::{self, Namespace};
use crate::{filter, port, returns, shell};

/// Address of the metadata service as instances see it.
///
/// Source: ECS OpenAPI facts, metadata service.
pub const METADATA: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)), 80);

/// Address at which the VPC offers the simulated OpenAPI.
pub const OPENAPI: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 201)), 80);

/// Numbers of `ethN` in one guest. No instance type has more ENIs than 32.
const MAX_LINKS: u32 = 64;

/// How the simulated VPC behaves.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// From the API's answer until the link appears in the guest. The primary ENI has none.
    pub link_lag: Duration,
    /// Whether foreign sources are dropped from the start.
    pub source_check: bool,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            link_lag: Duration::from_millis(50),
            source_check: true,
        }
    }
}

/// The namespace of one instance.
pub type NodeNamespace = Namespace;

/// The simulated VPC. Clones share it; the last one to go removes its namespaces.
#[derive(Debug, Clone)]
pub struct Fabric {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    prefix: String,
    vpc: Namespace,
    link_lag: Duration,
    state: Mutex<State>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    instances: BTreeMap<InstanceId, Instance>,
    ports: BTreeMap<EniId, Plugged>,
    next_port: u32,
    stopped: bool,
}

#[derive(Debug)]
struct Instance {
    namespace: Namespace,
    /// Numbers of `ethN` that are taken.
    links: BTreeSet<u32>,
}

#[derive(Debug, Clone)]
struct Plugged {
    port: Port,
    /// Link name on the router.
    outer: String,
    /// Number of `ethN` in the guest.
    link: u32,
    /// Ends the wait for the hot-plug lag.
    lag: CancellationToken,
}

impl Fabric {
    /// Removes what dead runs left, then makes the router's namespace.
    ///
    /// # Errors
    /// [`FabricError::NotRoot`] and [`FabricError::Missing`] are for the person who started it.
    pub async fn start(config: FabricConfig) -> Result<Self, FabricError> {
        let uid = nix::unistd::geteuid().as_raw();
        if uid != 0 {
            return Err(FabricError::NotRoot { uid });
        }
        let orphans = namespace::remove_orphans()?;
        if orphans > 0 {
            tracing::info!(orphans, "removed namespaces of runs that are gone");
        }
        let prefix = namespace::run_prefix();
        let vpc = Namespace::create(format!("{prefix}vpc"))?;
        let fabric = Self {
            inner: Arc::new(Inner {
                prefix,
                vpc,
                link_lag: config.link_lag,
                state: Mutex::new(State::default()),
                tasks: TaskTracker::new(),
                cancel: CancellationToken::new(),
            }),
        };
        fabric.set_up_router(config.source_check).await?;
        let weak = Arc::downgrade(&fabric.inner);
        let bring_back = move |outer: String| {
            let inner = weak.upgrade();
            async move {
                let Some(inner) = inner else { return };
                if let Err(error) = Self::bring_back(&Self { inner }, &outer).await {
                    // The instance itself may be gone, or the run about to end.
                    tracing::warn!(outer, %error, "a link that vanished did not come back");
                }
            }
            .boxed()
        };
        let cancel = fabric.inner.cancel.clone();
        let returns = returns::follow(&fabric.inner.vpc.entry(), cancel, bring_back)?;
        fabric.inner.tasks.spawn(returns);
        Ok(fabric)
    }

    async fn set_up_router(&self, source_check: bool) -> Result<(), FabricError> {
        let vpc = &self.inner.vpc;
        let on = [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            // The default holds for every port made later.
            "ipv4/conf/default/forwarding",
            "ipv4/conf/default/proxy_arp",
        ];
        let off = [
            "ipv4/conf/all/rp_filter",
            "ipv4/conf/default/rp_filter",
            "ipv4/conf/all/send_redirects",
            "ipv4/conf/default/send_redirects",
            "ipv6/conf/all/accept_dad",
            "ipv6/conf/default/accept_dad",
            "ipv6/conf/default/accept_ra",
        ];
        let settings = on
            .iter()
            .map(|key| ((*key).to_owned(), "1"))
            .chain(off.iter().map(|key| ((*key).to_owned(), "0")))
            .collect();
        vpc.set_sysctls(settings).await?;
        let addresses = format!(
            "addr add {}/32 dev lo\naddr add {}/32 dev lo\n",
            METADATA.ip(),
            OPENAPI.ip()
        );
        shell::ip_batch(vpc, &addresses).await?;
        shell::nft(vpc, &filter::table(source_check)).await
    }

    /// What the names of all namespaces of this run start with.
    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// The router's namespace.
    pub fn vpc(&self) -> &Namespace {
        &self.inner.vpc
    }

    /// Makes the namespace of an instance; `name` is for people. Repeating it gives the same one.
    pub async fn add_instance(
        &self,
        instance: &InstanceId,
        name: &str,
    ) -> Result<NodeNamespace, FabricError> {
        let mut state = self.state().await?;
        if let Some(known) = state.instances.get(instance) {
            return Ok(known.namespace.clone());
        }
        let namespace = self.create_namespace(name)?;
        state.instances.insert(
            instance.clone(),
            Instance {
                namespace: namespace.clone(),
                links: BTreeSet::new(),
            },
        );
        Ok(namespace)
    }

    /// Makes a namespace of this run that is no instance, such as a pod's; it goes away with the run.
    pub fn create_namespace(&self, name: &str) -> Result<Namespace, FabricError> {
        Namespace::create(format!("{}{name}", self.inner.prefix))
    }

    /// The namespace of an instance.
    pub async fn namespace(&self, instance: &InstanceId) -> Option<NodeNamespace> {
        let state = self.inner.state.lock().await;
        state.instances.get(instance).map(|i| i.namespace.clone())
    }

    /// A listening socket on one of the router's own addresses, such as [`METADATA`].
    pub async fn listen(&self, address: SocketAddr) -> Result<TcpListener, FabricError> {
        listen_in(&self.inner.vpc, address).await
    }

    /// Turns the anti-spoof filter on or off for all ports.
    pub async fn set_source_check(&self, check: bool) -> Result<(), FabricError> {
        let _state = self.state().await?;
        shell::nft(&self.inner.vpc, &filter::switch(check)).await
    }

    /// Packets dropped because the ENI that sent them does not own their source. Never falls.
    pub async fn spoof_drops(&self) -> Result<u64, FabricError> {
        let json = shell::nft_json(&self.inner.vpc, filter::COUNTER).await?;
        filter::counted(&json).ok_or_else(|| FabricError::Refused {
            program: "nft",
            namespace: self.inner.vpc.name().to_owned(),
            stderr: "no counter in the answer".to_owned(),
            script: json,
        })
    }

    /// Links of an ENI: its name in the guest, once it was plugged.
    pub async fn guest_link(&self, eni: &EniId) -> Option<String> {
        let state = self.inner.state.lock().await;
        state.ports.get(eni).map(|p| guest_name(p.link))
    }

    /// Removes every namespace of the run. Later calls fail with [`FabricError::Stopped`].
    pub async fn stop(&self) -> Result<(), FabricError> {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.state.lock().await.stopped = true;
        let prefix = self.inner.prefix.clone();
        tokio::task::spawn_blocking(move || remove_all(&prefix))
            .await
            .map_err(|e| FabricError::Io {
                what: "remove namespaces".to_owned(),
                source: std::io::Error::other(e),
            })?
    }

    async fn state(&self) -> Result<tokio::sync::MutexGuard<'_, State>, FabricError> {
        let state = self.inner.state.lock().await;
        if state.stopped {
            return Err(FabricError::Stopped);
        }
        Ok(state)
    }

    /// A plugged ENI has lost its link with the namespace that it was moved to. On a real machine the device goes back
    /// to the instance then; here it is made anew.
    async fn bring_back(&self, outer: &str) -> Result<(), FabricError> {
        let mut state = self.state().await?;
        let found = state.ports.values().find(|known| known.outer == outer);
        let Some(port) = found.map(|known| known.port.clone()) else {
            // Unplugged in good order.
            return Ok(());
        };
        self.remove_port(&mut state, &port.eni).await?;
        self.plug_in(&mut state, &port).await
    }

    async fn plug_port(&self, port: &Port) -> Result<(), FabricError> {
        let mut state = self.state().await?;
        self.plug_in(&mut state, port).await
    }

    async fn plug_in(&self, state: &mut State, port: &Port) -> Result<(), FabricError> {
        if let Some(known) = state.ports.get(&port.eni).cloned() {
            if known.port.instance == port.instance && known.port.mac == port.mac {
                return self.apply_addresses(state, port).await;
            }
            self.remove_port(state, &port.eni).await?;
        }
        let namespace = state.instance(&port.instance)?.namespace.clone();
        let number = state.next_port;
        state.next_port = number.wrapping_add(1);
        let (outer, inner) = (format!("p{number}"), format!("g{number}"));
        let vpc = &self.inner.vpc;
        shell::ip_batch(vpc, &port::pair(port, &outer, &inner)).await?;
        let prompt = vec![
            // Proxied answers are delayed by up to 0.8 s otherwise.
            (format!("ipv4/neigh/{outer}/proxy_delay"), "0"),
        ];
        vpc.set_sysctls(prompt).await?;
        let instance = state.instance(&port.instance)?;
        let link = instance.take_link(port.primary);
        let plugged = Plugged {
            port: Port {
                addresses: Vec::new(),
                ..port.clone()
            },
            outer,
            link,
            lag: self.inner.cancel.child_token(),
        };
        let lag = plugged.lag.clone();
        state.ports.insert(port.eni.clone(), plugged);
        self.apply_addresses(state, port).await?;
        let ifname = guest_name(link);
        if port.primary {
            move_link(vpc, &inner, &namespace, &ifname).await?;
            return shell::ip_batch(&namespace, &port::primary_guest(port, &ifname)).await;
        }
        if self.inner.link_lag.is_zero() {
            return move_link(vpc, &inner, &namespace, &ifname).await;
        }
        let (delay, vpc, eni) = (self.inner.link_lag, vpc.clone(), port.eni.clone());
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = lag.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            if let Err(error) = move_link(&vpc, &inner, &namespace, &ifname).await {
                tracing::error!(%eni, %error, "link did not appear in the instance");
            }
        });
        Ok(())
    }

    async fn apply_addresses(&self, state: &mut State, port: &Port) -> Result<(), FabricError> {
        let known = state.port(&port.eni)?;
        let added = port::missing(&port.addresses, &known.port.addresses);
        let removed = port::missing(&known.port.addresses, &port.addresses);
        let outer = known.outer.clone();
        let vpc = &self.inner.vpc;
        shell::nft(vpc, &filter::change(&outer, &added, &removed)).await?;
        shell::ip_batch(vpc, &port::routes(port.mac, &outer, &added, &removed)).await?;
        state
            .port(&port.eni)?
            .port
            .addresses
            .clone_from(&port.addresses);
        Ok(())
    }

    async fn remove_port(&self, state: &mut State, eni: &EniId) -> Result<(), FabricError> {
        let Some(known) = state.ports.remove(eni) else {
            return Ok(());
        };
        known.lag.cancel();
        if let Some(instance) = state.instances.get_mut(&known.port.instance) {
            instance.links.remove(&known.link);
        }
        let vpc = &self.inner.vpc;
        let change = filter::change(&known.outer, &[], &known.port.addresses);
        shell::nft(vpc, &change).await?;
        // Takes the peer, the routes and the neighbour along.
        shell::ip_batch_lenient(vpc, &format!("link del {}\n", known.outer)).await
    }
}

impl State {
    fn instance(&mut self, instance: &InstanceId) -> Result<&mut Instance, FabricError> {
        self.instances
            .get_mut(instance)
            .ok_or_else(|| FabricError::UnknownInstance {
                instance: instance.clone(),
            })
    }

    fn port(&mut self, eni: &EniId) -> Result<&mut Plugged, FabricError> {
        self.ports
            .get_mut(eni)
            .ok_or_else(|| FabricError::NotPlugged { eni: eni.clone() })
    }
}

impl Instance {
    /// The primary ENI is `eth0`; another gets the lowest number that is free.
    fn take_link(&mut self, primary: bool) -> u32 {
        let first = u32::from(!primary);
        let number = (first..MAX_LINKS)
            .find(|n| !self.links.contains(n))
            .unwrap_or(MAX_LINKS);
        self.links.insert(number);
        number
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Err(error) = remove_all(&self.prefix) {
            tracing::warn!(%error, "namespaces of this run are left");
        }
    }
}

fn guest_name(link: u32) -> String {
    format!("eth{link}")
}

async fn move_link(
    vpc: &Namespace,
    inner: &str,
    namespace: &Namespace,
    ifname: &str,
) -> Result<(), FabricError> {
    let script = format!(
        "link set dev {inner} netns {} name {ifname}\n",
        namespace.name()
    );
    shell::ip_batch(vpc, &script).await
}

fn remove_all(prefix: &str) -> Result<(), FabricError> {
    let mut outcome = Ok(());
    for namespace in namespace::with_prefix(prefix) {
        if let Err(error) = namespace.delete() {
            outcome = Err(error);
        }
    }
    outcome
}

/// A listening TCP socket inside a namespace. An IPv6 wildcard takes IPv4 too.
pub async fn listen_in(
    namespace: &Namespace,
    address: SocketAddr,
) -> Result<TcpListener, FabricError> {
    let what = format!("listen on {address} in {}", namespace.name());
    let listener = namespace
        .enter_async(move || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .await?
        .map_err(FabricError::io(what.clone()))?;
    TcpListener::from_std(listener).map_err(FabricError::io(what))
}

/// Opens something that belongs to a namespace, such as a socket, by a closure that runs inside.
pub async fn open_in_namespace<T: Send + 'static>(
    name: &str,
    open: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FabricError> {
    Namespace::named(name).enter_async(open).await
}

fn plane_error(what: &str, eni: &EniId, error: &FabricError) -> PlaneError {
    PlaneError {
        what: format!("{what} {eni}: {error}"),
    }
}

#[async_trait]
impl DataPlane for Fabric {
    async fn plug(&self, port: &Port) -> Result<(), PlaneError> {
        self.plug_port(port)
            .await
            .map_err(|e| plane_error("plug", &port.eni, &e))
    }

    async fn unplug(&self, eni: &EniId) -> Result<(), PlaneError> {
        let mut state = self
            .state()
            .await
            .map_err(|e| plane_error("unplug", eni, &e))?;
        self.remove_port(&mut state, eni)
            .await
            .map_err(|e| plane_error("unplug", eni, &e))
    }

    async fn set_addresses(&self, port: &Port) -> Result<(), PlaneError> {
        let mut state = self
            .state()
            .await
            .map_err(|e| plane_error("set addresses of", &port.eni, &e))?;
        self.apply_addresses(&mut state, port)
            .await
            .map_err(|e| plane_error("set addresses of", &port.eni, &e))
    }
}
