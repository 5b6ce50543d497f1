//! A cloud behind the gateway's contract: stateful, idempotent by op, with gates and faults. Served over real mTLS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use mesh::status::Refusal;
use proto::cloud::v1 as wire;
use proto::cloud::v1::cloud_server::Cloud;
use proto::types::v1::Reason;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

/// Where a call can be made to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// Before it took effect.
    Before,
    /// After it took effect, before its answer.
    After,
}

/// A place in a call.
pub(crate) type Spot = (&'static str, Side);

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) instances: BTreeMap<String, wire::Instance>,
    pub(crate) vswitches: BTreeMap<String, wire::VSwitch>,
    pub(crate) enis: BTreeMap<String, wire::Eni>,
    /// vSwitches without room.
    pub(crate) exhausted: BTreeSet<String>,
    /// Calls whose next answers are lost after they took effect.
    pub(crate) lose: BTreeMap<&'static str, u32>,
    /// Calls by name.
    pub(crate) calls: BTreeMap<&'static str, u32>,
    /// Traceparents of create calls.
    pub(crate) traces: Vec<String>,
    made: BTreeMap<(String, u64), String>,
    fences: BTreeMap<String, u64>,
    /// Which call each key was used for: a key names one call for ever.
    keys: BTreeMap<(String, u64), &'static str>,
    next: u32,
}

/// The gateway; clones share the world.
#[derive(Debug, Clone)]
pub(crate) struct FakeGateway {
    world: Arc<Mutex<World>>,
    gate: watch::Sender<Option<Spot>>,
    reached: watch::Sender<u32>,
}

fn refuse(reason: Reason, text: &str) -> Status {
    Refusal::new(Code::FailedPrecondition, reason.as_str_name(), text).into_status()
}

impl FakeGateway {
    pub(crate) fn new() -> Self {
        Self {
            world: Arc::default(),
            gate: watch::Sender::new(None),
            reached: watch::Sender::new(0),
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Makes calls wait at `spot` from now on.
    pub(crate) fn close(&self, spot: Spot) {
        self.reached.send_replace(0);
        self.gate.send_replace(Some(spot));
    }

    /// Lets everything through.
    pub(crate) fn open(&self) {
        self.gate.send_replace(None);
    }

    /// Waits until a call stands at the gate.
    pub(crate) async fn until_reached(&self) {
        let mut reached = self.reached.subscribe();
        let wait = reached.wait_for(|count| *count > 0);
        tokio::time::timeout(crate::cluster::PATIENCE, wait)
            .await
            .expect("a call at the gate")
            .unwrap();
    }

    async fn pass(&self, spot: Spot) {
        let mut gate = self.gate.subscribe();
        if *gate.borrow() == Some(spot) {
            self.reached.send_modify(|count| *count += 1);
        }
        gate.wait_for(|closed| *closed != Some(spot)).await.unwrap();
    }

    /// One call: waits, fences, takes effect, perhaps loses its answer.
    async fn call<T>(
        &self,
        name: &'static str,
        op: Option<&wire::OpKey>,
        effect: impl FnOnce(&mut World) -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        self.pass((name, Side::Before)).await;
        let result = {
            let mut world = self.world();
            *world.calls.entry(name).or_default() += 1;
            if let Some(op) = op {
                let fence = world.fences.get(&op.shard).copied().unwrap_or(0);
                if op.epoch < fence {
                    return Err(refuse(Reason::EpochStale, "an older owner"));
                }
                let key = (op.shard.clone(), op.sequence);
                let used = *world.keys.entry(key).or_insert(name);
                if used != name {
                    return Err(refuse(Reason::BadField, "the key is another call's"));
                }
            }
            effect(&mut world)
        };
        self.pass((name, Side::After)).await;
        let lost = self.world().lose.get_mut(name).is_some_and(|left| {
            let lose = *left > 0;
            *left = left.saturating_sub(1);
            lose
        });
        if lost {
            return Err(refuse(Reason::OutcomeUnknown, "the answer is lost"));
        }
        result.map(Response::new)
    }
}

impl World {
    pub(crate) fn add_vswitch(&mut self, id: &str, zone: &str, v4: &str, v6: &str) {
        let vswitch = wire::VSwitch {
            id: id.to_owned(),
            zone_id: zone.to_owned(),
            vpc_id: "vpc-1".to_owned(),
            ipv4_cidr: v4.to_owned(),
            ipv6_cidr: v6.to_owned(),
            available_ipv4: 200,
        };
        self.vswitches.insert(id.to_owned(), vswitch);
    }

    pub(crate) fn add_instance(&mut self, id: &str, zone: &str, enis: u32, per_eni: u32) {
        let instance = wire::Instance {
            id: id.to_owned(),
            instance_type: "ecs.test.large".to_owned(),
            zone_id: zone.to_owned(),
            region_id: "cn-test".to_owned(),
            vpc_id: "vpc-1".to_owned(),
            vswitch_id: "vsw-nodes".to_owned(),
            status: "Running".to_owned(),
            security_group_ids: vec!["sg-node".to_owned()],
            primary_eni_id: format!("eni-primary-{id}"),
            primary_ip: String::new(),
            quota: Some(wire::EniQuota {
                enis,
                enis_total: enis,
                ipv4_per_eni: per_eni,
                ipv6_per_eni: per_eni,
                trunk: false,
            }),
        };
        self.instances.insert(id.to_owned(), instance);
    }

    /// An ENI that is not ours.
    pub(crate) fn add_stranger(&mut self, vswitch: &str, ip: &str) {
        let eni = wire::Eni {
            id: format!("eni-stranger-{}", self.enis.len()),
            mac: "00:16:3e:ff:00:01".to_owned(),
            status: "InUse".to_owned(),
            kind: "Secondary".to_owned(),
            vswitch_id: vswitch.to_owned(),
            primary_ip: ip.to_owned(),
            ipv4: vec![ip.to_owned()],
            ..wire::Eni::default()
        };
        self.enis.insert(eni.id.clone(), eni);
    }

    pub(crate) fn ours(&self) -> Vec<wire::Eni> {
        let ours = |eni: &&wire::Eni| eni.tags.get("creator").is_some_and(|c| c == "terway-mesh");
        self.enis.values().filter(ours).cloned().collect()
    }

    /// Every address of every ENI.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.enis
            .values()
            .flat_map(|eni| eni.ipv4.iter().chain(&eni.ipv6))
            .cloned()
            .collect()
    }

    fn check_free<'a>(&self, wanted: impl IntoIterator<Item = &'a String>) -> Result<(), Status> {
        let taken: BTreeSet<String> = self.addresses().into_iter().collect();
        match wanted.into_iter().find(|ip| taken.contains(*ip)) {
            Some(ip) => Err(Refusal::new(
                Code::AlreadyExists,
                Reason::AddressInUse.as_str_name(),
                "taken",
            )
            .with("address", ip.clone())
            .into_status()),
            None => Ok(()),
        }
    }

