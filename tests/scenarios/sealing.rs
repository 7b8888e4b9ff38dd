//! Secrets lie encrypted in the store, on every server, and the keys can be exchanged while everything runs.

use crate::local::{Local, SKIFF, block_on, text, until, wait_until};
use crate::pods;
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const SEALING: &str = "/skiff/sealing";

/// Whether a file below a folder holds the bytes.
fn holds(folder: &Path, bytes: &str) -> anyhow::Result<bool> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path)?.windows(bytes.len()).any(|w| w == bytes.as_bytes()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn store_of(local: &Local, server: &str) -> std::path::PathBuf {
    local.dir.join(server).join("server/store")
}

/// A Secret and a ConfigMap with the same text in them: the one must not be found in a store, and the other shows that it would be.
async fn plant(api: &skiff::client::Api, name: &str, text: &str) -> anyhow::Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": format!("secret-{text}")}});
    api.post(SECRETS, &secret).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": format!("config-{text}")}});
    api.post("/api/v1/namespaces/default/configmaps", &map).await.map(drop)
}

fn encoded(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

fn report(local: &Local) -> anyhow::Result<Value> {
    let api = local.cluster()?.api;
    block_on(async { api.get(SEALING).await })
}

/// Three servers: nothing in the clear on any; the key is exchanged while one server is away, and while another has lost its file.
pub fn rotation(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    wait_until("the cluster has a key everywhere", || Ok(report(local)?["complete"] == true))?;
    block_on(async { plant(&cluster.api, "sealed", "4rT9wLm2").await })?;
    for server in ["s1", "s2", "s3"] {
        let store = store_of(local, server);
        wait_until(&format!("{server} has written it down"), || holds(&store, "config-4rT9wLm2"))?;
        ensure!(!holds(&store, &encoded("secret-4rT9wLm2"))?, "the Secret lies in the clear on {server}");
    }
    let first = report(local)?;
    ensure!(first["clear"] == 0 && first["servers"].as_array().is_some_and(|s| s.len() == 3), "{first}");
    let old = first["key"].as_str().context("a key")?.to_owned();

    // A server that is away holds the exchange up, and nothing else.
    let away = block_on(async {
        let leader = cluster.leader().await?;
        ["s1", "s2", "s3"].into_iter().find(|s| *s != leader).context("a follower")
    })?;
    cluster.host.kill(away, Signal::SIGKILL)?;
    local.run(&["sealing", "rotate", "--no-wait"])?;
    let complaint = local.refused(&["sealing", "rotate", "--no-wait"])?;
    ensure!(complaint.contains("under way"), "{complaint}");
    let waiting = report(local)?;
    let new = waiting["key"].as_str().context("a key")?.to_owned();
    ensure!(new != old && waiting["complete"] == false, "{waiting}");
    let read = local.run(&["get", "secret", "sealed", "-o", "jsonpath={.data.key}"])?;
    ensure!(read == encoded("secret-4rT9wLm2"), "{read}");
    let sealed = report(local)?["sealed"].clone();
    ensure!(sealed[&new].is_null(), "sealed with a key that {away} lacks: {sealed}");
    cluster.host.restart(away)?;
    wait_until("everything is sealed with the new key", || {
        let report = report(local)?;
        Ok(report["complete"] == true && report["sealed"].as_object().is_some_and(|s| s.keys().eq([&new])))
    })?;

    // Pods get what they need, and every server can answer: also from what it has itself.
    block_on(async {
        let mut pod = pods::web("with-secret", "a1");
        let env = pod["spec"]["containers"][0]["env"].as_array_mut().context("its environment")?;
        env.push(json!({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "sealed", "key": "key"}}}));
        pods::start(&cluster.api, &pod).await?;
        pods::remove(&cluster.api, "with-secret", &[&format!("{}/with-secret", pods::PODS)]).await
    })?;
    for server in ["s1", "s2", "s3"] {
        wait_until(&format!("{server} reads it"), || {
            cluster.has(server, &format!("{SECRETS}/sealed?resourceVersion=0"))
        })?;
    }

    // A server whose file is lost is given the keys by the others.
    let file = local.dir.join(away).join("server/sealing.keys");
    cluster.host.kill(away, Signal::SIGKILL)?;
    wait_until("it has ended", || Ok(cluster.host.status()?.nodes.iter().any(|n| n.name == away && n.pid.is_none())))?;
    std::fs::remove_file(&file)?;
    cluster.host.restart(away)?;
    wait_until("it has the keys again", || Ok(std::fs::read_to_string(&file).is_ok_and(|t| t.contains(&new))))?;
    wait_until("it reads the Secret", || cluster.has(away, &format!("{SECRETS}/sealed?resourceVersion=0")))?;

    wait_until("all seal with it again", || Ok(report(local)?["complete"] == true))?;
    let refused = local.refused(&["sealing", "forget", &new])?;
    ensure!(refused.contains("in use"), "{refused}");
    local.run(&["sealing", "forget", &old])?;
    for server in ["s1", "s2", "s3"] {
        let kept = std::fs::read_to_string(local.dir.join(server).join("server/sealing.keys"))?;
        ensure!(kept.contains(&new) && !kept.contains(&old), "{server} keeps {old}");
    }
    let status = local.run(&["sealing", "status"])?;
    ensure!(status.contains("objects in the clear: 0") && status.contains("everything is sealed"), "{status}");
    block_on(async {
        cluster.api.delete(&format!("{SECRETS}/sealed"), &json!({})).await?;
        cluster.api.delete("/api/v1/namespaces/default/configmaps/sealed", &json!({})).await.map(drop)
    })
}

