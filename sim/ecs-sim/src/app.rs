//! The binary: a world file, and three ports.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::plane::NoPlane;
use crate::sim::Sim;
use crate::world::World;

/// Exit code for a world file or arguments that cannot be used.
///
/// Source: sysexits, `EX_USAGE`.
const EXIT_USAGE: u8 = 64;

/// The ECS and VPC OpenAPI and the metadata service, simulated. Point official SDKs at it.
#[derive(Debug, Parser)]
#[command(name = "ecs-sim", version)]
pub struct Args {
    /// World file (TOML): region, zones, vSwitches, instances, keys.
    #[arg(long)]
    pub world: PathBuf,
    /// Where the OpenAPI listens (HTTP).
    #[arg(long, default_value = "127.0.0.1:18080")]
    pub listen: SocketAddr,
    /// Where the metadata service listens (HTTP). Callers are told apart by source address.
    #[arg(long)]
    pub metadata: Option<SocketAddr>,
    /// Where the admin port listens (HTTP). Keep it on loopback.
    #[arg(long)]
    pub admin: Option<SocketAddr>,
}

/// Says what is wrong with the arguments; asking for help or the version is not wrong.
pub fn refuse(err: &clap::Error) -> ExitCode {
    let printed = err.print();
    if err.use_stderr() || printed.is_err() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let world = match read_world(&args).await {
        Ok(world) => world,
        Err(err) => return fail(&err, EXIT_USAGE),
    };
    let sim = Sim::new(world.config(), Arc::new(NoPlane));
    if let Err(err) = world.build(&sim).await {
        return fail(&err.into(), EXIT_USAGE);
    }
    match serve(&args, &sim).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => fail(&err, 1),
    }
}

async fn read_world(args: &Args) -> anyhow::Result<World> {
    let text = tokio::fs::read_to_string(&args.world)
        .await
        .with_context(|| args.world.display().to_string())?;
    World::parse(&text).with_context(|| args.world.display().to_string())
}

/// The message belongs to a person at a terminal, so it goes to standard error as it is.
fn fail(err: &anyhow::Error, code: u8) -> ExitCode {
    match writeln!(std::io::stderr(), "ecs-sim: {err:#}") {
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}

async fn serve(args: &Args, sim: &Sim) -> anyhow::Result<()> {
    let openapi = bind(args.listen).await?;
    let metadata = bind_some(args.metadata).await?;
    let admin = bind_some(args.admin).await?;
    tracing::info!(openapi = %openapi.local_addr()?, "listening");
    let mut stop = signal(SignalKind::terminate())?;
    let metadata = async {
        match metadata {
            Some(listener) => {
                let service = sim
                    .metadata_router()
                    .into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, service).await
            }
            None => std::future::pending().await,
        }
    };
    let admin = async {
        match admin {
            Some(listener) => axum::serve(listener, sim.admin_router()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = stop.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => Ok(done?),
        done = axum::serve(openapi, sim.openapi_router()) => Ok(done?),
        done = metadata => Ok(done?),
        done = admin => Ok(done?),
    }
}

async fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at)
        .await
        .with_context(|| format!("listen on {at}"))
}

async fn bind_some(at: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    match at {
        Some(at) => bind(at).await.map(Some),
        None => Ok(None),
    }
}
