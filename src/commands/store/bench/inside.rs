//! The store inside a process, as the API server uses it: no gRPC, the same log and the same syncs.

use super::measure::Measured;
use skiff_store::{Config, Limits, Op, Store, Txn};
use std::path::Path;
use std::time::{Duration, Instant};

const KEYS: u64 = 10_000;

/// Puts by so many tasks for a time, each waiting for its answer.
pub async fn run(dir: &Path, tasks: usize, value_bytes: usize, time: Duration) -> anyhow::Result<Measured> {
    let dir = dir.join(format!("skiff-bench-{}-inside", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let limits = Limits { quota_bytes: 0, ..Default::default() };
    let store = Store::start(Config { dir: Some(dir.clone()), limits, ..Default::default() }).await?;
    store.barrier().await?;
    let meter = super::measure::Meter::start_own();
    let begin = Instant::now();
    let value: bytes::Bytes = vec![b'v'; value_bytes].into();
    let clients: Vec<_> = (0..tasks as u64)
        .map(|i| {
            let (store, value) = (store.clone(), value.clone());
            tokio::spawn(async move {
                let mut numbers = super::load::Numbers::new(i);
                let mut latencies = Vec::with_capacity(1 << 14);
                while begin.elapsed() < time {
                    let key = format!("bench/{:08}", numbers.next() % KEYS);
                    let asked = Instant::now();
                    store.txn(Txn::of(Op::put(key, value.clone()))).await?;
                    latencies.push(asked.elapsed().as_micros() as u32);
                }
                Ok::<_, skiff_store::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await??);
    }
    let took = begin.elapsed();
    let measured = meter.stop(format!("inside put c={tasks}"), latencies, took);
    store.stop().await;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(measured)
}