/// A cluster that sealed nothing, as one of an older version, is sealed when its servers start with a newer one: what it has, too.
pub fn sealed_later() -> anyhow::Result<()> {
    let local = Local::new("sealing");
    let up = |seal: Option<&str>| {
        let mut up = Command::new(SKIFF);
        up.args(["up", "--servers", "1", "--agents", "0", "--dir", local.dir()]);
        up.envs(seal.map(|kinds| ("SKIFF_SEAL", kinds)));
        let output = up.output()?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        anyhow::Ok(())
    };
    let stop = || {
        let supervisor = local.cluster()?.host.status()?.pid;
        kill(Pid::from_raw(supervisor), Signal::SIGKILL)?;
        wait_until("the supervisor has ended", || Ok(!Path::new(&format!("/proc/{supervisor}")).exists()))
    };
    up(Some(""))?;
    block_on(async { plant(&local.cluster()?.api, "before", "8pQ3xNz7").await })?;
    ensure!(holds(&store_of(&local, "s1"), &encoded("secret-8pQ3xNz7"))?, "the test finds what lies in the clear");
    stop()?;
    // An older version has no such file.
    std::fs::remove_file(local.dir.join("s1/server/sealing.keys"))?;
    up(Some("secrets,configmaps"))?;
    block_on(async {
        let api = local.cluster()?.api;
        until("everything is sealed", || async {
            let report = api.get(SEALING).await?;
            Ok(report["complete"] == true && report["clear"] == 0)
        })
        .await?;
        plant(&api, "after", "1vB6kHs5").await?;
        for (name, value) in [("before", "8pQ3xNz7"), ("after", "1vB6kHs5")] {
            let secret = api.get(&format!("{SECRETS}/{name}")).await?;
            ensure!(secret["data"]["key"] == encoded(&format!("secret-{value}")), "{secret}");
        }
        // Kinds that a flag names, and how lists and selectors read them.
        let maps = api.get("/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3Dafter&limit=1").await?;
        ensure!(maps["items"][0]["data"]["key"] == "config-1vB6kHs5", "{maps}");
        anyhow::Ok(())
    })?;
    let store = store_of(&local, "s1");
    ensure!(!holds(&store, "config-1vB6kHs5")? && !holds(&store, &encoded("secret-1vB6kHs5"))?, "in the clear");

    // Without the key, what is sealed is refused with what to do, and nothing is taken for absent.
    stop()?;
    let file = local.dir.join("s1/server/sealing.keys");
    let keys = std::fs::read(&file)?;
    std::fs::remove_file(&file)?;
    up(Some("secrets,configmaps"))?;
    let refused = local.refused(&["get", "secret", "before"])?;
    ensure!(refused.contains("core/secrets/default/before") && refused.contains("sealing.keys"), "{refused}");
    let yaml = "apiVersion: v1\nkind: Secret\nmetadata: {name: keyless}\nstringData: {key: keyless-2Lw8}\n";
    let refused = local.refused(&["apply", "-f", &local.file("keyless.yaml", yaml)?])?;
    ensure!(refused.contains("cannot be written"), "without its key a server writes in the clear: {refused}");
    let log = std::fs::read_to_string(local.dir.join("s1.log"))?;
    ensure!(log.contains("sealing.keys from another server or a backup"), "the log does not say what to do");
    stop()?;
    std::fs::write(&file, keys)?;
    up(Some("secrets,configmaps"))?;
    let read = local.run(&["get", "secret", "before", "-o", "jsonpath={.data.key}"])?;
    ensure!(read == encoded("secret-8pQ3xNz7"), "{read}");

    // A key that is lost for good: what is sealed with it is given up, and everything else goes on.
    let key = report(&local)?["key"].as_str().context("a key")?.to_owned();
    let refused = local.refused(&["sealing", "drop", &key])?;
    ensure!(refused.contains("nothing is sealed"), "{refused}");
    stop()?;
    std::fs::remove_file(&file)?;
    up(Some("secrets,configmaps"))?;
    local.run(&["sealing", "drop", &key])?;
    wait_until("another key has taken its place", || {
        let report = report(&local)?;
        Ok(report["complete"] == true && report["key"] != key.as_str())
    })?;
    local.refused(&["get", "secret", "before"])?;
    local.run(&["apply", "-f", &local.file("keyless.yaml", yaml)?])?;
    let read = local.run(&["get", "secret", "keyless", "-o", "jsonpath={.data.key}"])?;
    ensure!(read == encoded("keyless-2Lw8"), "{read}");
    Ok(())
}
