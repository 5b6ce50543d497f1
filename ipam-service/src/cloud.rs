//! The way to the cloud: calls to cloud-gateway, with outcomes that say what a caller does next.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh::client::Channel;
use proto::cloud::v1 as wire;
use proto::types::v1::Reason;
use tonic::{Code, Status};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, InstanceType, SecurityGroupId, VSwitchId, ZoneId};
use types::op::{Epoch, Seq, ShardId};
use types::quota::EniQuota;

/// Tag that marks an ENI as made by this project.
pub const TAG_CREATOR: &str = "creator";
/// Value of [`TAG_CREATOR`].
pub const CREATOR: &str = "terway-mesh";
/// Tag with the cluster's id.
pub const TAG_CLUSTER: &str = "terway.io/cluster";
/// Tag with the installation's name.
pub const TAG_AUTHORITY: &str = "terway.io/authority";
/// Tag with shard and sequence of the intent, `vsw-abc.0/17`.
pub const TAG_OP: &str = "terway.io/op";
/// Tag with the instance that the ENI is meant for.
pub const TAG_INSTANCE: &str = "terway.io/instance";

/// Largest answer of a gateway.
///
/// Reason: an ENI with 100 addresses takes some 3 KiB, so this holds a list of 20,000; tonic's default of 4 MiB ends at
/// 1,300.
const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The gateway answered that it was not done, and why.
    #[error("{}: {message}", .reason.as_str_name())]
    Refused {
        /// What a caller decides by.
        reason: Reason,
        /// For people.
        message: String,
        /// The address that the reason is about, if it is about one.
        address: Option<IpAddr>,
        /// When to come back, if said.
        retry_after: Option<Duration>,
    },
    /// It never left this process: no gateway can be reached.
    #[error("no gateway can be reached: {0}")]
    NotSent(String),
    /// Sent, but nobody knows what became of it: repeat with the same key.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The answer can not be understood.
    #[error("the gateway's answer makes no sense: {0}")]
    Malformed(String),
}

impl CloudError {
    /// When to come back, if the other side said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::NotSent(_) | Self::Unknown(_) | Self::Malformed(_) => None,
        }
    }

    /// The reason to tell a node, if there is one.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::NotSent(_) => Reason::CloudUnavailable,
            Self::Unknown(_) | Self::Malformed(_) => Reason::OutcomeUnknown,
        }
    }

    /// What people are told, without the reason, which is told beside it.
    pub fn words(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            Self::NotSent(_) | Self::Unknown(_) | Self::Malformed(_) => self.to_string(),
        }
    }

    fn of(status: &Status) -> Self {
        let message = status.message().to_owned();
        let reason = mesh::status::reason(status)
            .and_then(|name| Reason::from_str_name(&name))
            .unwrap_or(Reason::Unspecified);
        if reason == Reason::Unspecified {
            return Self::without_reason(status, message);
        }
        if reason == Reason::OutcomeUnknown {
            return Self::Unknown(message);
        }
        Self::Refused {
            reason,
            message,
            address: mesh::status::metadata(status, "address").and_then(|ip| ip.parse().ok()),
            retry_after: mesh::status::retry_after(status),
        }
    }

    /// A status that no handler of ours wrote.
    fn without_reason(status: &Status, message: String) -> Self {
        if mesh::client::outcome(status) == mesh::client::Outcome::NotSent {
            return Self::NotSent(message);
        }
        let final_codes = [
            Code::InvalidArgument,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::Unimplemented,
        ];
        if final_codes.contains(&status.code()) {
            return Self::Refused {
                reason: Reason::CloudInvalid,
                message,
                address: None,
                retry_after: None,
            };
        }
        Self::Unknown(format!("{:?}: {message}", status.code()))
    }
}

/// Names one call for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallKey {
    /// The shard.
    pub shard: ShardId,
    /// Its owner's claim.
    pub epoch: Epoch,
    /// The record that made the call the next one.
    pub sequence: Seq,
}

/// An ENI as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudEni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// `Available`, `Attaching`, `InUse`, `Detaching`, `Deleting`.
    pub status: String,
    /// Whether it is an instance's primary one.
    pub primary_of_instance: bool,
    /// Whom it is attached to.
    pub instance: Option<InstanceId>,
    /// Its vSwitch.
    pub vswitch: String,
    /// All its addresses, both families.
    pub addresses: Vec<IpAddr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Seconds since 1970; 0 if the cloud did not say.
    pub created_at: i64,
}

