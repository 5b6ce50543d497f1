//! Steps of a traced packet.

use crate::attribute::{self, Attributes, required};
use crate::chain::{self, Policy};
use crate::error::DecodeError;
use crate::name::{Family, Name, TableRef};
use crate::verdict::Verdict;

const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const IIF: u16 = 10;
const OIF: u16 = 12;
const MARK: u16 = 14;
const NFPROTO: u16 = 15;
const POLICY: u16 = 16;

const TYPE_POLICY: u32 = 1;
const TYPE_RETURN: u32 = 2;
const TYPE_RULE: u32 = 3;

/// Where in the ruleset the packet is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// A rule gave a verdict.
    Rule {
        /// The rule's number.
        handle: u64,
        /// What it said.
        verdict: Verdict,
    },
    /// The end of a chain was reached, and it goes back.
    Return {
        /// What that means.
        verdict: Verdict,
    },
    /// The end of a base chain was reached.
    Policy(Policy),
}

/// One step. The first step of a packet in a chain also brings its headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Trace {
    /// The table.
    pub table: TableRef,
    /// The chain.
    pub chain: Name,
    /// Tells the steps of one packet from those of others.
    pub id: u32,
    /// Where it is.
    pub step: Step,
    /// Index of the input interface.
    pub iif: Option<u32>,
    /// Index of the output interface.
    pub oif: Option<u32>,
    /// Packet mark.
    pub mark: Option<u32>,
    /// 2 for IPv4, 10 for IPv6.
    pub nfproto: Option<u32>,
    /// The IP header, cut by the kernel.
    pub network: Vec<u8>,
    /// The header behind it, cut by the kernel.
    pub transport: Vec<u8>,
}

impl Trace {
    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut table = None;
        let mut chain = None;
        let mut handle = None;
        let mut kind = None;
        let mut verdict = None;
        let mut policy = None;
        let mut id = None;
        let (mut iif, mut oif, mut mark, mut nfproto) = (None, None, None, None);
        let mut network = Vec::new();
        let mut transport = Vec::new();
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            let value = attribute.value;
            match attribute.kind {
                TABLE => table = Some(attribute::name(value, "trace table")?),
                CHAIN => chain = Some(attribute::name(value, "trace chain")?),
                RULE_HANDLE => handle = Some(attribute::u64(value, "trace rule")?),
                TYPE => kind = Some(attribute::u32(value, "trace type")?),
                VERDICT => verdict = Some(Verdict::read(value)?),
                POLICY => policy = Some(chain::read_policy(value)?),
                ID => id = Some(attribute::u32(value, "trace id")?),
                IIF => iif = Some(attribute::u32(value, "trace iif")?),
                OIF => oif = Some(attribute::u32(value, "trace oif")?),
                MARK => mark = Some(attribute::u32(value, "trace mark")?),
                NFPROTO => nfproto = Some(attribute::u32(value, "trace family")?),
                NETWORK_HEADER => network = value.to_vec(),
                TRANSPORT_HEADER => transport = value.to_vec(),
                _ => {}
            }
        }
        let step = match required(kind, "trace type")? {
            TYPE_RULE => Step::Rule {
                handle: required(handle, "trace rule")?,
                verdict: required(verdict, "trace verdict")?,
            },
            TYPE_RETURN => Step::Return {
                verdict: required(verdict, "trace verdict")?,
            },
            TYPE_POLICY => Step::Policy(required(policy, "trace policy")?),
            _ => return Err(DecodeError::Value { what: "trace type" }),
        };
        Ok(Self {
            table: TableRef {
                family,
                name: required(table, "trace table")?,
            },
            chain: required(chain, "trace chain")?,
            id: required(id, "trace id")?,
            step,
            iif,
            oif,
            mark,
            nfproto,
            network,
            transport,
        })
    }
}
