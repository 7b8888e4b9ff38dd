//! The keys that seal what the store must not hold in the clear, and the sealed form.
//!
//! A value is sealed with AES-256-GCM under a fresh random nonce, bound to the key of the store under which it lies: moved to another place,
//! it does not open. NIST SP 800-38D (section 8.3) allows 2^32 values under one key with random nonces.
//!
//! The sealed form is [`MARK`], one byte of version, the key's id (8 bytes), the nonce (12 bytes), and the ciphertext with its tag (16 bytes).
//! The mark begins with a zero byte, with which no object's JSON begins.

use crate::Error;
use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

/// What a sealed value begins with.
const MARK: &[u8] = b"\0skiff-sealed";
const VERSION: u8 = 1;
const ID_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const HEAD_BYTES: usize = MARK.len() + 1 + ID_BYTES + NONCE_LEN;

/// Names a key; says nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for KeyId {
    type Error = Error;
    fn try_from(text: String) -> Result<KeyId, Error> {
        text.parse()
    }
}

impl FromStr for KeyId {
    type Err = Error;
    fn from_str(text: &str) -> Result<KeyId, Error> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(KeyId)
            .ok_or_else(|| Error::SealingKeys(format!("{text:?} is not a key's id (16 hexadecimal digits)")))
    }
}

/// One key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKey {
    pub id: KeyId,
    /// 64 hexadecimal digits.
    #[serde(with = "digits")]
    key: [u8; KEY_BYTES],
    pub made: Timestamp,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

impl SealingKey {
    /// A new key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<SealingKey, Error> {
        let (mut id, mut key) = ([0; ID_BYTES], [0; KEY_BYTES]);
        random(&mut id)?;
        random(&mut key)?;
        Ok(SealingKey { id: KeyId(id), key, made: Timestamp::now() })
    }

    fn cipher(&self) -> Result<LessSafeKey, Error> {
        let unbound = UnboundKey::new(&AES_256_GCM, &self.key);
        Ok(LessSafeKey::new(unbound.map_err(|_| Error::SealingKeys("a key of a wrong length".into()))?))
    }
}

fn random(into: &mut [u8]) -> Result<(), Error> {
    SystemRandom::new().fill(into).map_err(|_| Error::SealingKeys("the system gives no random bytes".into()))
}

/// The keys of one server: what `sealing.keys` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKeys {
    /// The key that seals what is written now; None: nothing is sealed.
    pub current: Option<KeyId>,
    /// Every key that this server has, the current one among them.
    keys: Vec<SealingKey>,
}

impl SealingKeys {
    /// The keys of a new cluster: one, in use.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<SealingKeys, Error> {
        let key = SealingKey::generate()?;
        Ok(SealingKeys { current: Some(key.id), keys: vec![key] })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// It is not such a text, or names a current key that is not in it.
    pub fn parse(text: &str) -> Result<SealingKeys, Error> {
        // What the parser says quotes numbers and words of the text, which are keys.
        let keys: SealingKeys = serde_json::from_str(text)
            .map_err(|e| Error::SealingKeys(format!("line {} of the text is not what was written", e.line())))?;
        match keys.current {
            Some(id) if !keys.holds(id) => {
                Err(Error::SealingKeys(format!("the current key {id} is not among the keys")))
            }
            _ => Ok(keys),
        }
    }

    /// The text of a file. Keep it as the authority's key.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    pub fn holds(&self, id: KeyId) -> bool {
        self.get(id).is_some()
    }

    pub fn get(&self, id: KeyId) -> Option<&SealingKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// In the order in which they came.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|key| key.id)
    }

    /// Takes a key in; what is sealed stays sealed with the current one.
    pub fn add(&mut self, key: SealingKey) {
        if !self.holds(key.id) {
            self.keys.push(key);
        }
    }

    /// Forgets a key, unless it is the current one. What is sealed with it can be read no more.
    pub fn forget(&mut self, id: KeyId) {
        if self.current != Some(id) {
            self.keys.retain(|key| key.id != id);
        }
    }
}

