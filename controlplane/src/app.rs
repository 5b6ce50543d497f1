//! How the parts are put together.

use std::time::Duration;

use anyhow::Context as _;
use mesh::authz::TABLE;
use mesh::identity::Identity;
use mesh::run::{App, Context};
use mesh::server::Bound;
use mesh::tls::TlsMaterial;
use proto::control::v1::certificates_server::CertificatesServer;
use proto::control::v1::node_reports_server::NodeReportsServer;
use serde_json::json;
use tonic::service::Routes;

use crate::authority::{Keeper as AuthorityKeeper, OwnCertificate};
use crate::certificates::{self, proof::Prover};
use crate::config::{Authority, Config, Mode};
use crate::gone::Undertaker;
use crate::kubernetes::Kubernetes;
use crate::lead::Candidate;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::phase::{Board, Keeper as PhaseKeeper};
use crate::reports::{self, Parts};
use crate::uninstall;

/// How often certificates are looked at.
const TLS_REREAD: Duration = Duration::from_secs(30);

/// Builds the service; it serves when this returns. Uninstalling is over when this returns.
///
/// # Errors
/// Whatever keeps it from starting, or nodes from leaving.
pub async fn build(context: Context<Config>) -> anyhow::Result<App> {
    let metrics = Metrics::register(&context.registry);
    let kubeconfig = context.config.cluster.kubeconfig.as_deref();
    let kubernetes = Kubernetes::connect(kubeconfig, metrics.clone()).await?;
    match context.config.mode {
        Mode::Serve => serve(context, kubernetes, metrics).await,
        Mode::Uninstall => {
            uninstall::run(kubernetes, &context.config).await?;
            context.tasks.drain().start("all nodes have left");
            Ok(App::new())
        }
    }
}

async fn serve(
    context: Context<Config>,
    kubernetes: Kubernetes,
    metrics: Metrics,
) -> anyhow::Result<App> {
    let Context {
        config,
        tasks,
        health,
        registry,
        rpc,
        admin,
    } = context;
    let (candidate, leads) = Candidate::new(
        kubernetes.clone(),
        &config.cluster.namespace,
        config.leader.clone(),
        metrics.clone(),
    );
    tasks.spawn("lead", candidate.run(tasks.stopping()));
    let nodes = Nodes::new();
    let following = nodes.clone().run(
        kubernetes.clone(),
        health.condition("nodes"),
        metrics.clone(),
        tasks.stopping(),
    );
    tasks.spawn("nodes", following);
    let signer = if config.certificates.issue {
        let keeper = AuthorityKeeper::new(kubernetes.clone(), &config, metrics.clone());
        let signer = keeper.signer();
        let ready = health.condition("authority");
        tasks.spawn(
            "authority",
            keeper.run(leads.clone(), ready, tasks.stopping()),
        );
        Some(signer)
    } else {
        None
    };
    let own = match (&signer, config.certificates.authority, config.tls_dir()) {
        (Some(signer), Authority::Own, Some(dir)) => {
            let identity = Identity::controller(config.cluster.id.as_str());
            let lifetime = config.certificates.lifetime();
            let mut own = OwnCertificate::new(signer.clone(), identity, dir.to_owned(), lifetime);
            own.first().await.context("our own certificate")?;
            Some(own)
        }
        (Some(_) | None, Authority::Own | Authority::Secret, _) => None,
    };
    let tls = TlsMaterial::load(&config.tls)?;
    tls.register(&registry);
    tls.watch(TLS_REREAD, &tasks);
    if let Some(own) = own {
        tasks.spawn("own certificate", own.run(tls.clone(), tasks.stopping()));
    }
    let board = Board::default();
    let phase = PhaseKeeper::new(kubernetes.clone(), &config, board.clone(), metrics.clone());
    tasks.spawn("phase", phase.run(leads.clone(), tasks.stopping()));
    if !config.nodes.instances.is_empty() {
        let undertaker = Undertaker::new(
            kubernetes.clone(),
            nodes.clone(),
            tls.clone(),
            &config,
            metrics.clone(),
        );
        let view = undertaker.view();
        admin.dump("gone", move || std::future::ready(view.dump()));
        tasks.spawn("gone", undertaker.run(leads.clone(), tasks.stopping()));
    }
    let known = nodes.clone();
    admin.dump("nodes", move || {
        let all: Vec<String> = known.now().instances().map(str::to_owned).collect();
        std::future::ready(json!(all))
    });
    admin.dump("leads", move || std::future::ready(json!(*leads.borrow())));
    let parts = Parts {
        kubernetes: kubernetes.clone(),
        nodes,
        board,
        metrics: metrics.clone(),
    };
    let reports = reports::Door::new(parts, &config);
    let mut routes = Routes::new(NodeReportsServer::new(reports));
    let mut port = Bound::tcp(config.listen.grpc, tls, config.server).await?;
    if let Some(signer) = signer {
        let prover = Prover::new(kubernetes, &config);
        let lifetime = config.certificates.lifetime();
        let issuing = certificates::Door::new(prover, signer, lifetime, metrics);
        routes = routes.add_service(CertificatesServer::new(issuing));
        port = port.with_strangers();
    }
    port.serve(routes, TABLE, &rpc, &tasks);
    Ok(App::new())
}
