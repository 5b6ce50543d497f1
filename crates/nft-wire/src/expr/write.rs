//! Expressions as attributes.

use super::number::{CmpOp, CtKey, MetaKey};
use super::{ByteorderOp, DynsetOp, Expr, FlowDirection, Register, Reject};
use crate::attribute::Writer;
use crate::duration::milliseconds;
use crate::verdict::Verdict;

use super::read::{
    BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_OP, BITWISE_SREG, BITWISE_XOR, BYTEORDER_DREG,
    BYTEORDER_LEN, BYTEORDER_OP, BYTEORDER_SIZE, BYTEORDER_SREG, CMP_DATA, CMP_OP, CMP_SREG,
    COUNTER_BYTES, COUNTER_PACKETS, CT_DIRECTION, CT_DREG, CT_KEY, CT_SREG, DATA_VALUE,
    DATA_VERDICT, DYNSET_EXPR, DYNSET_EXPRESSIONS, DYNSET_FLAG_EXPR, DYNSET_FLAG_INVERTED,
    DYNSET_FLAGS, DYNSET_KEY, DYNSET_NAME, DYNSET_OP, DYNSET_TIMEOUT, EXPR_DATA, EXPR_NAME,
    IMMEDIATE_DATA, IMMEDIATE_DREG, LIMIT_BURST, LIMIT_FLAGS, LIMIT_RATE, LIMIT_TYPE, LIMIT_UNIT,
    LIST_ELEMENT, LOOKUP_DREG, LOOKUP_FLAG_INVERTED, LOOKUP_FLAGS, LOOKUP_SET, LOOKUP_SREG,
    META_DREG, META_KEY, META_SREG, OBJECT_COUNTER, OBJREF_NAME, OBJREF_SET, OBJREF_SREG,
    OBJREF_TYPE, PAYLOAD_BASE, PAYLOAD_DREG, PAYLOAD_LEN, PAYLOAD_OFFSET, RANGE_FROM, RANGE_OP,
    RANGE_SREG, RANGE_TO, REGISTER_VERDICT, REJECT_CODE, REJECT_ICMP, REJECT_ICMPX,
    REJECT_TCP_RESET, REJECT_TYPE,
};

/// Writes a list of expressions.
pub(crate) fn write_list(exprs: &[Expr], w: &mut Writer) {
    for expr in exprs {
        w.nest(LIST_ELEMENT, |w| expr.write(w));
    }
}

/// Writes what makes each element of a set count, from zero.
pub(crate) fn write_counter(w: &mut Writer) {
    w.text(EXPR_NAME, "counter");
    w.nest(EXPR_DATA, |_| {});
}

/// Writes name and attributes of a counter.
pub(crate) fn write_count(packets: u64, bytes: u64, w: &mut Writer) {
    Expr::Counter { packets, bytes }.write(w);
}

