//! Whom one trusts, where that may change meanwhile: while one authority takes another's place, both are trusted.
//!
//! Handshakes take what is trusted at that moment. A connection that is older than a change goes on; who must know judges by the issuer's name
//! ([`Trust::knows_issuer`]), for every request if need be.

use crate::Error;
use crate::tls::{certificates, provider, roots};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::sync::{Arc, PoisonError, RwLock};

/// The authorities that are trusted. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Trust {
    now: Arc<RwLock<Arc<Trusted>>>,
}

#[derive(Debug)]
struct Trusted {
    pem: String,
    /// The authorities' names, as certificates of theirs carry them (DER).
    names: Vec<Vec<u8>>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Trusted {
    fn new(pem: &str) -> Result<Trusted, Error> {
        let verifier = |e: &dyn std::fmt::Display| Error::Verifier(e.to_string());
        let (roots, mut names) = (roots(pem)?, Vec::new());
        for der in certificates(pem)? {
            let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| Error::Pem(e.to_string()))?;
            names.push(certificate.subject().as_raw().to_vec());
        }
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).allow_unauthenticated();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider());
        Ok(Trusted {
            pem: pem.to_owned(),
            names,
            clients: clients.build().map_err(|e| verifier(&e))?,
            servers: servers.build().map_err(|e| verifier(&e))?,
        })
    }
}

impl Trust {
    /// Trusts the authorities in `pem`, one at least.
    ///
    /// # Errors
    /// The text holds none, or something else.
    pub fn new(pem: &str) -> Result<Trust, Error> {
        Ok(Trust { now: Arc::new(RwLock::new(Arc::new(Trusted::new(pem)?))) })
    }

    /// Trusts these from now on, and no others.
    ///
    /// # Errors
    /// As [`Trust::new`]; then nothing changes.
    pub fn replace(&self, pem: &str) -> Result<(), Error> {
        let new = Arc::new(Trusted::new(pem)?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The authorities, PEM.
    pub fn pem(&self) -> String {
        self.now().pem.clone()
    }

    fn now(&self) -> Arc<Trusted> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the name of a certificate's issuer (DER) is one of the trusted authorities'. It says nothing of the signature: that was verified when the
    /// connection was made.
    pub fn knows_issuer(&self, der: &[u8]) -> bool {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return false };
        self.now().names.iter().any(|name| name == certificate.issuer().as_raw())
    }
}

impl ClientCertVerifier for Trust {
    fn offer_client_auth(&self) -> bool {
        true
    }
    /// Requests without a certificate are judged by other means.
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    /// None: a client shows what it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.now().clients.verify_client_cert(leaf, intermediates, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().clients.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().clients.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.now().servers.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().servers.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().servers.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().servers.supported_verify_schemes()
    }
}
