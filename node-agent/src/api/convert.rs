//! Between the wire and the agent's own types. Decoding names the field; encoding can not fail.

use std::net::IpAddr;

use datapath::desired::{EniState, POD_GATEWAY_V4, POD_GATEWAY_V6};
use mesh::causes;
use mesh::status::Refusal;
use proto::node::v1::{
    AddRequest, AddResponse, Attachment, Interface, IpConfig, NodeEni, PodRef, RouteConfig,
};
use proto::types::v1::{GrantedAddress, Reason};
use tonic::{Code, Status};
use types::pod::{AttachmentKey, PodKey};

use crate::ledger::EniView;
use crate::pods::{AddPod, Added, PodError};
use crate::pool::Binding;

pub(super) fn attachment(wire: Option<Attachment>) -> Result<AttachmentKey, Status> {
    let wire = wire.ok_or_else(|| Refusal::bad_field("attachment", "is missing"))?;
    Ok(AttachmentKey::new(wire.sandbox_id, wire.ifname)
        .map_err(|e| Refusal::bad_field(e.field, e.why))?)
}

/// The pod, if the runtime named one.
pub(super) fn named_pod(wire: PodRef) -> Option<PodKey> {
    (!wire.namespace.is_empty() && !wire.name.is_empty())
        .then(|| PodKey::new(wire.namespace, wire.name))
}

pub(super) fn add_pod(wire: AddRequest) -> Result<AddPod, Status> {
    let pod = wire
        .pod
        .ok_or_else(|| Refusal::bad_field("pod", "is missing"))?;
    let pod_uid = pod.uid.clone();
    let pod = named_pod(pod).ok_or_else(|| {
        Refusal::bad_field("K8S_POD_NAME", "namespace or name of the pod is missing")
    })?;
    if wire.netns.is_empty() {
        return Err(Refusal::bad_field("CNI_NETNS", "is empty").into_status());
    }
    let link = wire.link.unwrap_or_default();
    if link.mtu != 0 && !(1280..=65_535).contains(&link.mtu) {
        let why = format!("{} is not within 1280 and 65535", link.mtu);
        return Err(Refusal::bad_field("mtu", why).into_status());
    }
    Ok(AddPod {
        attachment: attachment(wire.attachment)?,
        pod,
        pod_uid,
        netns: wire.netns,
        veth_prefix: link.veth_prefix,
        mtu: link.mtu,
    })
}

pub(super) fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    texts
        .iter()
        .map(|text| {
            let bare = text.split('/').next().unwrap_or_default();
            bare.parse()
                .map_err(|_| Refusal::bad_field(field, format!("{text:?} is not an address")))
        })
        .collect::<Result<_, _>>()
        .map_err(Status::from)
}

pub(super) fn add_response(added: &Added) -> AddResponse {
    let binding = &added.binding;
    let interfaces = vec![
        Interface {
            name: binding.host_link.clone(),
            mac: added.state.host_mac.to_string(),
            mtu: binding.mtu,
            sandbox: String::new(),
        },
        Interface {
            name: binding.attachment.ifname.clone(),
            mac: added.state.pod_mac.to_string(),
            mtu: binding.mtu,
            sandbox: binding.netns.clone(),
        },
    ];
    let mut response = AddResponse {
        interfaces,
        ips: Vec::new(),
        routes: Vec::new(),
    };
    let v4_gateway = added.gateways.map_or(POD_GATEWAY_V4, |own| own.v4);
    let v6_gateway = added.gateways.and_then(|own| own.v6);
    for ip in binding.addresses() {
        let (length, gateway, everything) = match ip {
            IpAddr::V4(_) => (32, IpAddr::V4(v4_gateway), "0.0.0.0/0"),
            IpAddr::V6(_) => (
                128,
                IpAddr::V6(v6_gateway.unwrap_or(POD_GATEWAY_V6)),
                "::/0",
            ),
        };
        let gw = gateway.to_string();
        response.ips.push(IpConfig {
            address: format!("{ip}/{length}"),
            gateway: gw.clone(),
            interface: 1,
        });
        response.routes.push(RouteConfig {
            dst: everything.to_owned(),
            gw,
        });
    }
    response
}

pub(super) fn node_eni(eni: &EniView, state: Option<EniState>) -> NodeEni {
    let record = &eni.record;
    NodeEni {
        shard: record.shard.to_string(),
        eni_id: record.eni.to_string(),
        mac: record.mac.to_string(),
        vswitch_id: record.vswitch.to_string(),
        ready: eni.ready,
        ifname: state.as_ref().map(|s| s.ifname.clone()).unwrap_or_default(),
        route_table: state.map(|s| s.table).unwrap_or_default(),
        primary_ip: record.primary.to_string(),
        addresses: granted(record.addresses.iter().map(|(ip, g)| (*ip, g.0))),
        whole: record.whole,
    }
}

pub(super) fn granted(all: impl Iterator<Item = (IpAddr, u64)>) -> Vec<GrantedAddress> {
    all.map(|(ip, generation)| GrantedAddress {
        ip: ip.to_string(),
        generation,
    })
    .collect()
}

pub(super) fn binding(binding: &Binding) -> proto::node::v1::Binding {
    proto::node::v1::Binding {
        attachment: Some(Attachment {
            sandbox_id: binding.attachment.sandbox.clone(),
            ifname: binding.attachment.ifname.clone(),
        }),
        pod: Some(PodRef {
            namespace: binding.pod.namespace.clone(),
            name: binding.pod.name.clone(),
            uid: binding.pod_uid.clone(),
        }),
        netns: binding.netns.clone(),
        eni_id: binding.eni.to_string(),
        ipv4: binding.ipv4.to_string(),
        ipv6: binding.ipv6.map(|ip| ip.to_string()).unwrap_or_default(),
        host_link: binding.host_link.clone(),
        mtu: binding.mtu,
        whole: binding.whole,
    }
}

pub(super) fn status(error: &PodError) -> Status {
    status_in(error, causes::text(error))
}

/// The same in other words.
pub(super) fn status_in(error: &PodError, words: String) -> Status {
    use datapath::error::DatapathError;
    let (code, reason) = match error {
        PodError::Busy(_) => (Code::Unavailable, Reason::Busy),
        PodError::Unknown(_) => (Code::Unavailable, Reason::PodUnknown),
        PodError::NoAddress { .. } => (Code::ResourceExhausted, Reason::PoolEmpty),
        PodError::HostNetwork(_) | PodError::Field { .. } => {
            (Code::InvalidArgument, Reason::BadField)
        }
        PodError::NotBound(_) => (Code::NotFound, Reason::NotFound),
        PodError::Drift(_) => (Code::FailedPrecondition, Reason::KernelDrift),
        PodError::Kernel { source, .. } => match source {
            DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. } => {
                (Code::NotFound, Reason::NetnsGone)
            }
            DatapathError::EniMissing { .. } => (Code::Unavailable, Reason::PoolEmpty),
            DatapathError::InterfaceTaken { .. }
            | DatapathError::Refused { .. }
            | DatapathError::Setting { .. }
            | DatapathError::Command { .. }
            | DatapathError::Socket { .. }
            | DatapathError::Garbled(_)
            | DatapathError::WorkerLost => (Code::Internal, Reason::KernelDrift),
        },
        PodError::Policy { .. } => (Code::Unavailable, Reason::NotReady),
        PodError::Ledger(_) => (Code::Unavailable, Reason::StoreUnavailable),
    };
    let mut refusal = Refusal::new(code, reason.as_str_name(), words);
    if let PodError::Field { field, .. } = error {
        refusal = refusal.with("field", *field);
    }
    refusal.into_status()
}
