//! What sealing costs: objects written and read through the same store, sealed and in the clear, in turns.
//!
//! `cargo run --release -p skiff-apiserver --example sealing`

use skiff_apiserver::{Objects, Sealing};
use skiff_identity::sealing::{Keyring, SealingKeys};
use skiff_store::{KeyRange, Op, RangeRequest, Store, Txn};
use std::time::{Duration, Instant};

const OBJECTS: usize = 5_000;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let keys = Keyring::new(SealingKeys::generate()?)?;
    println!("{:>8}  {:>6}  {:>12}  {:>12}  {:>6}", "bytes", "", "clear µs", "sealed µs", "ratio");
    for size in [1 << 10, 16 << 10, 256 << 10] {
        let objects = OBJECTS.min((256 << 20) / size);
        let mut best = [[Duration::MAX; 2]; 2];
        for _ in 0..ROUNDS {
            for (sealed, best) in best.iter_mut().enumerate() {
                let sealing =
                    if sealed == 1 { Sealing::new(keys.clone(), &["secrets".into()])? } else { Sealing::default() };
                let took = round(&Objects::new(Store::in_memory().await, sealing), objects, size).await?;
                best[0] = best[0].min(took[0]);
                best[1] = best[1].min(took[1]);
            }
        }
        for (index, what) in ["write", "read"].into_iter().enumerate() {
            let each = |took: Duration| took.as_secs_f64() * 1e6 / objects as f64;
            let (clear, sealed) = (each(best[0][index]), each(best[1][index]));
            println!("{size:>8}  {what:>6}  {clear:>12.2}  {sealed:>12.2}  {:>6.2}", sealed / clear);
        }
    }
    Ok(())
}

/// Writes objects one after the other, then reads them one after the other; how long each took.
async fn round(objects: &Objects, count: usize, size: usize) -> anyhow::Result<[Duration; 2]> {
    let value = vec![b'x'; size];
    let key = |n: usize| format!("/registry/core/secrets/default/s{n:06}").into_bytes();
    let begun = Instant::now();
    for n in 0..count {
        objects.txn(Txn::of(Op::put(key(n), value.clone()))).await?;
    }
    let written = begun.elapsed();
    let begun = Instant::now();
    for n in 0..count {
        let request = RangeRequest { range: KeyRange::key(key(n)), serializable: true, ..Default::default() };
        let found = objects.range(request).await?;
        anyhow::ensure!(found.kvs.first().is_some_and(|kv| kv.value == value), "object {n} is another one");
    }
    Ok([written, begun.elapsed()])
}
