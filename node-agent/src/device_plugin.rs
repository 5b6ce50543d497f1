//! The resource `aliyun/eni`: tells kubelet how many whole ENIs pods of this node can have.
//!
//! kubelet's folder has its own socket and ours. We serve, then register, and kubelet dials back. A kubelet that is
//! started anew empties the folder and knows nobody: its socket is looked at, and we begin again.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use mesh::authz::{Row, Table};
use mesh::client::{self, Channel};
use mesh::drain::Drain;
use mesh::identity::CallerKind::LocalRoot;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{BindError, Bound, Params};
use mesh::tasks::Tasks;
use proto::deviceplugin::v1beta1::device_plugin_server::{self, DevicePluginServer};
use proto::deviceplugin::v1beta1::registration_client::RegistrationClient;
use proto::deviceplugin::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::quota::whole_eni_capacity;

use crate::dial::pauses;
use crate::metrics::Metrics;

/// Terway's name.
pub const RESOURCE: &str = "aliyun/eni";
/// kubelet's socket in the folder.
///
/// Source: kubernetes.io, "Device Plugins", API v1beta1.
pub const KUBELET: &str = "kubelet.sock";
/// Ours.
pub const SOCKET: &str = "terway-eni.sock";
/// Version of the API.
const VERSION: &str = "v1beta1";
/// Between two looks at the sockets.
const LOOK: Duration = Duration::from_secs(1);
/// kubelet dials back within ten seconds before it answers.
const REGISTER_WAIT: Duration = Duration::from_secs(15);
/// For kubelet's calls to end when we begin again.
const END_WAIT: Duration = Duration::from_secs(5);

const fn by_root(method: &'static str) -> Row {
    Row {
        method,
        callers: &[LocalRoot],
    }
}

const TABLE: Table = &[
    by_root("/v1beta1.DevicePlugin/GetDevicePluginOptions"),
    by_root("/v1beta1.DevicePlugin/ListAndWatch"),
    by_root("/v1beta1.DevicePlugin/GetPreferredAllocation"),
    by_root("/v1beta1.DevicePlugin/Allocate"),
    by_root("/v1beta1.DevicePlugin/PreStartContainer"),
];

/// How many whole ENIs there are for pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offer {
    /// ENIs of the instance type besides the primary one: the resource's capacity, and Terway's number.
    pub all: u32,
    /// Of these, those that pods can have or have: what is allocatable.
    pub whole: u32,
}

impl Offer {
    /// Of the ENIs that the type allows beside the primary one, and the shared ENIs that the node has or is about to
    /// get. Both numbers count ENIs that pods have already.
    pub fn of(secondary_enis: u32, shared_enis: u32) -> Self {
        Self {
            all: secondary_enis,
            whole: whole_eni_capacity(secondary_enis, shared_enis),
        }
    }

    fn devices(self) -> ListAndWatchResponse {
        let device = |number: u32| Device {
            id: format!("eni-{number}"),
            health: if number < self.whole {
                "Healthy".to_owned()
            } else {
                "Unhealthy".to_owned()
            },
        };
        ListAndWatchResponse {
            devices: (0..self.all).map(device).collect(),
        }
    }
}

