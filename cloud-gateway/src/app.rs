//! How the parts are put together.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh::authz::TABLE;
use mesh::metrics::Registry as MetricsRegistry;
use mesh::run::{App, Context};
use mesh::server::Bound;
use mesh::tasks::Tasks;
use mesh::tls::TlsMaterial;
use proto::cloud::v1::cloud_server::CloudServer;
use tonic::service::Routes;

use crate::api::{Api, Parts};
use crate::call::Caller;
use crate::config::Config;
use crate::credentials::CredentialFiles;
use crate::describe::Reader;
use crate::eni::{Outcome, Verbs};
use crate::facts::Facts;
use crate::limits::Budgets;
use crate::metrics::Metrics;
use crate::op::Registry;
use crate::transport::HttpTransport;

/// How often certificates are looked at.
const TLS_REREAD: Duration = Duration::from_secs(30);

/// The service without its port, and what people look at.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The gRPC service.
    pub api: Api,
    /// What runs and what ended.
    pub ops: Arc<Registry<Outcome>>,
    /// The budgets.
    pub budgets: Arc<Budgets>,
}

/// Puts the service together, without opening a port.
pub async fn assemble(
    config: &Config,
    tasks: &Tasks,
    registry: &MetricsRegistry,
) -> anyhow::Result<Gateway> {
    let metrics = Arc::new(Metrics::default());
    metrics.register(registry);
    let dir: &Path = &config.credentials.dir;
    let reread = Duration::from_millis(config.credentials.reread_ms);
    let credentials = CredentialFiles::open(dir, reread, Arc::clone(&metrics)).await?;
    let budgets = Arc::new(Budgets::new(
        &config.quotas()?,
        config.rate_limits.max_waiting,
        Arc::clone(&metrics),
    ));
    let transport = HttpTransport::new().context("HTTP client for the cloud")?;
    let caller = Arc::new(Caller::new(
        config.calls()?,
        Arc::clone(&budgets),
        credentials,
        Arc::new(transport),
        Arc::clone(&metrics),
    ));
    let reader = Reader::new(
        Arc::clone(&caller),
        config.reads(),
        tasks.clone(),
        Arc::clone(&metrics),
    );
    let ops = Registry::new(
        config.ops.max_running,
        config.ops.max_remembered,
        Arc::clone(&metrics),
    );
    let parts = Parts {
        verbs: Verbs::new(Arc::clone(&caller), reader.clone(), config.times()),
        reader,
        facts: Facts::new(caller, config.facts()),
        ops: Arc::clone(&ops),
        tasks: tasks.clone(),
    };
    Ok(Gateway {
        api: Api::new(parts, config.api()),
        ops,
        budgets,
    })
}

/// Builds the service and opens its port.
pub async fn build(context: Context<Config>) -> anyhow::Result<App> {
    let Context {
        config,
        tasks,
        registry,
        rpc,
        admin,
        ..
    } = context;
    let tls = TlsMaterial::load(&config.tls)?;
    tls.register(&registry);
    tls.watch(TLS_REREAD, &tasks);
    let gateway = assemble(&config, &tasks, &registry).await?;
    let ops = Arc::clone(&gateway.ops);
    admin.dump("operations", move || std::future::ready(ops.dump()));
    let budgets = Arc::clone(&gateway.budgets);
    admin.dump("budgets", move || std::future::ready(budgets.dump()));
    let port = Bound::tcp(config.listen.grpc, tls, config.server).await?;
    let routes = Routes::new(CloudServer::new(gateway.api));
    port.serve(routes, TABLE, &rpc, &tasks);
    Ok(App::new())
}
