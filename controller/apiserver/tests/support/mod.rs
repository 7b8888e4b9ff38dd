//! A server of its own for a test: real TLS with a cluster CA, an in-memory store, one node whose containers are made up here.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod ask;
pub mod nodes;

use base64::Engine as _;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_apiserver::{ApiServer, Bounds, Client, Config, Objects, Sealing, TokenSigner, UserInfo};
use skiff_identity::sealing::{Keyring, SealingKeys};
use skiff_identity::{Ca, Pair, Subject};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running server; it stops, and its folder goes, when this is dropped.
pub struct Cluster {
    pub address: SocketAddr,
    pub server: ApiServer,
    pub ca: Ca,
    /// For kubeconfigs and caches.
    pub folder: PathBuf,
    _stop: DropGuard,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Cluster {
    pub async fn start() -> anyhow::Result<Cluster> {
        Cluster::bounded(Bounds::default()).await
    }

    /// A server of which clients may hold this much.
    pub async fn bounded(bounds: Bounds) -> anyhow::Result<Cluster> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        skiff_identity::install_crypto();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("skiff-apiserver-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let ca = Ca::generate()?;
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let own = ca.issue(&Subject::Server { name: "test".into(), names: vec!["localhost".into()], addresses })?;
        let tls = skiff_identity::server(ca.certificate(), &own)?;
        let mut config = Config::new(Arc::new(TokenSigner::generate("https://kubernetes.default.svc")));
        config.controllers = false;
        config.bounds = bounds;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // Endpoints may not be on the loopback; nobody dials this one.
        config.endpoints = vec![SocketAddr::from(([192, 0, 2, 1], address.port()))];
        // Every test that touches a Secret goes through a sealed one.
        let keys = Keyring::new(SealingKeys::generate()?)?;
        let objects = Objects::new(skiff_store::Store::in_memory().await, Sealing::new(keys, &["secrets".into()])?);
        let server = ApiServer::new(config, objects, Arc::new(nodes::Scripted))?;
        let stop = CancellationToken::new();
        let (serving, until) = (server.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener, Some(tls), until).await });
        server.ready().await;
        Ok(Cluster { address, server, ca, folder, _stop: stop.drop_guard() })
    }

    pub fn admin(&self) -> Client {
        self.server.client(UserInfo::apiserver())
    }

    /// A key pair of the cluster for a user.
    pub fn user(&self, name: &str, group: Option<&str>) -> anyhow::Result<Pair> {
        Ok(self.ca.issue(&Subject::User { name: name.into(), group: group.map(String::from) })?)
    }

    /// Writes a kubeconfig for a user with a client certificate.
    pub fn kubeconfig(&self, name: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
        let pair = self.user(name, group)?;
        let text = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", self.address), "certificate-authority-data": text(self.ca.certificate()),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": text(&pair.certificate), "client-key-data": text(&pair.key),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        });
        let path = self.folder.join(format!("{}.kubeconfig", name.replace(':', "-")));
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    pub async fn create(&self, group: &str, resource: &str, namespace: &str, object: Value) -> anyhow::Result<Value> {
        let kind = kinds::by_resource(group, "v1", resource).ok_or_else(|| anyhow::anyhow!("no {resource}"))?;
        self.admin().create(&kind, namespace, object).await.map_err(|s| anyhow::anyhow!("{resource}: {}", s.message))
    }

    /// A node and a pod that runs on it.
    pub async fn running_pod(&self, node: &str, name: &str) -> anyhow::Result<Value> {
        let nodes = kinds::by_resource("", "v1", "nodes").ok_or_else(|| anyhow::anyhow!("no nodes"))?;
        if self.admin().find(&nodes, "", node).await.map_err(anyhow::Error::msg)?.is_none() {
            self.create("", "nodes", "", json!({"metadata": {"name": node}})).await?;
        }
        let accounts = kinds::by_resource("", "v1", "serviceaccounts").ok_or_else(|| anyhow::anyhow!("no accounts"))?;
        if self.admin().find(&accounts, "default", "default").await.map_err(anyhow::Error::msg)?.is_none() {
            self.create("", "serviceaccounts", "default", json!({"metadata": {"name": "default"}})).await?;
        }
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [{"name": "main", "image": "made-up"}]},
        });
        let pod = self.create("", "pods", "default", pod).await?;
        let admin = self.admin();
        admin.bind("default", name, "", node).await.map_err(|s| anyhow::anyhow!(s.message))?;
        let pods = kinds::by_resource("", "v1", "pods").ok_or_else(|| anyhow::anyhow!("no pods"))?;
        let status = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "image": "made-up", "imageID": "x", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        }});
        let how = skiff_apiserver::PatchType::Merge;
        let patched = admin.patch(&pods, "default", name, "status", how, &status).await;
        patched.map_err(|s| anyhow::anyhow!(s.message))?;
        Ok(pod)
    }
}
