//! Create: a call with a token, and the ENI of an operation found again by its tag.

use std::collections::BTreeMap;

use ecs_api::action::Action;
use ecs_api::fault::{Fault, FaultClass};
use ecs_api::model::Pick;
use ecs_api::model::eni::{
    CreateNetworkInterface, CreatedEni, DescribeNetworkInterfaces, Eni, EniStatus,
};
use mesh::crash_point;
use tokio::time::Instant;
use tracing::Instrument;
use types::cloud::EniId;

use super::{Addresses, NewEni, OP_TAG, Outcome, Verbs, of_blind, or_named, readback_span};
use crate::call::{CallError, Terms};
use crate::failure::{Failure, Subject};
use crate::op::OpKey;

/// Creates that answer without an id before the cloud counts as out of order.
const MAX_NOT_MADE: u32 = 5;

impl Verbs {
    pub(super) async fn create(
        &self,
        op: &OpKey,
        new: &NewEni,
        terms: &Terms,
        subject: &Subject,
    ) -> Result<Outcome, Failure> {
        let request = CreateNetworkInterface {
            primary_ip: new.primary_ip,
            ipv4: listed(&new.ipv4),
            ipv6: listed(&new.ipv6),
            description: new.description.clone(),
            tags: new.tags.clone(),
            client_token: Some(op.client_token("create")),
            ..CreateNetworkInterface::new(new.vswitch.clone(), new.security_groups.clone())
        };
        crash_point!("gw.create.before_send");
        let (made, request_id) = match self.send_create(&request, terms).await {
            Ok(made) => made,
            Err(CallError::Refused(fault)) => {
                let found = self.made_before(new, &fault, terms).await;
                match found {
                    Some(eni) => (eni, fault.request_id),
                    None => return Err(self.create_refused(new, &fault, terms, subject).await),
                }
            }
            Err(error) => {
                return Err(Failure::of_call(
                    Action::CreateNetworkInterface,
                    &error,
                    subject,
                ));
            }
        };
        crash_point!("gw.create.after_send");
        let eni = self
            .read_back_made(new, &made, terms)
            .instrument(readback_span("create", &made))
            .await?;
        crash_point!("gw.create.before_reply");
        Ok(Outcome {
            eni: Some(Box::new(eni)),
            request_ids: vec![request_id],
        })
    }

    async fn send_create(
        &self,
        request: &CreateNetworkInterface,
        terms: &Terms,
    ) -> Result<(EniId, String), CallError> {
        for n in 0..MAX_NOT_MADE {
            let answer = self.caller.call(request, terms).await?;
            match answer.reply {
                CreatedEni::Made(eni) => return Ok((eni.id, answer.request_id)),
                // Under the same token this is one and the same creation.
                CreatedEni::NotMade => {
                    if !terms.pause(self.reader.wait_before(n)).await {
                        break;
                    }
                }
            }
        }
        Err(CallError::Unknown {
            what: "the cloud answers success without an ENI".to_owned(),
        })
    }

    /// The ENI that an earlier try of this operation made, if the cloud has forgotten the token.
    async fn made_before(&self, new: &NewEni, fault: &Fault, terms: &Terms) -> Option<EniId> {
        let may_be_ours = matches!(
            fault.class,
            FaultClass::AddressInUse | FaultClass::IdempotencyMismatch
        );
        let tag = new.tags.get(OP_TAG)?;
        if !may_be_ours {
            return None;
        }
        let filter = DescribeNetworkInterfaces {
            vswitch: Some(new.vswitch.clone()),
            tags: BTreeMap::from([(OP_TAG.to_owned(), tag.clone())]),
            ..DescribeNetworkInterfaces::default()
        };
        let enis = self.reader.list(&filter, terms).await.ok()?;
        let mut ours = enis.into_iter().filter(|eni| has_all(eni, new));
        ours.next().map(|eni| eni.id)
    }

    async fn create_refused(
        &self,
        new: &NewEni,
        fault: &Fault,
        terms: &Terms,
        subject: &Subject,
    ) -> Failure {
        let failure = Failure::of_fault(Action::CreateNetworkInterface, fault, subject);
        let Failure::AddressInUse { what, .. } = failure else {
            return failure;
        };
        let mut wanted = Addresses {
            ipv4: new.ipv4.clone(),
            ipv6: new.ipv6.clone(),
        };
        wanted.ipv4.extend(new.primary_ip);
        let taken = self
            .taken_by_others(&wanted, &new.vswitch, None, terms)
            .await;
        Failure::AddressInUse {
            addresses: or_named(taken, &wanted, &fault.message),
            what,
        }
    }

    async fn read_back_made(
        &self,
        new: &NewEni,
        made: &EniId,
        terms: &Terms,
    ) -> Result<Eni, Failure> {
        let mut looks = self.looks(made, terms, true);
        let began = Instant::now();
        loop {
            match looks.next().await {
                Ok(Some(eni)) if is_made(&eni) && has_all(&eni, new) => return Ok(eni),
                // The token still answers for an ENI that was deleted since.
                Ok(None) if began.elapsed() >= self.times.reissue => {
                    return Err(Failure::NotFound {
                        id: made.to_string(),
                        what: "made by this operation, and not there any more".to_owned(),
                    });
                }
                Ok(_) => {}
                Err(blind) => {
                    return Err(of_blind(
                        blind,
                        &format!("{made} was made and is not read back yet"),
                    ));
                }
            }
        }
    }
}

fn has_all(eni: &Eni, new: &NewEni) -> bool {
    new.primary_ip.is_none_or(|ip| eni.primary_ip == ip)
        && new.ipv4.iter().all(|ip| eni.ipv4.contains(ip))
        && new.ipv6.iter().all(|ip| eni.ipv6.contains(ip))
}

fn is_made(eni: &Eni) -> bool {
    matches!(
        eni.status,
        EniStatus::Available | EniStatus::Attaching | EniStatus::InUse
    )
}

fn listed<A: Clone>(addresses: &[A]) -> Pick<A> {
    if addresses.is_empty() {
        Pick::Nothing
    } else {
        Pick::Listed(addresses.to_vec())
    }
}