/// An instance as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC; empty if the cloud did not say.
    pub vpc: String,
    /// The vSwitch of its primary ENI.
    pub vswitch: Option<VSwitchId>,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// What its type allows.
    pub quota: EniQuota,
}

/// A vSwitch as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudVSwitch {
    /// Its id.
    pub id: VSwitchId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC; empty if the cloud did not say.
    pub vpc: String,
    /// Its IPv4 range.
    pub ipv4: Ipv4Net,
    /// Its IPv6 range.
    pub ipv6: Option<Ipv6Net>,
}

/// What a create call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateEni {
    /// In which vSwitch.
    pub vswitch: VSwitchId,
    /// Its groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its primary address.
    pub primary: IpAddr,
    /// Further addresses.
    pub ipv4: Vec<IpAddr>,
    /// IPv6 addresses.
    pub ipv6: Vec<IpAddr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Which ENIs a describe call is about; filters are joined by AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EniFilter {
    /// These alone.
    pub ids: Vec<EniId>,
    /// Of this vSwitch.
    pub vswitch: Option<VSwitchId>,
    /// With these tags.
    pub tags: BTreeMap<String, String>,
}

type Client = wire::cloud_client::CloudClient<Channel>;

/// Clients of all gateways; clones share connections.
#[derive(Debug, Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    authority: String,
    gateways: Vec<Client>,
    /// The gateway that answered last.
    preferred: AtomicUsize,
    deadline: Duration,
}

macro_rules! call {
    ($self:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let mut tried = 0;
        loop {
            let at = $self.inner.preferred.load(Ordering::Relaxed);
            let Some(gateway) = $self
                .inner
                .gateways
                .get(at % $self.inner.gateways.len().max(1))
            else {
                break Err(CloudError::NotSent("no gateway is configured".to_owned()));
            };
            let mut message = tonic::Request::new(request.clone());
            message.set_timeout($self.inner.deadline);
            let answer =
                tokio::time::timeout($self.inner.deadline, gateway.clone().$method(message)).await;
            let error = match answer {
                Ok(Ok(answer)) => break Ok(answer.into_inner()),
                Ok(Err(status)) => CloudError::of(&status),
                Err(_) => CloudError::Unknown("no answer in time".to_owned()),
            };
            tried += 1;
            if !matches!(error, CloudError::NotSent(_)) || tried >= $self.inner.gateways.len() {
                break Err(error);
            }
            // Another gateway may be there; nothing was sent to this one.
            $self
                .inner
                .preferred
                .store(at.wrapping_add(1), Ordering::Relaxed);
        }
    }};
}

