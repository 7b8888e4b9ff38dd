//! What a load came to: throughput, latency, and the CPU time of both sides.

use super::servers::{Server, cpu_us};
use nix::sys::resource::{UsageWho, getrusage};
use std::time::Duration;

pub struct Measured {
    name: String,
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    /// Of the server, an operation.
    cpu_us: Option<f64>,
    /// Of the load generator, an operation.
    load_us: f64,
    /// Operations for each sync of the server's log.
    per_sync: Option<f64>,
}

/// Counts the CPU time from here on.
pub struct Meter<'s> {
    server: Option<&'s Server>,
    /// The process whose time is the server's.
    pid: Option<u32>,
    cpu_us: Option<u64>,
    load_us: f64,
    syncs: Option<u64>,
}

/// CPU time of this thread so far: the load generator is one thread.
fn own_us() -> f64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0.0, |usage| {
        let us = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
        us(usage.user_time()) + us(usage.system_time())
    })
}

impl Meter<'_> {
    /// The server is this process.
    pub fn start_own() -> Meter<'static> {
        let pid = std::process::id();
        Meter { server: None, pid: Some(pid), syncs: None, cpu_us: cpu_us(pid), load_us: own_us() }
    }

    pub fn start(server: Option<&Server>) -> Meter<'_> {
        Meter {
            server,
            pid: server.map(Server::pid),
            syncs: server.and_then(Server::syncs),
            cpu_us: server.and_then(|s| cpu_us(s.pid())),
            load_us: own_us(),
        }
    }

    /// The measuring is over: so many latencies in microseconds, in that time.
    pub fn stop(self, name: String, latencies: Vec<u32>, took: Duration) -> Measured {
        let operations = latencies.len();
        self.stop_counted(name, latencies, operations, took)
    }

    /// The same, where an operation is something else than what took a latency.
    pub fn stop_counted(self, name: String, mut latencies: Vec<u32>, operations: usize, took: Duration) -> Measured {
        let load_us = own_us() - self.load_us;
        let cpu = self.cpu_us.zip(self.pid.and_then(cpu_us)).map(|(from, to)| (to - from) as f64);
        let syncs = self.syncs.zip(self.server.and_then(Server::syncs)).map(|(from, to)| to - from);
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            u64::from(latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0))
        };
        let count = operations.max(1) as f64;
        Measured {
            name,
            per_second: operations as f64 / took.as_secs_f64(),
            p50_us: at(0.50),
            p99_us: at(0.99),
            cpu_us: cpu.map(|cpu| cpu / count),
            load_us: load_us / count,
            per_sync: syncs.filter(|syncs| *syncs > 10).map(|syncs| count / syncs as f64),
        }
    }
}

impl Measured {
    pub const HEADER: &str =
        "server   load                     ops/s     p50 us     p99 us   server CPU us/op  load CPU us/op  ops/sync";

    pub fn line(&self, server: &str) -> String {
        let number = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.1}"));
        let Measured { name, per_second, p50_us, p99_us, load_us, .. } = self;
        let (cpu, syncs) = (number(self.cpu_us), number(self.per_sync));
        format!("{server:8} {name:20} {per_second:>9.0} {p50_us:>10} {p99_us:>10} {cpu:>18} {load_us:>15.1} {syncs:>9}")
    }

    pub fn ratio(&self, other: &Measured) -> String {
        let times = |a: f64, b: f64| if b > 0.0 { format!("{:.2}x", a / b) } else { "-".into() };
        let cpu = match (self.cpu_us, other.cpu_us) {
            (Some(a), Some(b)) => times(a, b),
            _ => "-".into(),
        };
        let per_second = times(self.per_second, other.per_second);
        let p50 = times(self.p50_us as f64, other.p50_us as f64);
        let p99 = times(self.p99_us as f64, other.p99_us as f64);
        format!("{:8} {:20} {per_second:>9} {p50:>10} {p99:>10} {cpu:>18}", "ratio", self.name)
    }
}
