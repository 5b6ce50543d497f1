//! Netlink attributes: length, type, value, padded to four bytes, nested.

use std::sync::Arc;

use crate::error::DecodeError;

const HEADER: usize = 4;
const NESTED: u16 = 0x8000;
/// Without the bits "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;

/// Bytes up to the next multiple of four.
pub(crate) const fn padding(len: usize) -> usize {
    (4 - len % 4) % 4
}

/// Appends attributes. A value that is too long for its length field is remembered in `overflow`
/// and makes the whole message worthless.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) out: Vec<u8>,
    pub(crate) overflow: bool,
}

impl Writer {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.header(kind, value.len());
        self.out.extend_from_slice(value);
        self.pad(value.len());
    }

    /// Text with its closing NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.header(kind, value.len() + 1);
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(0);
        self.pad(value.len() + 1);
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.out.len();
        self.header(kind | NESTED, 0);
        fill(self);
        let len = self.out.len() - start;
        match (u16::try_from(len), self.out.get_mut(start..start + 2)) {
            (Ok(len), Some(field)) => field.copy_from_slice(&len.to_ne_bytes()),
            _ => self.overflow = true,
        }
    }

    fn header(&mut self, kind: u16, value_len: usize) {
        let len = u16::try_from(value_len + HEADER).unwrap_or_else(|_| {
            self.overflow = true;
            0
        });
        self.out.extend_from_slice(&len.to_ne_bytes());
        self.out.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self, len: usize) {
        self.out.extend_from_slice(&[0; 3][..padding(len).min(3)]);
    }
}

/// One attribute: its type without flag bits, and its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

/// Walks over a run of attributes; ends at the first one that is malformed.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        const CUT: DecodeError = DecodeError::Truncated { what: "attribute" };
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((header, _)) = rest.split_first_chunk::<HEADER>() else {
            return Some(Err(CUT));
        };
        let [l0, l1, k0, k1] = *header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = rest.get(HEADER..len) else {
            return Some(Err(CUT));
        };
        // The padding of the last attribute may be left out.
        self.rest = rest.get(len + padding(len)..).unwrap_or_default();
        Some(Ok(Attribute {
            kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK,
            value,
        }))
    }
}

fn array<const N: usize>(value: &[u8], what: &'static str) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| DecodeError::Value { what })
}

pub(crate) fn u8(value: &[u8], what: &'static str) -> Result<u8, DecodeError> {
    array::<1>(value, what).map(|[byte]| byte)
}

pub(crate) fn u16(value: &[u8], what: &'static str) -> Result<u16, DecodeError> {
    array(value, what).map(u16::from_be_bytes)
}

pub(crate) fn u32(value: &[u8], what: &'static str) -> Result<u32, DecodeError> {
    array(value, what).map(u32::from_be_bytes)
}

pub(crate) fn u64(value: &[u8], what: &'static str) -> Result<u64, DecodeError> {
    array(value, what).map(u64::from_be_bytes)
}

pub(crate) fn v4(value: &[u8], what: &'static str) -> Result<std::net::IpAddr, DecodeError> {
    array::<4>(value, what).map(Into::into)
}

pub(crate) fn v6(value: &[u8], what: &'static str) -> Result<std::net::IpAddr, DecodeError> {
    array::<16>(value, what).map(Into::into)
}

pub(crate) fn text<'a>(value: &'a [u8], what: &'static str) -> Result<&'a str, DecodeError> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    let (text, _) = value.split_at_checked(end).unwrap_or((value, &[]));
    std::str::from_utf8(text).map_err(|_| DecodeError::Value { what })
}

pub(crate) fn name(value: &[u8], what: &'static str) -> Result<Arc<str>, DecodeError> {
    text(value, what).map(Arc::from)
}

/// What the kernel always sends.
pub(crate) fn required<T>(value: Option<T>, what: &'static str) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Missing { what })
}
