//! Attach, detach, delete: calls that only start something, without a token.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_api::fault::{Fault, FaultClass};
use ecs_api::model::eni::{
    AttachNetworkInterface, DeleteNetworkInterface, DetachNetworkInterface, Eni, EniStatus,
};
use mesh::crash_point;
use tokio::time::Instant;
use tracing::Instrument;
use types::cloud::{EniId, InstanceId};

use super::{Agreement, Blind, Outcome, Verbs, of_blind, readback_span};
use crate::call::{CallError, Terms};
use crate::failure::{Failure, Subject};

/// Where an ENI shall go.
#[derive(Debug, Clone)]
pub(super) enum Move {
    Attach(AttachNetworkInterface),
    Detach(DetachNetworkInterface),
    Delete(DeleteNetworkInterface),
}

/// What a look at the ENI says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    /// The state is there.
    Reached,
    /// On its way.
    Pending,
    /// As before the call, which may be sent (again).
    Ready,
    /// It leads nowhere.
    Hopeless(String),
}

/// What is known of the last call.
enum Evidence {
    /// The cloud took it, or says that there is nothing to do.
    Answered,
    /// The cloud refused it because of the state that it is in.
    Refused(Box<Fault>),
    /// Sent, no answer.
    Unanswered(String),
}

/// How watching ended.
enum Watched {
    Reached(Option<Box<Eni>>),
    Ready,
}

impl Move {
    pub(super) fn attach(eni: &EniId, instance: &InstanceId) -> Self {
        Self::Attach(AttachNetworkInterface {
            eni: eni.clone(),
            instance: instance.clone(),
            trunk: None,
        })
    }

    pub(super) fn detach(eni: &EniId, instance: &InstanceId) -> Self {
        Self::Detach(DetachNetworkInterface {
            eni: eni.clone(),
            instance: instance.clone(),
            trunk: None,
        })
    }

    pub(super) fn delete(eni: &EniId) -> Self {
        Self::Delete(DeleteNetworkInterface { eni: eni.clone() })
    }

    fn eni(&self) -> &EniId {
        match self {
            Self::Attach(request) => &request.eni,
            Self::Detach(request) => &request.eni,
            Self::Delete(request) => &request.eni,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Attach(_) => "attach",
            Self::Detach(_) => "detach",
            Self::Delete(_) => "delete",
        }
    }

    fn action(&self) -> Action {
        match self {
            Self::Attach(_) => Action::AttachNetworkInterface,
            Self::Detach(_) => Action::DetachNetworkInterface,
            Self::Delete(_) => Action::DeleteNetworkInterface,
        }
    }

    fn before_send(&self) {
        match self {
            Self::Attach(_) => crash_point!("gw.attach.before_send"),
            Self::Detach(_) => crash_point!("gw.detach.before_send"),
            Self::Delete(_) => crash_point!("gw.delete.before_send"),
        }
    }

    fn after_send(&self) {
        match self {
            Self::Attach(_) => crash_point!("gw.attach.after_send"),
            Self::Detach(_) => crash_point!("gw.detach.after_send"),
            Self::Delete(_) => crash_point!("gw.delete.after_send"),
        }
    }

    fn before_reply(&self) {
        match self {
            Self::Attach(_) => crash_point!("gw.attach.before_reply"),
            Self::Detach(_) => crash_point!("gw.detach.before_reply"),
            Self::Delete(_) => crash_point!("gw.delete.before_reply"),
        }
    }

    /// What the ENI looks like from here. `None`: the cloud does not show it.
    fn judge(&self, seen: Option<&Eni>) -> Sight {
        match self {
            Self::Attach(request) => judge_attach(&request.instance, seen),
            Self::Detach(request) => judge_detach(&request.instance, seen),
            Self::Delete(_) => judge_delete(seen),
        }
    }
}

fn judge_attach(wanted: &InstanceId, seen: Option<&Eni>) -> Sight {
    // The cloud says for certain whether an ENI exists when it is asked to attach it.
    let Some(eni) = seen else { return Sight::Ready };
    match eni.status {
        EniStatus::InUse if eni.instance.as_ref() == Some(wanted) => Sight::Reached,
        EniStatus::InUse => elsewhere(eni),
        EniStatus::Available => Sight::Ready,
        EniStatus::Deleting => Sight::Hopeless("it is being deleted".to_owned()),
        EniStatus::Attaching | EniStatus::Detaching | EniStatus::Other => Sight::Pending,
    }
}