    fn eni(&mut self, id: &str) -> Result<&mut wire::Eni, Status> {
        self.enis
            .get_mut(id)
            .ok_or_else(|| refuse(Reason::NotFound, "no such ENI"))
    }

    fn create(&mut self, request: wire::CreateEniRequest) -> Result<wire::Eni, Status> {
        let op = request.op.ok_or_else(|| refuse(Reason::BadField, "op"))?;
        let key = (op.shard, op.sequence);
        if let Some(made) = self.made.get(&key) {
            return self
                .enis
                .get(made)
                .cloned()
                .ok_or_else(|| refuse(Reason::NotFound, "deleted since"));
        }
        if self.exhausted.contains(&request.vswitch_id) {
            return Err(refuse(Reason::VswitchExhausted, "full"));
        }
        assert!(
            request.ipv4.len() <= 10 && request.ipv6.len() <= 10,
            "more than the API takes"
        );
        let ipv4: Vec<String> = std::iter::once(request.primary_ip.clone())
            .chain(request.ipv4)
            .collect();
        self.check_free(ipv4.iter().chain(&request.ipv6))?;
        self.next += 1;
        let eni = wire::Eni {
            id: format!("eni-{:04}", self.next),
            mac: format!(
                "00:16:3e:00:{:02x}:{:02x}",
                self.next / 256,
                self.next % 256
            ),
            status: "Available".to_owned(),
            kind: "Secondary".to_owned(),
            vswitch_id: request.vswitch_id,
            security_group_ids: request.security_group_ids,
            primary_ip: request.primary_ip,
            ipv4,
            ipv6: request.ipv6,
            tags: request.tags,
            ..wire::Eni::default()
        };
        self.made.insert(key, eni.id.clone());
        self.enis.insert(eni.id.clone(), eni.clone());
        Ok(eni)
    }

    fn attach(&mut self, eni: &str, instance: &str) -> Result<wire::Eni, Status> {
        let most = self
            .instances
            .get(instance)
            .and_then(|found| found.quota)
            .ok_or_else(|| refuse(Reason::NodeUnknown, "no such instance"))?
            .enis;
        let attached = self
            .enis
            .values()
            .filter(|e| e.instance_id == instance && e.id != eni)
            .count();
        if u32::try_from(attached).unwrap() + 1 >= most {
            return Err(refuse(Reason::EniLimit, "as many ENIs as there may be"));
        }
        let eni = self.eni(eni)?;
        instance.clone_into(&mut eni.instance_id);
        "InUse".clone_into(&mut eni.status);
        Ok(eni.clone())
    }

    fn assign(&mut self, request: &wire::AssignAddressesRequest) -> Result<wire::Eni, Status> {
        let there = self.eni(&request.eni_id)?.clone();
        let all: Vec<&String> = request.ipv4.iter().chain(&request.ipv6).collect();
        let on: BTreeSet<&String> = there.ipv4.iter().chain(&there.ipv6).collect();
        self.check_free(all.into_iter().filter(|ip| !on.contains(ip)))?;
        let eni = self.eni(&request.eni_id)?;
        for ip in &request.ipv4 {
            if !eni.ipv4.contains(ip) {
                eni.ipv4.push(ip.clone());
            }
        }
        for ip in &request.ipv6 {
            if !eni.ipv6.contains(ip) {
                eni.ipv6.push(ip.clone());
            }
        }
        Ok(eni.clone())
    }
}

