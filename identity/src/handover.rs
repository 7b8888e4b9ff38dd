//! How a sealing key comes from one server to another through the store, which both write to, without lying in it in a form that anybody can read later.
//!
//! Whoever lacks a key shows a public key that it made for this once ([`Ask`]); whoever has it answers with a public key of its own and the sealing key,
//! sealed with what the two agree on (X25519, RFC 7748; HKDF-SHA256, RFC 5869). Both private halves are gone afterwards, so a copy of the store tells nothing,
//! not even with the keys that come later. Only servers write where this is kept.

use crate::Error;
use crate::sealing::{KeyId, SealingKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};

const PURPOSE: &[u8] = b"skiff: a sealing key is handed over";

fn failed(what: &str) -> Error {
    Error::SealingKeys(format!("a key could not be handed over: {what}"))
}

/// The private half of a question for keys; good for one answer.
pub struct Ask {
    private: EphemeralPrivateKey,
    public: Vec<u8>,
}

/// An answer: the key `id`, for whoever asked with the public key `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub id: KeyId,
    pub to: Vec<u8>,
    from: Vec<u8>,
    sealed: Vec<u8>,
}

fn pair() -> Result<(EphemeralPrivateKey, Vec<u8>), Error> {
    let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(|_| failed("no randomness"))?;
    let public = private.compute_public_key().map_err(|_| failed("no public key"))?.as_ref().to_vec();
    Ok((private, public))
}

/// What both sides compute: a cipher that is used once.
fn cipher(private: EphemeralPrivateKey, theirs: &[u8], to: &[u8], from: &[u8]) -> Result<LessSafeKey, Error> {
    let theirs = UnparsedPublicKey::new(&X25519, theirs);
    let agreed = agree_ephemeral(private, &theirs, |shared| {
        let secret = Salt::new(HKDF_SHA256, PURPOSE).extract(shared);
        let bound = [to, from];
        let key = secret.expand(&bound, &AES_256_GCM).map(UnboundKey::from);
        key.map(LessSafeKey::new)
    });
    agreed.ok().and_then(Result::ok).ok_or_else(|| failed("the other's public key is not one"))
}

/// The one value that this cipher seals needs no nonce of its own.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl Ask {
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Ask, Error> {
        pair().map(|(private, public)| Ask { private, public })
    }

    /// What the others are shown.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The key that was given.
    ///
    /// # Errors
    /// It was given to somebody else, or on the way to us it was changed.
    pub fn take(self, given: &Given) -> Result<SealingKey, Error> {
        let cipher = cipher(self.private, &given.from, &self.public, &given.from)?;
        let mut sealed = given.sealed.clone();
        let opened = cipher.open_in_place(nonce(), Aad::from(PURPOSE), &mut sealed);
        let text = opened.map_err(|_| failed("the answer does not open: it is for somebody else, or damaged"))?;
        let key: SealingKey = serde_json::from_slice(text).map_err(|_| failed("the answer holds no key"))?;
        if key.id == given.id { Ok(key) } else { Err(failed("the answer holds another key than it names")) }
    }
}

/// The answer to whoever shows the public key `to`.
///
/// # Errors
/// `to` is no public key.
pub fn give(key: &SealingKey, to: &[u8]) -> Result<Given, Error> {
    let (private, from) = pair()?;
    let cipher = cipher(private, to, to, &from)?;
    let mut sealed = serde_json::to_vec(key).map_err(|_| failed("it cannot be written"))?;
    let done = cipher.seal_in_place_append_tag(nonce(), Aad::from(PURPOSE), &mut sealed);
    done.map_err(|_| failed("it cannot be sealed"))?;
    Ok(Given { id: key.id, to: to.to_vec(), from, sealed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asked_can_take_it() {
        let key = SealingKey::generate().unwrap();
        let ask = Ask::new().unwrap();
        let given = give(&key, ask.public()).unwrap();
        let text = serde_json::to_string(&given).unwrap();
        let inside = serde_json::to_string(&key).unwrap();
        assert!(!text.contains(&inside));
        assert!(Ask::new().unwrap().take(&given).is_err(), "somebody else");
        let mut renamed = given.clone();
        renamed.id = SealingKey::generate().unwrap().id;
        let (again, other) = (Ask::new().unwrap(), Ask::new().unwrap());
        assert!(again.take(&renamed).is_err());
        assert_eq!(ask.take(&serde_json::from_str(&text).unwrap()).unwrap(), key);
        assert!(give(&key, b"short").is_err());
        // Agreed with nobody: all parties would compute zeroes.
        assert!(give(&key, &[0; 32]).is_err());
        let _ = other;
    }
}
