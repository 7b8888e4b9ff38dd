//! What the fleet asks of the API: agents' reports become writes, by a trait, because this crate does not know the API server.

use futures_util::future::BoxFuture;
use skiff_proto::fleet as pb;

/// Why a report was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// The request itself is refused (a wrong token, a name that is taken): trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// Try again.
    #[error("{0}")]
    Unavailable(String),
}

/// What a node learns when its session begins.
#[derive(Clone, Debug, Default)]
pub struct Welcome {
    pub service_cidr: String,
    pub cluster_cidr: String,
    pub cluster_dns: String,
    pub cluster_domain: String,
    pub servers: Vec<String>,
    /// The authorities that are trusted, PEM.
    pub ca: String,
    /// The hash of the one that issues.
    pub issuer: String,
}

type Answer<T> = BoxFuture<'static, Result<T, UpstreamError>>;

/// The API, as far as agents need it. `node` is the name in the agent's certificate.
pub trait Upstream: Send + Sync + 'static {
    fn join(&self, request: pb::JoinRequest) -> Answer<pb::JoinAnswer>;
    /// Makes or updates the Node object.
    fn register(&self, node: String, object: Vec<u8>) -> Answer<()>;
    fn node_status(&self, node: String, status: Vec<u8>) -> Answer<()>;
    fn pod_status(&self, node: String, status: pb::PodStatus) -> Answer<()>;
    /// The pod has ended on its node: its object may go.
    fn pod_gone(&self, node: String, pod: pb::PodGone) -> Answer<()>;
    fn event(&self, node: String, event: pb::Event) -> Answer<()>;
    /// A token and when it ends (Unix seconds).
    fn token(&self, node: String, request: pb::TokenRequest) -> Answer<(String, i64)>;
    fn welcome(&self) -> Welcome;
    /// Takes in an archive of images and keeps them for the cluster; a record for each name.
    fn put_image(&self, chunks: tokio::sync::mpsc::Receiver<pb::ImageChunk>) -> Answer<Vec<pb::ImageRecord>>;
    /// The archive of an image that this server holds, in chunks.
    fn image(&self, reference: String) -> Answer<tokio::sync::mpsc::Receiver<pb::ImageChunk>>;
    /// The cluster's catalogue; or, for one reference, what this server holds under it.
    fn images(&self, reference: String) -> Answer<Vec<pb::ImageRecord>>;
    /// Fetches an image from its registry and keeps it for the cluster.
    fn pull_image(&self, request: pb::PullRequest) -> Answer<pb::ImageRecord>;
    /// Takes a name out of the catalogue.
    fn remove_image(&self, reference: String) -> Answer<pb::ImageRecord>;
    /// The servers of the cluster.
    fn members(&self) -> Answer<pb::MemberList>;
    /// Takes a server out of the cluster, by its name or id; those that are left.
    /// Takes a step of the exchange of the cluster's authority, or none; where that stands.
    fn rotate_authority(&self, step: String) -> Answer<pb::Rotation>;
    fn remove_member(&self, name: String) -> Answer<pb::MemberList>;
}
