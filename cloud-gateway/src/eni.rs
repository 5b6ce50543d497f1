//! The verbs on ENIs. Each reaches a state: it calls, waits until the state is read back, and answers.
//!
//! What is certain comes from the cloud's answers; reads may be old. A state that only reads speak for counts once
//! they have agreed for longer than a read can be old. A call without a `ClientToken` is repeated only after a look
//! at the state.

mod addresses;
mod create;
mod load;
mod moves;
pub mod turns;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ecs_api::action::{Action, MAX_CONCURRENT_ATTACHES, MAX_DESCRIBE_IDS};
use ecs_api::fault::{Fault, FaultClass};
use ecs_api::model::eni::{DescribeNetworkInterfaces, Eni};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::{Span, info_span};
use types::cloud::{EniId, InstanceId, SecurityGroupId, VSwitchId};

use crate::call::{CallError, Caller, Terms};
use crate::describe::Reader;
use crate::eni::turns::Turns;
use crate::failure::{Failure, Subject};
use crate::op::OpKey;

/// Tag that names the operation which made an ENI. With it an ENI is found whose token the cloud has forgotten.
pub const OP_TAG: &str = "terway.io/op";

/// Places where a debug build can be made to die: before anything was sent, after the cloud answered and before
/// the state was read back, after that and before the reply.
pub const CRASH_POINTS: [&str; 18] = [
    "gw.create.before_send",
    "gw.create.after_send",
    "gw.create.before_reply",
    "gw.attach.before_send",
    "gw.attach.after_send",
    "gw.attach.before_reply",
    "gw.detach.before_send",
    "gw.detach.after_send",
    "gw.detach.before_reply",
    "gw.delete.before_send",
    "gw.delete.after_send",
    "gw.delete.before_reply",
    "gw.assign.before_send",
    "gw.assign.after_send",
    "gw.assign.before_reply",
    "gw.unassign.before_send",
    "gw.unassign.after_send",
    "gw.unassign.before_reply",
];

/// Looks at an ENI before a refusal that names an address is believed. Reason: a read may be older than an earlier
/// try of the same operation.
const LOOKS_BEFORE_CONFLICT: u32 = 3;
/// An ENI to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEni {
    /// Where.
    pub vswitch: VSwitchId,
    /// 1 to 5 groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// The primary address; the cloud chooses when absent.
    pub primary_ip: Option<Ipv4Addr>,
    /// At most 10, without the primary one.
    pub ipv4: Vec<Ipv4Addr>,
    /// At most 10.
    pub ipv6: Vec<Ipv6Addr>,
    /// At most 20.
    pub tags: BTreeMap<String, String>,
    /// 2 to 256 characters, or empty.
    pub description: String,
}

/// Addresses of both families, each one once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4, without the primary one.
    pub ipv4: Vec<Ipv4Addr>,
    /// IPv6.
    pub ipv6: Vec<Ipv6Addr>,
}

/// What is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// The ENI exists, with its addresses.
    Create(NewEni),
    /// It is attached to the instance.
    Attach {
        /// Which ENI.
        eni: EniId,
        /// Where.
        instance: InstanceId,
    },
    /// It is attached to nothing, or gone.
    Detach {
        /// Which ENI.
        eni: EniId,
        /// Where it was.
        instance: InstanceId,
    },
    /// It is gone.
    Delete {
        /// Which ENI.
        eni: EniId,
    },
    /// It has the addresses.
    Assign {
        /// Which ENI.
        eni: EniId,
        /// Which addresses.
        addresses: Addresses,
    },
    /// It has none of the addresses.
    Unassign {
        /// Which ENI.
        eni: EniId,
        /// Which addresses.
        addresses: Addresses,
    },
}

impl Verb {
    /// Hash of what is asked for: two calls with one key must agree in it.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(format!("{self:?}")).into()
    }

    fn subject(&self) -> Subject {
        let mut subject = Subject::default();
        match self {
            Self::Create(new) => {
                subject.vswitch = new.vswitch.to_string();
                subject.security_groups = new
                    .security_groups
                    .iter()
                    .map(ToString::to_string)
                    .collect();
            }
            Self::Attach { eni, instance } | Self::Detach { eni, instance } => {
                subject.eni = eni.to_string();
                subject.instance = instance.to_string();
            }
            Self::Delete { eni } | Self::Assign { eni, .. } | Self::Unassign { eni, .. } => {
                subject.eni = eni.to_string();
            }
        }
        subject
    }
}

/// A state that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The ENI as read back; absent when it is gone.
    pub eni: Option<Box<Eni>>,
    /// The cloud's ids of the calls that were answered with success.
    pub request_ids: Vec<String>,
}

/// Times of the verbs.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// After a call that was answered with success: how long its state may take to begin before it is sent again.
    pub reissue: Duration,
    /// How old a read may be.
    pub settle: Duration,
}

