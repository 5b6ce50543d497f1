//! Percent-encoding, form-decoding, hexadecimal, and the timestamp both signatures carry.

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use types::time::Tick;

/// What RFC 3986 leaves unencoded: letters, digits, `-`, `_`, `.`, `~`.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Encodes UTF-8 text as RFC 3986 wants it: space is `%20`, hexadecimal digits are upper case.
pub fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// Splits a query string or a form body into decoded pairs, in their order. `+` is a space; bytes that are not
/// UTF-8 become U+FFFD, which then fails any signature check.
pub fn decode_pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .filter_map(|nibble| char::from_digit(u32::from(nibble), 16))
        .collect()
}

/// `now` as `yyyy-MM-ddTHH:mm:ssZ`, whole seconds, UTC.
pub fn timestamp(now: Tick) -> String {
    let millis = i64::try_from(now.0).unwrap_or(i64::MAX);
    let at = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads `yyyy-MM-ddTHH:mm:ssZ`. Nothing else is accepted: no fraction, no offset, no year before 1970.
pub fn parse_timestamp(text: &str) -> Option<Tick> {
    if text.len() != "yyyy-MM-ddTHH:mm:ssZ".len() || !text.ends_with('Z') || !text.contains('T') {
        return None;
    }
    let at: Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok().map(Tick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_of_reserved_characters_follows_rfc_3986() {
        assert_eq!(percent_encode("a ~*+/=&"), "a%20~%2A%2B%2F%3D%26");
        assert_eq!(percent_encode("网"), "%E7%BD%91");
    }

    #[test]
    fn form_text_with_plus_and_percent_is_decoded() {
        assert_eq!(
            decode_pairs("a=1+2&b=%2B&c&=d"),
            [("a", "1 2"), ("b", "+"), ("c", ""), ("", "d")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn timestamp_round_trips() {
        let text = "2026-01-02T03:04:05Z";

        assert_eq!(timestamp(parse_timestamp(text).unwrap()), text);
    }

    #[test]
    fn timestamp_in_another_form_is_refused() {
        for text in [
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05+08:00",
            "2026-01-02T03:04:05.000Z",
            "1969-12-31T23:59:59Z",
            "",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }
}
