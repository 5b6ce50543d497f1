//! One call from bytes to bytes: verify, parse, throttle, strike, wait, act, answer.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ecs_api::action::{Action, Product};
use ecs_api::sign::v3;
use http::{Response, StatusCode};
use serde_json::Value;
use types::time::Tick;
use uuid::Uuid;

use crate::config::{Latency, Span};
use crate::dump::Call;
use crate::faults::Effect;
use crate::openapi::command::Command;
use crate::openapi::known;
use crate::openapi::parameters::Parameters;
use crate::refusal::Refusal;
use crate::roles;
use crate::sim::Sim;
use crate::sim::state::State;
use crate::wire::{self, Inbound};

/// A call that may go on.
struct Admitted {
    command: Command,
    token: Option<Repeatable>,
    wait: Duration,
    read_lag: Duration,
    fate: Fate,
}

/// What makes a repeat of the call return the first reply.
#[derive(Debug, Clone)]
pub(crate) struct Repeatable {
    pub(crate) action: Action,
    pub(crate) token: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

/// What becomes of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    LostAfterEffect,
    LostBeforeEffect,
    InternalErrorAfterEffect,
}

/// How the call went, for the ledger.
struct Outcome {
    access_key_id: String,
    result: Result<Value, Refusal>,
    lost: bool,
}

impl Sim {
    /// Answers one request. `None`: the connection closes without an answer.
    ///
    /// # Cancel safety
    /// The call goes on when nobody waits for its answer any more, as in the real cloud.
    pub async fn answer(&self, request: http::Request<Bytes>) -> Option<Response<Bytes>> {
        let inbound = Inbound::read(&request);
        let sim = self.clone();
        let call = self
            .inner
            .running
            .spawn(async move { sim.call(&inbound).await });
        call.await.ok().flatten()
    }

    async fn call(&self, inbound: &Inbound) -> Option<Response<Bytes>> {
        let request_id = Uuid::new_v4().to_string().to_uppercase();
        let at = self.now();
        let outcome = self.carry_out(inbound, at).await;
        self.write_down(inbound, &request_id, at, &outcome);
        if outcome.lost {
            return None;
        }
        let format = inbound.format();
        Some(match outcome.result {
            Ok(body) => wire::success(format, inbound.action(), body, &request_id),
            Err(refusal) => {
                let host = inbound.header("host").unwrap_or_default();
                wire::refusal(format, &refusal, host, &request_id)
            }
        })
    }

    async fn carry_out(&self, inbound: &Inbound, now: Tick) -> Outcome {
        let mut outcome = Outcome {
            access_key_id: String::new(),
            result: Err(Refusal::internal()),
            lost: false,
        };
        if roles::is_assume(inbound) {
            outcome.result = self.assume(inbound, now);
            return outcome;
        }
        let admitted = match self.admit(inbound, now, &mut outcome.access_key_id) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                outcome.result = Err(refusal);
                return outcome;
            }
        };
        tokio::time::sleep(admitted.wait).await;
        outcome.lost = matches!(
            admitted.fate,
            Fate::LostAfterEffect | Fate::LostBeforeEffect
        );
        if admitted.fate == Fate::LostBeforeEffect {
            outcome.result = Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "Lost",
                "the connection was closed before the call had an effect",
            ));
            return outcome;
        }
        outcome.result = self
            .execute(admitted.command, admitted.token, admitted.read_lag)
            .await;
        if admitted.fate == Fate::InternalErrorAfterEffect && outcome.result.is_ok() {
            outcome.result = Err(Refusal::internal());
        }
        outcome
    }

    /// The one call that nobody signs.
    fn assume(&self, inbound: &Inbound, now: Tick) -> Result<Value, Refusal> {
        let mut state = self.state();
        for effect in state.faults.strike(roles::ASSUME, now) {
            if let Effect::Refuse {
                status,
                code,
                message,
            } = effect
            {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
                return Err(Refusal::new(status, code, message));
            }
        }
        let State { roles, keys, .. } = &mut *state;
        roles.assume(inbound, keys, now)
    }

    /// Everything before the effect, in the order of the real service.
    fn admit(
        &self,
        inbound: &Inbound,
        now: Tick,
        access_key_id: &mut String,
    ) -> Result<Admitted, Refusal> {
        if inbound.path != "/" || !matches!(inbound.method.as_str(), "GET" | "POST") {
            return Err(no_api("InvalidApi.NotFound"));
        }
        let mut state = self.state();
        *access_key_id = state.keys.verify(inbound, now)?;
        let action = find_action(inbound)?;
        let parameters = Parameters::read(inbound);
        known::check(action, &parameters)?;
        let command = Command::parse(action, &parameters, &self.inner.region)?;
        let token = parameters
            .client_token()?
            .filter(|_| action.takes_client_token());
        let token = token.map(|token| Repeatable {
            action,
            token: token.to_owned(),
            parameters: parameters.business(),
        });
        state.quotas.take(action, now)?;
        let call = call_span(&state.latency, action);
        let mut admitted = Admitted {
            command,
            token,
            wait: state.draw(call),
            read_lag: state.read_lag,
            fate: Fate::Sent,
        };
        for effect in state.faults.strike(action.name(), now) {
            apply(&mut admitted, effect)?;
        }
        Ok(admitted)
    }

    fn write_down(&self, inbound: &Inbound, request_id: &str, at: Tick, outcome: &Outcome) {
        let action = inbound.action();
        let (status, code) = match &outcome.result {
            Ok(_) => (200, String::new()),
            Err(refusal) => (refusal.status.as_u16(), refusal.code.clone()),
        };
        let call = Call {
            at_ms: at.0,
            action: action.chars().take(80).collect(),
            request_id: request_id.to_owned(),
            access_key_id: outcome.access_key_id.clone(),
            status: if outcome.lost { 0 } else { status },
            code,
            eni: inbound
                .parameter("NetworkInterfaceId")
                .unwrap_or_default()
                .chars()
                .take(80)
                .collect(),
        };
        tracing::debug!(
            action = call.action,
            request_id,
            status = call.status,
            code = call.code,
            eni = call.eni,
            "call"
        );
        self.state()
            .ledger
            .record(call, action.parse::<Action>().is_ok());
    }
}

