//! Authorities and certificates for the tests, as files.

use crate::support::Dir;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

pub struct Authority {
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes NAME.crt.
    pub fn new(dir: &Dir, name: &str) -> anyhow::Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        std::fs::write(dir.sub(&format!("{name}.crt")), params.self_signed(&key)?.pem())?;
        Ok(Authority { name: name.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Writes NAME.crt and NAME.key, for these names.
    pub fn issue(&self, dir: &Dir, name: &str, names: &[&str]) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        std::fs::write(dir.sub(&format!("{name}.crt")), params.signed_by(&key, &self.issuer)?.pem())?;
        std::fs::write(dir.sub(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    pub fn file(&self, dir: &Dir) -> String {
        dir.arg(&format!("{}.crt", self.name))
    }
}
