//! The token that lets a client read a long list in pieces of one consistent revision.
//!
//! It is base64 of JSON: the revision of the list and the key to go on from, relative to the list's prefix. A client that
//! comes too late (the revision is compacted) gets 410 with a token of revision -1: go on from there at the latest state.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContinueToken {
    /// None: at whatever is latest, giving up consistency.
    pub revision: Option<u64>,
    /// The first key that is not yet read, below the prefix of the list.
    pub start: String,
    /// When the first piece was read, in seconds since 1970; 0 for a token that has no age.
    pub since: i64,
}

/// How long a list may be read at its first revision; the reference server compacts as often.
const AGE_MAX_SECONDS: i64 = 5 * 60;

impl ContinueToken {
    /// Whether the list must go on at the latest state, though its revision may still be there.
    pub fn is_old(&self, now: Timestamp) -> bool {
        self.revision.is_some() && now.as_second().saturating_sub(self.since) > AGE_MAX_SECONDS
    }

    pub fn encode(&self) -> String {
        let revision = self.revision.map_or(-1, |r| r as i64);
        B64.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": self.start, "since": self.since}).to_string())
    }

    /// The error is what the client is told.
    pub fn decode(text: &str) -> Result<Self, String> {
        let invalid = |why: String| format!("invalid continue token: continue key is not valid: {why}");
        let bytes = B64.decode(text).map_err(|e| invalid(base64_problem(&e, text)))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid(json_problem(&bytes)))?;
        if value.get("v").and_then(Value::as_str) != Some("meta.k8s.io/v1") {
            return Err(invalid("server does not recognize this encoded version".into()));
        }
        let start = value.get("start").and_then(Value::as_str).unwrap_or_default().to_string();
        let revision = value.get("rv").and_then(Value::as_i64).unwrap_or_default();
        if revision == 0 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
        }
        if start.is_empty() || start.starts_with('/') || start.split('/').any(|p| p == "..") {
            return Err(invalid("encoded start key empty or not relative".into()));
        }
        // A token of a server that knew no ages gets one now.
        let since = value.get("since").and_then(Value::as_i64).unwrap_or_else(|| Timestamp::now().as_second());
        Ok(ContinueToken { revision: u64::try_from(revision).ok(), start, since })
    }
}

fn base64_problem(error: &base64::DecodeError, text: &str) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        _ => text.len(),
    };
    format!("illegal base64 data at input byte {at}")
}

/// Words the first problem of a text that is not JSON as clients know it.
fn json_problem(bytes: &[u8]) -> String {
    match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        None => "unexpected end of JSON input".into(),
        Some(b'{') => "unexpected end of JSON input".into(),
        Some(other) => format!("invalid character '{}' looking for beginning of value", *other as char),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let token = ContinueToken { revision: Some(7), start: "ns/a\0".into(), since: 100 };
        for (now, expect) in [(99, false), (400, false), (401, true)] {
            assert_eq!(token.is_old(Timestamp::from_second(now).unwrap()), expect, "{now}");
        }
        assert_eq!(ContinueToken::decode(&token.encode()), Ok(token));
        let late = ContinueToken { revision: None, start: "a\0".into(), since: 0 };
        assert!(!late.is_old(Timestamp::from_second(1_000_000).unwrap()));
        assert_eq!(ContinueToken::decode(&late.encode()), Ok(late));
        let problem = ContinueToken::decode("abc").unwrap_err();
        let expect =
            "invalid continue token: continue key is not valid: invalid character 'i' looking for beginning of value";
        assert_eq!(problem, expect);
        assert!(ContinueToken::decode("%%%").is_err());
    }
}
