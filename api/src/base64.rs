//! Bytes as the API writes them. One decoder for whoever accepts, checks or uses them: what is taken must be readable by all.
//!
//! Source: Go's `encoding/base64`, by which upstream reads: the standard alphabet with padding, where line breaks do not count.

use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;

/// The bytes of a text; None when it is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    match text.contains(['\r', '\n']) {
        true => STANDARD.decode(text.replace(['\r', '\n'], "")).ok(),
        false => STANDARD.decode(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_do_not_count() {
        let check = |text: &str, expect: Option<&[u8]>| assert_eq!(decode(text).as_deref(), expect, "{text:?}");
        check("", Some(b""));
        check("YWJj", Some(b"abc"));
        check("YW\r\nJj\n", Some(b"abc"));
        check("YQ==", Some(b"a"));
        check("YQ=\n=", Some(b"a"));
        check("YQ", None);
        check("YW Jj", None);
        check("YR==", None);
        check("-_-_", None);
    }
}
