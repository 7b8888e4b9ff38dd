//! The cluster's certificate authority: one key that every server holds, and the certificates that it gives out.

use crate::Error;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;

/// The name in every server's certificate by which peers and agents know it: a role, never an address.
pub const SERVER_NAME: &str = "server.skiff.internal";

const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How long certificates of servers, nodes and users are good unless [`Ca::with_leaf_life`] says otherwise: 365 days.
/// They are renewed at half of it (see [`Pair::renewal_due`]).
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pair({}, ...)", self.certificate)
    }
}

/// The authority.
pub struct Ca {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
    leaf_life: SignedDuration,
}

/// Whose certificate it is.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A control-plane server, with the addresses and names under which clients find its API.
    Server { name: String, names: Vec<String>, addresses: Vec<IpAddr> },
    /// A node's agent: the user `system:node:NAME` in the group `system:nodes`.
    Node { name: String },
    /// A user, in one group.
    User { name: String, group: Option<String> },
}

/// From when until when a certificate made at `now` is good, to the second.
///
/// It begins a little in the past, for machines whose clocks are behind: a tenth of its life, a day at most, so that
/// half of a short life is still ahead when the certificate is made.
fn validity(now: Timestamp, life: SignedDuration) -> Result<(time::OffsetDateTime, time::OffsetDateTime), Error> {
    let bad = || Error::BadLife(life);
    if life < SignedDuration::from_secs(1) {
        return Err(bad());
    }
    let at = |offset: SignedDuration| {
        let second = now.checked_add(offset).map_err(|_| bad())?.as_second();
        time::OffsetDateTime::from_unix_timestamp(second).map_err(|_| bad())
    };
    Ok((at(-(life / 10).min(DAY))?, at(life)?))
}

impl Ca {
    /// A new authority.
    pub fn generate() -> Result<Ca, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // The hash in a name keeps two clusters' authorities apart in a browser or a trust store.
        let id = hex(&Sha256::digest(key.public_key_raw()))[..12].to_owned();
        params.distinguished_name.push(DnType::CommonName, format!("skiff-ca-{id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = validity(Timestamp::now(), CA_LIFE)?;
        let certificate = params.self_signed(&key)?.pem();
        Ca::load(Pair { certificate, key: key.serialize_pem() })
    }

    /// An authority from its PEM files. While one takes another's place there are the certificates of both: the one that the key is of issues.
    ///
    /// # Errors
    /// The texts are no certificates and key, or the key is of none of them.
    pub fn load(pair: Pair) -> Result<Ca, Error> {
        let key = KeyPair::from_pem(&pair.key)?;
        let is_ours = |pem: &String| {
            let parsed = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok();
            let certificate = parsed.as_ref().and_then(|(_, pem)| pem.parse_x509().ok());
            certificate.is_some_and(|c| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
        };
        let certificate = each(&pair.certificate).into_iter().find(is_ours).ok_or(Error::OtherKey)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Ca { pair: Pair { certificate, key: pair.key }, issuer, leaf_life: LEAF_LIFE })
    }

    /// The same authority, whose certificates for others are good for `life` (a second at least).
    #[must_use]
    pub fn with_leaf_life(self, life: SignedDuration) -> Ca {
        Ca { leaf_life: life, ..self }
    }

    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.pair.certificate
    }

    /// A key and a certificate for `subject`.
    pub fn issue(&self, subject: &Subject) -> Result<Pair, Error> {
        let key = KeyPair::generate()?;
        Ok(Pair { certificate: self.sign(subject, &key)?, key: key.serialize_pem() })
    }

    /// A certificate for `subject` and a key (PEM) that it has already.
    pub fn issue_for(&self, subject: &Subject, key: &str) -> Result<Pair, Error> {
        let certificate = self.sign(subject, &KeyPair::from_pem(key)?)?;
        Ok(Pair { certificate, key: key.to_owned() })
    }