/// The verbs.
#[derive(Debug)]
pub struct Verbs {
    caller: Arc<Caller>,
    reader: Reader,
    times: Times,
    enis: Turns<EniId>,
    attaches: Turns<InstanceId>,
}

/// The state can not be read.
enum Blind {
    /// The deadline is over; what was in the way last.
    Late(String),
    /// The cloud does not let us look.
    Refused(Box<Fault>),
}

/// Looks that agree on a state.
#[derive(Debug, Default)]
struct Agreement {
    since: Option<Instant>,
}

impl Agreement {
    /// One more look that says so; whether they have said so for `long`.
    fn lasts(&mut self, long: Duration) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        since.elapsed() >= long
    }

    /// A look that says otherwise.
    fn breaks(&mut self) {
        self.since = None;
    }
}

/// A row of looks at one ENI.
struct Looks<'a> {
    verbs: &'a Verbs,
    eni: &'a EniId,
    terms: &'a Terms,
    taken: u32,
    at_once: bool,
}

impl Looks<'_> {
    /// Waits for the time of the next look, and looks. Reads that fail for a while are repeated.
    async fn next(&mut self) -> Result<Option<Eni>, Blind> {
        let mut last = String::from("no look was taken");
        loop {
            let wait = if self.at_once {
                Duration::ZERO
            } else {
                self.verbs.reader.wait_before(self.taken)
            };
            self.at_once = false;
            self.taken = self.taken.saturating_add(1);
            if !self.terms.pause(wait).await {
                return Err(Blind::Late(last));
            }
            match self.verbs.reader.read_one(self.eni, self.terms).await {
                Ok(eni) => return Ok(eni),
                Err(CallError::Refused(fault)) if fault.class == FaultClass::Forbidden => {
                    return Err(Blind::Refused(Box::new(fault)));
                }
                Err(error) => last = error.to_string(),
            }
        }
    }
}

impl Verbs {
    /// Puts the parts together.
    pub fn new(caller: Arc<Caller>, reader: Reader, times: Times) -> Self {
        Self {
            caller,
            reader,
            times,
            enis: Turns::new(1),
            attaches: Turns::new(MAX_CONCURRENT_ATTACHES),
        }
    }

    /// Reaches the state. Operations on one ENI go one after the other.
    pub async fn reach(&self, op: &OpKey, verb: &Verb, terms: &Terms) -> Result<Outcome, Failure> {
        let subject = verb.subject();
        match verb {
            Verb::Create(new) => self.create(op, new, terms, &subject).await,
            Verb::Attach { eni, instance } => {
                let _turn = self.turn(eni, terms).await?;
                let busy = || busy(&subject.instance, "five attach operations are under way");
                let turn = self.attaches.take(instance, terms.deadline).await;
                let _attach = turn.ok_or_else(busy)?;
                self.reach_move(&moves::Move::attach(eni, instance), terms, &subject)
                    .await
            }
            Verb::Detach { eni, instance } => {
                let _turn = self.turn(eni, terms).await?;
                self.reach_move(&moves::Move::detach(eni, instance), terms, &subject)
                    .await
            }
            Verb::Delete { eni } => {
                let _turn = self.turn(eni, terms).await?;
                self.reach_move(&moves::Move::delete(eni), terms, &subject)
                    .await
            }
            Verb::Assign { eni, addresses } => {
                let _turn = self.turn(eni, terms).await?;
                self.assign(op, eni, addresses, terms, &subject).await
            }
            Verb::Unassign { eni, addresses } => {
                let _turn = self.turn(eni, terms).await?;
                self.unassign(eni, addresses, terms, &subject).await
            }
        }
    }

    async fn turn(&self, eni: &EniId, terms: &Terms) -> Result<turns::Turn, Failure> {
        let turn = self.enis.take(eni, terms.deadline).await;
        turn.ok_or_else(|| busy(eni.as_str(), "another operation on the ENI is under way"))
    }

    fn looks<'a>(&'a self, eni: &'a EniId, terms: &'a Terms, at_once: bool) -> Looks<'a> {
        Looks {
            verbs: self,
            eni,
            terms,
            taken: 0,
            at_once,
        }
    }

    /// Which of the wanted addresses other ENIs of the vSwitch have.
    async fn taken_by_others(
        &self,
        wanted: &Addresses,
        vswitch: &VSwitchId,
        own: Option<&EniId>,
        terms: &Terms,
    ) -> Vec<IpAddr> {
        let mut taken = Vec::new();
        let filters = [
            (!wanted.ipv4.is_empty()).then(|| DescribeNetworkInterfaces {
                ipv4: first_hundred(&wanted.ipv4),
                ..DescribeNetworkInterfaces::default()
            }),
            (!wanted.ipv6.is_empty()).then(|| DescribeNetworkInterfaces {
                ipv6: first_hundred(&wanted.ipv6),
                ..DescribeNetworkInterfaces::default()
            }),
        ];
        for filter in filters.into_iter().flatten() {
            let filter = DescribeNetworkInterfaces {
                vswitch: Some(vswitch.clone()),
                ..filter
            };
            // Without an answer the addresses stay unknown; the refusal itself is certain.
            let enis = self.reader.list(&filter, terms).await.unwrap_or_default();
            for eni in enis.iter().filter(|eni| Some(&eni.id) != own) {
                taken.extend(wanted.present_on(eni));
            }
        }
        taken
    }
}