/// Why a sealed value did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    #[error(
        "it is sealed with the key {0}, which this server does not have; put that key into server/sealing.keys from another server or a backup, or give it up (skiff sealing drop {0})"
    )]
    UnknownKey(KeyId),
    #[error(
        "it is sealed with the key {0}, and does not open with it: it was changed, or moved here from another place (skiff sealing drop {0} deletes it)"
    )]
    Damaged(KeyId),
    #[error("it is sealed in a form of a newer version")]
    UnknownForm,
}

/// The keys in use, ready to seal and open. Clones are the same ring.
#[derive(Clone, Default)]
pub struct Keyring {
    ready: Arc<RwLock<Arc<Ready>>>,
}

#[derive(Default)]
struct Ready {
    keys: SealingKeys,
    ciphers: BTreeMap<KeyId, LessSafeKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.ready().keys, f)
    }
}

impl Keyring {
    /// # Errors
    /// A key cannot be used.
    pub fn new(keys: SealingKeys) -> Result<Keyring, Error> {
        let ring = Keyring::default();
        ring.replace(keys)?;
        Ok(ring)
    }

    /// Uses these keys from now on.
    ///
    /// # Errors
    /// A key cannot be used; then the old ones stay.
    pub fn replace(&self, keys: SealingKeys) -> Result<(), Error> {
        let ciphers = keys.keys.iter().map(|key| Ok((key.id, key.cipher()?))).collect::<Result<_, Error>>()?;
        *self.ready.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Ready { keys, ciphers });
        Ok(())
    }

    fn ready(&self) -> Arc<Ready> {
        self.ready.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn keys(&self) -> SealingKeys {
        self.ready().keys.clone()
    }

    /// Seals a value for a place. None: no key is in use, so it stays as it is.
    ///
    /// # Errors
    /// The system has no randomness to give: nothing may be written then.
    pub fn seal(&self, place: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let ready = self.ready();
        let Some((id, cipher)) = ready.keys.current.and_then(|id| ready.ciphers.get_key_value(&id)) else {
            return Ok(None);
        };
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = Vec::with_capacity(HEAD_BYTES + value.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(MARK);
        sealed.push(VERSION);
        sealed.extend_from_slice(&id.0);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let tag = cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place),
                sealed.get_mut(HEAD_BYTES..).unwrap_or_default(),
            )
            .map_err(|_| Error::SealingKeys("the value is too large to be sealed".into()))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(Some(sealed))
    }

    /// Opens a value at its place. None: it is not sealed.
    ///
    /// # Errors
    /// See [`Unopened`].
    pub fn open(&self, place: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Unopened> {
        let Some(rest) = value.strip_prefix(MARK) else { return Ok(None) };
        let Some((nonce, id)) = head(rest) else { return Err(Unopened::UnknownForm) };
        let ready = self.ready();
        let cipher = ready.ciphers.get(&id).ok_or(Unopened::UnknownKey(id))?;
        let mut inside = value.get(HEAD_BYTES..).unwrap_or_default().to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let length =
            cipher.open_in_place(nonce, Aad::from(place), &mut inside).map_err(|_| Unopened::Damaged(id))?.len();
        inside.truncate(length);
        Ok(Some(inside))
    }
}

/// With which key a value is sealed; None: it is not sealed, or in a form that is not known.
pub fn sealed_with(value: &[u8]) -> Option<KeyId> {
    head(value.strip_prefix(MARK)?).map(|(_, id)| id)
}