/// Why kubelet does not know us.
#[derive(Debug, thiserror::Error)]
enum DevicePluginError {
    #[error("our socket")]
    Bind(#[from] BindError),
    #[error("registration with kubelet: {}", .0.message())]
    Register(Status),
}

/// Serves kubelet, one process of it after the other.
#[derive(Debug)]
pub struct DevicePlugin {
    /// kubelet's folder.
    pub dir: PathBuf,
    /// What is offered.
    pub offer: watch::Receiver<Offer>,
    /// Metrics of the door.
    pub rpc: RpcMetrics,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl DevicePlugin {
    /// Serves until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        let mut pauses = pauses(500, 10_000);
        let mut complained = false;
        loop {
            let kubelet = stamp(&self.dir.join(KUBELET));
            let pause = match kubelet {
                None => LOOK,
                Some(kubelet) => match self.serve(kubelet, &drain).await {
                    Ok(()) => {
                        pauses.reset();
                        complained = false;
                        LOOK
                    }
                    Err(error) => {
                        let error = mesh::causes::text(&error);
                        if complained {
                            tracing::debug!(error, "kubelet does not know aliyun/eni yet");
                        } else {
                            tracing::warn!(error, "kubelet does not know aliyun/eni yet");
                        }
                        complained = true;
                        pauses.next_wait()
                    }
                },
            };
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Serves one process of kubelet, until it or our socket is gone.
    async fn serve(
        &self,
        kubelet: Stamp,
        drain: &CancellationToken,
    ) -> Result<(), DevicePluginError> {
        let tasks = Tasks::new(Drain::new());
        let socket = self.dir.join(SOCKET);
        let bound = Bound::unix(&socket, Params::default())?;
        let ours = stamp(&socket);
        let door = Door {
            offer: self.offer.clone(),
            tasks: tasks.clone(),
        };
        let routes = Routes::new(DevicePluginServer::new(door));
        bound.serve(routes, TABLE, &self.rpc, &tasks);
        let path = self.dir.join(KUBELET);
        let known = async {
            self.register(&path).await?;
            tracing::info!(resource = RESOURCE, "registered with kubelet");
            self.metrics.registrations.inc();
            while stamp(&path) == Some(kubelet) && stamp(&socket) == ours {
                tokio::time::sleep(LOOK).await;
            }
            tracing::info!("kubelet was started anew");
            Ok(())
        };
        let served = tokio::select! {
            biased;
            () = drain.cancelled() => Ok(()),
            served = known => served,
        };
        tasks.drain().start("begin again");
        tasks.drain().stop();
        if !tasks.wait(END_WAIT).await {
            tracing::warn!("calls of kubelet have not ended");
        }
        served
    }

    async fn register(&self, kubelet: &Path) -> Result<(), DevicePluginError> {
        let channel = Channel::unix(kubelet, &client::Params::default());
        let mut door = RegistrationClient::new(channel.with_deadline(REGISTER_WAIT));
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: SOCKET.to_owned(),
            resource_name: RESOURCE.to_owned(),
            options: Some(DevicePluginOptions::default()),
        };
        let answer = door.register(request).await;
        answer.map(drop).map_err(DevicePluginError::Register)
    }
}

/// What tells one file from the next under the same name.
type Stamp = (u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

/// The door for kubelet.
#[derive(Debug)]
struct Door {
    offer: watch::Receiver<Offer>,
    tasks: Tasks,
}

#[tonic::async_trait]
impl device_plugin_server::DevicePlugin for Door {
    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (tell, told) = mpsc::channel(1);
        let mut offer = self.offer.clone();
        let ending = self.tasks.drain().draining().clone();
        drop(self.tasks.spawn_once("devices", async move {
            loop {
                let devices = offer.borrow_and_update().devices();
                let changed = async {
                    if tell.send(Ok(devices)).await.is_err() {
                        return false;
                    }
                    tokio::select! {
                        changed = offer.changed() => changed.is_ok(),
                        () = tell.closed() => false,
                    }
                };
                tokio::select! {
                    biased;
                    () = ending.cancelled() => return,
                    changed = changed => if !changed { return },
                }
            }
        }));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn get_preferred_allocation(
        &self,
        _request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        // Not called: the options say so.
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        // A container gets nothing: its pod gets the ENI, from the ADD.
        let each = request.into_inner().container_requests.into_iter();
        let each = each.map(|_| ContainerAllocateResponse::default());
        Ok(Response::new(AllocateResponse {
            container_responses: each.collect(),
        }))
    }

    async fn pre_start_container(
        &self,
        _request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enis_of_the_shared_pool_are_unhealthy_devices() {
        let devices = Offer::of(3, 2).devices().devices;

        let devices: Vec<_> = devices.iter().map(|d| (&*d.id, &*d.health)).collect();
        assert_eq!(
            devices,
            [
                ("eni-0", "Healthy"),
                ("eni-1", "Unhealthy"),
                ("eni-2", "Unhealthy")
            ]
        );
        assert!(Offer::default().devices().devices.is_empty());
    }
}
