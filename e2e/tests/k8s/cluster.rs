//! The beginning and the end: the chart is installed, everything runs and reaches everything, the chart goes.

use anyhow::{Result, ensure};
use futures::FutureExt as _;
use sandbox::k8s::bed::Bed;
use sandbox::k8s::check;
use sandbox::k8s::matrix::names;
use sandbox::k8s::release;
use sandbox::k8s::workload::{self, everything, namespace};
use sandbox::report::Report;
use serde_json::json;

use crate::Story;
use crate::library::{self, HOME, all_reach, consistent, reach};

/// Pods of the Deployment: few, since CI has two cores. `cargo xtask k8s up --check` has sixty.
const WEB: u32 = 9;

pub(crate) fn first() -> Vec<Story> {
    vec![
        ("chart_is_installed_and_nodes_become_ready", |bed| {
            install(bed).boxed_local()
        }),
        ("whole_enis_go_to_pods_as_many_as_nodes_offer", |bed| {
            whole(bed).boxed_local()
        }),
        (
            "workloads_of_every_kind_run_with_addresses_of_the_vpc",
            |bed| run(bed).boxed_local(),
        ),
        ("every_pod_reaches_every_other_and_services", |bed| {
            reach_all(bed).boxed_local()
        }),
        ("names_are_resolved_in_pods", |bed| {
            resolve(bed).boxed_local()
        }),
        ("network_policy_denies_and_permits", |bed| {
            policy(bed).boxed_local()
        }),
    ]
}

pub(crate) fn last() -> Vec<Story> {
    vec![(
        "uninstallation_leaves_nothing_on_nodes_and_in_the_cloud",
        |bed| leave(bed).boxed_local(),
    )]
}

async fn install(bed: &Bed) -> Result<()> {
    let mut values = release::values(bed);
    // Nobody waits a minute here until a deleted Node is taken for deleted.
    let control = json!({"set": ["nodes.gone_after_ms=5000"]});
    workload::set(&mut values, "", "controlplane", control);
    bed.install(&values).await
}

async fn whole(bed: &Bed) -> Result<()> {
    let mut report = Report::new(std::io::stdout());
    check::whole_enis(bed, &mut report).await?;
    ensure!(report.holds(), "see above");
    check::delete(bed, &["whole"]).await?;
    consistent(bed).await
}

async fn run(bed: &Bed) -> Result<()> {
    let nodes = u32::try_from(bed.nodes.len())?;
    let objects = check::in_namespace(everything(WEB, nodes), HOME);
    bed.kube().apply(&[namespace(HOME)]).await?;
    bed.kube().apply(&objects).await?;
    check::running(bed, HOME, &objects).await?;
    consistent(bed).await
}

async fn reach_all(bed: &Bed) -> Result<()> {
    all_reach(bed).await
}

async fn resolve(bed: &Bed) -> Result<()> {
    let pods = bed.pods(HOME).await?;
    let one = pods
        .into_iter()
        .filter(|pod| pod.app == "each")
        .take(1)
        .collect::<Vec<_>>();
    reach(bed, &one, &names(HOME)).await
}

async fn policy(bed: &Bed) -> Result<()> {
    let mut report = Report::new(Vec::new());
    check::policy(bed, &mut report).await?;
    ensure!(report.holds(), "{report:?}");
    check::delete(bed, &["policy"]).await
}

async fn leave(bed: &Bed) -> Result<()> {
    library::explain(bed).await;
    check::delete(bed, &[HOME]).await?;
    let mut report = Report::new(std::io::stdout());
    check::leave(bed, &mut report).await?;
    ensure!(report.holds(), "see above");
    Ok(())
}
