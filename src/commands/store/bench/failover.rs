//! Three members on one machine: puts through the leader, and how long nobody can write when it is killed or frozen.
//!
//! Two clients write one small value after another, each through another of the members that stay. The time counts from the signal
//! to the first answer to a put that was sent after it.

use super::keys::probe;
use super::load::{Load, Target};
use super::measure::Measured;
use super::pool::Pool;
use super::servers::{Make, Member, Server, members};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use std::path::Path;
use std::time::{Duration, Instant};

const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// How long an outage may last, and a member may take until it is one again.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A put that was not answered by then is asked again: one that went to the dead leader may wait for long.
const ATTEMPT: Duration = Duration::from_millis(200);

/// A cluster under test; each member can be started again.
pub struct Trio {
    servers: Vec<Server>,
}

impl Trio {
    pub fn start(make: &Make, dir: &Path) -> anyhow::Result<Trio> {
        let all: Vec<Member> = members(make, 3, dir)?;
        let mut servers = Vec::new();
        for member in &all {
            member.clear();
            servers.push(member.launch()?);
        }
        for server in &mut servers {
            server.wait_until_it_listens()?;
        }
        let trio = Trio { servers };
        trio.settle()?;
        Ok(trio)
    }

    /// Waits until all members know the same leader and have the same log; which one leads.
    fn settle(&self) -> anyhow::Result<usize> {
        let begin = Instant::now();
        loop {
            let status = |server: &Server| -> anyhow::Result<pb::StatusResponse> {
                let answer = Pool::new(&server.endpoint, 1)?.ask(STATUS, &[])?;
                Ok(pb::StatusResponse::decode(&answer[..])?)
            };
            let all: Vec<_> = self.servers.iter().filter_map(|server| status(server).ok()).collect();
            let leader = all.first().map_or(0, |s| s.leader);
            let agree = all.iter().all(|s| s.leader == leader && s.raft_index == all[0].raft_index);
            let at = all.iter().position(|s| s.header.as_ref().is_some_and(|h| h.member_id == leader));
            if let (Some(at), true, 3) = (at, agree && leader != 0, all.len()) {
                return Ok(at);
            }
            ensure!(begin.elapsed() < WAIT_MAX, "the members do not agree after {} s", WAIT_MAX.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whose cluster it is.
    pub fn name(&self) -> &str {
        self.servers.first().map_or("", |server| &server.name)
    }

    /// Puts through the leader.
    pub fn puts(
        &self,
        clients: usize,
        connections: usize,
        value_bytes: usize,
        time: Duration,
    ) -> anyhow::Result<Measured> {
        let leader = self.settle()?;
        let mut target = Target::new(&self.servers[leader].endpoint, connections, value_bytes)?;
        Load::Put(clients).run(&mut target, time, Some(&self.servers[leader]))
    }

    /// Milliseconds of each outage.
    pub fn outages(&mut self, signal: Signal, rounds: usize) -> anyhow::Result<Vec<f64>> {
        let mut outages = Vec::new();
        for _ in 0..rounds {
            let leader = self.settle()?;
            outages.push(self.outage(leader, signal)?.as_secs_f64() * 1e3);
            match signal {
                Signal::SIGKILL => self.servers[leader].restart()?,
                _ => self.servers[leader].signal(Signal::SIGCONT)?,
            }
            // Whoever lost its office has a little while to follow before it is the next leader's turn.
            self.settle()?;
            std::thread::sleep(Duration::from_millis(1500));
        }
        outages.sort_by(f64::total_cmp);
        Ok(outages)
    }

    fn outage(&self, leader: usize, signal: Signal) -> anyhow::Result<Duration> {
        let stay = self.servers.iter().enumerate().filter(|(i, _)| *i != leader);
        let mut pools = stay.map(|(_, server)| Pool::new(&server.endpoint, 1)).collect::<anyhow::Result<Vec<_>>>()?;
        let begun = Instant::now();
        let mut struck: Option<Instant> = None;
        // When each put was sent, by its tag; and the last one on each connection, if it is not answered.
        let mut sent: Vec<Instant> = Vec::new();
        let mut last = vec![None::<usize>; pools.len()];
        loop {
            for (pool, last) in pools.iter_mut().zip(&mut last) {
                if last.is_none_or(|tag| sent[tag].elapsed() > ATTEMPT) {
                    let (path, message) = probe(sent.len() as u64 % 1000);
                    pool.connections[0].call(path, sent.len(), &message);
                    *last = Some(sent.len());
                    sent.push(Instant::now());
                }
                let mut done = Vec::new();
                pool.turn(Duration::from_millis(1), &mut done, &mut |_, _| {})?;
                for (_, call) in done {
                    if *last == Some(call.tag) {
                        *last = None;
                    }
                    if let (Some(struck), Some(_)) = (struck, call.answer)
                        && sent[call.tag] > struck
                    {
                        return Ok(struck.elapsed());
                    }
                }
            }
            // Some ordinary writes first.
            if struck.is_none() && begun.elapsed() > Duration::from_millis(300) {
                self.servers[leader].signal(signal)?;
                struck = Some(Instant::now());
            }
            let waited = struck.map_or(Duration::ZERO, |at| at.elapsed());
            ensure!(waited < WAIT_MAX, "nobody could write {} s after {signal}", WAIT_MAX.as_secs());
        }
    }
}

/// A line about some outages.
pub fn line(server: &str, what: &str, outages: &[f64]) -> anyhow::Result<String> {
    let last = outages.len().checked_sub(1).context("no outages")?;
    let at = |share: f64| outages[(last as f64 * share).round() as usize];
    let (p50, p99, longest) = (at(0.5), at(0.99), at(1.0));
    let rounds = outages.len();
    Ok(format!(
        "{server:8} leader {what}, {rounds} times: next write after p50 {p50:.0} ms, p99 {p99:.0} ms, longest {longest:.0} ms"
    ))
}
