//! Keys of set elements: bytes as the kernel compares them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attribute::padding;
use crate::error::DecodeError;

/// Bytes of an interface name in a key.
const IFNAME: usize = 16;
/// The kernel's limit for one key.
pub const KEY_MAX: usize = 64;
/// A type number has six bits in the type of a concatenation.
const TYPE_BITS: u32 = 6;
const INLINE: usize = 22;

/// What one part of a key means. The type numbers are `nft`'s: they make `nft list` readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A hardware address.
    Ether,
    /// A transport protocol.
    Proto,
    /// A port.
    Service,
    /// A packet or conntrack mark.
    Mark,
    /// An interface index.
    Ifindex,
    /// An interface name.
    Ifname,
}

const FIELDS: [Field; 8] = [
    Field::Ipv4,
    Field::Ipv6,
    Field::Ether,
    Field::Proto,
    Field::Service,
    Field::Mark,
    Field::Ifindex,
    Field::Ifname,
];

impl Field {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Proto => 12,
            Self::Service => 13,
            Self::Mark => 19,
            Self::Ifindex => 20,
            Self::Ifname => 41,
        }
    }

    /// Bytes without padding.
    pub const fn len(self) -> usize {
        match self {
            Self::Proto => 1,
            Self::Service => 2,
            Self::Ipv4 | Self::Mark | Self::Ifindex => 4,
            Self::Ether => 6,
            Self::Ipv6 => 16,
            Self::Ifname => IFNAME,
        }
    }

    /// No field is empty.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Bytes in a concatenation.
    pub const fn padded(self) -> usize {
        self.len() + padding(self.len())
    }

    /// Whether the value is in the order of the host.
    pub(crate) const fn host_order(self) -> bool {
        matches!(self, Self::Mark | Self::Ifindex | Self::Ifname)
    }
}

/// Bytes of a key of these fields: a single field is not padded, the parts of a concatenation are.
pub fn key_len(fields: &[Field]) -> usize {
    match fields {
        [single] => single.len(),
        many => many.iter().map(|f| f.padded()).sum(),
    }
}

pub(crate) fn type_number(fields: &[Field]) -> u32 {
    fields
        .iter()
        .fold(0, |all, field| (all << TYPE_BITS) | field.number())
}

pub(crate) fn fields_of(mut number: u32) -> Result<Vec<Field>, DecodeError> {
    let mut fields = Vec::new();
    while number != 0 {
        let low = number & ((1 << TYPE_BITS) - 1);
        let field = FIELDS.into_iter().find(|f| f.number() == low);
        fields.push(field.ok_or(DecodeError::Value { what: "key type" })?);
        number >>= TYPE_BITS;
    }
    fields.reverse();
    Ok(fields)
}

/// One part of a key, with its value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part<'a> {
    /// An interface name; longer than 15 bytes it is cut at 16 and then matches nothing.
    Ifname(&'a str),
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// A transport protocol by number.
    Proto(u8),
    /// A port.
    Service(u16),
    /// A mark.
    Mark(u32),
    /// An interface index.
    Ifindex(u32),
}

impl From<IpAddr> for Part<'_> {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::Ipv4(v4),
            IpAddr::V6(v6) => Self::Ipv6(v6),
        }
    }
}

impl Part<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ifname(name) => out.extend_from_slice(&ifname(name)),
            Self::Ipv4(address) => out.extend_from_slice(&address.octets()),
            Self::Ipv6(address) => out.extend_from_slice(&address.octets()),
            Self::Proto(number) => out.push(*number),
            Self::Service(port) => out.extend_from_slice(&port.to_be_bytes()),
            Self::Mark(value) | Self::Ifindex(value) => {
                out.extend_from_slice(&value.to_ne_bytes());
            }
        }
    }
}

