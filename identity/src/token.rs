//! Join tokens: the hash of the cluster's authority, so that joining is safe on an open network, and a secret that expires.
//!
//! `K<64 hex digits of the authority's hash>.<agent|server>.<id>.<secret>`; id and secret as in Kubernetes' bootstrap tokens
//! (6 and 16 characters of `a-z0-9`), which is also how the cluster keeps them.

use crate::Error;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// What the holder of a token may become. A server receives the authority's key; an agent never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Agent,
    Server,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Server => "server",
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate, hexadecimal.
    pub ca_hash: String,
    pub role: Role,
    pub id: String,
    pub secret: String,
}

impl Token {
    pub fn generate(ca_hash: String, role: Role) -> Token {
        Token { ca_hash, role, id: random_text(6), secret: random_text(16) }
    }

    /// Whether this is the token's secret. Digests are compared: how long that takes tells nothing of the secret.
    pub fn has_secret(&self, secret: &str) -> bool {
        Sha256::digest(self.secret.as_bytes()) == Sha256::digest(secret.as_bytes())
    }
}

/// `length` characters of `a-z0-9`.
pub fn random_text(length: usize) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| LETTERS[rng.random_range(0..LETTERS.len())] as char).collect()
}

impl fmt::Debug for Token {
    /// Without the secret: whatever holds a token may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, {}, ...)", self.role.as_str(), self.id)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K{}.{}.{}.{}", self.ca_hash, self.role.as_str(), self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = Error;
    fn from_str(text: &str) -> Result<Token, Error> {
        let bad = |what: &str| Error::BadToken(what.to_owned());
        let rest = text.trim().strip_prefix('K').ok_or_else(|| bad("it does not begin with K"))?;
        let parts: Vec<_> = rest.split('.').collect();
        let [ca_hash, role, id, secret] = parts[..] else {
            return Err(bad("it does not have four parts joined by dots"));
        };
        let role = match role {
            "agent" => Role::Agent,
            "server" => Role::Server,
            _ => return Err(bad("its second part is neither `agent` nor `server`")),
        };
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if ca_hash.len() != 64 || !ca_hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("the hash of the cluster's authority is not 64 hexadecimal digits"));
        }
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return Err(bad("its id or secret is damaged"));
        }
        Ok(Token { ca_hash: ca_hash.to_ascii_lowercase(), role, id: id.into(), secret: secret.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_a_damaged_one_says_where() {
        let token = Token::generate("ab".repeat(32), Role::Server);
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        let check = |text: &str, why: &str| {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        };
        assert!(!format!("{token:?}").contains(&token.secret), "{token:?}");
        check("", "begin with K");
        check("Kabc.agent", "four parts");
        check(&token.to_string().replace("server", "boss"), "neither");
        check(&token.to_string()[..60], "four parts");
        check(&format!("K{}.agent.abcdef.short", "0".repeat(64)), "id or secret");
    }
}
