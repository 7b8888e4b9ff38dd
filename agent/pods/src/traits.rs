//! What the pods need from outside: a network, tokens, images.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use futures_util::future::BoxFuture;

/// Who a pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique over time.
    pub uid: String,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; empty means all.
    pub host_ip: String,
    /// Port in the pod.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Wires pods. Both calls are idempotent: an agent that came back calls them again.
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the pod whose network namespace is at `netns` an address.
    fn attach(
        &self,
        pod: PodIdentity,
        netns: PathBuf,
        ports: Vec<HostPort>,
    ) -> BoxFuture<'static, Result<Ipv4Addr, String>>;
    /// Takes everything back that `attach` gave.
    fn detach(&self, uid: String) -> BoxFuture<'static, Result<(), String>>;
}

/// A token for a pod's service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Namespace of the pod and of the account.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// Whom the token is for; empty is the API server.
    pub audience: String,
    /// How long it is good.
    pub expiration_seconds: i64,
    /// The pod that it is bound to.
    pub pod_name: String,
    /// Which pod of that name.
    pub pod_uid: String,
}

/// Asks the API for tokens.
pub trait TokenSource: Send + Sync + 'static {
    /// A fresh token.
    fn service_account_token(&self, request: TokenRequest) -> BoxFuture<'static, Result<String, String>>;
}

/// When to look for a newer image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before every start.
    Always,
    /// When it is not here.
    IfNotPresent,
    /// Never.
    Never,
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsuredImage {
    /// The runtime's id.
    pub id: String,
    /// What the status shows: `repository@digest`, or the id.
    pub image_ref: String,
    /// What it says about running it.
    pub config: skiff_runtime::ImageConfig,
    /// It was here already.
    pub present: bool,
    /// Of all its blobs.
    pub size_bytes: u64,
}

/// Why an image is not here, with the reasons that people know from the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// `InvalidImageName`.
    #[error("Failed to apply default image tag {image:?}: {why}")]
    InvalidName {
        /// As written.
        image: String,
        /// The rule that it breaks.
        why: String,
    },
    /// `ErrImageNeverPull`.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// As written.
        image: String,
    },
    /// `ErrImageNeverPull`: it is here, but another's credentials brought it.
    #[error(
        "Container image {image:?} is present, but was pulled with credentials that this pod does not have, and the pull policy of Never forbids to ask the registry"
    )]
    NotYours {
        /// As written.
        image: String,
    },
    /// `ErrImagePull`, later `ImagePullBackOff`.
    #[error("Failed to pull image {image:?}: {why}")]
    Pull {
        /// As written.
        image: String,
        /// The registry's or the network's words.
        why: String,
    },
}

impl ImageError {
    /// The reason as a container's status shows it.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::NeverPull { .. } | ImageError::NotYours { .. } => "ErrImageNeverPull",
            ImageError::Pull { .. } => "ErrImagePull",
        }
    }

    /// The reason of the event that tells it.
    pub fn event(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InspectFailed",
            ImageError::NeverPull { .. } | ImageError::NotYours { .. } => "ErrImageNeverPull",
            ImageError::Pull { .. } => "Failed",
        }
    }
}

/// Brings images here.
pub trait ImageSource: Send + Sync + 'static {
    /// Makes sure that an image is here. `pull_configs`: Docker configurations from pull secrets, in order.
    fn ensure(
        &self,
        image: String,
        policy: PullPolicy,
        pull_configs: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<EnsuredImage, ImageError>>;
}