#[tonic::async_trait]
impl Cloud for FakeGateway {
    async fn create_eni(
        &self,
        request: Request<wire::CreateEniRequest>,
    ) -> Result<Response<wire::CreateEniResponse>, Status> {
        let trace = request
            .metadata()
            .get("traceparent")
            .and_then(|t| t.to_str().ok())
            .map(str::to_owned);
        self.world().traces.extend(trace);
        let request = request.into_inner();
        let op = request.op.clone();
        self.call("create", op.as_ref(), |world| {
            Ok(wire::CreateEniResponse {
                eni: Some(world.create(request)?),
                request_id: String::new(),
            })
        })
        .await
    }

    async fn attach_eni(
        &self,
        request: Request<wire::AttachEniRequest>,
    ) -> Result<Response<wire::AttachEniResponse>, Status> {
        let request = request.into_inner();
        self.call("attach", request.op.as_ref(), |world| {
            let eni = world.attach(&request.eni_id, &request.instance_id)?;
            Ok(wire::AttachEniResponse {
                eni: Some(eni),
                request_id: String::new(),
            })
        })
        .await
    }

    async fn detach_eni(
        &self,
        request: Request<wire::DetachEniRequest>,
    ) -> Result<Response<wire::DetachEniResponse>, Status> {
        let request = request.into_inner();
        self.call("detach", request.op.as_ref(), |world| {
            let eni = world.eni(&request.eni_id)?;
            eni.instance_id.clear();
            "Available".clone_into(&mut eni.status);
            Ok(wire::DetachEniResponse::default())
        })
        .await
    }

    async fn delete_eni(
        &self,
        request: Request<wire::DeleteEniRequest>,
    ) -> Result<Response<wire::DeleteEniResponse>, Status> {
        let request = request.into_inner();
        self.call("delete", request.op.as_ref(), |world| {
            world.enis.remove(&request.eni_id);
            Ok(wire::DeleteEniResponse::default())
        })
        .await
    }

    async fn assign_addresses(
        &self,
        request: Request<wire::AssignAddressesRequest>,
    ) -> Result<Response<wire::AssignAddressesResponse>, Status> {
        let request = request.into_inner();
        self.call("assign", request.op.as_ref(), |world| {
            let eni = world.assign(&request)?;
            Ok(wire::AssignAddressesResponse {
                eni: Some(eni),
                request_ids: Vec::new(),
            })
        })
        .await
    }

    async fn unassign_addresses(
        &self,
        request: Request<wire::UnassignAddressesRequest>,
    ) -> Result<Response<wire::UnassignAddressesResponse>, Status> {
        let request = request.into_inner();
        self.call("unassign", request.op.as_ref(), |world| {
            let eni = world.eni(&request.eni_id)?;
            eni.ipv4.retain(|ip| !request.ipv4.contains(ip));
            eni.ipv6.retain(|ip| !request.ipv6.contains(ip));
            Ok(wire::UnassignAddressesResponse {
                eni: Some(eni.clone()),
                request_ids: Vec::new(),
            })
        })
        .await
    }

    async fn describe_enis(
        &self,
        request: Request<wire::DescribeEnisRequest>,
    ) -> Result<Response<wire::DescribeEnisResponse>, Status> {
        let request = request.into_inner();
        self.call("describe_enis", None, |world| {
            let enis = world.enis.values().filter(|eni| {
                (request.vswitch_id.is_empty() || eni.vswitch_id == request.vswitch_id)
                    && (request.eni_ids.is_empty() || request.eni_ids.contains(&eni.id))
            });
            Ok(wire::DescribeEnisResponse {
                enis: enis.cloned().collect(),
            })
        })
        .await
    }

    async fn describe_instances(
        &self,
        request: Request<wire::DescribeInstancesRequest>,
    ) -> Result<Response<wire::DescribeInstancesResponse>, Status> {
        let ids = request.into_inner().instance_ids;
        self.call("describe_instances", None, |world| {
            let found = ids.iter().filter_map(|id| world.instances.get(id).cloned());
            Ok(wire::DescribeInstancesResponse {
                instances: found.collect(),
            })
        })
        .await
    }

    async fn describe_v_switches(
        &self,
        request: Request<wire::DescribeVSwitchesRequest>,
    ) -> Result<Response<wire::DescribeVSwitchesResponse>, Status> {
        let ids = request.into_inner().vswitch_ids;
        self.call("describe_vswitches", None, |world| {
            let found = ids.iter().filter_map(|id| world.vswitches.get(id).cloned());
            Ok(wire::DescribeVSwitchesResponse {
                vswitches: found.collect(),
            })
        })
        .await
    }

    async fn fence(
        &self,
        request: Request<wire::FenceRequest>,
    ) -> Result<Response<wire::FenceResponse>, Status> {
        let request = request.into_inner();
        self.call("fence", None, |world| {
            let fence = world.fences.entry(request.shard).or_default();
            *fence = (*fence).max(request.epoch);
            Ok(wire::FenceResponse::default())
        })
        .await
    }
}
