//! Rules.

use std::sync::Arc;

use crate::attribute::{self, Attributes, Writer, required};
use crate::error::DecodeError;
use crate::expr::{self, Expr};
use crate::name::{Family, Name, TableRef};

const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const USERDATA: u16 = 7;

const USERDATA_COMMENT: u8 = 0;
/// The kernel takes 256 bytes of user data; `nft` itself allows 128 for a comment.
const COMMENT_MAX: usize = 127;

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Its table.
    pub table: TableRef,
    /// Its chain.
    pub chain: Name,
    /// What it does, in order.
    pub exprs: Vec<Expr>,
    /// The kernel's number for it, in dumps; ignored when sent.
    pub handle: Option<u64>,
    /// Shown by `nft`; cut at 127 bytes when sent.
    pub comment: Option<Arc<str>>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(table: &TableRef, chain: &str, exprs: Vec<Expr>) -> Self {
        Self {
            table: table.clone(),
            chain: chain.into(),
            exprs,
            handle: None,
            comment: None,
        }
    }

    /// `front` puts the rule before all others of its chain; that is a flag of the message.
    pub(crate) fn write(&self, w: &mut Writer) {
        write_name(&self.table, Some(&self.chain), None, w);
        w.nest(EXPRESSIONS, |w| expr::write_list(&self.exprs, w));
        if let Some(comment) = &self.comment {
            let cut = comment.floor_char_boundary(COMMENT_MAX.min(comment.len()));
            let (text, _) = comment.split_at_checked(cut).unwrap_or(("", ""));
            let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
            let mut userdata = vec![USERDATA_COMMENT, len];
            userdata.extend_from_slice(text.as_bytes());
            userdata.push(0);
            w.bytes(USERDATA, &userdata);
        }
    }

    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut exprs = Vec::new();
        let mut comment = None;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                EXPRESSIONS => exprs = expr::read_list(attribute.value)?,
                USERDATA => comment = read_comment(attribute.value),
                _ => {}
            }
        }
        let place = Place::read(family, bytes)?;
        Ok(Self {
            table: place.table,
            chain: required(place.chain, "rule chain")?,
            exprs,
            handle: place.handle,
            comment,
        })
    }
}

/// Which rules a deletion or a request means.
pub(crate) struct Place {
    pub(crate) table: TableRef,
    pub(crate) chain: Option<Name>,
    pub(crate) handle: Option<u64>,
}

impl Place {
    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut table = None;
        let mut chain = None;
        let mut handle = None;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                TABLE => table = Some(attribute::name(attribute.value, "rule table")?),
                CHAIN => chain = Some(attribute::name(attribute.value, "rule chain")?),
                HANDLE => handle = Some(attribute::u64(attribute.value, "rule handle")?),
                _ => {}
            }
        }
        let table = TableRef {
            family,
            name: required(table, "rule table")?,
        };
        Ok(Self {
            table,
            chain,
            handle,
        })
    }
}

/// Writes which rules are meant.
pub(crate) fn write_name(
    table: &TableRef,
    chain: Option<&str>,
    handle: Option<u64>,
    w: &mut Writer,
) {
    w.text(TABLE, &table.name);
    if let Some(chain) = chain {
        w.text(CHAIN, chain);
    }
    if let Some(handle) = handle {
        w.u64(HANDLE, handle);
    }
}

/// User data is a list of (type, length, value), one byte each for the first two; a tool may have
/// written anything.
fn read_comment(mut rest: &[u8]) -> Option<Arc<str>> {
    while let [kind, len, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(*len))?;
        if *kind == USERDATA_COMMENT {
            return attribute::name(value, "rule comment").ok();
        }
        rest = next;
    }
    None
}