/// An interface name as the kernel compares it: padded with NULs to 16 bytes.
pub fn ifname(name: &str) -> [u8; IFNAME] {
    let mut bytes = [0; IFNAME];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// One decoded part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// An interface name.
    Ifname(String),
    /// An address.
    Address(IpAddr),
    /// A hardware address.
    Ether([u8; 6]),
    /// A transport protocol.
    Proto(u8),
    /// A port.
    Service(u16),
    /// A mark or an interface index.
    Number(u32),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ifname(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
            Self::Ether(octets) => {
                let octets: Vec<String> = octets.iter().map(|o| format!("{o:02x}")).collect();
                f.write_str(&octets.join(":"))
            }
            Self::Proto(number) => number.fmt(f),
            Self::Service(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// The key of an element. Short ones (an address, a port) need no allocation, so that a dump of a
/// million fits into little memory.
#[derive(Clone)]
pub struct Key(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE] },
    Heap(Box<[u8]>),
}

impl Key {
    /// A key of raw bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        let len = u8::try_from(bytes.len());
        match (inline.get_mut(..bytes.len()), len) {
            (Some(to), Ok(len)) => {
                to.copy_from_slice(bytes);
                Self(Repr::Inline { len, bytes: inline })
            }
            _ => Self(Repr::Heap(bytes.into())),
        }
    }

    /// A key of parts: one alone is not padded, several are padded to four bytes each.
    pub fn of(parts: &[Part<'_>]) -> Self {
        let mut bytes = Vec::with_capacity(KEY_MAX);
        match parts {
            [single] => single.write(&mut bytes),
            many => {
                for part in many {
                    part.write(&mut bytes);
                    bytes.resize(bytes.len() + padding(bytes.len()), 0);
                }
            }
        }
        Self::new(&bytes)
    }

    /// An address alone.
    pub fn address(address: IpAddr) -> Self {
        Self::of(&[address.into()])
    }

    /// An interface name alone.
    pub fn ifname(name: &str) -> Self {
        Self::of(&[Part::Ifname(name)])
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Repr::Heap(bytes) => bytes,
        }
    }

    /// What the bytes say when they are read as `fields`; `None` when the length does not fit.
    pub fn values(&self, fields: &[Field]) -> Option<Vec<Value>> {
        let mut rest = self.as_bytes();
        if rest.len() != key_len(fields) {
            return None;
        }
        let padded = fields.len() > 1;
        let mut values = Vec::with_capacity(fields.len());
        for field in fields {
            let take = if padded { field.padded() } else { field.len() };
            let (here, after) = rest.split_at_checked(take)?;
            values.push(value(*field, here)?);
            rest = after;
        }
        Some(values)
    }
}

fn value(field: Field, bytes: &[u8]) -> Option<Value> {
    Some(match field {
        Field::Ipv4 => Value::Address(bytes.first_chunk::<4>().copied()?.into()),
        Field::Ipv6 => Value::Address(bytes.first_chunk::<16>().copied()?.into()),
        Field::Ether => Value::Ether(bytes.first_chunk().copied()?),
        Field::Proto => Value::Proto(bytes.first().copied()?),
        Field::Service => Value::Service(u16::from_be_bytes(bytes.first_chunk().copied()?)),
        Field::Mark | Field::Ifindex => {
            Value::Number(u32::from_ne_bytes(bytes.first_chunk().copied()?))
        }
        Field::Ifname => {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            Value::Ifname(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
        }
    })
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(")?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_one_part_has_no_padding_and_of_several_has() {
        assert_eq!(Key::of(&[Part::Service(80)]).as_bytes(), [0, 80]);
        let parts = [Part::Proto(6), Part::Service(80)];
        assert_eq!(Key::of(&parts).as_bytes(), [6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn key_longer_than_the_inline_part_compares_by_its_bytes() {
        let long = |last: &str| {
            Key::of(&[
                Part::Ifname("cali0"),
                Part::Ipv6(Ipv6Addr::LOCALHOST),
                Part::Ifname(last),
            ])
        };
        assert_eq!(long("a"), long("a"));
        assert!(long("a") < long("b"));
        assert!(long("a") != Key::new(&[]));
        assert_eq!(size_of::<Key>(), 24);
    }

    #[test]
    fn values_of_a_key_are_what_it_was_made_of() {
        let parts = [
            Part::Ifname("cali0123456789a"),
            Part::Ipv4(Ipv4Addr::new(10, 0, 0, 1)),
            Part::Proto(17),
            Part::Service(53),
        ];
        let fields = [Field::Ifname, Field::Ipv4, Field::Proto, Field::Service];
        let texts: Vec<String> = Key::of(&parts)
            .values(&fields)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, ["cali0123456789a", "10.0.0.1", "17", "53"]);
        assert_eq!(Key::of(&parts).values(&fields[1..]), None);
    }

    #[test]
    fn fields_survive_their_type_number() {
        let all = [
            Field::Ifname,
            Field::Ipv4,
            Field::Ipv4,
            Field::Proto,
            Field::Service,
        ];
        assert_eq!(fields_of(type_number(&all)).unwrap(), all);
    }
}
