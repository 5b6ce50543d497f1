//! Assign and unassign: explicit addresses, both families at the same time.

use std::net::IpAddr;
use std::time::Duration;

use ecs_api::fault::{Fault, FaultClass};
use ecs_api::model::Pick;
use ecs_api::model::address::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, UnassignIpv6Addresses,
    UnassignPrivateIpAddresses,
};
use ecs_api::model::eni::{Eni, EniStatus};
use mesh::crash_point;
use tokio::time::Instant;
use tracing::Instrument;
use types::cloud::EniId;

use super::load::{Load, Presence, Step};
use super::{
    Addresses, Agreement, Blind, LOOKS_BEFORE_CONFLICT, Looks, Outcome, Verbs, of_blind, or_named,
    readback_span,
};
use crate::call::{CallError, Terms};
use crate::failure::{Failure, Subject};
use crate::op::OpKey;

/// How looking for a state of addresses ended.
enum Looked {
    Reached(Option<Box<Eni>>),
    /// These have to be sent again.
    Again(Addresses),
}

/// How one family ended.
#[derive(Debug, Default)]
struct Part {
    request_ids: Vec<String>,
    /// Some of it is known from reads alone.
    inferred: bool,
    /// The ENI does not exist.
    gone: bool,
}

/// Both families, told as one. A family whose outcome is open decides: the whole must be repeated.
fn joined(v4: Result<Part, Failure>, v6: Result<Part, Failure>) -> Result<Part, Failure> {
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.request_ids.extend(v6.request_ids);
            v4.inferred |= v6.inferred;
            v4.gone |= v6.gone;
            Ok(v4)
        }
        (Err(_), Err(open @ Failure::OutcomeUnknown { .. })) => Err(open),
        (Err(failure), _) | (Ok(_), Err(failure)) => Err(failure),
    }
}

