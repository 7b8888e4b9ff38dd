//! How a machine becomes part of a cluster: with a token it trusts the one server whose authority the token names, sends a key, and gets a certificate
//! for it. The key stays; it is who the node is.

use super::wire;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skiff_identity::{Pair, Token, Trust};
use skiff_proto::fleet as pb;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a joining machine waits for a server that does not answer yet.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an enrolled node keeps.
#[derive(Clone, Debug)]
pub struct Enrolled {
    pub ca: String,
    pub own: Pair,
    pub servers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    servers: Vec<String>,
}

/// Asks a server to take this machine in.
pub async fn join(addr: &str, token: &Token, request: pb::JoinRequest) -> anyhow::Result<pb::JoinAnswer> {
    let begun = Instant::now();
    loop {
        let channel = wire::with_tls(addr, skiff_identity::joining_client(&token.ca_hash)?, wire::WATCHFUL)?;
        match wire::client(channel).join(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => {
                let error = wire::explain(addr, &status);
                let hopeless = status.code() == tonic::Code::FailedPrecondition
                    || format!("{error:#}").contains("another cluster");
                if hopeless || begun.elapsed() > PATIENCE {
                    return Err(error);
                }
                tracing::debug!("joining: {error:#}; trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The node's identity from `dir`, or by joining with `token`.
pub async fn enrol(dir: &Path, node: &str, server: &str, token: Option<&str>) -> anyhow::Result<Enrolled> {
    let (ca, certificate, key, known) =
        (dir.join("ca.crt"), dir.join("node.crt"), dir.join("node.key"), dir.join("servers.json"));
    let token: Option<Token> = token.map(str::parse).transpose()?;
    if let Some(own) = wire::read_pair(&certificate, &key)? {
        let ca = std::fs::read_to_string(&ca).with_context(|| format!("reading {}", ca.display()))?;
        if let Some(token) = &token
            && !hashes(&ca)?.iter().chain(&former_hashes(dir)?).any(|hash| *hash == token.ca_hash)
        {
            anyhow::bail!(
                "{} belongs to another cluster than the token; use another --data-dir, or remove it",
                dir.display()
            );
        }
        let servers = std::fs::read(&known).ok().and_then(|k| serde_json::from_slice::<Known>(&k).ok());
        let mut servers = servers.map(|k| k.servers).unwrap_or_default();
        if !servers.iter().any(|s| s == server) {
            servers.push(server.to_owned());
        }
        // Also one that is due, or over: it is renewed by the key as soon as a server answers. A token that has expired meanwhile must not keep the agent from its start.
        return Ok(Enrolled { ca, own, servers });
    }
    let token = token.context("this machine is not part of a cluster yet: give --token (from `skiff token create`)")?;
    let old_key = std::fs::read_to_string(&key).ok();
    let (key_pem, signing_request) = skiff_identity::request(old_key.as_deref())?;
    // The key first: a name that was claimed with it must not be lost with it.
    write(&key, &key_pem)?;
    let request =
        pb::JoinRequest { token: token.to_string(), name: node.to_owned(), signing_request, ..Default::default() };
    let answer = join(server, &token, request).await?;
    write(&ca, &answer.ca)?;
    write(&certificate, &answer.certificate)?;
    let mut servers = answer.servers;
    if servers.is_empty() {
        servers.push(server.to_owned());
    }
    remember_servers(dir, &servers)?;
    Ok(Enrolled { ca: answer.ca, own: Pair { certificate: answer.certificate, key: key_pem }, servers })
}

/// A new certificate for the key that this node has. The key is what counts: a server gives one to whoever can sign with the key that the Node names, also when the old
/// certificate has ended.
pub async fn renew(dir: &Path, node: &str, server: &str, trust: &Trust) -> anyhow::Result<Pair> {
    let path = dir.join("node.key");
    let key = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (key, signing_request) = skiff_identity::request(Some(&key))?;
    let request = pb::JoinRequest { name: node.to_owned(), signing_request, ..Default::default() };
    let answer = wire::client(wire::trusting(server, trust, None)?).join(request).await;
    let certificate = answer.map_err(|status| wire::explain(server, &status))?.into_inner().certificate;
    write(&dir.join("node.crt"), &certificate)?;
    Ok(Pair { certificate, key })
}

/// Hashes of authorities that were the cluster's, a line each: the token with which the agent was started may name one.
const FORMER: &str = "ca.former";

fn hashes(pem: &str) -> Result<Vec<String>, skiff_identity::Error> {
    skiff_identity::each(pem).iter().map(|one| skiff_identity::hash(one)).collect()
}

fn former_hashes(dir: &Path) -> anyhow::Result<Vec<String>> {
    let path = dir.join(FORMER);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// Trusts these authorities (PEM) from now on; also after a restart.
pub fn trust(dir: &Path, trust: &Trust, bundle: &str) -> anyhow::Result<()> {
    let (now, mut former) = (hashes(bundle)?, former_hashes(dir)?);
    Trust::new(bundle)?;
    let go: Vec<_> = hashes(&trust.pem())?.into_iter().filter(|h| !now.contains(h) && !former.contains(h)).collect();
    former.extend(go);
    write(&dir.join(FORMER), &former.join("\n"))?;
    write(&dir.join("ca.crt"), bundle)?;
    Ok(trust.replace(bundle)?)
}

/// Takes the node in again whose Node was deleted: with the key that it has, by which its certificate stands again.
pub async fn join_again(dir: &Path, node: &str, server: &str, token: &Token) -> anyhow::Result<()> {
    let path = dir.join("node.key");
    let key = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (_, signing_request) = skiff_identity::request(Some(&key))?;
    let request =
        pb::JoinRequest { token: token.to_string(), name: node.to_owned(), signing_request, ..Default::default() };
    let answer = join(server, token, request).await?;
    write(&dir.join("node.crt"), &answer.certificate)
}

/// Keeps the addresses of all servers, for a start when the first one is gone.
pub fn remember_servers(dir: &Path, servers: &[String]) -> anyhow::Result<()> {
    write(&dir.join("servers.json"), &serde_json::to_string(&Known { servers: servers.to_vec() })?)
}

fn write(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("tmp");
    let run = || -> std::io::Result<()> {
        use std::io::Write as _;
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)
    };
    run().with_context(|| format!("writing {}", path.display()))
}
