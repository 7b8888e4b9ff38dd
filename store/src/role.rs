//! Who may speak as a member: whoever shows a certificate that carries the members' name, and, where each member has a key of its own, as that member only.
//!
//! One authority signs for members, nodes and people alike, so that a certificate of it alone proves nothing: each of them could forward commands into the log,
//! join, or change who belongs to the group. The name that a member checks when it dials ([`PeerTls::new`]) is asked of those that dial it, too, on
//! every route of the peers' listener.
//!
//! Which key is whose the members agree on in the log, beside names and addresses. A member that is far behind may not know yet that another one joined, and
//! must hear it all the same, if that one leads; so a key that nobody is known by may speak as a member that is not known by a key. What was removed
//! is remembered.

use crate::peer::REMOVED;
use crate::peer_tls::PeerTls;
use crate::types::{Member, MemberId};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;

/// Lets requests of members pass, and notes by whose key they came.
#[derive(Clone)]
pub struct MembersOnly {
    /// None where peers use no TLS, and the network is trusted.
    tls: Option<PeerTls>,
}

/// The key that a request came by, where keys stand for members: the hash that [`key_hash`] gives.
#[derive(Clone, Debug)]
pub struct PeerKey(pub String);

impl MembersOnly {
    pub fn new(tls: Option<PeerTls>) -> Self {
        MembersOnly { tls }
    }
}

impl Interceptor for MembersOnly {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let Some(tls) = &self.tls else { return Ok(request) };
        let shown = request.peer_certs();
        let leaf = shown.as_deref().and_then(|chain| chain.first());
        let Some(leaf) = leaf.filter(|leaf| carries(leaf, tls.name())) else {
            return Err(Status::permission_denied(format!(
                "only members of the store may ask this: the certificate does not carry their name, {:?}",
                tls.name()
            )));
        };
        if tls.bound_key().is_some() {
            let key = key_hash(leaf).ok_or_else(|| Status::permission_denied("the certificate cannot be read"))?;
            request.extensions_mut().insert(PeerKey(key));
        }
        Ok(request)
    }
}

/// Whether a certificate (DER) has `name` among its DNS names, to the letter: a wildcard is no role.
fn carries(der: &[u8], name: &str) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name)))
}

/// SHA-256 of the public key in a certificate (DER), hexadecimal; None where it cannot be read.
pub(crate) fn key_hash(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let digest = Sha256::digest(&certificate.public_key().subject_public_key.data);
    Some(digest.iter().map(|b| format!("{b:02x}")).collect())
}

/// Keys of removed members that are remembered; the oldest goes first.
const REMOVED_KEYS_MAX: usize = 256;

/// Notes that the members with these keys were removed.
pub fn remember_removed(removed: &mut Vec<String>, keys: impl Iterator<Item = String>) {
    removed.extend(keys.filter(|key| !key.is_empty()));
    let too_many = removed.len().saturating_sub(REMOVED_KEYS_MAX);
    removed.drain(..too_many);
}

/// What is agreed on about keys.
pub struct Keys<'a> {
    pub members: &'a BTreeMap<MemberId, Member>,
    pub removed: &'a [String],
}

impl Keys<'_> {
    fn owner(&self, key: &str) -> Option<&Member> {
        self.members.values().find(|m| m.key_hash == key)
    }

    /// Whether the key may be some member's; else why not.
    fn check_not_removed(&self, key: &str) -> Result<(), String> {
        match self.removed.iter().any(|k| k == key) && self.owner(key).is_none() {
            true => Err(REMOVED.into()),
            false => Ok(()),
        }
    }

    /// Whether whoever holds `key` may speak as member `id`; else why not.
    pub fn may_speak_as(&self, key: &str, id: MemberId) -> Result<(), String> {
        self.check_not_removed(key)?;
        match (self.members.get(&id).filter(|m| !m.key_hash.is_empty()), self.owner(key)) {
            (Some(member), _) if member.key_hash == key => Ok(()),
            (Some(_), _) => Err(format!("member {id:x} is known by another key than the certificate's")),
            (None, Some(owner)) => {
                Err(format!("the certificate's key is member {:x}'s, who does not speak as member {id:x}", owner.id))
            }
            (None, None) => Ok(()),
        }
    }

    /// Whether whoever holds `key` is a member; else why not. While a member is not known by a key yet, an unknown one may be its.
    pub fn may_speak(&self, key: &str) -> Result<(), String> {
        self.check_not_removed(key)?;
        match self.owner(key).is_some() || self.members.values().any(|m| m.key_hash.is_empty()) {
            true => Ok(()),
            false => Err("no member of the group is known by the certificate's key".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(keys: &[(MemberId, &str)]) -> BTreeMap<MemberId, Member> {
        let member = |(id, key): &(MemberId, &str)| Member { id: *id, key_hash: (*key).into(), ..Default::default() };
        keys.iter().map(|k| (k.0, member(k))).collect()
    }

    #[test]
    fn a_key_speaks_for_its_member_only() {
        let all = members(&[(1, "a"), (2, "b"), (3, "")]);
        let removed = ["gone".to_owned(), "b".to_owned()];
        let keys = Keys { members: &all, removed: &removed };
        let check = |key: &str, id: MemberId, expect: Result<(), &str>| {
            let said = keys.may_speak_as(key, id);
            match expect {
                Ok(()) => assert_eq!(said, Ok(()), "{key} as {id}"),
                Err(why) => assert!(said.as_ref().is_err_and(|e| e.contains(why)), "{key} as {id}: {said:?}"),
            }
        };
        check("a", 1, Ok(()));
        check("a", 2, Err("another key"));
        check("a", 3, Err("is member 1's"));
        check("a", 9, Err("is member 1's"));
        check("new", 1, Err("another key"));
        // Not known by a key yet, or not known at all to a member that is behind.
        check("new", 3, Ok(()));
        check("new", 9, Ok(()));
        for id in [1, 3, 9] {
            check("gone", id, Err("was removed"));
        }
        // Removed once, and taken in again since.
        check("b", 2, Ok(()));
    }

    #[test]
    fn an_unknown_key_is_somebodys_only_while_a_member_has_none() {
        let check = |known: &[(MemberId, &str)], key: &str, expect: bool| {
            let (all, removed) = (members(known), ["gone".to_owned()]);
            let keys = Keys { members: &all, removed: &removed };
            assert_eq!(keys.may_speak(key).is_ok(), expect, "{key} of {known:?}");
        };
        check(&[(1, "a"), (2, "b")], "a", true);
        check(&[(1, "a"), (2, "b")], "c", false);
        check(&[(1, "a"), (2, "")], "c", true);
        check(&[(1, "a"), (2, "")], "gone", false);
    }

    #[test]
    fn removed_keys_are_remembered_up_to_a_number() {
        let mut removed = Vec::new();
        remember_removed(&mut removed, ["".to_owned(), "a".to_owned()].into_iter());
        assert_eq!(removed, ["a"]);
        remember_removed(&mut removed, (0..REMOVED_KEYS_MAX).map(|n| n.to_string()));
        assert_eq!((removed.len(), removed[0].as_str()), (REMOVED_KEYS_MAX, "0"));
    }
}