fn apply(admitted: &mut Admitted, effect: Effect) -> Result<(), Refusal> {
    match effect {
        Effect::Throttle => return Err(Refusal::throttled(1_000)),
        Effect::Delay { ms } => admitted.wait += Duration::from_millis(ms),
        Effect::LoseAnswer => admitted.fate = Fate::LostAfterEffect,
        Effect::LoseRequest => admitted.fate = Fate::LostBeforeEffect,
        Effect::InternalError => return Err(Refusal::internal()),
        Effect::InternalErrorAfterEffect => admitted.fate = Fate::InternalErrorAfterEffect,
        Effect::StaleDescribe { lag_ms } => admitted.read_lag = Duration::from_millis(lag_ms),
        Effect::Refuse {
            status,
            code,
            message,
        } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            return Err(Refusal::new(status, code, message));
        }
    }
    Ok(())
}

fn call_span(latency: &Latency, action: Action) -> Span {
    match action {
        Action::DescribeInstances
        | Action::DescribeInstanceTypes
        | Action::DescribeVSwitches
        | Action::DescribeSecurityGroups
        | Action::DescribeNetworkInterfaces => latency.describe_call,
        Action::CreateNetworkInterface => latency.create_call,
        Action::AssignPrivateIpAddresses
        | Action::UnassignPrivateIpAddresses
        | Action::AssignIpv6Addresses
        | Action::UnassignIpv6Addresses => latency.address_call,
        Action::AttachNetworkInterface
        | Action::DetachNetworkInterface
        | Action::DeleteNetworkInterface => latency.start_call,
    }
}

fn no_api(code: &str) -> Refusal {
    Refusal::not_found(
        code,
        "Specified api is not found, please check your url and method.",
    )
}

/// The action, if its version fits.
fn find_action(inbound: &Inbound) -> Result<Action, Refusal> {
    let version = if inbound.is_v3() {
        inbound.header(v3::HEADER_VERSION)
    } else {
        inbound.parameter("Version")
    };
    let version = version.unwrap_or_default();
    if version.is_empty() {
        return Err(Refusal::missing("Version"));
    }
    let known = [Product::Ecs, Product::Vpc];
    if !known.iter().any(|product| product.version() == version) {
        return Err(Refusal::bad(
            "InvalidVersion",
            "Specified parameter Version is not valid.",
        ));
    }
    if inbound.action().is_empty() {
        return Err(Refusal::missing("Action"));
    }
    let code = if inbound.is_v3() {
        "InvalidApi.NotFound"
    } else {
        "InvalidAction.NotFound"
    };
    let action: Action = inbound.action().parse().map_err(|_| no_api(code))?;
    if action.version() != version {
        return Err(no_api(code));
    }
    Ok(action)
}