fn judge_detach(from: &InstanceId, seen: Option<&Eni>) -> Sight {
    let Some(eni) = seen else {
        return Sight::Reached;
    };
    match eni.status {
        EniStatus::Available | EniStatus::Deleting => Sight::Reached,
        EniStatus::InUse if eni.instance.as_ref() == Some(from) => Sight::Ready,
        EniStatus::InUse => elsewhere(eni),
        EniStatus::Attaching | EniStatus::Detaching | EniStatus::Other => Sight::Pending,
    }
}

fn judge_delete(seen: Option<&Eni>) -> Sight {
    let Some(eni) = seen else {
        return Sight::Reached;
    };
    match eni.status {
        EniStatus::Available => Sight::Ready,
        EniStatus::InUse => elsewhere(eni),
        EniStatus::Attaching | EniStatus::Detaching | EniStatus::Deleting | EniStatus::Other => {
            Sight::Pending
        }
    }
}

fn elsewhere(eni: &Eni) -> Sight {
    let instance = eni
        .instance
        .as_ref()
        .map_or("an instance", InstanceId::as_str);
    Sight::Hopeless(format!("it is attached to {instance}"))
}

/// Whether the refusal speaks of the state, so that a look decides.
fn is_about_state(fault: &Fault) -> bool {
    fault.class == FaultClass::WaitState || fault.code == "InvalidParameter.EniNotBelongEcs"
}