impl Addresses {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.iter().copied().map(IpAddr::V4);
        ipv4.chain(self.ipv6.iter().copied().map(IpAddr::V6))
    }

    /// Those that the ENI has.
    fn present_on(&self, eni: &Eni) -> Vec<IpAddr> {
        self.all().filter(|ip| has(eni, *ip)).collect()
    }
}

fn has(eni: &Eni, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => eni.ipv4.contains(&ip),
        IpAddr::V6(ip) => eni.ipv6.contains(&ip),
    }
}

fn first_hundred<A: Copy>(addresses: &[A]) -> Vec<A> {
    addresses.iter().copied().take(MAX_DESCRIBE_IDS).collect()
}

/// The addresses that were found, or those that the cloud's message names.
fn or_named(found: Vec<IpAddr>, wanted: &Addresses, message: &str) -> Vec<IpAddr> {
    if !found.is_empty() {
        return found;
    }
    let mut all = wanted.all();
    if let (Some(only), None) = (all.next(), all.next()) {
        return vec![only];
    }
    let is_address = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
    message
        .split(|c| !is_address(c))
        .filter_map(|word| word.trim_matches(['.', ':']).parse().ok())
        .filter(|ip| wanted.all().any(|wanted| wanted == *ip))
        .collect()
}

fn busy(id: &str, what: &str) -> Failure {
    Failure::StateConflict {
        id: id.to_owned(),
        what: what.to_owned(),
    }
}

fn of_blind(blind: Blind, state: &str) -> Failure {
    match blind {
        Blind::Late(last) => Failure::OutcomeUnknown {
            what: format!("{state}; last look: {last}"),
        },
        Blind::Refused(fault) => Failure::of_fault(
            Action::DescribeNetworkInterfaces,
            &fault,
            &Subject::default(),
        ),
    }
}

fn readback_span(verb: &'static str, eni: &EniId) -> Span {
    info_span!("gw.readback", gw.verb = verb, gw.eni = eni.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Addresses {
        Addresses {
            ipv4: vec!["10.0.0.7".parse().unwrap(), "10.0.0.8".parse().unwrap()],
            ipv6: vec!["2001:db8::7".parse().unwrap()],
        }
    }

    #[test]
    fn address_is_found_in_the_cloud_s_message() {
        let named = or_named(
            Vec::new(),
            &wanted(),
            "The IP 10.0.0.8. is assigned, so is 10.9.9.9",
        );

        assert_eq!(named, ["10.0.0.8".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn ipv6_address_is_found_in_the_cloud_s_message() {
        let named = or_named(Vec::new(), &wanted(), "already assigned: 2001:db8::7");

        assert_eq!(named, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn only_wanted_address_is_the_one_in_use() {
        let only = Addresses {
            ipv4: vec!["10.0.0.7".parse().unwrap()],
            ipv6: Vec::new(),
        };

        let named = or_named(Vec::new(), &only, "The IP is assigned.");

        assert_eq!(named, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn message_without_an_address_names_none() {
        assert!(or_named(Vec::new(), &wanted(), "The IP is assigned.").is_empty());
    }

    #[test]
    fn fingerprint_tells_verbs_and_their_parameters_apart() {
        let eni: EniId = "eni-1".parse().unwrap();
        let instance: InstanceId = "i-1".parse().unwrap();
        let attach = Verb::Attach {
            eni: eni.clone(),
            instance: instance.clone(),
        };
        let detach = Verb::Detach { eni, instance };

        assert_ne!(attach.fingerprint(), detach.fingerprint());
        assert_eq!(attach.fingerprint(), attach.clone().fingerprint());
    }

    #[test]
    fn every_crash_point_is_named_in_the_sources() {
        let sources = [
            include_str!("eni.rs"),
            include_str!("eni/create.rs"),
            include_str!("eni/moves.rs"),
            include_str!("eni/addresses.rs"),
        ]
        .concat();

        for point in CRASH_POINTS {
            // Once in the list above, and once where it is.
            let named = sources.matches(&format!("\"{point}\"")).count();
            assert!(named >= 2, "{point}");
        }
    }
}
