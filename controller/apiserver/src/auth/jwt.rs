//! Service account tokens: JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518 section 3.4).
//!
//! The key id is the hash of the public key (RFC 7638), so that several servers with the same key agree on it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Why a token is not taken.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TokenError {
    #[error("the token is not a signed JSON Web Token")]
    Malformed,
    #[error("the token is signed by a key that this cluster does not have, or its signature is wrong")]
    Signature,
    #[error("the token's {0} is not what this server expects")]
    Claim(&'static str),
    #[error("service account token has expired")]
    Expired,
}

/// Signs and checks the tokens of one issuer.
pub struct TokenSigner {
    issuer: String,
    key: SigningKey,
    public: VerifyingKey,
    key_id: String,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSigner({} {})", self.issuer, self.key_id)
    }
}

impl TokenSigner {
    /// `pem` is a PKCS#8 P-256 private key.
    pub fn from_pem(issuer: &str, pem: &str) -> anyhow::Result<Self> {
        use p256::pkcs8::DecodePrivateKey;
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|e| {
            anyhow::anyhow!("reading the service account key: {e}; it must be a P-256 key in PKCS#8 PEM")
        })?;
        Ok(Self::new(issuer, key))
    }

    /// A key made now and kept by nobody: tokens end with the process. For tests.
    pub fn generate(issuer: &str) -> Self {
        loop {
            if let Ok(key) = SigningKey::from_slice(&rand::random::<[u8; 32]>()) {
                return Self::new(issuer, key);
            }
        }
    }

    fn new(issuer: &str, key: SigningKey) -> Self {
        let public = *key.verifying_key();
        let (x, y) = coordinates(&public);
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let key_id = B64.encode(Sha256::digest(canonical.as_bytes()));
        TokenSigner { issuer: issuer.to_string(), key, public, key_id }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let text = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature: Signature = self.key.sign(text.as_bytes());
        format!("{text}.{}", B64.encode(signature.to_bytes()))
    }

    /// Whether the token says that it comes from this issuer (unchecked): another's token is another authenticator's.
    pub fn is_mine(&self, token: &str) -> bool {
        let claims = token.split('.').nth(1).and_then(|p| B64.decode(p).ok());
        let claims: Option<Value> = claims.and_then(|c| serde_json::from_slice(&c).ok());
        claims.is_some_and(|c| c.get("iss").and_then(Value::as_str) == Some(&self.issuer))
    }

    /// The claims of a valid token. `now` in seconds since 1970.
    pub fn verify(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        let (text, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| {
            let bytes = B64.decode(part).map_err(|_| TokenError::Malformed)?;
            serde_json::from_slice::<Value>(&bytes).map_err(|_| TokenError::Malformed)
        };
        let (header, claims) = (decode(header)?, decode(payload)?);
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(TokenError::Claim("algorithm"));
        }
        let signature = B64.decode(signature).map_err(|_| TokenError::Malformed)?;
        let signature = Signature::from_slice(&signature).map_err(|_| TokenError::Signature)?;
        self.public.verify(text.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(TokenError::Claim("issuer"));
        }
        let time = |k: &str| claims.get(k).and_then(Value::as_i64);
        if time("exp").is_none_or(|exp| now >= exp) {
            return Err(TokenError::Expired);
        }
        let unreadable = claims.get("nbf").is_some_and(|nbf| nbf.as_i64().is_none());
        if unreadable || time("nbf").is_some_and(|nbf| now.saturating_add(10) < nbf) {
            return Err(TokenError::Claim("time of first use"));
        }
        Ok(claims)
    }

    /// The public key as a JSON Web Key Set.
    pub fn key_set(&self) -> Value {
        let (x, y) = coordinates(&self.public);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

fn coordinates(key: &VerifyingKey) -> (String, String) {
    let point = key.to_sec1_point(false);
    let bytes = point.as_bytes();
    (B64.encode(&bytes[1..33]), B64.encode(&bytes[33..65]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_only_whole_and_in_time() {
        let signer = TokenSigner::generate("https://kubernetes.default.svc");
        let token = signer.sign(&json!({"iss": "https://kubernetes.default.svc", "exp": 100, "sub": "x"}));
        assert_eq!(signer.verify(&token, 50).unwrap()["sub"], "x");
        assert_eq!(signer.verify(&token, 100), Err(TokenError::Expired));
        let other = TokenSigner::generate("https://kubernetes.default.svc");
        assert_eq!(other.verify(&token, 50), Err(TokenError::Signature));
        let mut torn = token.clone();
        torn.replace_range(10..11, if &token[10..11] == "A" { "B" } else { "A" });
        assert!(signer.verify(&torn, 50).is_err());
        assert_eq!(signer.verify("abc", 50), Err(TokenError::Malformed));
        for exp in [json!(null), json!("2100"), json!(1e300), json!(u64::MAX), json!(-1)] {
            let odd = signer.sign(&json!({"iss": "https://kubernetes.default.svc", "exp": exp, "sub": "x"}));
            assert_eq!(signer.verify(&odd, 50), Err(TokenError::Expired), "{exp}");
        }
        assert!(signer.is_mine(&token));
    }
}