fn head(after_mark: &[u8]) -> Option<([u8; NONCE_LEN], KeyId)> {
    let (version, rest) = after_mark.split_first()?;
    let (id, rest) = rest.split_first_chunk::<ID_BYTES>()?;
    let (nonce, _) = rest.split_first_chunk::<NONCE_LEN>()?;
    (*version == VERSION).then_some((*nonce, KeyId(*id)))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// A key as hexadecimal digits.
mod digits {
    use super::{KEY_BYTES, unhex};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(key: &[u8; KEY_BYTES], to: S) -> Result<S::Ok, S::Error> {
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; KEY_BYTES], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = unhex(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| D::Error::custom("not 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &[u8] = b"/registry/core/secrets/a/b";
    const PLAIN: &[u8] = br#"{"kind":"Secret"}"#;

    fn ring() -> Keyring {
        Keyring::new(SealingKeys::generate().unwrap()).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let ring = ring();
        let sealed = ring.seal(PLACE, PLAIN).unwrap().unwrap();
        let id = ring.keys().current.unwrap();
        assert_eq!(sealed_with(&sealed), Some(id));
        assert!(!sealed.windows(6).any(|w| w == b"Secret"));
        assert_eq!(ring.open(PLACE, &sealed), Ok(Some(PLAIN.to_vec())));
        assert_ne!(ring.seal(PLACE, PLAIN).unwrap().unwrap(), sealed, "each with a nonce of its own");
        assert_eq!(ring.open(b"/registry/core/secrets/a/c", &sealed), Err(Unopened::Damaged(id)));
        for at in HEAD_BYTES - NONCE_LEN..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(ring.open(PLACE, &changed), Err(Unopened::Damaged(id)), "byte {at}");
        }
        for short in MARK.len()..sealed.len() {
            assert!(ring.open(PLACE, &sealed[..short]).is_err(), "{short} bytes of it");
        }
        assert_eq!(ring.open(PLACE, PLAIN), Ok(None), "what was never sealed is taken as it is");
    }

    #[test]
    fn old_keys_open_and_forgotten_ones_do_not() {
        let ring = ring();
        let old = ring.keys().current.unwrap();
        let sealed = ring.seal(PLACE, PLAIN).unwrap().unwrap();
        let mut keys = ring.keys();
        let new = SealingKey::generate().unwrap();
        keys.add(new.clone());
        ring.replace(keys.clone()).unwrap();
        assert_eq!(
            sealed_with(&ring.seal(PLACE, PLAIN).unwrap().unwrap()),
            Some(old),
            "a key that came is not yet in use"
        );
        keys.current = Some(new.id);
        ring.replace(keys.clone()).unwrap();
        assert_eq!(sealed_with(&ring.seal(PLACE, PLAIN).unwrap().unwrap()), Some(new.id));
        assert_eq!(ring.open(PLACE, &sealed), Ok(Some(PLAIN.to_vec())));
        keys.forget(new.id);
        assert!(keys.holds(new.id), "the current key stays");
        keys.forget(old);
        ring.replace(keys).unwrap();
        assert_eq!(ring.open(PLACE, &sealed), Err(Unopened::UnknownKey(old)));
    }

    #[test]
    fn the_file_is_read_as_it_was_written_and_shows_no_key_elsewhere() {
        let keys = SealingKeys::generate().unwrap();
        let text = keys.text();
        assert_eq!(SealingKeys::parse(&text).unwrap(), keys);
        let secret: String = keys.keys[0].key.iter().map(|b| format!("{b:02x}")).collect();
        assert!(text.contains(&secret));
        assert!(!format!("{keys:?} {:?}", Keyring::new(keys.clone()).unwrap()).contains(&secret));
        let broken = text.replace(&secret, &secret[1..]);
        let cut = &text[..text.len() - 10];
        let unknown = text.replacen(&keys.current.unwrap().to_string(), "0011223344556677", 1);
        for bad in ["", "{}x", &broken, cut, &unknown] {
            let error = SealingKeys::parse(bad).unwrap_err().to_string();
            assert!(!error.contains(&secret[1..]), "{error}");
        }
    }

    #[test]
    fn without_a_key_nothing_is_sealed() {
        assert_eq!(Keyring::default().seal(PLACE, PLAIN).unwrap(), None);
    }
}
