//! The cluster's authority is exchanged while everything runs: nobody is shut out on the way, and nothing of the old one is good for anything afterwards.

use crate::local::{Local, PATIENCE, block_on, text, until, wait_until};
use crate::pods;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff::agent::wire;
use skiff::client::Api;
use skiff::commands::cluster::{Cluster, is_ready, items};
use skiff_identity::{Ca, Own, Pair, SERVER_NAME, Subject};
use skiff_local::NodeSpec;
use skiff_proto::{fleet, store as peers};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A request answered each so often, by a client that takes its kubeconfig anew each time, as an administrator does at each step.
struct Asking {
    stop: Arc<AtomicBool>,
    task: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Asking {
    fn begin(local: &Local) -> anyhow::Result<Asking> {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, dir, server) = (stop.clone(), local.dir.clone(), server_of(local)?);
        let task = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !until.load(Ordering::Acquire) {
                let asked = block_on(async { admin(&dir, "s1", &server, "asking")?.get("/api/v1/nodes").await });
                match asked {
                    Ok(_) => answered += 1,
                    Err(e) => failed.push(format!("{e:#}")),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (answered, failed)
        });
        Ok(Asking { stop, task })
    }

    fn end(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Release);
        let (answered, failed) = self.task.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        ensure!(failed.is_empty(), "of {} requests failed: {failed:?}", answered + failed.len());
        Ok(answered)
    }
}

fn yaml(path: &Path) -> anyhow::Result<Value> {
    Ok(serde_yaml::from_str(&std::fs::read_to_string(path)?)?)
}

/// Where this machine reaches the cluster's API.
fn server_of(local: &Local) -> anyhow::Result<Value> {
    Ok(yaml(&local.dir.join("kubeconfig"))?["clusters"][0]["cluster"]["server"].clone())
}

