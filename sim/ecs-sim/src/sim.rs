//! The handle: one state behind one lock, with time, latency, faults and a data plane around it.

mod answer;
mod execute;
mod state;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_api::action::Action;
use ecs_api::sign::Credentials;
use tokio_util::task::TaskTracker;
use types::cloud::{EniId, InstanceId, RegionId, VSwitchId, ZoneId};
use types::time::Tick;

use crate::account::Account;
use crate::account::instance::InstanceStatus;
use crate::clock::Clock;
use crate::config::{Latency, SimConfig};
use crate::dump::{Call, SimDump};
use crate::faults::{Fault, FaultId};
use crate::passes::Passes;
use crate::plane::{DataPlane, PlaneError};
use crate::refusal::Refusal;
use crate::roles::{RoleSpec, Roles};
use crate::signature::Keys;
use crate::sim::state::State;
use crate::spec::{
    InstanceSpec, InstanceTypeSpec, InstanceView, SecurityGroupSpec, VSwitchSpec, VpcSpec,
    WorldError,
};

/// A simulated cloud. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Sim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    region: RegionId,
    plane: Arc<dyn DataPlane>,
    state: Mutex<State>,
    /// What runs: calls, and the changes they start.
    running: TaskTracker,
}

/// What the metadata service sees of the cloud.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// Its tokens.
    pub(crate) passes: &'a mut Passes,
    /// Instances and ENIs.
    pub(crate) account: &'a Account,
    /// Roles of instances.
    pub(crate) roles: &'a mut Roles,
    /// Where the keys of roles become known.
    pub(crate) keys: &'a mut Keys,
    /// The time.
    pub(crate) now: Tick,
    /// How far it is behind.
    pub(crate) lag: Duration,
}

