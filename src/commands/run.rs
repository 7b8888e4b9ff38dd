//! `skiff server` and `skiff agent`: options of the two long-running processes.

use crate::{agent, server};
use anyhow::Context as _;
use skiff_identity::Hidden;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Run a server of the cluster: store, API, controllers, scheduler.
#[derive(clap::Args, Debug)]
pub struct ServerArgs {
    /// This server's name [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Where everything is kept
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Where the API listens
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// The address at which servers and agents reach this server [default: that of the default route]
    #[arg(long)]
    advertise: Option<IpAddr>,
    /// Where the other servers reach this one's store
    #[arg(long, default_value_t = 2380)]
    peer_port: u16,
    /// host:port of a server to join
    #[arg(long, requires = "token")]
    join: Option<String>,
    /// How long the certificates that this server gives out are good, for trials: each is renewed at half of it
    #[arg(long, hide = true, env = "SKIFF_CERTIFICATE_LIFE", default_value_t = skiff_identity::LEAF_LIFE)]
    certificate_life: jiff::SignedDuration,
    /// A server's token (skiff token create --server)
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: Option<Hidden>,
    /// A further name or address for the API's certificate
    #[arg(long)]
    tls_san: Vec<String>,
    /// The range of pods' addresses
    #[arg(long, default_value = "10.42.0.0/16")]
    cluster_cidr: String,
    /// The range of Services' addresses
    #[arg(long, default_value = "10.43.0.0/16")]
    service_cidr: String,
    /// Static tokens: lines of token,user,uid,"group1,group2"
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// A token to accept from the start
    #[arg(long, hide = true, env = "SKIFF_BOOTSTRAP_TOKENS", hide_env_values = true, value_delimiter = ',')]
    bootstrap_token: Vec<Hidden>,
    /// How long a lost node keeps its pods before they are replaced, milliseconds
    #[arg(long, default_value_t = 1500)]
    eviction_grace_ms: i64,
    /// Refuse requests without credentials altogether
    #[arg(long)]
    no_anonymous: bool,
    /// Serve the API only: no controllers, no scheduler
    #[arg(long)]
    no_controllers: bool,
    /// Kinds that are encrypted in the store: resource or resource.group; the same on every server. Empty for none
    #[arg(long, env = "SKIFF_SEAL", value_delimiter = ',', default_value = "secrets")]
    seal: Vec<String>,
    /// Run no pods on this machine
    #[arg(long)]
    no_agent: bool,
    /// A registry (host:port) to speak to without TLS
    #[arg(long)]
    insecure_registry: Vec<String>,
    /// Most processes and threads in a pod of this machine; 0 for no limit
    #[arg(long, default_value_t = 4096)]
    pod_pids_limit: u64,
    /// Sysctls beyond the safe ones that pods of this machine may set: a name, or a prefix with * behind it
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
}

/// Run a node: its pods, network and DNS.
#[derive(clap::Args, Debug)]
pub struct AgentArgs {
    /// host:port of any server
    #[arg(long)]
    server: String,
    /// An agent's token (skiff token create); needed once
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: Option<Hidden>,
    /// The node's name [default: the host name]
    #[arg(long)]
    node_name: Option<String>,
    /// The address at which other nodes reach this one [default: that towards the server]
    #[arg(long)]
    node_ip: Option<Ipv4Addr>,
    /// Where everything is kept
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// A label for the node, key=value
    #[arg(long)]
    node_label: Vec<String>,
    /// The control group that holds the pods
    #[arg(long, default_value = "skiff")]
    cgroup: String,
    /// A registry (host:port) to speak to without TLS
    #[arg(long)]
    insecure_registry: Vec<String>,
    /// Most processes and threads in a pod; 0 for no limit
    #[arg(long, default_value_t = 4096)]
    pod_pids_limit: u64,
    /// Sysctls beyond the safe ones that pods may set: a name, or a prefix with * behind it
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("reading the host name; give --name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

impl ServerArgs {
    pub fn options(self) -> anyhow::Result<server::Options> {
        let advertise = match self.advertise {
            Some(address) => address,
            None if !self.listen.ip().is_unspecified() => self.listen.ip(),
            None => IpAddr::V4(agent::default_address()?),
        };
        Ok(server::Options {
            name: self.name.map_or_else(host_name, Ok)?,
            data_dir: self.data_dir,
            listen: self.listen,
            advertise,
            peer_port: self.peer_port,
            join: self.join.zip(self.token.map(|token| token.0)),
            tls_san: self.tls_san,
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            token_file: self.token_auth_file,
            bootstrap_tokens: self.bootstrap_token.into_iter().map(|token| token.0).collect(),
            eviction_grace_ms: self.eviction_grace_ms,
            certificate_life: self.certificate_life,
            anonymous: !self.no_anonymous,
            controllers: !self.no_controllers,
            agent: !self.no_agent,
            sealed: self.seal.into_iter().filter(|kind| !kind.is_empty()).collect(),
            insecure_registries: self.insecure_registry,
            pod_pids_limit: self.pod_pids_limit,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls,
        })
    }
}

impl AgentArgs {
    pub fn options(self) -> anyhow::Result<agent::Options> {
        let label = |text: &String| {
            let (key, value) =
                text.split_once('=').with_context(|| format!("--node-label {text:?} is not key=value"))?;
            anyhow::Ok((key.to_owned(), value.to_owned()))
        };
        Ok(agent::Options {
            node: self.node_name.map_or_else(host_name, Ok)?,
            server: self.server,
            token: self.token.map(|token| token.0),
            data_dir: self.data_dir,
            node_ip: self.node_ip,
            labels: self.node_label.iter().map(label).collect::<Result<_, _>>()?,
            cgroup: self.cgroup,
            insecure_registries: self.insecure_registry,
            pod_pids_limit: self.pod_pids_limit,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls,
        })
    }
}
