//! Attributes as expressions.

use std::time::Duration;

use super::number::{CmpOp, CtKey, MetaKey, PayloadBase};
use super::{ByteorderOp, DynsetOp, Expr, FlowDirection, Register, Reject};
use crate::attribute::{self, Attributes, required};
use crate::error::DecodeError;
use crate::verdict::Verdict;

pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const REGISTER_VERDICT: u32 = 0;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;

pub(super) const RANGE_SREG: u16 = 1;
pub(super) const RANGE_OP: u16 = 2;
pub(super) const RANGE_FROM: u16 = 3;
pub(super) const RANGE_TO: u16 = 4;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const BYTEORDER_SREG: u16 = 1;
pub(super) const BYTEORDER_DREG: u16 = 2;
pub(super) const BYTEORDER_OP: u16 = 3;
pub(super) const BYTEORDER_LEN: u16 = 4;
pub(super) const BYTEORDER_SIZE: u16 = 5;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const LOOKUP_FLAG_INVERTED: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;

pub(super) const OBJREF_TYPE: u16 = 1;
pub(super) const OBJREF_NAME: u16 = 2;
pub(super) const OBJREF_SREG: u16 = 3;
pub(super) const OBJREF_SET: u16 = 4;
pub(super) const OBJECT_COUNTER: u32 = 1;

pub(super) const DYNSET_NAME: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_KEY: u16 = 4;
const DYNSET_DATA: u16 = 5;
pub(super) const DYNSET_TIMEOUT: u16 = 6;
pub(super) const DYNSET_EXPR: u16 = 7;
pub(super) const DYNSET_FLAGS: u16 = 9;
pub(super) const DYNSET_EXPRESSIONS: u16 = 10;
pub(super) const DYNSET_FLAG_INVERTED: u32 = 1;
pub(super) const DYNSET_FLAG_EXPR: u32 = 2;

pub(super) const REJECT_TYPE: u16 = 1;
pub(super) const REJECT_CODE: u16 = 2;
pub(super) const REJECT_ICMP: u32 = 0;
pub(super) const REJECT_TCP_RESET: u32 = 1;
pub(super) const REJECT_ICMPX: u32 = 2;

pub(super) const LIMIT_RATE: u16 = 1;
pub(super) const LIMIT_UNIT: u16 = 2;
pub(super) const LIMIT_BURST: u16 = 3;
pub(super) const LIMIT_TYPE: u16 = 4;
pub(super) const LIMIT_FLAGS: u16 = 5;

type Decoded<T> = Result<T, DecodeError>;

/// Reads a list of expressions.
pub(crate) fn read_list(bytes: &[u8]) -> Decoded<Vec<Expr>> {
    list(bytes, true)
}

/// Reads one expression; `None` unless it is a counter: packets and bytes.
pub(crate) fn read_count(bytes: &[u8]) -> Decoded<Option<(u64, u64)>> {
    let expr = expression(bytes, false)?;
    Ok(if let Expr::Counter { packets, bytes } = expr {
        Some((packets, bytes))
    } else {
        None
    })
}

/// Whether the expression of a set is a counter.
pub(crate) fn is_counter(bytes: &[u8]) -> Decoded<bool> {
    read_count(bytes).map(|count| count.is_some())
}

fn list(bytes: &[u8], outermost: bool) -> Decoded<Vec<Expr>> {
    Attributes::new(bytes)
        .map(|entry| expression(entry?.value, outermost))
        .collect()
}

/// Only the outermost may hold others, so that the depth has a bound whatever was sent.
fn expression(bytes: &[u8], outermost: bool) -> Decoded<Expr> {
    let mut name = None;
    let mut data: &[u8] = &[];
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            EXPR_NAME => name = Some(attribute::text(attribute.value, "expression name")?),
            EXPR_DATA => data = attribute.value,
            _ => {}
        }
    }
    let name = required(name, "expression name")?;
    let fields = Fields::read(data)?;
    let known = match name {
        "meta" => meta(&fields),
        "ct" => ct(&fields),
        "payload" => payload(&fields),
        "cmp" => cmp(&fields).map(Some),
        "range" => range(&fields).map(Some),
        "bitwise" => bitwise(&fields),
        "byteorder" => byteorder(&fields).map(Some),
        "lookup" => lookup(&fields),
        "immediate" => immediate(&fields).map(Some),
        "counter" => counter(&fields).map(Some),
        "objref" => objref(&fields),
        "dynset" if outermost => dynset(&fields),
        "reject" => reject(&fields).map(Some),
        "limit" => limit(&fields),
        _ => Ok(None),
    };
    Ok(known?.unwrap_or_else(|| Expr::Other {
        name: name.into(),
        data: data.to_vec(),
    }))
}

/// The attributes of one expression by number; the last one of a number counts.
struct Fields<'a> {
    values: [Option<&'a [u8]>; 16],
}

