//! A kubelet as device plug-ins know it: a registry in a folder, that dials back before it answers, remembers what
//! plug-ins list, and forgets all when it is started anew, with everything in its folder.
//!
//! Source: kubernetes 1.34, `pkg/kubelet/cm/devicemanager`: registration, `CleanupPluginDirectory`, client.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh::authz::{Row, Table};
use mesh::client::Channel;
use mesh::drain::Drain;
use mesh::identity::CallerKind::LocalRoot;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Bound, Params};
use mesh::tasks::Tasks;
use node_agent::device_plugin::KUBELET;
use proto::deviceplugin::v1beta1::device_plugin_client::DevicePluginClient;
use proto::deviceplugin::v1beta1::registration_server::{Registration, RegistrationServer};
use proto::deviceplugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, Empty, RegisterRequest,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

const TABLE: Table = &[Row {
    method: "/v1beta1.Registration/Register",
    callers: &[LocalRoot],
}];

/// Capacity and allocatable of a resource.
pub(crate) type Resource = (usize, usize);

/// One process of kubelet.
pub(crate) struct Kubelet {
    dir: PathBuf,
    resources: Arc<Mutex<BTreeMap<String, Resource>>>,
    endpoint: Arc<Mutex<Option<String>>>,
    tasks: Tasks,
}

impl Kubelet {
    /// Starts one: whatever lay in the folder goes.
    pub(crate) fn start(dir: &Path) -> Self {
        for entry in std::fs::read_dir(dir).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let tasks = Tasks::new(Drain::new());
        let this = Self {
            dir: dir.to_owned(),
            resources: Arc::default(),
            endpoint: Arc::default(),
            tasks: tasks.clone(),
        };
        let door = Door {
            dir: dir.to_owned(),
            resources: Arc::clone(&this.resources),
            endpoint: Arc::clone(&this.endpoint),
            tasks: tasks.clone(),
        };
        let bound = Bound::unix(&dir.join(KUBELET), Params::default()).unwrap();
        let metrics = RpcMetrics::register(&Registry::new());
        let routes = Routes::new(RegistrationServer::new(door));
        bound.serve(routes, TABLE, &metrics, &tasks);
        this
    }

    /// What the Node object would say of a resource.
    pub(crate) fn resource(&self, name: &str) -> Option<Resource> {
        self.resources.lock().unwrap().get(name).copied()
    }

    /// Gives devices to a container; how many answers came.
    pub(crate) async fn allocate(&self, device: &str) -> usize {
        let endpoint = self.endpoint.lock().unwrap().clone().unwrap();
        let mut plugin = dial(&self.dir.join(endpoint));
        let one = ContainerAllocateRequest {
            device_ids: vec![device.to_owned()],
        };
        let request = AllocateRequest {
            container_requests: vec![one],
        };
        let answer = plugin.allocate(request).await.unwrap().into_inner();
        answer.container_responses.len()
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        self.tasks.drain().start("end");
        self.tasks.drain().stop();
        assert!(self.tasks.wait(Duration::from_secs(20)).await);
    }
}

fn dial(socket: &Path) -> DevicePluginClient<Channel> {
    let params = mesh::client::Params::default();
    DevicePluginClient::new(Channel::unix(socket, &params).without_deadline())
}

struct Door {
    dir: PathBuf,
    resources: Arc<Mutex<BTreeMap<String, Resource>>>,
    endpoint: Arc<Mutex<Option<String>>>,
    tasks: Tasks,
}

#[tonic::async_trait]
impl Registration for Door {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" || !request.resource_name.contains('/') {
            return Err(Status::invalid_argument(format!("{request:?}")));
        }
        // Whoever does not serve yet is refused.
        let mut plugin = dial(&self.dir.join(&request.endpoint));
        plugin.get_device_plugin_options(Empty {}).await?;
        let mut list = plugin.list_and_watch(Empty {}).await?.into_inner();
        *self.endpoint.lock().unwrap() = Some(request.endpoint);
        let (name, resources) = (request.resource_name, Arc::clone(&self.resources));
        let stopping = self.tasks.stopping();
        drop(self.tasks.spawn_once("list", async move {
            let follow = async {
                while let Ok(Some(devices)) = list.message().await {
                    let devices = devices.devices;
                    let healthy = devices.iter().filter(|d| d.health == "Healthy").count();
                    let resource = (devices.len(), healthy);
                    resources.lock().unwrap().insert(name.clone(), resource);
                }
                // A plug-in that is gone has no healthy device any more.
                if let Some(resource) = resources.lock().unwrap().get_mut(&name) {
                    resource.1 = 0;
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = follow => {}
            }
        }));
        Ok(Response::new(Empty {}))
    }
}
