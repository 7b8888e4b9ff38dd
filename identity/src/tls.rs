//! TLS configurations: what a server shows and asks for, and how a client decides whom it talks to.
//!
//! Peers and agents check the name of a role in the certificate ([`crate::SERVER_NAME`]), so an address can change without anything being
//! issued anew. A machine that joins knows only the hash in its token: it accepts the one server whose chain ends in
//! the authority with that hash.

use crate::ca::{Pair, hex};
use crate::own::Own;
use crate::trust::Trust;
use crate::{Error, SERVER_NAME};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// Makes ring the process's cryptography. Call it first in main; more calls do nothing.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| Error::Pem(e.to_string()))
}

pub(crate) fn key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Pem(e.to_string()))
}

pub(crate) fn roots(ca: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca)? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

/// A server that takes clients with a certificate of `ca`, and clients with none (their requests are judged by other means).
pub fn server(ca: &str, own: &Pair) -> Result<Arc<ServerConfig>, Error> {
    server_with(&Trust::new(ca)?, &Own::new(own.clone())?)
}

/// The same with a certificate and authorities that may be replaced meanwhile.
pub fn server_with(trust: &Trust, own: &Own) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(trust.clone()))
        .with_cert_resolver(Arc::new(own.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts `ca`, with a certificate of its own where it has one. ALPN is left to the caller.
pub fn client(ca: &str, own: Option<&Pair>) -> Result<ClientConfig, Error> {
    let own = own.map(|own| Own::new(own.clone())).transpose()?;
    client_with(&Trust::new(ca)?, own.as_ref())
}

/// The same with a certificate and authorities that may be replaced meanwhile.
pub fn client_with(trust: &Trust, own: Option<&Own>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust.clone()));
    Ok(match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(own.clone())),
        None => builder.with_no_client_auth(),
    })
}

/// A client that trusts whichever server's chain ends in the authority with this hash.
pub fn joining_client(ca_hash: &str) -> Result<ClientConfig, Error> {
    let verifier = HashVerifier { ca_hash: ca_hash.to_owned(), provider: provider() };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// The name that clients inside the cluster check.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).unwrap_or_else(|_| unreachable!("a constant DNS name"))
}

#[derive(Debug)]
struct HashVerifier {
    ca_hash: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HashVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ours = intermediates.iter().find(|c| hex(&Sha256::digest(c)) == self.ca_hash).ok_or_else(|| {
            rustls::Error::General(
                "this server belongs to another cluster than the token: the hash of its authority differs".into(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ours.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, &server_name(), ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, Subject};
    use std::io::Write as _;

    /// Runs a handshake in memory; the client's view of it.
    fn handshake(client: ClientConfig, server: Arc<ServerConfig>) -> Result<(), String> {
        let mut client = rustls::ClientConnection::new(Arc::new(client), server_name()).unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        for _ in 0..8 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().map_err(|e| e.to_string())?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
        client.writer().write_all(b"x").map_err(|e| e.to_string())?;
        if client.is_handshaking() { Err("not finished".into()) } else { Ok(()) }
    }

    #[test]
    fn a_joining_machine_accepts_the_tokens_cluster_and_no_other() {
        let (ours, theirs) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let subject = Subject::Server { name: "s1".into(), names: vec![], addresses: vec![] };
        let serve = |ca: &Ca| server(ca.certificate(), &ca.issue(&subject).unwrap()).unwrap();
        let joining = || joining_client(&ours.hash().unwrap()).unwrap();
        handshake(joining(), serve(&ours)).unwrap();
        let refused = handshake(joining(), serve(&theirs)).unwrap_err();
        assert!(refused.contains("another cluster"), "{refused}");
    }

    #[test]
    fn one_authority_takes_anothers_place_while_connections_are_made() {
        let (old, new) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let subject = Subject::Server { name: "s1".into(), names: vec![], addresses: vec![] };
        let issued = |ca: &Ca| Own::new(ca.issue(&subject).unwrap()).unwrap();
        let (trust, server_own, client_own) = (Trust::new(old.certificate()).unwrap(), issued(&old), issued(&old));
        let server = server_with(&trust, &server_own).unwrap();
        let dial = |own: &Own| handshake(client_with(&trust, Some(own)).unwrap(), server.clone());
        let leaf = |own: &Own| certificates(&own.pair().certificate).unwrap()[0].to_vec();
        dial(&client_own).unwrap();
        assert!(dial(&issued(&new)).is_err(), "not trusted yet");
        trust.replace(&format!("{}{}", old.certificate(), new.certificate())).unwrap();
        dial(&client_own).unwrap();
        dial(&issued(&new)).unwrap();
        server_own.replace(issued(&new).pair()).unwrap();
        dial(&client_own).unwrap();
        trust.replace(new.certificate()).unwrap();
        assert!(dial(&client_own).is_err(), "not trusted any more");
        assert!(!trust.knows_issuer(&leaf(&client_own)) && trust.knows_issuer(&leaf(&server_own)));
        dial(&issued(&new)).unwrap();
        assert!(trust.replace("nothing").is_err());
        dial(&issued(&new)).unwrap();
    }

    #[test]
    fn only_a_servers_certificate_passes_for_a_server() {
        let ca = Ca::generate().unwrap();
        let node = ca.issue(&Subject::Node { name: "n1".into() }).unwrap();
        let impostor = server(ca.certificate(), &node).unwrap();
        assert!(handshake(client(ca.certificate(), None).unwrap(), impostor).is_err());
    }
}
