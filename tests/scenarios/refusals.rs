//! Servers and agents that are started with something that cannot be: they end at once, say what is wrong and what to do, and leave all as it was.

use crate::local::{Local, SKIFF, text, wait_until};
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff::commands::cluster::Cluster;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A refusal is final: nobody should wait for a time-out to read it.
const AT_ONCE: Duration = Duration::from_secs(15);

/// Waits for a process that should end with a complaint, which it gives.
fn complaint_of(mut child: Child) -> anyhow::Result<String> {
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if begun.elapsed() > AT_ONCE => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let _ = child.kill();
    let output = child.wait_with_output()?;
    let said = text(&output.stderr);
    let status = ended.with_context(|| format!("it did not end within {} s; it said: {said}", AT_ONCE.as_secs()))?;
    ensure!(!status.success(), "it should fail, but said: {said}");
    Ok(said)
}

fn start(words: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new(SKIFF);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("starting skiff {words:?}"))
}

/// Starts skiff in a node's network namespace, where the servers can be reached.
fn start_at(cluster: &Cluster, node: &str, words: &[&str]) -> anyhow::Result<Child> {
    cluster.host.run_in(node, || start(words))?
}

fn expect(what: &str, complaint: &str, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        ensure!(complaint.contains(part), "{what}: no {part:?} in: {complaint}");
    }
    Ok(())
}

/// What an agent is told that may not join.
pub fn joining(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let server = format!("{}:6443", cluster.host.address("s1")?);
    let nodes = local.run(&["get", "nodes", "-o", "name"])?;
    let data = local.dir.join("joining");
    let data_dir = data.to_str().context("a plain path")?.to_owned();
    let join = |token: &str, name: &str| -> anyhow::Result<String> {
        let words = ["agent", "--server", &server, "--token", token, "--node-name", name, "--data-dir", &data_dir];
        let complaint = complaint_of(start_at(&cluster, "a1", &words)?);
        let _ = std::fs::remove_dir_all(&data);
        complaint
    };
    let token = local.run(&["token", "create"])?.trim().to_owned();
    let (hash, secret) = token.rsplit_once('.').context("a token with a secret")?;
    let flipped: String = secret.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    expect("a wrong token", &join(&format!("{hash}.{flipped}"), "new")?, &["token", "skiff token create"])?;
    expect("no token at all", &join("nonsense", "new")?, &["token"])?;
    let short = local.run(&["token", "create", "--ttl", "1s"])?.trim().to_owned();
    std::thread::sleep(Duration::from_secs(2));
    expect("an expired token", &join(&short, "new")?, &["expired", "skiff token create"])?;
    expect("a name that another node holds", &join(&token, "a2")?, &["\"a2\"", "--node-name"])?;
    ensure!(local.run(&["get", "nodes", "-o", "name"])? == nodes, "a refused agent left a node behind");
    let words = ["server", "--join", &server, "--token", &token, "--data-dir", &data_dir, "--no-agent"];
    let complaint = complaint_of(start_at(&cluster, "a1", &words)?);
    let _ = std::fs::remove_dir_all(&data);
    expect("an agent's token at a server", &complaint?, &["agent's token", "skiff token create --server"])
}

/// A port of 127.0.0.1 that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What keeps a server from starting.
pub fn servers(local: &Local) -> anyhow::Result<()> {
    let data = local.dir.join("refused");
    let data_dir = data.to_str().context("a plain path")?.to_owned();
    let server = |port: u16, more: &[&str]| -> anyhow::Result<Child> {
        let (listen, peer) = (format!("127.0.0.1:{port}"), free_port()?.to_string());
        let mut words = vec!["server", "--name", "refused", "--data-dir", &data_dir, "--no-agent"];
        words.extend(["--listen", &listen, "--peer-port", &peer]);
        words.extend(more);
        start(&words)
    };
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    expect("a port taken", &complaint_of(server(address.port(), &[])?)?, &[&address.to_string(), "another server"])?;

    let clash = complaint_of(server(free_port()?, &["--cluster-cidr", "10.43.0.0/17"])?)?;
    expect("ranges that overlap each other", &clash, &["10.43.0.0/17", "10.43.0.0/16", "--cluster-cidr"])?;
    // This machine has a route to the local cluster's nodes.
    let subnet = local.cluster()?.host.subnet().to_string();
    let clash = complaint_of(server(free_port()?, &["--cluster-cidr", &subnet])?)?;
    expect("a range that this machine uses", &clash, &[&subnet, "route", "--cluster-cidr"])?;
    let nonsense = complaint_of(server(free_port()?, &["--service-cidr", "10.43.0.0"])?)?;
    expect("a range that is none", &nonsense, &["--service-cidr", "10.43.0.0"])?;
    ensure!(!data.join("server/ca.key").exists(), "a refused server founded a cluster");

    // A directory that belongs to a cluster of its own.
    let child = server(free_port()?, &[])?;
    let identity = data.join("server/store/identity");
    let kubeconfig = data.join("server/admin.kubeconfig");
    let founded = wait_until("a cluster is founded", || Ok(identity.exists() && kubeconfig.exists()));
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let said = text(&child.wait_with_output()?.stderr);
    founded.with_context(|| format!("the server said: {said}"))?;
    let token = local.run(&["token", "create", "--server"])?.trim().to_owned();
    let other = complaint_of(server(free_port()?, &["--join", "127.0.0.1:1", "--token", &token])?)?;
    expect("the directory of another cluster", &other, &[&data_dir, "another cluster", "--data-dir"])?;

    std::fs::write(&identity, record(b"999 1 1"))?;
    let newer = complaint_of(server(free_port()?, &[])?)?;
    expect("a directory of a newer version", &newer, &["newer version", "999"])?;
    std::fs::remove_dir_all(&data)?;

    let user = complaint_of(start(&["agent", "--server", "127.0.0.1:1", "--data-dir", &data_dir])?)?;
    let _ = std::fs::remove_dir_all(&data);
    expect("an agent without a token", &user, &["--token", "skiff token create"])?;
    Ok(())
}

/// Without root nothing can be made: each command that needs it says so, and what to do.
pub fn without_root() -> anyhow::Result<()> {
    let data = std::env::temp_dir().join(format!("skiff-test-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&data)?;
    let nobody = 65534;
    std::os::unix::fs::chown(&data, Some(nobody), Some(nobody))?;
    // Where this user may not look into the build's folder, a copy can still be run.
    let program = data.join("skiff");
    std::fs::copy(SKIFF, &program)?;
    let refused = |words: &[&str]| -> anyhow::Result<String> {
        let mut command = Command::new(&program);
        command.args(words).arg(data.join("data")).uid(nobody).gid(nobody).current_dir("/");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        complaint_of(child)
    };
    let checked = refused(&["up", "--dir"])
        .and_then(|complaint| expect("up without root", &complaint, &["root", "sudo"]))
        .and_then(|()| refused(&["agent", "--server", "127.0.0.1:1", "--data-dir"]))
        .and_then(|complaint| expect("an agent without root", &complaint, &["root"]));
    std::fs::remove_dir_all(&data)?;
    checked
}

/// A record as the store's files have it: length, CRC-32 (IEEE 802.3), payload.
fn record(payload: &[u8]) -> Vec<u8> {
    let crc = payload.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
    });
    let mut record = u32::try_from(payload.len()).unwrap_or_default().to_le_bytes().to_vec();
    record.extend((!crc).to_le_bytes());
    record.extend(payload);
    record
}
