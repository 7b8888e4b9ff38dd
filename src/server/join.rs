//! Becoming part of a cluster: a server that joins another, and tokens.
//!
//! A token is kept as Kubernetes keeps bootstrap tokens: a Secret in kube-system with an expiry; a group in it says what the holder may
//! become.

use super::{Files, Options};
use anyhow::{Context as _, bail};
use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use skiff_api::kinds;
use skiff_apiserver::Client;
use skiff_identity::sealing::SealingKeys;
use skiff_identity::{Pair, Role, Token};
use skiff_proto::fleet as pb;
use std::net::SocketAddr;

/// Sees to it that the data directory belongs to a cluster: founds one, or joins the one that was named. Gives the peers to join the store of
/// (none for a founder, and none for a member that has its data already).
///
/// A server that joined once asks nobody again, so it may be restarted with the same words when its token has expired, and with none.
pub async fn prepare(options: &Options, files: &Files) -> anyhow::Result<Vec<String>> {
    let token: Option<Token> = options.join.as_ref().map(|(_, token)| token.parse()).transpose()?;
    if let Some(token) = &token
        && files.has_cluster()
        && !files.knows_authority(&token.ca_hash)?
    {
        bail!(
            "the data directory {} belongs to another cluster than the token; use another --data-dir, or remove it",
            options.data_dir.display()
        );
    }
    if files.has_cluster() {
        if skiff_store::has_data(&files.store()) {
            return Ok(Vec::new());
        }
        if let Some(peers) = files.peers()? {
            return Ok(peers);
        }
    }
    match (&options.join, token) {
        (Some((address, _)), Some(token)) => join(options, files, address, &token).await,
        _ => {
            if !files.has_cluster() {
                check_ranges(options)?;
                files.found()?;
            }
            Ok(Vec::new())
        }
    }
}

/// Ranges are chosen once, when a cluster is founded; a clash would show much later, as connections that go nowhere.
fn check_ranges(options: &Options) -> anyhow::Result<()> {
    let parse = |text: &str, option: &str| {
        text.parse::<skiff_network::Cidr>().map_err(|e| anyhow::anyhow!("{option} {text:?}: {e}"))
    };
    let pods = parse(&options.cluster_cidr, "--cluster-cidr")?;
    let services = parse(&options.service_cidr, "--service-cidr")?;
    skiff_network::check_ranges(pods, services)
        .context("founding the cluster: give others with --cluster-cidr and --service-cidr")
}

async fn join(options: &Options, files: &Files, address: &str, token: &Token) -> anyhow::Result<Vec<String>> {
    if token.role != Role::Server {
        bail!("this is an agent's token; a server that joins needs one from `skiff token create --server`");
    }
    let (_, signing_request) = skiff_identity::request(None)?;
    let request = pb::JoinRequest {
        token: token.to_string(),
        name: options.name.clone(),
        signing_request,
        api_addr: SocketAddr::new(options.advertise, options.listen.port()).to_string(),
        names: Vec::new(),
    };
    let answer = crate::agent::enrol::join(address, token, request).await?;
    let ca = Pair { certificate: answer.ca, key: answer.ca_key };
    // Before the keys: with them alone, a server that crashed here would found a store of its own.
    files.remember_peers(&answer.peers)?;
    // A cluster of an older version has none; this server gets one when the others do.
    if !answer.sealing_keys.is_empty() {
        files.keep_sealing_keys(&SealingKeys::parse(&answer.sealing_keys)?)?;
    }
    files.keep(&ca, &answer.token_key)?;
    Ok(answer.peers)
}

/// Makes the cluster accept a token. `lifetime`: None for one that does not expire.
pub async fn accept_token(client: &Client, token: &Token, lifetime: Option<SignedDuration>) -> anyhow::Result<()> {
    let secrets = kinds::by_resource("", "v1", "secrets").context("secrets are not served")?;
    match client.create(&secrets, "kube-system", token_secret(token, lifetime)).await {
        Err(status) if status.reason != "AlreadyExists" => bail!("keeping the token: {}", status.message),
        _ => Ok(()),
    }
}

/// The Secret that stands for a token.
pub fn token_secret(token: &Token, lifetime: Option<SignedDuration>) -> serde_json::Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut data = json!({
        "token-id": encode(&token.id),
        "token-secret": encode(&token.secret),
        "usage-bootstrap-authentication": encode("true"),
        "auth-extra-groups": encode(&format!("system:bootstrappers:skiff:{}", token.role.as_str())),
    });
    if let Some(lifetime) = lifetime {
        data["expiration"] = encode(&skiff_api::meta::format_time(Timestamp::now() + lifetime)).into();
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "data": data,
    })
}

/// Makes a token through the API, as `skiff token create` does on a server.
pub async fn write_token(
    api: &crate::client::Api,
    ca_pem: &str,
    role: Role,
    lifetime: Option<SignedDuration>,
) -> anyhow::Result<Token> {
    let token = Token::generate(skiff_identity::hash(ca_pem)?, role);
    api.post("/api/v1/namespaces/kube-system/secrets", &token_secret(&token, lifetime)).await?;
    Ok(token)
}
