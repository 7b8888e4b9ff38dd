//! Real `skiff store serve` processes, each in a network namespace and on a disk of its own.

use crate::disks::Disk;
use crate::network;
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use skiff_local::{Host, LocalConfig, NodeSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
pub const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// The most members; each has its disk from the start.
pub const SLOTS: usize = 5;
/// A namespace without a member, for clients.
pub const OUTSIDE: &str = "a1";

/// The group of processes. Whatever was made for it goes with it; what a killed test leaves, the next one's start sweeps.
pub struct Cluster {
    pub host: Host,
    disks: BTreeMap<String, Disk>,
    /// The members' folders, which another life of the same slot does not use again.
    lives: BTreeMap<String, u32>,
    /// Slots whose process shall run.
    pub running: BTreeSet<String>,
    dir: PathBuf,
    /// Everything that went wrong by design is accounted for here: a process may have stopped for the sake of a full disk.
    pub may_have_stopped: BTreeSet<String>,
    /// These were asked to end.
    terminated: BTreeSet<String>,
}

pub fn slot(number: usize) -> String {
    format!("s{}", number + 1)
}

impl Cluster {
    /// Starts a group of `count` members together.
    pub fn start(count: usize) -> anyhow::Result<Cluster> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = format!("f{}{:x}", NEXT.fetch_add(1, Ordering::Relaxed) % 100, std::process::id());
        let dir = std::env::temp_dir().join(format!("skiff-store-faults-{instance}"));
        let mut disks = BTreeMap::new();
        for name in (0..SLOTS).map(slot) {
            disks.insert(name.clone(), Disk::new(dir.join(name))?);
        }
        let host = Host::create(LocalConfig {
            dir: dir.clone(),
            instance,
            uplink: false,
            port: 0,
            subnet: None,
            tied: true,
            temporary: true,
            supervisor_args: vec!["local-supervisor".into()],
            registry: PathBuf::from(skiff_local::registry::FOLDER),
        })?;
        host.prepare(OUTSIDE)?;
        let none = BTreeSet::new();
        let lives = BTreeMap::new();
        let (running, terminated) = (none.clone(), none.clone());
        let mut cluster = Cluster { host, disks, lives, running, dir, may_have_stopped: none, terminated };
        for name in (0..SLOTS).map(slot) {
            cluster.host.prepare(&name)?;
        }
        let names: Vec<_> = (0..count).map(slot).collect();
        let list: Vec<_> =
            names.iter().map(|n| Ok(format!("{n}={}", cluster.peer(n)?))).collect::<anyhow::Result<_>>()?;
        for name in names {
            cluster.spawn(&name, &["--initial-cluster", &list.join(",")])?;
        }
        Ok(cluster)
    }

    pub fn address(&self, name: &str) -> anyhow::Result<Ipv4Addr> {
        self.host.address(name)
    }

    pub fn peer(&self, name: &str) -> anyhow::Result<String> {
        Ok(format!("{}:{PEER_PORT}", self.address(name)?))
    }

    pub fn disk(&self, name: &str) -> anyhow::Result<&Disk> {
        self.disks.get(name).with_context(|| format!("no disk for {name}"))
    }

    fn spawn(&mut self, name: &str, how: &[&str]) -> anyhow::Result<()> {
        let life = self.lives.entry(name.to_owned()).or_default();
        let data = self.dir.join(name).join(format!("data-{life}"));
        let (client, peer) = (format!("{}:{CLIENT_PORT}", self.address(name)?), self.peer(name)?);
        let mut argv: Vec<String> = [SKIFF, "store", "serve", "--insecure", "--name", name].map(str::to_owned).into();
        // History is kept, so that every answer can be compared with it at the end; the tests compact it themselves.
        let history = ["--history-revisions", "1000000000", "--history-bytes", "1000000000000"];
        let listen = ["--listen-client", &client, "--listen-peer", &peer, "--data-dir"];
        argv.extend(history.iter().chain(&listen).map(|w| (*w).to_owned()));
        argv.push(data.display().to_string());
        argv.extend(how.iter().map(|w| (*w).to_owned()));
        let log = self.log(name);
        self.host.spawn(NodeSpec { name: name.to_owned(), argv, env: BTreeMap::new(), log })?;
        self.running.insert(name.to_owned());
        Ok(())
    }

    /// Starts a new member that joins the group.
    pub fn join(&mut self, name: &str) -> anyhow::Result<()> {
        let seeds: Vec<_> = self.running.iter().map(|n| self.peer(n)).collect::<anyhow::Result<_>>()?;
        self.spawn(name, &["--join", &seeds.join(",")])
    }

    /// Ends a member's process for good, and its data.
    pub fn retire(&mut self, name: &str) -> anyhow::Result<()> {
        self.kill(name)?;
        self.running.remove(name);
        let life = self.lives.entry(name.to_owned()).or_default();
        let data = self.dir.join(name).join(format!("data-{life}"));
        *life += 1;
        std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    pub fn is_alive(&self, name: &str) -> anyhow::Result<bool> {
        Ok(self.host.status()?.nodes.iter().any(|n| n.name == name && n.pid.is_some()))
    }

    /// A signal to a member's process; nothing if it has ended already, also in this very moment: a member that hears that it was removed ends by itself.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        if !self.is_alive(name)? {
            return Ok(());
        }
        match self.host.kill(name, signal) {
            Err(_) if !self.is_alive(name)? => Ok(()),
            other => other,
        }
    }

    /// SIGKILL, and its end waited for.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::SIGKILL)
    }

    /// SIGTERM: the member ends in an orderly way, when it can.
    pub fn terminate(&mut self, name: &str) -> anyhow::Result<()> {
        if self.is_alive(name)? {
            self.terminated.insert(name.to_owned());
            self.signal(name, Signal::SIGTERM)?;
        }
        Ok(())
    }

    /// Starts a member's process again as it was, unless it runs or has left the group.
    pub fn start_again(&self, name: &str) -> anyhow::Result<()> {
        if !self.running.contains(name) || self.is_alive(name)? {
            return Ok(());
        }
        self.host.restart(name).map(drop)
    }

    /// Mends links, disks and processes.
    pub fn heal(&self) -> anyhow::Result<()> {
        for name in &self.running {
            self.host.heal(name)?;
            network::deafen(&self.host, name, &[])?;
            // Without one there is nothing to remove.
            let _ = network::slow(&self.host, name, None);
            self.disk(name)?.free()?;
            self.signal(name, Signal::SIGCONT)?;
            self.start_again(name)?;
        }
        Ok(())
    }

    /// Every process that ended by itself must have had a reason that it says; and none may have met a broken invariant.
    pub fn check_ends(&self) -> anyhow::Result<()> {
        for name in &self.running {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            if let Some(bad) = log.lines().find(|l| l.contains("panicked at") || l.contains("broken invariant")) {
                bail!("{name}: {bad}");
            }
        }
        for node in self.host.status()?.nodes {
            let Some(ended) = node.ended.filter(|e| node.pid.is_none() && e != "killed by SIGKILL") else { continue };
            let asked = ["exit code 0", "killed by SIGTERM"].contains(&&*ended) && self.terminated.contains(&node.name);
            if asked || !self.running.contains(&node.name) {
                continue;
            }
            let log = std::fs::read_to_string(&node.log).unwrap_or_default();
            let said = log
                .lines()
                .rev()
                .find(|l| l.contains("skiff:"))
                .unwrap_or_else(|| log.lines().last().unwrap_or_default());
            ensure!(self.may_have_stopped.contains(&node.name), "{} ended by itself ({ended}): {said}", node.name);
            ensure!(
                said.contains("No space left on device")
                    && said.contains(&format!("{}/", self.dir.join(&node.name).display())),
                "{} stopped at a full disk, and should say that the disk is full and which file that was: {said}",
                node.name
            );
        }
        Ok(())
    }

    /// Copies the logs to where they stay.
    pub fn keep_logs(&self) -> PathBuf {
        let to = self.dir.with_extension("logs");
        let _ = std::fs::create_dir_all(&to);
        for name in (0..SLOTS).map(slot) {
            let _ = std::fs::copy(self.log(&name), to.join(format!("{name}.log")));
        }
        to
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.disks.clear();
    }
}

/// Looks until something holds.
pub fn wait_until(
    what: &str,
    max: Duration,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    while !done().with_context(|| format!("waiting until {what}"))? {
        ensure!(begun.elapsed() < max, "after {} s still not: {what}", max.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(begun.elapsed())
}
