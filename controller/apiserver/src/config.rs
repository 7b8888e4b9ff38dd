//! What the API server is told when it starts.

use crate::auth::jwt::TokenSigner;
use crate::bounds::Bounds;
use futures_util::future::BoxFuture;
use skiff_api::status::Status;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

/// Options of one API server. All servers of a cluster need the same ranges, issuer and key.
#[derive(Clone, Debug)]
pub struct Config {
    /// CSV lines `token,user,uid[,"group1,group2"]`, as kube-apiserver's `--token-auth-file`.
    pub token_file: Option<PathBuf>,
    /// Where cluster IPs come from; the first address is the `kubernetes` Service's.
    pub service_cidr: Cidr,
    /// Ports for NodePort Services, both ends included.
    pub node_port_range: (u16, u16),
    /// Whether requests without credentials are let in as `system:anonymous` (who may only see health and version).
    pub anonymous: bool,
    /// Signs and checks service account tokens.
    pub tokens: Arc<TokenSigner>,
    /// What service account tokens are for when nobody asks otherwise; the issuer when empty.
    pub audiences: Vec<String>,
    /// The cluster CA, for those who ask where to find trust.
    pub ca_pem: String,
    /// Where clients reach the API: `host:port`, shown in discovery; the listener's address when empty.
    pub advertise: String,
    /// Where this server's API is: what the `kubernetes` Service leads to while the store's members tell no address of theirs.
    pub endpoints: Vec<std::net::SocketAddr>,
    /// Where each node answers DNS: an address of the Services' range, shown as the Service `kube-system/kube-dns`. None: nobody does.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Whether controllers run elsewhere in this process: without them, nothing makes the default accounts.
    pub controllers: bool,
    /// Whether a certificate of the cluster's authority is still good: asked for every request that comes with one.
    pub certificates: Option<CertificateCheck>,
    /// What the rest of the process counts, in the Prometheus text format: joined to `/metrics`.
    pub further_metrics: Option<FurtherMetrics>,
    /// Answers what is asked below `/skiff/`, by whoever RBAC lets (`nonResourceURLs`).
    pub own_paths: Option<OwnPaths>,
    /// How much of the server clients may hold.
    pub bounds: Bounds,
}

/// Why a client certificate (DER) is good no longer.
type Standing = dyn Fn(&[u8]) -> Result<(), String> + Send + Sync;

/// Says of a client certificate, which TLS has verified, whether it is still good.
#[derive(Clone)]
pub struct CertificateCheck {
    pub check: Arc<Standing>,
    /// Changes when certificates that were good may be good no longer: what is open by them is ended then.
    pub moments: tokio::sync::watch::Receiver<u64>,
}

impl std::fmt::Debug for CertificateCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateCheck(..)")
    }
}

/// Writes some metrics.
#[derive(Clone)]
pub struct FurtherMetrics(pub Arc<dyn Fn() -> String + Send + Sync>);

impl std::fmt::Debug for FurtherMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FurtherMetrics(..)")
    }
}

/// Answers a request for a path that is no part of the Kubernetes API: its method in small letters, and the path.
#[derive(Clone)]
pub struct OwnPaths(pub Arc<AnswerPath>);

type AnswerPath = dyn Fn(String, String) -> BoxFuture<'static, Result<serde_json::Value, Status>> + Send + Sync;

impl std::fmt::Debug for OwnPaths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnPaths(..)")
    }
}

impl Config {
    /// Defaults for `tokens`: ranges of the design, anonymous on, no token file.
    pub fn new(tokens: Arc<TokenSigner>) -> Self {
        Config {
            token_file: None,
            service_cidr: Cidr { base: Ipv4Addr::new(10, 43, 0, 0), bits: 16 },
            node_port_range: (30000, 32767),
            anonymous: true,
            tokens,
            audiences: Vec::new(),
            ca_pem: String::new(),
            advertise: String::new(),
            endpoints: Vec::new(),
            cluster_dns: None,
            controllers: true,
            certificates: None,
            further_metrics: None,
            own_paths: None,
            bounds: Bounds::default(),
        }
    }
}

/// An IPv4 range such as `10.43.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub base: Ipv4Addr,
    /// Length of the prefix, 8 to 30.
    pub bits: u8,
}

impl Cidr {
    /// How many addresses the range has.
    pub fn size(&self) -> u32 {
        1u32 << (32 - u32::from(self.bits))
    }

    /// The address `offset` above the base.
    pub fn nth(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + offset)
    }

    /// How far an address is above the base, when it is inside.
    pub fn offset(&self, ip: Ipv4Addr) -> Option<u32> {
        u32::from(ip).checked_sub(u32::from(self.base)).filter(|o| *o < self.size())
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{text:?} is not an IPv4 range such as 10.43.0.0/16: {why}");
        let (base, bits) = text.split_once('/').ok_or_else(|| bad("there is no /"))?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad("the address cannot be read"))?;
        let bits: u8 = bits.parse().map_err(|_| bad("the length of the prefix cannot be read"))?;
        if !(8..=30).contains(&bits) {
            return Err(bad("the prefix must have 8 to 30 bits"));
        }
        let mask = u32::MAX << (32 - u32::from(bits));
        if u32::from(base) & !mask != 0 {
            return Err(bad("the address has bits below the prefix"));
        }
        Ok(Cidr { base, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cidr: Cidr = "10.43.0.0/16".parse().unwrap();
        assert_eq!((cidr.size(), cidr.nth(10).to_string()), (65536, "10.43.0.10".into()));
        assert_eq!(cidr.offset("10.43.1.0".parse().unwrap()), Some(256));
        assert_eq!(cidr.offset("10.44.0.0".parse().unwrap()), None);
        for bad in ["10.43.0.0", "x/16", "10.43.0.1/16", "10.0.0.0/31"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
