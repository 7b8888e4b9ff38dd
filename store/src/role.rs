//! Who may speak as a member: whoever shows a certificate that carries the members' name.
//!
//! One authority signs for members, nodes and people alike, so that a certificate of it alone proves nothing: each of them could forward commands into the log,
//! join, or change who belongs to the group. The name that a member checks when it dials ([`PeerTls::server_name`]) is asked of those that dial it, too, on
//! every route of the peers' listener.

use crate::transport::PeerTls;
use tonic::service::Interceptor;
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;

/// Lets requests of members pass.
#[derive(Clone)]
pub struct MembersOnly {
    /// The name in every member's certificate; None where peers use no TLS, and the network is trusted.
    name: Option<String>,
}

impl MembersOnly {
    pub fn new(tls: Option<&PeerTls>) -> Self {
        MembersOnly { name: tls.map(|tls| tls.server_name.clone()) }
    }
}

impl Interceptor for MembersOnly {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(name) = &self.name else { return Ok(request) };
        let shown = request.peer_certs();
        match shown.as_deref().and_then(|chain| chain.first()) {
            Some(leaf) if carries(leaf, name) => Ok(request),
            _ => Err(Status::permission_denied(format!(
                "only members of the store may ask this: the certificate does not carry their name, {name:?}"
            ))),
        }
    }
}

/// Whether a certificate (DER) has `name` among its DNS names, to the letter: a wildcard is no role.
fn carries(der: &[u8], name: &str) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name)))
}