impl<'a> Fields<'a> {
    fn read(bytes: &'a [u8]) -> Decoded<Self> {
        let mut values = [None; 16];
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            if let Some(slot) = values.get_mut(usize::from(attribute.kind)) {
                *slot = Some(attribute.value);
            }
        }
        Ok(Self { values })
    }

    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.values.get(usize::from(kind)).copied().flatten()
    }

    fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    fn need(&self, kind: u16, what: &'static str) -> Decoded<&'a [u8]> {
        required(self.get(kind), what)
    }

    fn u32(&self, kind: u16, what: &'static str) -> Decoded<u32> {
        attribute::u32(self.need(kind, what)?, what)
    }

    fn u32_or_zero(&self, kind: u16, what: &'static str) -> Decoded<u32> {
        self.get(kind)
            .map_or(Ok(0), |value| attribute::u32(value, what))
    }

    fn u64_or_zero(&self, kind: u16, what: &'static str) -> Decoded<u64> {
        self.get(kind)
            .map_or(Ok(0), |value| attribute::u64(value, what))
    }

    fn name(&self, kind: u16, what: &'static str) -> Decoded<crate::name::Name> {
        attribute::name(self.need(kind, what)?, what)
    }

    fn register(&self, kind: u16) -> Decoded<Register> {
        const WHAT: &str = "register";
        let number = self.u32(kind, WHAT)?;
        let word = match number {
            1..=4 => (number - 1) * 4,
            8..=23 => number - 8,
            _ => return Err(DecodeError::Value { what: WHAT }),
        };
        u8::try_from(word)
            .ok()
            .and_then(Register::new)
            .ok_or(DecodeError::Value { what: WHAT })
    }

    fn data(&self, kind: u16, what: &'static str) -> Decoded<Vec<u8>> {
        for attribute in Attributes::new(self.need(kind, what)?) {
            let attribute = attribute?;
            if attribute.kind == DATA_VALUE {
                return Ok(attribute.value.to_vec());
            }
        }
        Err(DecodeError::Value { what })
    }
}

fn meta(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    let Ok(key) = MetaKey::from_number(fields.u32(META_KEY, "meta key")?) else {
        return Ok(None);
    };
    Ok(Some(if fields.has(META_SREG) {
        let from = fields.register(META_SREG)?;
        Expr::MetaSet { key, from }
    } else {
        let to = fields.register(META_DREG)?;
        Expr::Meta { key, to }
    }))
}

fn ct(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    let Ok(key) = CtKey::from_number(fields.u32(CT_KEY, "ct key")?) else {
        return Ok(None);
    };
    let direction = match fields.get(CT_DIRECTION) {
        None => None,
        Some(value) => Some(match attribute::u8(value, "ct direction")? {
            0 => FlowDirection::Original,
            1 => FlowDirection::Reply,
            _ => {
                return Err(DecodeError::Value {
                    what: "ct direction",
                });
            }
        }),
    };
    if fields.has(CT_SREG) {
        let from = fields.register(CT_SREG)?;
        return Ok(direction.is_none().then_some(Expr::CtSet { key, from }));
    }
    let to = fields.register(CT_DREG)?;
    Ok(Some(Expr::Ct { key, direction, to }))
}

fn payload(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    // Without a destination it writes into the packet.
    let Ok(base) = PayloadBase::from_number(fields.u32(PAYLOAD_BASE, "payload base")?) else {
        return Ok(None);
    };
    if !fields.has(PAYLOAD_DREG) {
        return Ok(None);
    }
    Ok(Some(Expr::Payload {
        base,
        offset: fields.u32(PAYLOAD_OFFSET, "payload offset")?,
        len: fields.u32(PAYLOAD_LEN, "payload length")?,
        to: fields.register(PAYLOAD_DREG)?,
    }))
}

fn cmp(fields: &Fields<'_>) -> Decoded<Expr> {
    Ok(Expr::Cmp {
        op: CmpOp::from_number(fields.u32(CMP_OP, "comparison")?)?,
        from: fields.register(CMP_SREG)?,
        data: fields.data(CMP_DATA, "comparison data")?,
    })
}

fn range(fields: &Fields<'_>) -> Decoded<Expr> {
    Ok(Expr::Range {
        inverted: fields.u32(RANGE_OP, "range")? != 0,
        from: fields.register(RANGE_SREG)?,
        low: fields.data(RANGE_FROM, "range")?,
        high: fields.data(RANGE_TO, "range")?,
    })
}

fn bitwise(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    if fields.u32_or_zero(BITWISE_OP, "bitwise")? != 0 {
        return Ok(None);
    }
    let mask = fields.data(BITWISE_MASK, "bitwise mask")?;
    let xor = fields.data(BITWISE_XOR, "bitwise xor")?;
    let len = fields.u32(BITWISE_LEN, "bitwise length")?;
    if mask.len() != xor.len() || u32::try_from(mask.len()) != Ok(len) {
        return Err(DecodeError::Value {
            what: "bitwise mask",
        });
    }
    Ok(Some(Expr::Bitwise {
        from: fields.register(BITWISE_SREG)?,
        to: fields.register(BITWISE_DREG)?,
        mask,
        xor,
    }))
}

