//! TLS between members, with certificates that can be replaced while the member runs.
//!
//! Every handshake, dialled or accepted, takes what is current at that moment; a connection goes on with what it began with. So a renewed certificate, or
//! another authority, reaches each connection when it is made anew, and no stream ends for it: an ended stream would look like a member that died.

use crate::handshakes::Handshakes;
use crate::role::key_hash;
use anyhow::{Context as _, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;

/// A handshake that takes longer is given up: members are near each other, and try again.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// The listener could not accept, for want of descriptors most of the time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A certificate, its key, and whom its holder trusts. PEM, as files hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerPem {
    /// The authority, or several while one takes another's place.
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

/// How peers prove who they are to each other. Clones are the same one.
#[derive(Clone)]
pub struct PeerTls {
    inner: Arc<Inner>,
}

struct Inner {
    /// The name that every member's certificate carries (a SAN); never an address.
    name: String,
    server_name: ServerName<'static>,
    own_keys: bool,
    current: RwLock<Arc<Current>>,
}

struct Current {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    key_hash: String,
}

impl PeerTls {
    /// `name`: what every member's certificate carries among its DNS names.
    ///
    /// # Errors
    /// The texts are not PEM, the key is of no kind that we can sign with or not the certificate's, or `name` is no DNS name.
    pub fn new(pem: &PeerPem, name: &str) -> anyhow::Result<PeerTls> {
        let server_name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name:?}, the name in members' certificates, is no DNS name"))?;
        let current = RwLock::new(Arc::new(Current::new(pem)?));
        Ok(PeerTls { inner: Arc::new(Inner { name: name.to_owned(), server_name, own_keys: false, current }) })
    }

    /// Each member has a key of its own, for good, and is known by it: whoever shows another key does not speak as that member, and whoever was removed
    /// does not speak at all. To be said before the value is cloned.
    #[must_use]
    pub fn with_own_keys(self) -> PeerTls {
        let Inner { name, server_name, current, .. } = &*self.inner;
        let current = current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (name, server_name) = (name.clone(), server_name.clone());
        PeerTls { inner: Arc::new(Inner { name, server_name, own_keys: true, current: RwLock::new(current) }) }
    }

    /// Takes these from the next handshake on.
    ///
    /// # Errors
    /// As [`PeerTls::new`]; then what was current stays.
    pub fn replace(&self, pem: &PeerPem) -> anyhow::Result<()> {
        let new = Arc::new(Current::new(pem)?);
        *self.inner.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn current(&self) -> Arc<Current> {
        self.inner.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// By which key this member is known; None where keys stand for nobody.
    pub(crate) fn bound_key(&self) -> Option<String> {
        self.inner.own_keys.then(|| self.current().key_hash.clone())
    }

    /// A connection to a member.
    pub(crate) async fn dial(&self, addr: &str) -> std::io::Result<client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(self.current().client.clone());
        connector.connect(self.inner.server_name.clone(), tcp).await
    }

    /// Connections of members that proved themselves, as they come. Ends when nobody takes them.
    pub(crate) fn accept(
        &self,
        listener: TcpListener,
    ) -> ReceiverStream<std::io::Result<server::TlsStream<TcpStream>>> {
        let (accepted, stream) = mpsc::channel(1);
        let tls = self.clone();
        tokio::spawn(async move {
            let under_way = Handshakes::default();
            loop {
                let next = tokio::select! {
                    () = accepted.closed() => return,
                    next = listener.accept() => next,
                };
                let (tcp, from) = match next {
                    Ok(next) => next,
                    Err(e) => {
                        tracing::warn!("a peer's connection could not be accepted, trying again: {e}");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                };
                let Some(handshake) = under_way.begin(from.ip()) else { continue };
                let (accepted, acceptor) = (accepted.clone(), TlsAcceptor::from(tls.current().server.clone()));
                tokio::spawn(async move {
                    let _ = tcp.set_nodelay(true);
                    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(tcp)).await {
                        Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                        Ok(Err(e)) => {
                            tracing::info!("a peer's connection from {from} was refused: tls accept error: {e}")
                        }
                        Err(_) => tracing::info!(
                            "a peer's connection from {from} was given up: its TLS handshake took too long"
                        ),
                    }
                    drop(handshake);
                });
            }
        });
        ReceiverStream::new(stream)
    }
}

impl Current {
    fn new(pem: &PeerPem) -> anyhow::Result<Current> {
        let certificates = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = certificates(&pem.certificate).context("reading the certificate for peers (PEM)")?;
        let leaf = chain.first().context("the file of the certificate for peers holds none")?;
        let key_hash = key_hash(leaf).context("the certificate for peers cannot be read")?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&pem.ca).context("reading the peers' authority (PEM)")? {
            roots.add(authority).context("the peers' authority")?;
        }
        ensure!(!roots.is_empty(), "the file of the peers' authority holds no certificate");
        let key = || PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).context("reading the key for peers (PEM)");
        let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .context("the peers' authority")?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .context("the peers' TLS configuration")?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .context("the peers' TLS configuration")?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Current { client: Arc::new(client), server: Arc::new(server), key_hash })
    }
}