impl Expr {
    /// The kernel's name for it.
    pub fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Byteorder { .. } => "byteorder",
            Self::Lookup { .. } | Self::Vmap { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Counter { .. } => "counter",
            Self::CounterRef { .. } | Self::CounterMap { .. } => "objref",
            Self::Dynset { .. } => "dynset",
            Self::Reject(_) => "reject",
            Self::Limit { .. } => "limit",
            Self::Other { name, .. } => name,
        }
    }

    fn write(&self, w: &mut Writer) {
        w.text(EXPR_NAME, self.name());
        w.nest(EXPR_DATA, |w| self.write_data(w));
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Self::Meta { key, to } => meta(*key, (META_DREG, *to), w),
            Self::MetaSet { key, from } => meta(*key, (META_SREG, *from), w),
            Self::Ct { key, direction, to } => ct(*key, *direction, (CT_DREG, *to), w),
            Self::CtSet { key, from } => ct(*key, None, (CT_SREG, *from), w),
            Self::Payload {
                base,
                offset,
                len,
                to,
            } => {
                register(PAYLOAD_DREG, *to, w);
                w.u32(PAYLOAD_BASE, base.number());
                w.u32(PAYLOAD_OFFSET, *offset);
                w.u32(PAYLOAD_LEN, *len);
            }
            Self::Cmp { op, from, data } => cmp(*op, *from, data, w),
            Self::Range {
                inverted,
                from,
                low,
                high,
            } => {
                register(RANGE_SREG, *from, w);
                w.u32(RANGE_OP, u32::from(*inverted));
                value(RANGE_FROM, low, w);
                value(RANGE_TO, high, w);
            }
            Self::Bitwise {
                from,
                to,
                mask,
                xor,
            } => write_bitwise((*from, *to), mask, xor, w),
            Self::Byteorder {
                from,
                to,
                op,
                len,
                size,
            } => {
                register(BYTEORDER_SREG, *from, w);
                register(BYTEORDER_DREG, *to, w);
                w.u32(BYTEORDER_OP, byteorder(*op));
                w.u32(BYTEORDER_LEN, *len);
                w.u32(BYTEORDER_SIZE, *size);
            }
            Self::Lookup {
                set,
                from,
                inverted,
            } => {
                w.text(LOOKUP_SET, set);
                register(LOOKUP_SREG, *from, w);
                let flags = if *inverted { LOOKUP_FLAG_INVERTED } else { 0 };
                w.u32(LOOKUP_FLAGS, flags);
            }
            Self::Vmap { map, from } => {
                w.text(LOOKUP_SET, map);
                register(LOOKUP_SREG, *from, w);
                w.u32(LOOKUP_DREG, REGISTER_VERDICT);
                w.u32(LOOKUP_FLAGS, 0);
            }
            Self::Immediate { data, to } => {
                register(IMMEDIATE_DREG, *to, w);
                value(IMMEDIATE_DATA, data, w);
            }
            Self::Verdict(verdict) => write_verdict(verdict, w),
            Self::Counter { packets, bytes } => {
                w.u64(COUNTER_BYTES, *bytes);
                w.u64(COUNTER_PACKETS, *packets);
            }
            Self::CounterRef { name } => {
                w.u32(OBJREF_TYPE, OBJECT_COUNTER);
                w.text(OBJREF_NAME, name);
            }
            Self::CounterMap { map, from } => {
                register(OBJREF_SREG, *from, w);
                w.text(OBJREF_SET, map);
            }
            Self::Dynset { .. } => self.write_dynset(w),
            Self::Reject(reject) => write_reject(*reject, w),
            Self::Limit {
                rate,
                unit,
                burst,
                inverted,
            } => {
                w.u64(LIMIT_RATE, *rate);
                w.u64(LIMIT_UNIT, unit.as_secs());
                w.u32(LIMIT_BURST, *burst);
                w.u32(LIMIT_TYPE, 0);
                w.u32(LIMIT_FLAGS, u32::from(*inverted));
            }
            Self::Other { data, .. } => w.out.extend_from_slice(data),
        }
    }

    fn write_dynset(&self, w: &mut Writer) {
        let Self::Dynset {
            set,
            op,
            key,
            timeout,
            exprs,
            inverted,
        } = self
        else {
            return;
        };
        register(DYNSET_KEY, *key, w);
        let op = match op {
            DynsetOp::Add => 0,
            DynsetOp::Update => 1,
            DynsetOp::Delete => 2,
        };
        w.u32(DYNSET_OP, op);
        w.text(DYNSET_NAME, set);
        if let Some(timeout) = timeout {
            w.u64(DYNSET_TIMEOUT, milliseconds(*timeout));
        }
        let mut flags = if *inverted { DYNSET_FLAG_INVERTED } else { 0 };
        match exprs.as_slice() {
            [] => {}
            [single] => w.nest(DYNSET_EXPR, |w| single.write(w)),
            many => {
                flags |= DYNSET_FLAG_EXPR;
                w.nest(DYNSET_EXPRESSIONS, |w| write_list(many, w));
            }
        }
        if flags != 0 {
            w.u32(DYNSET_FLAGS, flags);
        }
    }
}

/// As the kernel itself writes it: words at a multiple of 16 bytes by the coarse number.
fn register(kind: u16, register: Register, w: &mut Writer) {
    let word = u32::from(register.word());
    let number = if word.is_multiple_of(4) {
        1 + word / 4
    } else {
        8 + word
    };
    w.u32(kind, number);
}

fn value(kind: u16, data: &[u8], w: &mut Writer) {
    w.nest(kind, |w| w.bytes(DATA_VALUE, data));
}

fn meta(key: MetaKey, (kind, at): (u16, Register), w: &mut Writer) {
    w.u32(META_KEY, key.number());
    register(kind, at, w);
}

fn ct(key: CtKey, direction: Option<FlowDirection>, (kind, at): (u16, Register), w: &mut Writer) {
    w.u32(CT_KEY, key.number());
    register(kind, at, w);
    match direction {
        Some(FlowDirection::Original) => w.u8(CT_DIRECTION, 0),
        Some(FlowDirection::Reply) => w.u8(CT_DIRECTION, 1),
        None => {}
    }
}

fn cmp(op: CmpOp, from: Register, data: &[u8], w: &mut Writer) {
    register(CMP_SREG, from, w);
    w.u32(CMP_OP, op.number());
    value(CMP_DATA, data, w);
}

fn write_bitwise((from, to): (Register, Register), mask: &[u8], xor: &[u8], w: &mut Writer) {
    register(BITWISE_SREG, from, w);
    register(BITWISE_DREG, to, w);
    w.u32(BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
    w.u32(BITWISE_OP, 0);
    value(BITWISE_MASK, mask, w);
    value(BITWISE_XOR, xor, w);
}

const fn byteorder(op: ByteorderOp) -> u32 {
    match op {
        ByteorderOp::ToHost => 0,
        ByteorderOp::ToNetwork => 1,
    }
}

fn write_verdict(verdict: &Verdict, w: &mut Writer) {
    w.u32(IMMEDIATE_DREG, REGISTER_VERDICT);
    w.nest(IMMEDIATE_DATA, |w| {
        w.nest(DATA_VERDICT, |w| verdict.write(w));
    });
}

fn write_reject(reject: Reject, w: &mut Writer) {
    let (kind, code) = match reject {
        Reject::TcpReset => (REJECT_TCP_RESET, 0),
        Reject::IcmpX(code) => (REJECT_ICMPX, code),
        Reject::Icmp(code) => (REJECT_ICMP, code),
    };
    w.u32(REJECT_TYPE, kind);
    // The kernel of the inet family insists on a code even for resets.
    w.u8(REJECT_CODE, code);
}
