//! The hash that names objects in the kernel.
//!
//! SipHash-2-4 with a fixed key: tenants write policies, so a hash that one can find collisions for by hand would not
//! do. Whoever uses a name compares the content as well. The hash is not promised to be the same in another release: then
//! everything gets new names, and the old objects are removed in the ordinary order.

use std::hash::Hasher;

/// The layout's version is part of every name: another layout shares no chain with this one.
const LAYOUT: u64 = 1;
const KEY: (u64, u64) = (0x7465_7277_6179_2070, 0x6f6c_6963_7920_0000 | LAYOUT);

/// SipHash-2-4.
///
/// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF".
#[derive(Debug, Clone)]
pub struct Sip {
    v: [u64; 4],
    tail: [u8; 8],
    tail_len: usize,
    len: u64,
}

impl Sip {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            v: [
                KEY.0 ^ 0x736f_6d65_7073_6575,
                KEY.1 ^ 0x646f_7261_6e64_6f6d,
                KEY.0 ^ 0x6c79_6765_6e65_7261,
                KEY.1 ^ 0x7465_6462_7974_6573,
            ],
            tail: [0; 8],
            tail_len: 0,
            len: 0,
        }
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32);
        c = c.wrapping_add(b);
        a = a.wrapping_add(d);
        b = b.rotate_left(17) ^ c;
        d = d.rotate_left(21) ^ a;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }

    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }
}

impl Default for Sip {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher for Sip {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.tail[self.tail_len & 7] = *byte;
            self.tail_len += 1;
            self.len = self.len.wrapping_add(1);
            if self.tail_len == 8 {
                self.word(u64::from_le_bytes(self.tail));
                self.tail_len = 0;
            }
        }
    }

    fn finish(&self) -> u64 {
        let mut end = self.clone();
        let mut last = [0; 8];
        last[..end.tail_len & 7].copy_from_slice(&end.tail[..end.tail_len & 7]);
        let [length, ..] = end.len.to_le_bytes();
        last[7] = length;
        end.word(u64::from_le_bytes(last));
        end.v[2] ^= 0xff;
        for _ in 0..4 {
            end.round();
        }
        end.v.iter().fold(0, |all, v| all ^ v)
    }
}

/// The name of something by its content.
pub fn name(prefix: &str, hash: u64) -> String {
    format!("{prefix}_{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_same_however_the_bytes_are_cut() {
        let mut whole = Sip::new();
        whole.write(b"fifteen bytes..");
        let mut parts = Sip::new();
        parts.write(b"fifte");
        parts.write(b"");
        parts.write(b"en bytes..");
        assert_eq!(whole.finish(), parts.finish());
        assert_ne!(whole.finish(), Sip::new().finish());
    }

    /// The reference vector of the paper has the key 00 01 02 .. 0f and the input 00 01 .. 0e.
    #[test]
    fn hash_agrees_with_the_published_vector() {
        let k0 = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        let k1 = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15]);
        let mut sip = Sip::new();
        sip.v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        let input: Vec<u8> = (0..15).collect();
        sip.write(&input);
        assert_eq!(sip.finish(), 0xa129_ca61_49be_45e5);
    }
}