    /// A certificate for the key of a signing request (PEM). Only the key is taken from the request: the names are ours to give.
    pub fn sign_request(&self, subject: &Subject, request: &str) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        self.sign(subject, &request.public_key)
    }

    fn sign(&self, subject: &Subject, key: &impl PublicKeyData) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = validity(Timestamp::now(), self.leaf_life)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut name = |common: &str, group: Option<&str>| {
            params.distinguished_name.push(DnType::CommonName, common);
            if let Some(group) = group {
                params.distinguished_name.push(DnType::OrganizationName, group);
            }
        };
        match subject {
            Subject::Server { name: server, names, addresses } => {
                name(&format!("system:skiff-server:{server}"), Some("system:skiff-servers"));
                params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
                for name in names.iter().map(String::as_str).chain([SERVER_NAME]) {
                    let name = name.try_into().map_err(|_| Error::BadName(name.to_owned()))?;
                    params.subject_alt_names.push(SanType::DnsName(name));
                }
                params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
            }
            Subject::Node { name: node } => name(&format!("system:node:{node}"), Some("system:nodes")),
            Subject::User { name: user, group } => name(user, group.as_deref()),
        }
        let certificate = params.signed_by(key, &self.issuer)?;
        // The authority travels behind the leaf, so that a joining machine can compare its hash with the token's.
        Ok(format!("{}{}", certificate.pem(), self.pair.certificate))
    }

    /// The hash that tokens carry: SHA-256 of the authority's certificate (DER), hexadecimal.
    pub fn hash(&self) -> Result<String, Error> {
        hash(&self.pair.certificate)
    }
}

impl Pair {
    /// Whether half of the certificate's life is over. A certificate that cannot be read is due at once.
    pub fn renewal_due(&self) -> bool {
        self.renewal_due_at(Timestamp::now())
    }

    fn renewal_due_at(&self, now: Timestamp) -> bool {
        self.half_life().is_none_or(|half| now.as_second() > half)
    }

    /// How long it is until then; nothing when it is due, or when the certificate cannot be read.
    pub fn renewal_in(&self) -> std::time::Duration {
        let left =
            self.half_life().map_or(0, |half| half.saturating_sub(Timestamp::now().as_second()).saturating_add(1));
        std::time::Duration::from_secs(u64::try_from(left).unwrap_or(0))
    }

    /// The middle of the certificate's life, Unix seconds.
    fn half_life(&self) -> Option<i64> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let validity = certificate.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Some(from.saturating_add(to.saturating_sub(from) / 2))
    }
}

/// A key and a signing request for it, PEM, for someone who does not hold the authority.
pub fn request(key: Option<&str>) -> Result<(String, String), Error> {
    let key = match key {
        Some(pem) => KeyPair::from_pem(pem)?,
        None => KeyPair::generate()?,
    };
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// SHA-256 of the public key in a signing request: who a node is, whatever its name and address.
pub fn request_key_hash(request: &str) -> Result<String, Error> {
    let request = CertificateSigningRequestParams::from_pem(request)?;
    Ok(hex(&Sha256::digest(request.public_key.der_bytes())))
}

/// The same hash of the key in a certificate (DER); None where it cannot be read.
pub fn certificate_key_hash(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(hex(&Sha256::digest(&certificate.public_key().subject_public_key.data)))
}

/// The hash of a certificate (the first in `pem`).
pub fn hash(pem: &str) -> Result<String, Error> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Pem(e.to_string()))?;
    Ok(hex(&Sha256::digest(&der)))
}

/// The certificates of a PEM text, one by one.
pub fn each(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let texts = pem.split_inclusive(END).filter(|text| text.contains(END));
    texts.map(|text| format!("{}\n", text.trim_start())).collect()
}

/// The hash of the authority that travels behind a certificate (PEM); None where there is none.
pub fn issuer_hash(pem: &str) -> Option<String> {
    hash(each(pem).get(1)?).ok()
}