impl Verbs {
    pub(super) async fn assign(
        &self,
        op: &OpKey,
        eni: &EniId,
        addresses: &Addresses,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Outcome, Failure> {
        let mut request_ids = Vec::new();
        let mut rest = addresses.clone();
        for round in 0_u32.. {
            let (v4, v6) = Load::split(&rest);
            let step = Step { op, round };
            crash_point!("gw.assign.before_send");
            let (v4, v6) = tokio::join!(
                self.assign_loads(step, eni, v4, terms, subject),
                self.assign_loads(step, eni, v6, terms, subject),
            );
            crash_point!("gw.assign.after_send");
            let part = joined(v4, v6)?;
            request_ids.extend(part.request_ids);
            let looked = self
                .look_for(Presence::There, eni, addresses, part.inferred, terms)
                .instrument(readback_span("assign", eni))
                .await
                .map_err(|blind| of_blind(blind, &format!("addresses were assigned to {eni}")))?;
            match looked {
                Looked::Reached(seen) => {
                    crash_point!("gw.assign.before_reply");
                    return Ok(Outcome {
                        eni: seen,
                        request_ids,
                    });
                }
                // The cloud repeats an old answer under its token, and somebody took the addresses away since.
                Looked::Again(missing) => rest = missing,
            }
        }
        Err(Failure::OutcomeUnknown {
            what: format!("addresses of {eni} do not stay"),
        })
    }

    pub(super) async fn unassign(
        &self,
        eni: &EniId,
        addresses: &Addresses,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Outcome, Failure> {
        let mut request_ids = Vec::new();
        let mut rest = addresses.clone();
        loop {
            let (v4, v6) = Load::split(&rest);
            crash_point!("gw.unassign.before_send");
            let (v4, v6) = tokio::join!(
                self.unassign_loads(eni, v4, terms, subject),
                self.unassign_loads(eni, v6, terms, subject),
            );
            crash_point!("gw.unassign.after_send");
            let part = joined(v4, v6)?;
            request_ids.extend(part.request_ids);
            let looked = if part.gone {
                Looked::Reached(None)
            } else {
                self.look_for(Presence::Gone, eni, addresses, part.inferred, terms)
                    .instrument(readback_span("unassign", eni))
                    .await
                    .map_err(|blind| of_blind(blind, &format!("addresses were taken from {eni}")))?
            };
            match looked {
                Looked::Reached(seen) => {
                    crash_point!("gw.unassign.before_reply");
                    return Ok(Outcome {
                        eni: seen,
                        request_ids,
                    });
                }
                Looked::Again(present) => rest = present,
            }
        }
    }

    /// Looks until all addresses are there, or gone. That they are gone must last if only reads speak for it; if it
    /// does not, or the state does not come in time, the rest must be sent again.
    async fn look_for(
        &self,
        presence: Presence,
        eni: &EniId,
        addresses: &Addresses,
        inferred: bool,
        terms: &Terms,
    ) -> Result<Looked, Blind> {
        let doubtful = inferred && presence == Presence::Gone;
        let long = if doubtful {
            self.times.settle
        } else {
            Duration::ZERO
        };
        let began = Instant::now();
        let mut looks = self.looks(eni, terms, !doubtful);
        let mut agreement = Agreement::default();
        loop {
            let seen = looks.next().await?;
            let rest = presence.rest(seen.as_ref(), addresses);
            if rest.is_empty() {
                if agreement.lasts(long) {
                    return Ok(Looked::Reached(seen.map(Box::new)));
                }
                continue;
            }
            agreement.breaks();
            if doubtful || began.elapsed() >= self.times.reissue {
                return Ok(Looked::Again(rest));
            }
        }
    }

    async fn assign_loads(
        &self,
        step: Step<'_>,
        eni: &EniId,
        loads: Vec<Load>,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Part, Failure> {
        let mut part = Part::default();
        for load in loads {
            self.assign_load(step, eni, load, terms, subject, &mut part)
                .await?;
        }
        Ok(part)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what, where, how, and the one place that collects the ids"
    )]
    async fn assign_load(
        &self,
        step: Step<'_>,
        eni: &EniId,
        mut load: Load,
        terms: &Terms,
        subject: &Subject,
        part: &mut Part,
    ) -> Result<(), Failure> {
        let mut looks = self.looks(eni, terms, true);
        loop {
            let action = load.assign_action();
            let error = match self.send_assign(step, eni, &load, terms).await {
                Ok(id) => {
                    part.request_ids.push(id);
                    return Ok(());
                }
                Err(error) => error,
            };
            let failure = || Failure::of_call(action, &error, subject);
            let rest = match &error {
                CallError::Refused(fault) if fault.class == FaultClass::WaitState => {
                    self.wait_assignable(&mut looks, fault, subject).await?;
                    continue;
                }
                CallError::Refused(fault) if fault.class == FaultClass::AddressInUse => {
                    self.missing_or_conflict(&mut looks, &load, fault).await?
                }
                CallError::Refused(fault) if may_be_there(fault) => {
                    missing(&mut looks, &load).await.ok_or_else(failure)?
                }
                CallError::Unknown { .. } => {
                    let rest = missing(&mut looks, &load).await.ok_or_else(failure)?;
                    if rest.len() > 0 {
                        return Err(failure());
                    }
                    rest
                }
                CallError::Refused(_)
                | CallError::Throttled { .. }
                | CallError::Full { .. }
                | CallError::NotSent { .. }
                | CallError::NoCredentials { .. }
                | CallError::Fenced { .. } => return Err(failure()),
            };
            part.inferred = true;
            if rest.len() == 0 {
                return Ok(());
            }
            if rest.len() == load.len() {
                return Err(failure());
            }
            load = rest;
        }
    }

    async fn send_assign(
        &self,
        step: Step<'_>,
        eni: &EniId,
        load: &Load,
        terms: &Terms,
    ) -> Result<String, CallError> {
        let client_token = Some(step.token(load));
        let eni = eni.clone();
        Ok(match load {
            Load::V4(ipv4) => {
                let request = AssignPrivateIpAddresses {
                    eni,
                    ipv4: Pick::Listed(ipv4.clone()),
                    client_token,
                };
                self.caller.call(&request, terms).await?.request_id
            }
            Load::V6(ipv6) => {
                let request = AssignIpv6Addresses {
                    eni,
                    ipv6: Pick::Listed(ipv6.clone()),
                    client_token,
                };
                self.caller.call(&request, terms).await?.request_id
            }
        })
    }

    /// Waits for a state in which addresses can be changed.
    async fn wait_assignable(
        &self,
        looks: &mut Looks<'_>,
        fault: &Fault,
        subject: &Subject,
    ) -> Result<(), Failure> {
        loop {
            let seen = looks.next().await.map_err(|_| Failure::StateConflict {
                id: subject.eni.clone(),
                what: fault.to_string(),
            })?;
            // Of an ENI that is not there the next call tells for certain.
            if seen.is_none_or(|eni| matches!(eni.status, EniStatus::Available | EniStatus::InUse))
            {
                return Ok(());
            }
        }
    }

    /// The cloud says that an address is in use. By this very ENI, if an earlier try of the operation was not
    /// answered and the token is forgotten: then only the rest is missing.
    async fn missing_or_conflict(
        &self,
        looks: &mut Looks<'_>,
        load: &Load,
        fault: &Fault,
    ) -> Result<Load, Failure> {
        let wanted = load.addresses();
        let conflict = |addresses: Vec<IpAddr>| Failure::AddressInUse {
            addresses: or_named(addresses, &wanted, &fault.message),
            what: fault.to_string(),
        };
        for _ in 0..LOOKS_BEFORE_CONFLICT {
            let Ok(Some(eni)) = looks.next().await else {
                break;
            };
            let rest = load.narrowed(&eni, false);
            if rest.len() < load.len() {
                return Ok(rest);
            }
            let taken = self
                .taken_by_others(&wanted, &eni.vswitch, Some(&eni.id), looks.terms)
                .await;
            if !taken.is_empty() {
                return Err(conflict(taken));
            }
        }
        Err(conflict(Vec::new()))
    }

    async fn unassign_loads(
        &self,
        eni: &EniId,
        loads: Vec<Load>,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Part, Failure> {
        let mut part = Part::default();
        for load in loads {
            self.unassign_load(eni, load, terms, subject, &mut part)
                .await?;
            if part.gone {
                break;
            }
        }
        Ok(part)
    }

    async fn unassign_load(
        &self,
        eni: &EniId,
        mut load: Load,
        terms: &Terms,
        subject: &Subject,
        part: &mut Part,
    ) -> Result<(), Failure> {
        let mut looks = self.looks(eni, terms, true);
        let mut under_way = false;
        loop {
            let action = load.unassign_action();
            let error = match self.send_unassign(eni, &load, terms).await {
                Ok(id) => {
                    part.request_ids.push(id);
                    return Ok(());
                }
                Err(error) => error,
            };
            match &error {
                CallError::Refused(fault) if fault.class == FaultClass::EniAbsent => {
                    part.gone = true;
                    return Ok(());
                }
                CallError::Refused(fault) if fault.class == FaultClass::WaitState => {
                    self.wait_assignable(&mut looks, fault, subject).await?;
                    continue;
                }
                CallError::Refused(fault) if fault.class == FaultClass::AddressAbsent => {}
                CallError::Unknown { .. } => under_way = true,
                CallError::Throttled { .. }
                | CallError::Full { .. }
                | CallError::NotSent { .. }
                | CallError::NoCredentials { .. }
                    if under_way =>
                {
                    return Err(Failure::OutcomeUnknown {
                        what: format!("{action} was sent before, now: {error}"),
                    });
                }
                CallError::Refused(_)
                | CallError::Throttled { .. }
                | CallError::Full { .. }
                | CallError::NotSent { .. }
                | CallError::NoCredentials { .. }
                | CallError::Fenced { .. } => {
                    return Err(Failure::of_call(action, &error, subject));
                }
            }
            part.inferred = true;
            let seen = looks
                .next()
                .await
                .map_err(|blind| of_blind(blind, &format!("{action}: {error}")))?;
            let Some(seen) = seen else { return Ok(()) };
            load = load.narrowed(&seen, true);
            if load.len() == 0 {
                return Ok(());
            }
            if has_primary(&load, &seen) {
                return Err(Failure::BadField {
                    field: "ipv4",
                    what: format!("{} is the primary address of {eni}", seen.primary_ip),
                });
            }
        }
    }

    async fn send_unassign(
        &self,
        eni: &EniId,
        load: &Load,
        terms: &Terms,
    ) -> Result<String, CallError> {
        let eni = eni.clone();
        Ok(match load {
            Load::V4(ipv4) => {
                let request = UnassignPrivateIpAddresses {
                    eni,
                    ipv4: ipv4.clone(),
                };
                self.caller.call(&request, terms).await?.request_id
            }
            Load::V6(ipv6) => {
                let request = UnassignIpv6Addresses {
                    eni,
                    ipv6: ipv6.clone(),
                };
                self.caller.call(&request, terms).await?.request_id
            }
        })
    }
}

/// Whether the refusal may mean that an earlier try of the same operation has done the work.
fn may_be_there(fault: &Fault) -> bool {
    matches!(
        fault.class,
        FaultClass::LimitAddress | FaultClass::Exhausted | FaultClass::IdempotencyMismatch
    )
}

fn has_primary(load: &Load, eni: &Eni) -> bool {
    match load {
        Load::V4(ipv4) => ipv4.contains(&eni.primary_ip),
        Load::V6(_) => false,
    }
}

/// What the ENI has not; `None` if it can not be seen.
async fn missing(looks: &mut Looks<'_>, load: &Load) -> Option<Load> {
    let seen = looks.next().await.ok()??;
    Some(load.narrowed(&seen, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_outcome_of_one_family_decides_over_a_refusal_of_the_other() {
        let open = || {
            Err(Failure::OutcomeUnknown {
                what: String::new(),
            })
        };
        let full = || {
            Err(Failure::Exhausted {
                what: String::new(),
            })
        };

        for (v4, v6) in [
            (open(), full()),
            (full(), open()),
            (Ok(Part::default()), open()),
        ] {
            assert!(matches!(
                joined(v4, v6),
                Err(Failure::OutcomeUnknown { .. })
            ));
        }
    }
}
