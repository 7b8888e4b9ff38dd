//! A cluster of real server and agent processes on this one machine, each in a network namespace of its own: what `up`, `demo` and the tests share.

use crate::client::{Api, kubeconfig};
use crate::secrets;
use crate::server::Files;
use anyhow::{Context as _, bail};
use serde_json::Value;
use skiff_identity::{Ca, Role, Subject, Token};
use skiff_local::{Host, LocalConfig, NodeSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How large, and where.
#[derive(Clone, Debug)]
pub struct Shape {
    pub dir: PathBuf,
    pub servers: usize,
    pub agents: usize,
    /// The cluster ends with this process.
    pub tied: bool,
    /// Pods reach what this machine reaches.
    pub uplink: bool,
}

/// A local cluster that runs.
pub struct Cluster {
    pub host: Host,
    pub dir: PathBuf,
    pub api: Api,
}

/// Names instances apart: some letters that follow from the directory.
fn instance(dir: &Path) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(dir.as_os_str().as_encoded_bytes());
    format!("l{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

pub fn registry() -> PathBuf {
    PathBuf::from(skiff_local::registry::FOLDER)
}

impl Cluster {
    /// Starts servers and agents; returns when every node is Ready and every server votes. A directory that had a cluster before keeps its data.
    pub async fn start(shape: &Shape) -> anyhow::Result<Cluster> {
        let dir = std::path::absolute(&shape.dir)?;
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let host = Host::create(LocalConfig {
            dir: dir.clone(),
            instance: instance(&dir),
            uplink: shape.uplink,
            port: 0,
            subnet: kept_subnet(&dir),
            tied: shape.tied,
            temporary: shape.tied,
            supervisor_args: vec!["local-supervisor".into()],
            registry: registry(),
        })?;
        std::fs::write(dir.join("subnet"), host.subnet().to_string())?;
        let api = Self::spawn_all(&host, &dir, shape)?;
        let cluster = Cluster { host, dir, api };
        cluster.wait_until_whole(shape).await?;
        Ok(cluster)
    }

    /// Writes the administrator's kubeconfig anew: the authority may be another one, and a certificate ends.
    pub fn renew_kubeconfig(&self) -> anyhow::Result<()> {
        write_kubeconfig(&self.host, &self.dir)
    }

    /// A cluster that runs already.
    pub fn open(dir: &Path) -> anyhow::Result<Cluster> {
        let dir = std::path::absolute(dir)?;
        let host = Host::open(&dir, &registry())?;
        let api = Api::from_kubeconfig(&dir.join("kubeconfig"))?;
        Ok(Cluster { host, dir, api })
    }

    /// The cluster's keys are made here, before any server runs: so tokens and the kubeconfig exist from the start.
    fn spawn_all(host: &Host, dir: &Path, shape: &Shape) -> anyhow::Result<Api> {
        let files = Files::new(dir.join("s1"))?;
        if !files.has_cluster() {
            files.found()?;
        }
        let pair = files.ca()?;
        let ca = Ca::load(pair)?;
        let (agent, server) = (Token::generate(ca.hash()?, Role::Agent), Token::generate(ca.hash()?, Role::Server));
        write_kubeconfig(host, dir)?;
        let first = format!("{}:6443", host.address("s1")?);
        for n in 1..=shape.servers {
            let name = format!("s{n}");
            let address = host.address(&name)?.to_string();
            let data = dir.join(&name).display().to_string();
            let mut argv =
                words(&["server", "--name", &name, "--data-dir", &data, "--advertise", &address, "--no-agent"])?;
            let secret = if n == 1 {
                (secrets::BOOTSTRAP_TOKENS.1, format!("{agent},{server}"))
            } else {
                argv.extend(["--join".into(), first.clone()]);
                (secrets::TOKEN.1, server.to_string())
            };
            spawn(host, dir, &name, argv, secret)?;
        }
        for n in 1..=shape.agents {
            let name = format!("a{n}");
            let address = host.address(&name)?.to_string();
            let (data, cgroup) = (dir.join(&name).display().to_string(), host.cgroup(&name));
            let argv = words(&[
                "agent",
                "--server",
                &first,
                "--node-name",
                &name,
                "--node-ip",
                &address,
                "--data-dir",
                &data,
                "--cgroup",
                &cgroup,
            ])?;
            spawn(host, dir, &name, argv, (secrets::TOKEN.1, agent.to_string()))?;
        }
        Api::from_kubeconfig(&dir.join("kubeconfig"))
    }

    async fn wait_until_whole(&self, shape: &Shape) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.state(shape).await;
            match state {
                Ok(None) => return Ok(()),
                Ok(Some(missing)) if Instant::now() > deadline => {
                    bail!("the cluster is not whole after 60 s: {missing}; the logs are in {}", self.dir.display())
                }
                Err(e) if Instant::now() > deadline => return Err(e),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The name of the server that leads, as it has written itself.
    pub async fn leader(&self) -> anyhow::Result<String> {
        let lease = self.api.get(crate::server::LEADER_LEASE).await?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Whether a server itself, asked in its own namespace, has the object at `path`. Its answer is linearizable, so it comes when the server has caught
    /// up with everything that was acknowledged before.
    pub fn has(&self, server: &str, path: &str) -> anyhow::Result<bool> {
        let api = self.api.at(format!("{}:6443", self.host.address(server)?));
        let path = path.to_owned();
        self.host.run_in(server, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), api.get(&path)).await });
            anyhow::Ok(matches!(answer, Ok(Ok(_))))
        })?
    }

    /// What is still missing, in words.
    async fn state(&self, shape: &Shape) -> anyhow::Result<Option<String>> {
        for node in self.host.status()?.nodes {
            if let Some(ended) = node.ended.filter(|_| node.pid.is_none()) {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("nothing in its log").to_owned();
                bail!("{} ended ({ended}): {last}", node.name);
            }
        }
        let nodes = self.api.get("/api/v1/nodes").await?;
        let ready = items(&nodes).filter(|n| is_ready(n)).count();
        if ready < shape.agents {
            return Ok(Some(format!("{ready} of {} nodes are Ready", shape.agents)));
        }
        let slices = self.api.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await;
        let servers = slices.map_or(0, |s| {
            s["endpoints"].as_array().into_iter().flatten().flat_map(|e| e["addresses"].as_array()).map(Vec::len).sum()
        });
        if shape.servers > 1 && servers < shape.servers {
            return Ok(Some(format!("{servers} of {} servers serve", shape.servers)));
        }
        Ok(None)
    }
}