impl Cloud {
    /// Clients over `channels`; each call ends within `deadline`.
    pub fn new(authority: String, channels: Vec<Channel>, deadline: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                authority,
                gateways: channels
                    .into_iter()
                    .map(|channel| Client::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES))
                    .collect(),
                preferred: AtomicUsize::new(0),
                deadline,
            }),
        }
    }

    /// Who this installation is to the cloud.
    pub fn authority(&self) -> &str {
        &self.inner.authority
    }

    fn key(&self, key: &CallKey) -> wire::OpKey {
        wire::OpKey {
            authority: self.inner.authority.clone(),
            shard: key.shard.to_string(),
            epoch: key.epoch.0,
            sequence: key.sequence.0,
        }
    }

    /// Creates an ENI.
    pub async fn create(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &CreateEni,
    ) -> Result<CloudEni, CloudError> {
        let request = wire::CreateEniRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            vswitch_id: eni.vswitch.to_string(),
            security_group_ids: eni
                .security_groups
                .iter()
                .map(ToString::to_string)
                .collect(),
            primary_ip: eni.primary.to_string(),
            ipv4: texts(&eni.ipv4),
            ipv6: texts(&eni.ipv6),
            tags: eni.tags.clone().into_iter().collect(),
            description: "made by terway-mesh".to_owned(),
        };
        let answer = call!(self, create_eni, request)?;
        required(answer.eni)
    }

    /// Attaches an ENI; done when it is `InUse`.
    pub async fn attach(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &EniId,
        instance: &InstanceId,
    ) -> Result<CloudEni, CloudError> {
        let request = wire::AttachEniRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            eni_id: eni.to_string(),
            instance_id: instance.to_string(),
        };
        let answer = call!(self, attach_eni, request)?;
        required(answer.eni)
    }

    /// Detaches an ENI; done when it is `Available`.
    pub async fn detach(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &EniId,
        instance: &InstanceId,
    ) -> Result<(), CloudError> {
        let request = wire::DetachEniRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            eni_id: eni.to_string(),
            instance_id: instance.to_string(),
        };
        call!(self, detach_eni, request).map(drop)
    }

    /// Deletes an ENI; done when it is gone.
    pub async fn delete(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &EniId,
    ) -> Result<(), CloudError> {
        let request = wire::DeleteEniRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            eni_id: eni.to_string(),
        };
        call!(self, delete_eni, request).map(drop)
    }

    /// Puts addresses on an ENI; answers it as read back.
    pub async fn assign(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &EniId,
        ipv4: &[IpAddr],
        ipv6: &[IpAddr],
    ) -> Result<CloudEni, CloudError> {
        let request = wire::AssignAddressesRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            eni_id: eni.to_string(),
            ipv4: texts(ipv4),
            ipv6: texts(ipv6),
        };
        let answer = call!(self, assign_addresses, request)?;
        required(answer.eni)
    }

    /// Takes addresses off an ENI; answers it as read back.
    pub async fn unassign(
        &self,
        key: &CallKey,
        priority: wire::Priority,
        eni: &EniId,
        ipv4: &[IpAddr],
        ipv6: &[IpAddr],
    ) -> Result<CloudEni, CloudError> {
        let request = wire::UnassignAddressesRequest {
            op: Some(self.key(key)),
            priority: priority.into(),
            eni_id: eni.to_string(),
            ipv4: texts(ipv4),
            ipv6: texts(ipv6),
        };
        let answer = call!(self, unassign_addresses, request)?;
        required(answer.eni)
    }

    /// ENIs that match.
    pub async fn enis(
        &self,
        filter: &EniFilter,
        priority: wire::Priority,
    ) -> Result<Vec<CloudEni>, CloudError> {
        let request = wire::DescribeEnisRequest {
            eni_ids: filter.ids.iter().map(ToString::to_string).collect(),
            instance_id: String::new(),
            vswitch_id: filter
                .vswitch
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            tags: filter.tags.clone().into_iter().collect::<HashMap<_, _>>(),
            priority: priority.into(),
        };
        let answer = call!(self, describe_enis, request)?;
        answer.enis.into_iter().map(eni_of).collect()
    }

    /// Instances with their quotas; those that the cloud does not know are left out.
    pub async fn instances(&self, ids: &[InstanceId]) -> Result<Vec<CloudInstance>, CloudError> {
        let request = wire::DescribeInstancesRequest {
            instance_ids: ids.iter().map(ToString::to_string).collect(),
        };
        let answer = call!(self, describe_instances, request)?;
        answer.instances.iter().map(instance_of).collect()
    }

    /// vSwitches; those that the cloud does not know are left out.
    pub async fn vswitches(&self, ids: &[VSwitchId]) -> Result<Vec<CloudVSwitch>, CloudError> {
        let request = wire::DescribeVSwitchesRequest {
            vswitch_ids: ids.iter().map(ToString::to_string).collect(),
        };
        let answer = call!(self, describe_v_switches, request)?;
        answer.vswitches.iter().map(vswitch_of).collect()
    }

    /// Ends what earlier owners of the shard left queued at the gateway.
    pub async fn fence(&self, shard: &ShardId, epoch: Epoch) -> Result<Vec<Seq>, CloudError> {
        let request = wire::FenceRequest {
            authority: self.inner.authority.clone(),
            shard: shard.to_string(),
            epoch: epoch.0,
        };
        let answer = call!(self, fence, request)?;
        Ok(answer.in_flight.into_iter().map(Seq).collect())
    }
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn malformed(what: &str, text: impl std::fmt::Display) -> CloudError {
    CloudError::Malformed(format!("{what}: {text}"))
}

