//! The services' doors for operators: what an agent holds, what the shards say.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use fabric::error::FabricError;
use fabric::namespace::Namespace;
use mesh::client::{Channel, Params};
use mesh::identity::IdentityKind;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::ipam::v1::admin_client::AdminClient;
use proto::ipam::v1::{DumpShardsRequest, ShardDump};
use proto::node::v1::inspect_client::InspectClient;
use proto::node::v1::{DumpNodeRequest, DumpNodeResponse};
use proto::policy::v1::policies_client::PoliciesClient;
use proto::policy::v1::{DiffRequest, StatusRequest, StatusResponse};

/// What the agent behind a socket holds.
pub async fn dump_node(socket: &Path) -> anyhow::Result<DumpNodeResponse> {
    let channel = Channel::unix(socket, &Params::default());
    let answer = InspectClient::new(channel)
        .dump_node(DumpNodeRequest {})
        .await;
    let answer = answer.with_context(|| format!("ask the agent at {}", socket.display()))?;
    Ok(answer.into_inner())
}

/// What the policy agent behind a socket says of itself.
pub async fn policy_status(socket: &Path) -> anyhow::Result<StatusResponse> {
    let channel = Channel::unix(socket, &Params::default());
    let answer = PoliciesClient::new(channel).status(StatusRequest {}).await;
    let answer = answer.with_context(|| format!("ask the agent at {}", socket.display()))?;
    Ok(answer.into_inner())
}

/// What the kernel has otherwise than the policy agent behind a socket says.
pub async fn policy_diff(socket: &Path) -> anyhow::Result<Vec<String>> {
    let channel = Channel::unix(socket, &Params::default());
    let answer = PoliciesClient::new(channel).diff(DiffRequest {}).await;
    let answer = answer.with_context(|| format!("ask the agent at {}", socket.display()))?;
    Ok(answer.into_inner().lines)
}

/// All shards that the replica at `at` owns, asked from inside a namespace with the certificate in `tls`.
pub async fn dump_shards(
    namespace: &Namespace,
    at: SocketAddr,
    tls: &Path,
) -> anyhow::Result<Vec<ShardDump>> {
    let material = TlsMaterial::load(&TlsConfig::in_dir(tls)).context("load the certificate")?;
    // The connection is dialled by the runtime that drives it; this one lives inside the namespace.
    let asked = namespace
        .enter_async(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(FabricError::io("start a runtime for asking"))?;
            Ok::<_, FabricError>(runtime.block_on(ask_shards(at, material)))
        })
        .await??;
    asked.with_context(|| format!("ask the replica at {at}"))
}

async fn ask_shards(at: SocketAddr, tls: TlsMaterial) -> anyhow::Result<Vec<ShardDump>> {
    let expect = Expect::Kind(IdentityKind::Ipam);
    let channel = Channel::tcp(&at.to_string(), tls, expect, &Params::default())?;
    let request = DumpShardsRequest { shards: Vec::new() };
    let mut stream = AdminClient::new(channel)
        .dump_shards(request)
        .await?
        .into_inner();
    let mut shards = Vec::new();
    while let Some(shard) = stream.message().await? {
        shards.push(shard);
    }
    Ok(shards)
}