impl Verbs {
    pub(super) async fn reach_move(
        &self,
        goal: &Move,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Outcome, Failure> {
        let mut request_ids = Vec::new();
        let mut under_way = false;
        loop {
            goal.before_send();
            let sent = self.send_move(goal, terms).await;
            goal.after_send();
            let evidence = match sent {
                Ok(id) => {
                    request_ids.push(id);
                    Evidence::Answered
                }
                Err(CallError::Refused(fault)) if fault.is_done_for(goal.action()) => {
                    if fault.class == FaultClass::EniAbsent {
                        goal.before_reply();
                        return Ok(Outcome {
                            eni: None,
                            request_ids,
                        });
                    }
                    Evidence::Answered
                }
                Err(CallError::Refused(fault)) if is_about_state(&fault) => {
                    Evidence::Refused(Box::new(fault))
                }
                Err(CallError::Unknown { what }) => Evidence::Unanswered(what),
                Err(error) => return Err(given_up(goal, &error, under_way, subject)),
            };
            under_way |= !matches!(evidence, Evidence::Refused(_));
            let watched = self
                .watch(goal, &evidence, under_way, terms)
                .instrument(readback_span(goal.name(), goal.eni()))
                .await?;
            if let Watched::Reached(eni) = watched {
                goal.before_reply();
                return Ok(Outcome { eni, request_ids });
            }
        }
    }

    async fn send_move(&self, goal: &Move, terms: &Terms) -> Result<String, CallError> {
        Ok(match goal {
            Move::Attach(request) => self.caller.call(request, terms).await?.request_id,
            Move::Detach(request) => self.caller.call(request, terms).await?.request_id,
            Move::Delete(request) => self.caller.call(request, terms).await?.request_id,
        })
    }

    /// Looks until the state is reached, or the call may be sent again.
    async fn watch(
        &self,
        goal: &Move,
        evidence: &Evidence,
        under_way: bool,
        terms: &Terms,
    ) -> Result<Watched, Failure> {
        let answered = matches!(evidence, Evidence::Answered);
        let long = if answered {
            Duration::ZERO
        } else {
            self.times.settle
        };
        let since = Instant::now();
        let mut agreement = Agreement::default();
        let mut looks = self.looks(goal.eni(), terms, false);
        let mut last = String::from("nothing");
        loop {
            let seen = match looks.next().await {
                Ok(seen) => seen,
                Err(blind) => return Err(ended(goal, evidence, under_way, blind, &last)),
            };
            last = seen
                .as_ref()
                .map_or("nothing".to_owned(), |eni| eni.status.to_string());
            // After a success an old state may be read for a while.
            let settled = !answered || since.elapsed() >= self.times.reissue;
            match goal.judge(seen.as_ref()) {
                Sight::Reached => {
                    if agreement.lasts(long) {
                        return Ok(Watched::Reached(seen.map(Box::new)));
                    }
                    continue;
                }
                Sight::Ready if settled => return Ok(Watched::Ready),
                Sight::Hopeless(what) if settled => {
                    return Err(Failure::StateConflict {
                        id: goal.eni().to_string(),
                        what,
                    });
                }
                Sight::Pending | Sight::Ready | Sight::Hopeless(_) => {}
            }
            agreement.breaks();
        }
    }
}

/// The failure when the call can not be sent (again).
fn given_up(goal: &Move, error: &CallError, under_way: bool, subject: &Subject) -> Failure {
    let says_nothing = match error {
        CallError::Throttled { .. }
        | CallError::Full { .. }
        | CallError::NotSent { .. }
        | CallError::NoCredentials { .. }
        | CallError::Unknown { .. } => true,
        CallError::Refused(_) | CallError::Fenced { .. } => false,
    };
    if under_way && says_nothing {
        return Failure::OutcomeUnknown {
            what: format!("{} was sent before, now: {error}", goal.action()),
        };
    }
    Failure::of_call(goal.action(), error, subject)
}

/// The failure when the deadline is over.
fn ended(goal: &Move, evidence: &Evidence, under_way: bool, blind: Blind, last: &str) -> Failure {
    let action = goal.action();
    match (evidence, &blind) {
        (Evidence::Refused(fault), Blind::Late(_)) if !under_way => Failure::StateConflict {
            id: goal.eni().to_string(),
            what: format!("{action}: {fault}; seen last: {last}"),
        },
        (Evidence::Unanswered(what), _) => of_blind(
            blind,
            &format!("{action} was not answered ({what}); seen last: {last}"),
        ),
        (Evidence::Refused(_) | Evidence::Answered, _) => {
            of_blind(blind, &format!("{action} was sent; seen last: {last}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ecs_api::model::eni::EniKind;

    use super::*;

    fn eni(status: EniStatus, instance: Option<&str>) -> Eni {
        Eni {
            id: "eni-1".parse().unwrap(),
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            status,
            kind: EniKind::Secondary,
            instance: instance.map(|id| id.parse().unwrap()),
            trunk: None,
            device_index: None,
            vswitch: "vsw-1".parse().unwrap(),
            vpc: None,
            zone: None,
            security_groups: Vec::new(),
            primary_ip: "10.0.0.1".parse().unwrap(),
            ipv4: vec!["10.0.0.1".parse().unwrap()],
            ipv6: Vec::new(),
            tags: BTreeMap::new(),
            name: String::new(),
            description: String::new(),
            created_at: None,
        }
    }

    fn ids() -> (EniId, InstanceId) {
        ("eni-1".parse().unwrap(), "i-1".parse().unwrap())
    }

    #[test]
    fn attach_is_reached_only_on_the_wanted_instance() {
        let (id, instance) = ids();
        let goal = Move::attach(&id, &instance);

        let here = goal.judge(Some(&eni(EniStatus::InUse, Some("i-1"))));
        let there = goal.judge(Some(&eni(EniStatus::InUse, Some("i-2"))));

        assert_eq!(here, Sight::Reached);
        assert_eq!(there, Sight::Hopeless("it is attached to i-2".to_owned()));
    }

    #[test]
    fn attach_that_fell_back_may_be_sent_again() {
        let (id, instance) = ids();
        let goal = Move::attach(&id, &instance);

        assert_eq!(
            goal.judge(Some(&eni(EniStatus::Available, None))),
            Sight::Ready
        );
        assert_eq!(
            goal.judge(Some(&eni(EniStatus::Attaching, Some("i-1")))),
            Sight::Pending
        );
    }

    #[test]
    fn detach_of_an_eni_that_is_gone_is_reached() {
        let (id, instance) = ids();
        let goal = Move::detach(&id, &instance);

        assert_eq!(goal.judge(None), Sight::Reached);
        assert_eq!(
            goal.judge(Some(&eni(EniStatus::Available, None))),
            Sight::Reached
        );
    }

    #[test]
    fn delete_of_an_attached_eni_leads_nowhere() {
        let (id, _) = ids();
        let goal = Move::delete(&id);

        assert!(matches!(
            goal.judge(Some(&eni(EniStatus::InUse, Some("i-1")))),
            Sight::Hopeless(_)
        ));
        assert_eq!(
            goal.judge(Some(&eni(EniStatus::Deleting, None))),
            Sight::Pending
        );
    }
}