fn required(eni: Option<wire::Eni>) -> Result<CloudEni, CloudError> {
    eni_of(eni.ok_or_else(|| malformed("eni", "missing"))?)
}

fn eni_of(eni: wire::Eni) -> Result<CloudEni, CloudError> {
    let addresses = eni
        .ipv4
        .iter()
        .chain(&eni.ipv6)
        .map(|ip| ip.parse().map_err(|_| malformed("address", ip)))
        .collect::<Result<_, _>>()?;
    Ok(CloudEni {
        id: eni.id.parse().map_err(|e| malformed("eni id", e))?,
        mac: eni.mac.parse().map_err(|e| malformed("mac", e))?,
        status: eni.status,
        primary_of_instance: eni.kind == "Primary",
        instance: if eni.instance_id.is_empty() {
            None
        } else {
            Some(
                eni.instance_id
                    .parse()
                    .map_err(|e| malformed("instance id", e))?,
            )
        },
        vswitch: eni.vswitch_id,
        addresses,
        tags: eni.tags.into_iter().collect(),
        created_at: eni.created_at,
    })
}

fn instance_of(instance: &wire::Instance) -> Result<CloudInstance, CloudError> {
    let quota = instance
        .quota
        .as_ref()
        .ok_or_else(|| malformed("instance quota", &instance.id))?;
    Ok(CloudInstance {
        id: instance
            .id
            .parse()
            .map_err(|e| malformed("instance id", e))?,
        instance_type: instance
            .instance_type
            .parse()
            .map_err(|e| malformed("instance type", e))?,
        zone: instance
            .zone_id
            .parse()
            .map_err(|e| malformed("zone id", e))?,
        vpc: instance.vpc_id.clone(),
        vswitch: instance.vswitch_id.parse().ok(),
        security_groups: instance
            .security_group_ids
            .iter()
            .map(|id| id.parse().map_err(|e| malformed("security group id", e)))
            .collect::<Result<_, _>>()?,
        quota: EniQuota {
            enis: quota.enis,
            enis_total: quota.enis_total,
            ipv4_per_eni: quota.ipv4_per_eni,
            ipv6_per_eni: quota.ipv6_per_eni,
            trunk: quota.trunk,
        },
    })
}

fn vswitch_of(vswitch: &wire::VSwitch) -> Result<CloudVSwitch, CloudError> {
    Ok(CloudVSwitch {
        id: vswitch.id.parse().map_err(|e| malformed("vSwitch id", e))?,
        zone: vswitch
            .zone_id
            .parse()
            .map_err(|e| malformed("zone id", e))?,
        vpc: vswitch.vpc_id.clone(),
        ipv4: vswitch
            .ipv4_cidr
            .parse()
            .map_err(|_| malformed("ipv4_cidr", &vswitch.ipv4_cidr))?,
        ipv6: if vswitch.ipv6_cidr.is_empty() {
            None
        } else {
            Some(
                vswitch
                    .ipv6_cidr
                    .parse()
                    .map_err(|_| malformed("ipv6_cidr", &vswitch.ipv6_cidr))?,
            )
        },
    })
}

#[cfg(test)]
mod tests {
    use mesh::status::Refusal;

    use super::*;

    #[test]
    fn refusal_with_an_address_keeps_it() {
        let status = Refusal::new(
            Code::AlreadyExists,
            Reason::AddressInUse.as_str_name(),
            "taken",
        )
        .with("address", "10.0.0.7")
        .into_status();

        let error = CloudError::of(&status);

        assert!(matches!(
            error,
            CloudError::Refused { reason: Reason::AddressInUse, address: Some(ip), .. }
                if ip.to_string() == "10.0.0.7"
        ));
    }

    #[test]
    fn deadline_is_an_unknown_outcome() {
        assert!(matches!(
            CloudError::of(&Status::deadline_exceeded("late")),
            CloudError::Unknown(_)
        ));
        assert!(matches!(
            CloudError::of(&Status::internal("connection reset")),
            CloudError::Unknown(_)
        ));
    }

    #[test]
    fn bad_request_is_refused_for_good() {
        assert!(matches!(
            CloudError::of(&Status::invalid_argument("no")),
            CloudError::Refused {
                reason: Reason::CloudInvalid,
                ..
            }
        ));
    }
}
