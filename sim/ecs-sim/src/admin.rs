//! The simulator's own port: faults, latencies, quotas, dumps, calls. Not part of what is simulated.
//!
//! | method and path | what it does |
//! |---|---|
//! | `GET /state` | the whole state, [`SimDump`] |
//! | `GET /calls` | the latest calls, a list of [`Call`] |
//! | `GET /faults`, `POST /faults`, `DELETE /faults`, `DELETE /faults/{id}` | faults in force, inject a [`Fault`], remove all, remove one |
//! | `PUT /latency/{profile}` | `none`, `fast` or `real` |
//! | `PUT /latency` | a [`Latency`] in full |
//! | `PUT /quotas/{action}/{per_minute}` | calls per minute |
//! | `PUT /lags` | [`Lags`] |
//! | `POST /foreign`, `DELETE /foreign/{eni}` | another user takes an address ([`Foreign`]), gives it back |
//! | `POST /detach/{eni}` | somebody detaches an ENI behind the back of its users |
//! | `PUT /roles`, `DELETE /roles/{name}` | a [`RoleSpec`], remove a role |
//! | `POST /instances`, `DELETE /instances/{id}` | run an [`InstanceSpec`], release an instance |

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{delete, get, post, put};
use ecs_api::action::Action;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use types::cloud::{EniId, InstanceId, VSwitchId};

use crate::config::Latency;
use crate::dump::{Call, SimDump};
use crate::faults::{Fault, FaultId};
use crate::refusal::Refusal;
use crate::roles::RoleSpec;
use crate::sim::Sim;
use crate::spec::InstanceSpec;

/// An address that another user of a vSwitch takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// The vSwitch.
    pub vswitch: VSwitchId,
    /// The address.
    pub ip: IpAddr,
}

/// How far readers are behind, in milliseconds, up to two minutes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lags {
    /// Describe of ENIs.
    pub describe_ms: u64,
    /// The metadata service.
    pub metadata_ms: u64,
}

/// A fault in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// To remove it.
    pub id: FaultId,
    /// What it does.
    pub fault: Fault,
}

type Failed = (StatusCode, String);

fn refused(refusal: &Refusal) -> Failed {
    (refusal.status, refusal.to_string())
}

impl Sim {
    /// Faults, latencies, quotas, dumps, calls.
    pub fn admin_router(&self) -> Router {
        Router::new()
            .route("/state", get(state))
            .route("/calls", get(calls))
            .route("/faults", get(faults).post(inject).delete(clear_faults))
            .route("/faults/{id}", delete(remove_fault))
            .route("/latency/{profile}", put(latency_profile))
            .route("/latency", put(latency))
            .route("/quotas/{action}/{per_minute}", put(quota))
            .route("/lags", put(lags))
            .route("/foreign", post(foreign))
            .route("/foreign/{eni}", delete(release_foreign))
            .route("/detach/{eni}", post(detach))
            .route("/roles", put(role))
            .route("/roles/{name}", delete(remove_role))
            .route("/instances", post(run_instance))
            .route("/instances/{id}", delete(release_instance))
            .with_state(self.clone())
    }
}

async fn state(State(sim): State<Sim>) -> Json<SimDump> {
    Json(sim.dump())
}

async fn calls(State(sim): State<Sim>) -> Json<Vec<Call>> {
    Json(sim.calls())
}

async fn faults(State(sim): State<Sim>) -> Json<Vec<Injected>> {
    let injected = sim.faults().into_iter();
    Json(injected.map(|(id, fault)| Injected { id, fault }).collect())
}

async fn inject(State(sim): State<Sim>, Json(fault): Json<Fault>) -> Result<Json<FaultId>, Failed> {
    if let Some(name) = &fault.action {
        find(name)?;
    }
    Ok(Json(sim.inject_fault(fault)))
}

async fn clear_faults(State(sim): State<Sim>) {
    sim.clear_faults();
}

async fn remove_fault(State(sim): State<Sim>, Path(id): Path<u64>) -> StatusCode {
    if sim.remove_fault(FaultId(id)) {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn latency_profile(State(sim): State<Sim>, Path(name): Path<String>) -> Result<(), Failed> {
    let latency = Latency::profile(&name).ok_or_else(|| {
        let text = format!("no latency profile {name:?}; there are none, fast and real");
        (StatusCode::NOT_FOUND, text)
    })?;
    sim.set_latency(latency);
    Ok(())
}

async fn latency(State(sim): State<Sim>, Json(latency): Json<Latency>) {
    sim.set_latency(latency);
}

async fn quota(
    State(sim): State<Sim>,
    Path((name, per_minute)): Path<(String, u32)>,
) -> Result<(), Failed> {
    sim.set_quota(find(&name)?, per_minute);
    Ok(())
}

async fn lags(State(sim): State<Sim>, Json(lags): Json<Lags>) {
    sim.set_lags(
        Duration::from_millis(lags.describe_ms),
        Duration::from_millis(lags.metadata_ms),
    );
}

async fn foreign(
    State(sim): State<Sim>,
    Json(taken): Json<Foreign>,
) -> Result<Json<EniId>, Failed> {
    sim.take_foreign(&taken.vswitch, taken.ip)
        .map(Json)
        .map_err(|refusal| refused(&refusal))
}

async fn release_foreign(State(sim): State<Sim>, Path(eni): Path<EniId>) -> Result<(), Failed> {
    sim.release_foreign(&eni)
        .map_err(|refusal| refused(&refusal))
}

async fn detach(State(sim): State<Sim>, Path(eni): Path<EniId>) -> Result<(), Failed> {
    sim.detach_behind_back(&eni)
        .await
        .map_err(|refusal| refused(&refusal))
}

async fn role(State(sim): State<Sim>, Json(spec): Json<RoleSpec>) {
    sim.set_role(spec);
}

async fn remove_role(State(sim): State<Sim>, Path(name): Path<String>) -> StatusCode {
    if sim.remove_role(&name) {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn run_instance(
    State(sim): State<Sim>,
    Json(spec): Json<InstanceSpec>,
) -> Result<Json<EniId>, Failed> {
    match sim.run_instance(spec).await {
        Ok(view) => Ok(Json(view.primary.eni)),
        Err(err) => Err((StatusCode::BAD_REQUEST, err.to_string())),
    }
}

async fn release_instance(
    State(sim): State<Sim>,
    Path(id): Path<InstanceId>,
) -> Result<(), Failed> {
    sim.release_instance(&id)
        .await
        .map_err(|refusal| refused(&refusal))
}

fn find(name: &str) -> Result<Action, Failed> {
    name.parse()
        .map_err(|err: ecs_api::action::UnknownAction| (StatusCode::NOT_FOUND, err.to_string()))
}
