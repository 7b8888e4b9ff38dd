//! A certificate in use that can be replaced: connections that are open go on with the one that they began with, new ones show the new one.

use crate::Error;
use crate::ca::Pair;
use crate::tls::{certificates, key, provider};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, PoisonError, RwLock};

/// One's own certificate and key. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Own {
    shown: Arc<RwLock<(Pair, Arc<CertifiedKey>)>>,
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, Error> {
    let key = provider().key_provider.load_private_key(key(&pair.key)?)?;
    Ok(Arc::new(CertifiedKey::new(certificates(&pair.certificate)?, key)))
}

impl Own {
    /// # Errors
    /// The pair is not PEM, or its key is of no kind that we can sign with.
    pub fn new(pair: Pair) -> Result<Own, Error> {
        let certified = certified(&pair)?;
        Ok(Own { shown: Arc::new(RwLock::new((pair, certified))) })
    }

    /// Shows `pair` from now on.
    ///
    /// # Errors
    /// As [`Own::new`]; then the old one stays.
    pub fn replace(&self, pair: Pair) -> Result<(), Error> {
        let certified = certified(&pair)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = (pair, certified);
        Ok(())
    }

    /// What is shown now.
    pub fn pair(&self) -> Pair {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
    fn has_certs(&self) -> bool {
        true
    }
}