/// Whom somebody trusts, and whose certificate they show, in one short text: equal for those who are equal in both.
pub fn stance(trusted: &str, shown: &str) -> String {
    let trusted: Vec<_> = each(trusted).iter().filter_map(|pem| hash(pem).ok()).map(|h| h[..16].to_owned()).collect();
    let shown = issuer_hash(shown).map_or_else(|| "nobody".to_owned(), |h| h[..16].to_owned());
    format!("{}/{shown}", trusted.join("+"))
}

/// The common name in a certificate (DER).
pub fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// The organization (the group) in a certificate (DER).
pub fn organization(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_organization().next()?.as_str().ok()?;
    Some(name.to_owned())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_outlives_its_process_and_its_hash_stays() {
        let ca = Ca::generate().unwrap();
        let again = Ca::load(ca.pair().clone()).unwrap();
        assert_eq!(ca.hash().unwrap(), again.hash().unwrap());
        assert_eq!(ca.hash().unwrap().len(), 64);
    }

    #[test]
    fn of_several_certificates_the_one_with_the_key_issues() {
        let (old, new) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let both = format!("{}{}", old.certificate(), new.certificate());
        let subject = Subject::Node { name: "n1".into() };
        for ca in [&old, &new] {
            let loaded = Ca::load(Pair { certificate: both.clone(), key: ca.pair().key.clone() }).unwrap();
            assert_eq!(loaded.certificate(), ca.certificate());
            let issued = loaded.issue(&subject).unwrap().certificate;
            assert_eq!(issuer_hash(&issued), ca.hash().ok());
            let (a, b) = (&old.hash().unwrap()[..16], &new.hash().unwrap()[..16]);
            assert_eq!(stance(&both, &issued), format!("{a}+{b}/{}", &ca.hash().unwrap()[..16]));
        }
        let key = Ca::generate().unwrap().pair().key.clone();
        assert!(matches!(Ca::load(Pair { certificate: both, key }), Err(Error::OtherKey)));
    }

    #[test]
    fn a_request_keeps_its_key_and_gets_the_name_that_we_give() {
        let ca = Ca::generate().unwrap();
        let (key, first) = request(None).unwrap();
        let (_, second) = request(Some(&key)).unwrap();
        assert_eq!(request_key_hash(&first).unwrap(), request_key_hash(&second).unwrap());
        let certificate = ca.sign_request(&Subject::Node { name: "n1".into() }, &first).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        assert_eq!(certificate_key_hash(&pem.contents), request_key_hash(&first).ok(), "who it is of");
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert!(subject.contains("CN=system:node:n1") && subject.contains("O=system:nodes"), "{subject}");
    }

    #[test]
    fn a_life_is_kept_to_the_second() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        // Life, seconds in the past at which it begins (a part of a second counts as one: never too late).
        for (life, before) in [(1, 1), (20, 2), (3600, 360), (365 * 86_400, 86_400)] {
            let (from, to) = validity(now, SignedDuration::from_secs(life)).unwrap();
            assert_eq!(now.as_second() - from.unix_timestamp(), before, "life {life}");
            assert_eq!(to.unix_timestamp() - now.as_second(), life, "life {life}");
        }
        for life in [SignedDuration::ZERO, SignedDuration::from_secs(-5), SignedDuration::MAX] {
            assert!(validity(now, life).is_err(), "{life}");
        }
    }

    #[test]
    fn renewal_is_due_at_half_life_however_short() {
        let ca = Ca::generate().unwrap();
        let node = Subject::Node { name: "n1".into() };
        let made = Timestamp::now();
        let pair = ca.with_leaf_life(SignedDuration::from_secs(1000)).issue(&node).unwrap();
        for (seconds, due) in [(0, false), (440, false), (470, true), (2000, true)] {
            let now = made.checked_add(SignedDuration::from_secs(seconds)).unwrap();
            assert_eq!(pair.renewal_due_at(now), due, "{seconds} s after it was made");
        }
        let unreadable = Pair { certificate: String::new(), key: String::new() };
        assert!(unreadable.renewal_due());
    }
}