fn byteorder(fields: &Fields<'_>) -> Decoded<Expr> {
    Ok(Expr::Byteorder {
        from: fields.register(BYTEORDER_SREG)?,
        to: fields.register(BYTEORDER_DREG)?,
        op: match fields.u32(BYTEORDER_OP, "byteorder")? {
            0 => ByteorderOp::ToHost,
            1 => ByteorderOp::ToNetwork,
            _ => return Err(DecodeError::Value { what: "byteorder" }),
        },
        len: fields.u32(BYTEORDER_LEN, "byteorder length")?,
        size: fields.u32(BYTEORDER_SIZE, "byteorder size")?,
    })
}

fn lookup(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    let set = fields.name(LOOKUP_SET, "lookup set")?;
    let from = fields.register(LOOKUP_SREG)?;
    let flags = fields.u32_or_zero(LOOKUP_FLAGS, "lookup flags")?;
    if !fields.has(LOOKUP_DREG) {
        let inverted = flags & LOOKUP_FLAG_INVERTED != 0;
        return Ok(Some(Expr::Lookup {
            set,
            from,
            inverted,
        }));
    }
    let to_verdict = fields.u32(LOOKUP_DREG, "register")? == REGISTER_VERDICT;
    Ok(to_verdict.then_some(Expr::Vmap { map: set, from }))
}

fn immediate(fields: &Fields<'_>) -> Decoded<Expr> {
    if fields.u32(IMMEDIATE_DREG, "register")? != REGISTER_VERDICT {
        return Ok(Expr::Immediate {
            data: fields.data(IMMEDIATE_DATA, "immediate")?,
            to: fields.register(IMMEDIATE_DREG)?,
        });
    }
    for attribute in Attributes::new(fields.need(IMMEDIATE_DATA, "immediate")?) {
        let attribute = attribute?;
        if attribute.kind == DATA_VERDICT {
            return Verdict::read(attribute.value).map(Expr::Verdict);
        }
    }
    Err(DecodeError::Missing { what: "verdict" })
}

fn counter(fields: &Fields<'_>) -> Decoded<Expr> {
    Ok(Expr::Counter {
        packets: fields.u64_or_zero(COUNTER_PACKETS, "counter packets")?,
        bytes: fields.u64_or_zero(COUNTER_BYTES, "counter bytes")?,
    })
}

fn objref(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    if fields.has(OBJREF_SET) {
        let map = fields.name(OBJREF_SET, "object map")?;
        let from = fields.register(OBJREF_SREG)?;
        return Ok(Some(Expr::CounterMap { map, from }));
    }
    let is_counter = fields.u32(OBJREF_TYPE, "object type")? == OBJECT_COUNTER;
    let name = fields.name(OBJREF_NAME, "object name")?;
    Ok(is_counter.then_some(Expr::CounterRef { name }))
}

fn dynset(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    if fields.has(DYNSET_DATA) {
        return Ok(None);
    }
    let exprs = match (fields.get(DYNSET_EXPRESSIONS), fields.get(DYNSET_EXPR)) {
        (Some(many), _) => list(many, false)?,
        (None, Some(single)) => vec![expression(single, false)?],
        (None, None) => Vec::new(),
    };
    let timeout = fields.u64_or_zero(DYNSET_TIMEOUT, "dynset timeout")?;
    let flags = fields.u32_or_zero(DYNSET_FLAGS, "dynset flags")?;
    Ok(Some(Expr::Dynset {
        set: fields.name(DYNSET_NAME, "dynset set")?,
        op: match fields.u32(DYNSET_OP, "dynset")? {
            0 => DynsetOp::Add,
            1 => DynsetOp::Update,
            2 => DynsetOp::Delete,
            _ => return Err(DecodeError::Value { what: "dynset" }),
        },
        key: fields.register(DYNSET_KEY)?,
        timeout: (timeout != 0).then(|| Duration::from_millis(timeout)),
        exprs,
        inverted: flags & DYNSET_FLAG_INVERTED != 0,
    }))
}

fn reject(fields: &Fields<'_>) -> Decoded<Expr> {
    let code = match fields.get(REJECT_CODE) {
        Some(value) => attribute::u8(value, "reject code")?,
        None => 0,
    };
    Ok(Expr::Reject(
        match fields.u32(REJECT_TYPE, "reject type")? {
            REJECT_TCP_RESET => Reject::TcpReset,
            REJECT_ICMPX => Reject::IcmpX(code),
            REJECT_ICMP => Reject::Icmp(code),
            _ => {
                return Err(DecodeError::Value {
                    what: "reject type",
                });
            }
        },
    ))
}

fn limit(fields: &Fields<'_>) -> Decoded<Option<Expr>> {
    if fields.u32_or_zero(LIMIT_TYPE, "limit type")? != 0 {
        return Ok(None);
    }
    Ok(Some(Expr::Limit {
        rate: fields.u64_or_zero(LIMIT_RATE, "limit rate")?,
        unit: Duration::from_secs(fields.u64_or_zero(LIMIT_UNIT, "limit unit")?),
        burst: fields.u32_or_zero(LIMIT_BURST, "limit burst")?,
        inverted: fields.u32_or_zero(LIMIT_FLAGS, "limit flags")? != 0,
    }))
}
