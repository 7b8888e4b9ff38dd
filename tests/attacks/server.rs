//! Somebody who has taken a server: its key and its certificate. While it is a server they have the cluster; once it was removed they have nothing by these.

use crate::holder::refused;
use crate::local::{Local, block_on, until};
use anyhow::{Context as _, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use skiff::agent::wire;
use skiff::client::Api;
use skiff_identity::{Ca, Own, Pair, SERVER_NAME, Subject};
use skiff_proto::fleet;
use skiff_proto::store as peers;
use skiff_proto::store::peer_client::PeerClient;
use std::path::Path;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// What a server shows: its certificate is made at its start, by the authority that it holds and for the key that it keeps.
fn shown(dir: &Path, name: &str) -> anyhow::Result<(Pair, String)> {
    let read = |file: &str| {
        let path = dir.join(name).join("server").join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let ca = Ca::load(Pair { certificate: read("ca.crt")?, key: read("ca.key")? })?;
    let subject = Subject::Server { name: name.to_owned(), names: vec![], addresses: vec![] };
    Ok((ca.issue_for(&subject, &read("server.key")?)?, ca.certificate().to_owned()))
}

/// Asks a member something on its peer port, in the network of the stolen server.
fn ask_peer(local: &Local, of: &str, own: &Pair, ca: &str) -> anyhow::Result<Result<(), tonic::Status>> {
    let cluster = local.cluster()?;
    let url = format!("https://{}:2380", cluster.host.address(of)?);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(&own.certificate, &own.key))
        .domain_name(SERVER_NAME);
    cluster.host.run_in("s3", move || {
        block_on(async {
            let channel = Endpoint::from_shared(url)?.tls_config(tls)?.connect_lazy();
            let asked = PeerClient::new(channel).leases(peers::LeasesRequest::default()).await;
            Ok(asked.map(drop))
        })
    })?
}

pub fn removed() -> anyhow::Result<()> {
    let local = Local::up("stolen-server", 3, 0)?;
    let cluster = local.cluster()?;
    let (own, ca) = shown(&local.dir, "s3")?;
    let asks = async || {
        let channel = wire::channel(&format!("127.0.0.1:{}", cluster.host.port()), &ca, Some(&Own::new(own.clone())?))?;
        anyhow::Ok(wire::client(channel).images(fleet::ImageRequest::default()).await)
    };
    let others = ["s1", "s2"];
    block_on(async { asks().await?.map(drop).map_err(anyhow::Error::from) }).context("while it is a server")?;
    for other in others {
        ask_peer(&local, other, &own, &ca)?.with_context(|| format!("asking {other} while it is a server"))?;
    }
    let listed = local.run(&["member", "ls"])?;
    ensure!(["s1", "s2", "s3", "leader"].iter().all(|word| listed.contains(word)), "{listed}");
    let unknown = local.refused(&["member", "rm", "s9"])?;
    ensure!(unknown.contains("no server \"s9\"; there are s1, s2, s3"), "{unknown}");

    local.run(&["member", "rm", "s3"])?;
    block_on(until("both servers that are left know it", || async {
        let left = local.run(&["member", "ls"])?;
        Ok(!left.contains("s3") && others.iter().all(|s| left.contains(s)))
    }))?;
    for other in others {
        let asked = ask_peer(&local, other, &own, &ca)?;
        let code = asked.as_ref().err().map(tonic::Status::code);
        ensure!(code == Some(tonic::Code::PermissionDenied), "{other} on its peer port: {asked:?}");
    }
    block_on(async {
        let asked = asks().await?;
        let code = asked.as_ref().err().map(tonic::Status::code);
        ensure!(code == Some(tonic::Code::Unauthenticated), "gRPC: {asked:?}");
        let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(local.dir.join("kubeconfig"))?)?;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        config["users"][0]["user"] =
            json!({"client-certificate-data": encode(&own.certificate), "client-key-data": encode(&own.key)});
        let thief = Api::from_kubeconfig(local.file("s3.kubeconfig", config.to_string())?.as_ref())?;
        refused("HTTPS", thief.get("/api/v1/nodes").await, 401)?;
        until("its process says so and ends", || async {
            let ended = cluster.host.status()?.nodes.iter().any(|n| n.name == "s3" && n.pid.is_none());
            let said = std::fs::read_to_string(local.dir.join("s3.log")).unwrap_or_default();
            Ok(ended && said.contains("was removed from the store's group"))
        })
        .await?;
        // The others go on.
        cluster.api.get("/api/v1/nodes").await.map(drop)
    })
}
