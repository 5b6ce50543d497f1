//! How the parts are put together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh::authz::TABLE;
use mesh::health::Health;
use mesh::metrics::Registry as MetricsRegistry;
use mesh::run::{App, Context};
use mesh::server::Bound;
use mesh::tasks::Tasks;
use mesh::tls::TlsMaterial;
use proto::cloud::v1::cloud_server::CloudServer;
use tonic::service::Routes;

use crate::api::{Api, Parts};
use crate::call::Caller;
use crate::config::{Chosen, Config};
use crate::credentials::files::KeyFiles;
use crate::credentials::oidc::Oidc;
use crate::credentials::ram_role::RamRole;
use crate::credentials::token_config::TokenFile;
use crate::credentials::{Keeper, Rhythm, Source};
use crate::describe::Reader;
use crate::eni::{Outcome, Verbs};
use crate::facts::Facts;
use crate::limits::Budgets;
use crate::metrics::Metrics;
use crate::op::Registry;
use crate::place::Place;
use crate::transport::{HttpTransport, Transport};

/// How often certificates are looked at.
const TLS_REREAD: Duration = Duration::from_secs(30);

/// How long before their end the keys of a role of the instance are renewed.
///
/// Source: ECS instance metadata: a new set is there 30 minutes before the old one ends.
const RAM_ROLE_AHEAD: Duration = Duration::from_mins(30);

/// How long before their end the keys of a role of the service account are renewed.
///
/// Source: the vendor's own clients.
const OIDC_AHEAD: Duration = Duration::from_mins(10);

/// The service without its port, and what people look at.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The gRPC service.
    pub api: Api,
    /// What runs and what ended.
    pub ops: Arc<Registry<Outcome>>,
    /// The budgets.
    pub budgets: Arc<Budgets>,
    /// With what calls are signed.
    pub credentials: Arc<Keeper>,
}

/// Puts the service together, without opening a port.
pub async fn assemble(
    config: &Config,
    tasks: &Tasks,
    registry: &MetricsRegistry,
    health: &Health,
) -> anyhow::Result<Gateway> {
    let metrics = Arc::new(Metrics::default());
    metrics.register(registry);
    let transport: Arc<dyn Transport> =
        Arc::new(HttpTransport::new().context("HTTP client for the cloud")?);
    let (source, place, rhythm) = source(config, &transport)?;
    let ready = health.condition("credentials");
    let credentials = Keeper::open(source, place, rhythm, ready, Arc::clone(&metrics)).await;
    let credentials = Arc::new(credentials);
    tasks.spawn(
        "credentials",
        Arc::clone(&credentials).run(tasks.stopping()),
    );
    let budgets = Arc::new(Budgets::new(
        &config.quotas()?,
        config.rate_limits.max_waiting,
        Arc::clone(&metrics),
    ));
    let caller = Arc::new(Caller::new(
        config.calls()?,
        Arc::clone(&budgets),
        Arc::clone(&credentials),
        transport,
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
        metrics,
    };
    Ok(Gateway {
        api: Api::new(parts, config.api()),
        ops,
        budgets,
        credentials,
    })
}

/// The configured source of credentials, where people find it, and how often it is looked at.
fn source(
    config: &Config,
    transport: &Arc<dyn Transport>,
) -> anyhow::Result<(Box<dyn Source>, Place, Rhythm)> {
    let place = |key, at: String, of_secret: bool| {
        let secret = Some(config.credentials.secret.clone());
        let secret = secret.filter(|name| of_secret && !name.is_empty());
        Place { key, at, secret }
    };
    let reread = Rhythm::Every(Duration::from_millis(config.credentials.reread_ms));
    Ok(match config.source()? {
        Chosen::Dir(dir) => {
            let at = dir.display().to_string();
            (
                Box::new(KeyFiles::new(dir)),
                place("credentials.dir", at, true),
                reread,
            )
        }
        Chosen::TokenConfig(path) => {
            let at = path.display().to_string();
            (
                Box::new(TokenFile::new(path)),
                place("credentials.token_config", at, true),
                reread,
            )
        }
        Chosen::RamRole { role, metadata } => {
            let at = place("credentials.ram_role", role.clone(), false);
            let source = RamRole::new(&metadata, role, Arc::clone(transport));
            (Box::new(source), at, Rhythm::Ahead(RAM_ROLE_AHEAD))
        }
        Chosen::Oidc(settings) => {
            let at = place("credentials.oidc", settings.role_arn.clone(), false);
            let source = Oidc::new(settings, Arc::clone(transport));
            (Box::new(source), at, Rhythm::Ahead(OIDC_AHEAD))
        }
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
        health,
    } = context;
    let tls = TlsMaterial::load(&config.tls)?;
    tls.register(&registry);
    tls.watch(TLS_REREAD, &tasks);
    let gateway = assemble(&config, &tasks, &registry, &health).await?;
    let ops = Arc::clone(&gateway.ops);
    admin.dump("operations", move || std::future::ready(ops.dump()));
    let budgets = Arc::clone(&gateway.budgets);
    admin.dump("budgets", move || std::future::ready(budgets.dump()));
    let port = Bound::tcp(config.listen.grpc, tls, config.server).await?;
    let routes = Routes::new(CloudServer::new(gateway.api));
    port.serve(routes, TABLE, &rpc, &tasks);
    Ok(App::new())
}
