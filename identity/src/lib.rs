//! Who is who: the cluster's certificate authority, the certificates of servers, nodes and users, join tokens, and the TLS configurations
//! made of them. Both sides of every connection need it; it opens none itself.

mod ca;
pub mod handover;
mod hidden;
mod own;
pub mod sealing;
mod tls;
mod token;
mod trust;

pub use ca::{
    Ca, LEAF_LIFE, Pair, SERVER_NAME, Subject, certificate_key_hash, common_name, each, hash, issuer_hash,
    organization, request, request_key_hash, stance,
};
pub use hidden::Hidden;
pub use own::Own;
pub use tls::{client, client_with, install_crypto, joining_client, server, server_name, server_with};
pub use token::{Role, Token, random_text};
pub use trust::Trust;

/// What went wrong with a key, a certificate or a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("making or reading a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("the key is of none of the authority's certificates beside it: one of the two files was exchanged")]
    OtherKey,
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    #[error("not a PEM file with the expected content: {0}")]
    Pem(String),
    #[error("no certificate can be made that is good for {0}: give a life of a second at least, such as 365 days")]
    BadLife(jiff::SignedDuration),
    #[error("{0:?} is not a DNS name, so it cannot be put in a certificate")]
    BadName(String),
    #[error("checking client certificates: {0}")]
    Verifier(String),
    #[error("this is not a join token: {0}. `skiff token create` on a server makes one")]
    BadToken(String),
    #[error("the keys that seal Secrets: {0}")]
    SealingKeys(String),
}