/// A server's kubeconfig for the administrator as it is now, written under `name` for use from here.
fn kubeconfig(dir: &Path, server: &str, api: &Value, name: &str) -> anyhow::Result<PathBuf> {
    let mut config = yaml(&dir.join(server).join("server/admin.kubeconfig"))?;
    config["clusters"][0]["cluster"]["server"] = api.clone();
    let path = dir.join(name);
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

fn admin(dir: &Path, server: &str, api: &Value, name: &str) -> anyhow::Result<Api> {
    Api::from_kubeconfig(&kubeconfig(dir, server, api, name)?)
}

/// Takes the administrator's kubeconfig anew from `s1`.
fn refresh(local: &Local) -> anyhow::Result<()> {
    kubeconfig(&local.dir, "s1", &server_of(local)?, "kubeconfig").map(drop)
}

fn authority(dir: &Path, server: &str) -> anyhow::Result<Pair> {
    let read = |file: &str| std::fs::read_to_string(dir.join(server).join("server").join(file));
    Ok(Pair { certificate: read("ca.crt")?, key: read("ca.key")? })
}

fn encode(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The API for who trusts the authorities in `ca` and shows `own`.
fn api_as(local: &Local, ca: &str, own: &Pair) -> anyhow::Result<Api> {
    let mut config = yaml(&local.dir.join("kubeconfig"))?;
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encode(ca).into();
    config["users"][0]["user"] =
        json!({"client-certificate-data": encode(&own.certificate), "client-key-data": encode(&own.key)});
    Api::from_kubeconfig(local.file("other.kubeconfig", config.to_string())?.as_ref())
}

fn ready_nodes(nodes: &Value) -> usize {
    items(nodes).filter(|n| is_ready(n)).count()
}

/// Adds a machine that joins with a token, as `skiff server` or `skiff agent` has it.
fn add(local: &Local, cluster: &Cluster, name: &str, token: &str) -> anyhow::Result<()> {
    let (address, first) = (cluster.host.address(name)?.to_string(), format!("{}:6443", cluster.host.address("s2")?));
    let (data, cgroup) = (local.dir.join(name).display().to_string(), cluster.host.cgroup(name));
    let words = match name.starts_with('s') {
        true => vec!["server", "--name", name, "--advertise", &address, "--no-agent", "--join", &first],
        false => vec!["agent", "--server", &first, "--node-name", name, "--node-ip", &address, "--cgroup", &cgroup],
    };
    let words = words.into_iter().chain(["--data-dir", &data]);
    let argv = [crate::local::SKIFF].into_iter().chain(words).map(str::to_owned).collect();
    let env = BTreeMap::from([("SKIFF_TOKEN".to_owned(), token.to_owned())]);
    cluster.host.spawn(NodeSpec { name: name.to_owned(), argv, env, log: local.dir.join(format!("{name}.log")) })?;
    Ok(())
}

/// What a certificate of the authority that is gone gets on the ports for agents and for the servers' stores; with a pair that is good, to see that the question is.
fn ask_inside(local: &Local, ca: &str, own: &Pair) -> anyhow::Result<(bool, bool)> {
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    let cluster = local.cluster()?;
    let (api, peer) =
        (format!("{}:6443", cluster.host.address("s2")?), format!("https://{}:2380", cluster.host.address("s2")?));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(&own.certificate, &own.key))
        .domain_name(SERVER_NAME);
    let (ca, own) = (ca.to_owned(), own.clone());
    cluster.host.run_in("s1", move || {
        block_on(async {
            let channel = wire::channel(&api, &ca, Some(&Own::new(own)?))?;
            let by_grpc = wire::client(channel).images(fleet::ImageRequest::default()).await.is_ok();
            let channel = Endpoint::from_shared(peer)?.tls_config(tls)?.connect_lazy();
            let by_peer =
                peers::peer_client::PeerClient::new(channel).leases(peers::LeasesRequest::default()).await.is_ok();
            Ok((by_grpc, by_peer))
        })
    })?
}

/// A file of the service account of the pod `steady`, as its process reads it.
fn mounted(file: &str) -> anyhow::Result<String> {
    let process = pods::processes("steady").into_iter().next().context("the pod runs")?;
    let path = format!("/proc/{process}/root/var/run/secrets/kubernetes.io/serviceaccount/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

pub fn rotation() -> anyhow::Result<()> {
    let local = Local::up("authority", 3, 2)?;
    local.run(&["demo-image"])?;
    let cluster = local.cluster()?;
    let old = Ca::load(authority(&local.dir, "s1")?)?;
    let old_token = local.run(&["token", "create"])?.trim().to_owned();
    wait_until("s1 has written its kubeconfig", || Ok(local.dir.join("s1/server/admin.kubeconfig").exists()))?;
    let before = kubeconfig(&local.dir, "s1", &server_of(&local)?, "before.kubeconfig")?;
    let stale = before.to_str().context("a plain path")?;
    block_on(pods::start(&cluster.api, &pods::web("steady", "a1")))?;
    let runs = || local.run(&["exec", "steady", "--", "/skiff", "--version"]).map(drop);
    ensure!(local.run(&["ca", "status"])?.contains("no exchange"));
    for step in ["--issue", "--finish"] {
        let complaint = local.refused(&["ca", "rotate", step])?;
        ensure!(complaint.contains("no exchange of the authority was begun"), "{step}: {complaint}");
    }
    let asking = Asking::begin(&local)?;

    // A node that does not answer is waited for, by name; and no step is taken before it has.
    cluster.host.kill("a2", Signal::SIGSTOP)?;
    let complaint = local.refused(&["ca", "rotate", "--timeout", "5"])?;
    ensure!(complaint.contains("node a2") && !complaint.contains("node a1 "), "{complaint}");
    wait_until("s1's kubeconfig trusts both", || {
        refresh(&local)?;
        Ok(skiff_identity::each(&local.cluster()?.api.ca).len() == 2)
    })?;
    for step in ["--issue", "--finish"] {
        let complaint = local.refused(&["ca", "rotate", step])?;
        ensure!(complaint.contains("node a2") || complaint.contains("does not follow"), "{step}: {complaint}");
    }
    cluster.host.kill("a2", Signal::SIGCONT)?;
    // A server that dies in the middle goes on where it was.
    let cluster = local.cluster()?;
    let leader = block_on(cluster.leader())?;
    let follower = ["s2", "s3"].into_iter().find(|s| *s != leader).context("a follower")?;
    cluster.host.restart(follower)?;
    let said = local.run(&["ca", "rotate"])?;
    ensure!(said.contains("next:") && said.contains("--issue"), "{said}");
    runs()?;

    let shut_out = local.refused(&["ca", "rotate", "--issue", "--kubeconfig", stale])?;
    ensure!(shut_out.contains("does not trust both authorities yet"), "{shut_out}");
    let both = kubeconfig(&local.dir, "s1", &server_of(&local)?, "both.kubeconfig")?;
    let said = local.run(&["ca", "rotate", "--issue"])?;
    ensure!(said.contains("next:") && said.contains("--finish"), "{said}");
    runs()?;
    cluster.host.restart(follower)?;
    cluster.host.restart("a1")?;
    let new = Ca::load(authority(&local.dir, "s1")?)?;
    ensure!(new.certificate() != old.certificate());
    for node in ["a1", "a2"] {
        let shown = std::fs::read_to_string(local.dir.join(node).join("agent/node.crt"))?;
        ensure!(skiff_identity::issuer_hash(&shown) == new.hash().ok(), "{node} shows a certificate of the old one");
    }
    let shut_out =
        local.refused(&["ca", "rotate", "--finish", "--kubeconfig", both.to_str().context("a plain path")?])?;
    ensure!(shut_out.contains("is of the old authority"), "{shut_out}");
    refresh(&local)?;
    wait_until("the last step is taken", || {
        // The node that was started again may not have been heard of yet.
        Ok(local.skiff(&["ca", "rotate", "--finish"])?.status.success())
    })?;
    let answered = asking.end()?;
    ensure!(answered >= 20, "only {answered} requests were made");
    refresh(&local)?;
    runs()?;

    after(&local, (&old, &new), &before, &old_token)
}

/// Nothing of the old authority is good for anything, and everything goes on by the new one.
fn after(local: &Local, (old, new): (&Ca, &Ca), before: &Path, old_token: &str) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    ensure!(cluster.api.ca == new.certificate(), "the new kubeconfig trusts the new one alone");
    for server in ["s1", "s2", "s3"] {
        ensure!(authority(&local.dir, server)?.certificate == new.certificate(), "{server} keeps the new one alone");
    }
    let config = yaml(before)?;
    let decode = |pointer: &str| {
        use base64::Engine as _;
        let text = config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Ok::<_, anyhow::Error>(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
    };
    let user = "/users/0/user/client";
    let held =
        Pair { certificate: decode(&format!("{user}-certificate-data"))?, key: decode(&format!("{user}-key-data"))? };
    let masters = Subject::User { name: "kubernetes-admin".into(), group: Some("system:masters".into()) };
    block_on(async {
        for (what, own, good) in [
            ("the old kubeconfig's certificate", &held, false),
            ("one that is forged with the old key", &old.issue(&masters)?, false),
            ("one of the new authority", &new.issue(&masters)?, true),
        ] {
            let asked = api_as(local, new.certificate(), own)?.get("/api/v1/nodes").await;
            ensure!(asked.is_ok() == good, "{what}: {asked:?}");
        }
        anyhow::Ok(())
    })?;
    let server = Subject::Server { name: "s1".into(), names: vec![], addresses: vec![] };
    let key = std::fs::read_to_string(local.dir.join("s1/server/server.key"))?;
    let forged = old.issue_for(&server, &key)?;
    ensure!(ask_inside(local, new.certificate(), &forged)? == (false, false), "by gRPC or on the peer port");
    ensure!(
        ask_inside(local, new.certificate(), &new.issue_for(&server, &key)?)? == (true, true),
        "the question is good"
    );

    // A pod reaches the API by what is mounted into it.
    wait_until("the pod's ca.crt is the new one", || Ok(mounted("ca.crt")? == new.certificate()))?;
    let mut config = yaml(&local.dir.join("kubeconfig"))?;
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encode(&mounted("ca.crt")?).into();
    config["users"][0]["user"] = json!({"token": mounted("token")?});
    let pod = Api::from_kubeconfig(local.file("pod.kubeconfig", config.to_string())?.as_ref())?;
    block_on(async { pod.get("/apis").await.map(drop) }).context("as the pod")?;

    // Everything starts again, with the words of before: their tokens name the old authority.
    for name in ["a1", "a2", "s3", "s2", "s1"] {
        cluster.host.restart(name)?;
        wait_until(&format!("{name} is back"), || match name.starts_with('s') {
            true => cluster.has(name, "/api/v1/namespaces/default"),
            false => block_on(async { Ok(is_ready(&cluster.api.get(&format!("/api/v1/nodes/{name}")).await?)) }),
        })?;
    }
    // And others join.
    add(local, &cluster, "a8", old_token)?;
    wait_until("the old token is refused, with the reason", || {
        let said = std::fs::read(local.dir.join("a8.log")).unwrap_or_default();
        Ok(text(&said).contains("another cluster than the token"))
    })?;
    let token = |words: &[&str]| anyhow::Ok(local.run(&[&["token", "create"], words].concat())?.trim().to_owned());
    add(local, &cluster, "a3", &token(&[])?)?;
    add(local, &cluster, "s4", &token(&["--server"])?)?;
    let begun = Instant::now();
    block_on(until("three nodes are Ready", || async {
        Ok(ready_nodes(&cluster.api.get("/api/v1/nodes").await?) == 3)
    }))?;
    wait_until("s4 is a member", || Ok(local.run(&["member", "ls"])?.contains("s4")))?;
    wait_until("s4 serves", || cluster.has("s4", "/api/v1/namespaces/default"))?;
    ensure!(begun.elapsed() < PATIENCE);
    let said = local.run(&["ca", "status"])?;
    ensure!(said.contains("has taken the place of") && !said.contains("waiting"), "{said}");
    Ok(())
}
