//! Bytes that nobody meant: the decoder answers with an error, and with no more work and memory than
//! the input's length calls for.

use nft_wire::conntrack;
use nft_wire::frame::Frames;
use nft_wire::message::decode;
use proptest::prelude::*;

use crate::golden::{DUMPED, SENT, messages};

/// Reads everything that can be read as something.
fn swallow(datagram: &[u8]) -> usize {
    let mut count = 0;
    for frame in Frames::new(datagram) {
        let Ok(frame) = frame else { break };
        drop(decode(&frame));
        drop(conntrack::decode(&frame));
        count += 1;
    }
    count
}

/// A message of subsystem and number with any payload.
fn framed(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + payload.len()).unwrap();
    let mut out = len.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(payload);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoder_fed_any_bytes_ends_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(swallow(&bytes) <= bytes.len() / 16);
    }

    #[test]
    fn decoder_fed_any_payload_of_a_real_type_ends_without_a_panic(
        op in 0_u16..20,
        conntrack in any::<bool>(),
        flags in any::<u16>(),
        bytes in proptest::collection::vec(prop_oneof![0_u8..16, any::<u8>()], 0..600),
    ) {
        let subsystem = if conntrack { 0x0100 } else { 0x0a00 };
        swallow(&framed(subsystem | op, flags, &bytes));
        swallow(&framed(op, flags, &bytes));
    }

    #[test]
    fn decoder_fed_damaged_messages_ends_without_a_panic(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut all = messages(SENT);
        all.extend(messages(DUMPED));
        let mut message = all.swap_remove(which.index(all.len()));
        for (at, value) in damage {
            let at = at.index(message.len());
            message[at] = value;
        }
        swallow(&message);
        // The length in front still promises the whole.
        message.truncate(cut.index(message.len()));
        swallow(&message);
    }
}

#[test]
fn expressions_nested_without_end_are_read_to_a_fixed_depth() {
    // dynset in dynset in dynset ...: each level is name, data{ name of the set, op, key, expr }.
    let mut inner: Vec<u8> = attribute(1, b"counter\0");
    inner.extend(attribute(2, &[]));
    for _ in 0..1_000 {
        let mut data = attribute(1, b"s\0");
        data.extend(attribute(3, &[0; 4]));
        data.extend(attribute(4, &[0, 0, 0, 1]));
        data.extend(attribute(7, &inner));
        let mut outer = attribute(1, b"dynset\0");
        outer.extend(attribute(2, &data));
        inner = outer;
    }
    let mut rule = vec![1, 0, 0, 0];
    rule.extend(attribute(1, b"t\0"));
    rule.extend(attribute(2, b"c\0"));
    rule.extend(attribute(4, &attribute(1, &inner)));
    assert_eq!(swallow(&framed(0x0a06, 2, &rule)), 1);
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len() + 4).unwrap();
    let mut out = len.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}