/// A directory that had a cluster keeps its addresses: they are in its nodes' records.
fn kept_subnet<T: std::str::FromStr>(dir: &Path) -> Option<T> {
    std::fs::read_to_string(dir.join("subnet")).ok()?.trim().parse().ok()
}

fn words(words: &[&str]) -> anyhow::Result<Vec<String>> {
    let own = std::env::current_exe().context("finding this binary")?;
    let mut argv = vec![own.display().to_string()];
    argv.extend(words.iter().map(|w| (*w).to_owned()));
    Ok(argv)
}

/// Starts a node's process; its secret (variable and value) goes with its environment, which other users of this machine cannot read.
fn spawn(host: &Host, dir: &Path, name: &str, argv: Vec<String>, secret: (&str, String)) -> anyhow::Result<()> {
    let log = dir.join(format!("{name}.log"));
    let mut env = BTreeMap::from([(secret.0.to_owned(), secret.1)]);
    for variable in ["SKIFF_LOG", "SKIFF_CERTIFICATE_LIFE"] {
        if let Ok(value) = std::env::var(variable) {
            env.insert(variable.to_owned(), value);
        }
    }
    host.spawn(NodeSpec { name: name.to_owned(), argv, env, log }).with_context(|| format!("starting {name}"))?;
    Ok(())
}

/// The administrator's kubeconfig, by the authority in the first server's folder.
fn write_kubeconfig(host: &Host, dir: &Path) -> anyhow::Result<()> {
    let pair = Files::new(dir.join("s1"))?.ca()?;
    let (bundle, ca) = (pair.certificate.clone(), Ca::load(pair)?);
    let admin = Subject::User { name: "kubernetes-admin".into(), group: Some("system:masters".into()) };
    let config = kubeconfig(&format!("https://127.0.0.1:{}", host.port()), &bundle, &ca.issue(&admin)?);
    write_private(&dir.join("kubeconfig"), &config)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// The items of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Whether an object's Ready condition is True.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
