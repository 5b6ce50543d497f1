//! Packets built by hand: SCTP INIT, because the kernel may have no SCTP sockets, and ICMP echo.

/// Bytes of an SCTP INIT without parameters, common header included.
pub const SCTP_BYTES: usize = 32;
/// Bytes of an ICMP echo with our four bytes of data.
pub const ECHO_BYTES: usize = 12;

/// Data of a datagram that takes five fragments.
pub const LARGE_BYTES: usize = 6_000;

/// Kind of an SCTP chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// INIT.
    Init,
    /// INIT-ACK.
    InitAck,
}

/// An INIT or INIT-ACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sctp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Which of the two.
    pub chunk: Chunk,
    /// Verification tag: 0 in an INIT.
    pub verification: u32,
    /// Initiate tag, not 0.
    pub tag: u32,
    /// Initial TSN: here the number of the probe.
    pub number: u32,
}

impl Sctp {
    /// On the wire, with its checksum: connection tracking does not take it without.
    pub fn encode(&self) -> [u8; SCTP_BYTES] {
        let mut out = Vec::with_capacity(SCTP_BYTES);
        out.extend(self.source.to_be_bytes());
        out.extend(self.destination.to_be_bytes());
        out.extend(self.verification.to_be_bytes());
        out.extend([0; 4]);
        out.push(match self.chunk {
            Chunk::Init => 1,
            Chunk::InitAck => 2,
        });
        out.extend([0, 0, 20]);
        out.extend(self.tag.to_be_bytes());
        out.extend(65_536_u32.to_be_bytes());
        out.extend([0, 1, 0, 1]);
        out.extend(self.number.to_be_bytes());
        let mut packet = [0; SCTP_BYTES];
        for (to, from) in packet.iter_mut().zip(out) {
            *to = from;
        }
        let sum = crc32c(&packet).to_le_bytes();
        for (to, from) in packet.iter_mut().skip(8).zip(sum) {
            *to = from;
        }
        packet
    }

    /// Reads what [`Self::encode`] wrote; nothing for other packets.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let two = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let four = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            source: two(0)?,
            destination: two(2)?,
            verification: four(4)?,
            chunk: match bytes.get(12)? {
                1 => Chunk::Init,
                2 => Chunk::InitAck,
                _ => return None,
            },
            tag: four(16)?,
            number: four(28)?,
        })
    }
}

/// CRC-32C as SCTP has it (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Whether it is ICMPv6; the kernel then fills in the checksum.
    pub v6: bool,
    /// Identifier.
    pub id: u16,
    /// Data: here the number of the probe.
    pub number: u32,
}

impl Echo {
    /// On the wire.
    pub fn encode(&self) -> [u8; ECHO_BYTES] {
        let [id1, id2] = self.id.to_be_bytes();
        let [n1, n2, n3, n4] = self.number.to_be_bytes();
        let kind = if self.v6 { 128 } else { 8 };
        let mut packet = [kind, 0, 0, 0, id1, id2, 0, 1, n1, n2, n3, n4];
        let sum = internet_checksum(&packet).to_be_bytes();
        for (to, from) in packet.iter_mut().skip(2).zip(sum) {
            *to = from;
        }
        packet
    }

    /// Reads an echo reply; nothing for other packets.
    pub fn decode_reply(bytes: &[u8], v6: bool) -> Option<Self> {
        let kind = if v6 { 129 } else { 0 };
        if *bytes.first()? != kind {
            return None;
        }
        Some(Self {
            v6,
            id: u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?),
            number: u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?),
        })
    }
}

/// A neighbour solicitation that was sent on, as none may be: its hop limit is an ordinary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// Number of the run.
    pub port: u16,
    /// Number of the probe.
    pub number: u32,
}

impl Solicitation {
    /// On the wire; the kernel fills in the checksum.
    pub fn encode(&self) -> [u8; 24] {
        let [p1, p2] = self.port.to_be_bytes();
        let [n1, n2, n3, n4] = self.number.to_be_bytes();
        let mut packet = [0; 24];
        let known = [135, 0, 0, 0, n1, n2, n3, n4, p1, p2];
        for (to, from) in packet.iter_mut().zip(known) {
            *to = from;
        }
        packet
    }

    /// Reads what [`Self::encode`] wrote; nothing for other packets.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if *bytes.first()? != 135 {
            return None;
        }
        Some(Self {
            number: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
            port: u16::from_be_bytes(bytes.get(8..10)?.try_into().ok()?),
        })
    }
}

/// A packet of GRE (protocol 47) as far as connection tracking looks at it: no flags, version 0, and our data behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portless {
    /// Number of the run.
    pub port: u16,
    /// Number of the probe.
    pub number: u32,
    /// Whether it answers one.
    pub answer: bool,
}

impl Portless {
    /// On the wire.
    pub fn encode(&self) -> [u8; 11] {
        let [p1, p2] = self.port.to_be_bytes();
        let [n1, n2, n3, n4] = self.number.to_be_bytes();
        [
            0,
            0,
            0x08,
            0x00,
            p1,
            p2,
            n1,
            n2,
            n3,
            n4,
            u8::from(self.answer),
        ]
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            port: u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?),
            number: u32::from_be_bytes(bytes.get(6..10)?.try_into().ok()?),
            answer: *bytes.get(10)? == 1,
        })
    }
}

/// RFC 1071.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let high = pair.first().copied().unwrap_or(0);
        let low = pair.get(1).copied().unwrap_or(0);
        sum = sum.wrapping_add(u32::from(u16::from_be_bytes([high, low])));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The part of a raw IPv4 packet behind its header.
pub fn behind_ipv4_header(bytes: &[u8]) -> &[u8] {
    let words = bytes.first().map_or(0, |b| usize::from(b & 0x0f));
    bytes.get(words.saturating_mul(4)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_known_text_is_the_known_sum() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn sctp_init_round_trips() {
        let init = Sctp {
            source: 4000,
            destination: 80,
            chunk: Chunk::Init,
            verification: 0,
            tag: 7,
            number: 99,
        };

        assert_eq!(Sctp::decode(&init.encode()), Some(init));
    }

    #[test]
    fn echo_request_sums_to_zero() {
        let echo = Echo {
            v6: false,
            id: 513,
            number: 70_000,
        };

        assert_eq!(internet_checksum(&echo.encode()), 0);
    }
}
