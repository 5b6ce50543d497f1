//! What becomes of a packet.

use crate::attribute::{self, Attributes, Writer, required};
use crate::error::DecodeError;
use crate::name::Name;

const CODE: u16 = 1;
const CHAIN: u16 = 2;

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const CONTINUE: i32 = -1;
const BREAK: i32 = -2;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// A verdict, as value of a map, in a rule, or in a trace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Ends this base chain; later base chains still judge.
    Accept,
    /// The packet is gone.
    Drop,
    /// On to the next rule.
    Continue,
    /// This rule did not match; only seen in traces.
    Break,
    /// Back to the rule after the jump.
    Return,
    /// Into a chain, and back at its end.
    Jump(Name),
    /// Into a chain; at its end back to where this chain was jumped to from.
    Goto(Name),
}

impl Verdict {
    const fn code(&self) -> i32 {
        match self {
            Self::Accept => ACCEPT,
            Self::Drop => DROP,
            Self::Continue => CONTINUE,
            Self::Break => BREAK,
            Self::Return => RETURN,
            Self::Jump(_) => JUMP,
            Self::Goto(_) => GOTO,
        }
    }

    /// The chain that it leads to.
    pub const fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(name) | Self::Goto(name) => Some(name),
            Self::Accept | Self::Drop | Self::Continue | Self::Break | Self::Return => None,
        }
    }

    /// Writes the attributes inside `NFTA_DATA_VERDICT`.
    pub(crate) fn write(&self, w: &mut Writer) {
        w.bytes(CODE, &self.code().to_be_bytes());
        if let Some(chain) = self.chain() {
            w.text(CHAIN, chain);
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut code = None;
        let mut chain = None;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                CODE => {
                    let raw = attribute::u32(attribute.value, "verdict")?;
                    code = Some(raw.cast_signed());
                }
                CHAIN => chain = Some(attribute::name(attribute.value, "verdict chain")?),
                _ => {}
            }
        }
        let chain = || required(chain, "verdict chain");
        Ok(match required(code, "verdict")? {
            ACCEPT => Self::Accept,
            DROP => Self::Drop,
            CONTINUE => Self::Continue,
            BREAK => Self::Break,
            RETURN => Self::Return,
            JUMP => Self::Jump(chain()?),
            GOTO => Self::Goto(chain()?),
            _ => return Err(DecodeError::Value { what: "verdict" }),
        })
    }
}