impl Sim {
    /// An empty cloud over a data plane. Calls and changes run as tasks, so its methods need a tokio runtime.
    pub fn new(config: SimConfig, plane: Arc<dyn DataPlane>) -> Self {
        let running = TaskTracker::new();
        running.close();
        Self {
            inner: Arc::new(Inner {
                clock: config.clock.clone(),
                region: config.region.clone(),
                plane,
                state: Mutex::new(State::new(config)),
                running,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug of ours; what it left is still the best there is to show.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Tick {
        self.inner.clock.now()
    }

    /// Adds a zone.
    ///
    /// # Errors
    /// [`WorldError::Exists`].
    pub fn add_zone(&self, id: ZoneId) -> Result<(), WorldError> {
        self.state().account.add_zone(id)
    }

    /// Adds a VPC.
    ///
    /// # Errors
    /// [`WorldError::Exists`].
    pub fn add_vpc(&self, spec: VpcSpec) -> Result<(), WorldError> {
        self.state().account.add_vpc(spec)
    }

    /// Adds a vSwitch.
    ///
    /// # Errors
    /// [`WorldError`] when zone or VPC are missing, or a range breaks the rules.
    pub fn add_vswitch(&self, spec: VSwitchSpec) -> Result<(), WorldError> {
        self.state().account.add_vswitch(spec)
    }

    /// Adds a security group.
    ///
    /// # Errors
    /// [`WorldError`] when the id is taken or the VPC is missing.
    pub fn add_security_group(&self, spec: SecurityGroupSpec) -> Result<(), WorldError> {
        self.state().account.add_security_group(spec)
    }

    /// Adds an instance type, or replaces one.
    pub fn set_instance_type(&self, spec: InstanceTypeSpec) {
        self.state().account.set_instance_type(spec);
    }

    /// Adds a lasting key, or replaces it.
    pub fn add_access_key(&self, id: &str, secret: &str) {
        self.state()
            .keys
            .add(Credentials::lasting(id, secret), None);
    }

    /// Adds a temporary key that needs its token with every call, until `expires_at`.
    pub fn add_temporary_key(&self, id: &str, secret: &str, token: &str, expires_at: Option<Tick>) {
        let credentials = Credentials::temporary(id, secret, token);
        self.state().keys.add(credentials, expires_at);
    }

    /// Disables a key. False if there is none of that id.
    pub fn disable_access_key(&self, id: &str) -> bool {
        self.state().keys.disable(id)
    }

    /// Adds a RAM role, or replaces it.
    pub fn set_role(&self, spec: RoleSpec) {
        self.state().roles.set(spec);
    }

    /// Removes a RAM role. False if there is none of that name.
    pub fn remove_role(&self, name: &str) -> bool {
        self.state().roles.remove(name)
    }

    /// Runs an instance: its primary ENI is plugged in when this returns.
    ///
    /// # Errors
    /// [`WorldError`] when something it needs is missing, or the data plane fails; then there is no instance.
    pub async fn run_instance(&self, spec: InstanceSpec) -> Result<InstanceView, WorldError> {
        let now = self.now();
        let view = self.state().account.add_instance(&spec, now)?;
        match self.inner.plane.plug(&view.primary).await {
            Ok(()) => Ok(view),
            Err(PlaneError { what }) => {
                let now = self.now();
                drop(self.state().account.remove_instance(&spec.id, now));
                Err(WorldError::Plane {
                    id: spec.id,
                    eni: view.primary.eni,
                    why: what,
                })
            }
        }
    }

    /// Removes an instance: its ENIs are unplugged, those that go with it are deleted, the others become free.
    ///
    /// # Errors
    /// `InvalidEcsId.NotFound`, or `InternalError` when the data plane fails; then the instance is still there.
    pub async fn release_instance(&self, id: &InstanceId) -> Result<(), Refusal> {
        let enis = self.state().account.enis_of(id);
        for eni in &enis {
            let lock = self.state().lock_of(eni);
            let _guard = lock.lock().await;
            self.inner.plane.unplug(eni).await.map_err(|err| {
                tracing::error!(%eni, %err, "unplug failed");
                Refusal::internal()
            })?;
        }
        let now = self.now();
        let mut state = self.state();
        state.account.remove_instance(id, now)?;
        state.prune_locks();
        Ok(())
    }

    /// Sets whether an instance runs.
    ///
    /// # Errors
    /// `InvalidEcsId.NotFound`.
    pub fn set_instance_status(
        &self,
        id: &InstanceId,
        status: InstanceStatus,
    ) -> Result<(), Refusal> {
        self.state().account.set_instance_status(id, status)
    }

    /// Injects a fault, from now on.
    pub fn inject_fault(&self, fault: Fault) -> FaultId {
        let now = self.now();
        self.state().faults.inject(fault, now)
    }

    /// Removes a fault. False if it is gone already.
    pub fn remove_fault(&self, id: FaultId) -> bool {
        self.state().faults.remove(id)
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<(FaultId, Fault)> {
        self.state().faults.list()
    }

    /// Sets how long things take, for calls and changes that start from now on.
    pub fn set_latency(&self, latency: Latency) {
        self.state().latency = latency;
    }

    /// Sets the calls per minute of an action.
    pub fn set_quota(&self, action: Action, per_minute: u32) {
        self.state().quotas.set(action, per_minute);
    }

    /// Sets how far Describe of ENIs and the metadata service are behind the truth, up to two minutes.
    pub fn set_lags(&self, describe: Duration, metadata: Duration) {
        let mut state = self.state();
        state.read_lag = describe;
        state.metadata_lag = metadata;
    }

    /// Another user of the vSwitch takes an address. Returns that user's ENI.
    ///
    /// # Errors
    /// The address is taken, reserved, or not of the vSwitch.
    pub fn take_foreign(&self, vswitch: &VSwitchId, ip: IpAddr) -> Result<EniId, Refusal> {
        let now = self.now();
        self.state().account.take_foreign(vswitch, ip, now)
    }

    /// The other user gives the address back.
    ///
    /// # Errors
    /// The ENI does not exist, or is no other user's.
    pub fn release_foreign(&self, eni: &EniId) -> Result<(), Refusal> {
        let now = self.now();
        self.state().account.release_foreign(eni, now)
    }

    /// Somebody unassigns an address behind the back of its users.
    ///
    /// # Errors
    /// As `UnassignPrivateIpAddresses` and `UnassignIpv6Addresses`; `InternalError` when the data plane fails.
    pub async fn unassign_behind_back(&self, eni: &EniId, ip: IpAddr) -> Result<(), Refusal> {
        self.unassign(eni, &[ip]).await.map(drop)
    }

    /// Somebody detaches an ENI behind the back of its users. It is `Available` when this returns.
    ///
    /// # Errors
    /// As `DetachNetworkInterface`; `InternalError` when the data plane fails.
    pub async fn detach_behind_back(&self, eni: &EniId) -> Result<(), Refusal> {
        let now = self.now();
        let started = {
            let mut state = self.state();
            let instance = state.account.instance_of(eni)?;
            state.account.detach_eni(eni, &instance, None, now)?
        };
        match started {
            Some(started) => self.finish_detach(started, Duration::ZERO).await,
            None => Ok(()),
        }
    }

    /// Waits until no call, attach, detach or delete runs.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn settled(&self) {
        self.inner.running.wait().await;
    }

    /// The whole state, without secrets.
    pub fn dump(&self) -> SimDump {
        self.state().dump()
    }

    /// The latest calls, oldest first; at most 20,000.
    pub fn calls(&self) -> Vec<Call> {
        self.state().ledger.calls().cloned().collect()
    }

    /// Acts on what the metadata service sees.
    pub(crate) fn with_metadata<T>(&self, act: impl FnOnce(Seen<'_>) -> T) -> T {
        let now = self.now();
        let mut state = self.state();
        let State {
            passes,
            account,
            roles,
            keys,
            metadata_lag,
            ..
        } = &mut *state;
        act(Seen {
            passes,
            account,
            roles,
            keys,
            now,
            lag: *metadata_lag,
        })
    }
}
