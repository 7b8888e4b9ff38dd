//! A store with many keys: the time to fill it, its memory, the longest pause while a snapshot is taken, and the time to start again.

use super::load::{PUT, RANGE, Target, Template};
use super::servers::{Make, Server, members};
use anyhow::{Context as _, ensure};
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use std::path::Path;
use std::time::{Duration, Instant};

const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
/// Puts under way while the store is filled.
const FILLERS: usize = 256;
/// The tag of the stream of a snapshot.
const STREAM: usize = 1;
/// How long a snapshot, and starting again, may take.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// How long after the first answer memory is looked at.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

pub fn run(make: &Make, dir: &Path, keys: usize, value_bytes: usize) -> anyhow::Result<()> {
    let member = members(make, 1, dir)?.pop().context("no member")?;
    let mut server = member.start()?;
    let name = server.name.clone();
    let (seconds, longest) = fill(&server, keys, value_bytes)?;
    println!(
        "{name:8} filled with {keys} keys of {value_bytes} bytes in {seconds:.1} s; the longest put took {longest:.1} ms"
    );
    let (resident, anonymous) = server.memory();
    let mib = |bytes: u64| bytes >> 20;
    println!("{name:8} resident memory: {} MiB, of which {} MiB are no pages of files", mib(resident), mib(anonymous));
    let quiet = longest_put(&server, value_bytes, Some(Duration::from_secs(3)))?;
    println!(
        "{name:8} one put after another, p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        quiet.p50, quiet.p99, quiet.longest
    );
    let busy = longest_put(&server, value_bytes, None)?;
    println!(
        "{name:8} the same while a snapshot was taken ({:.1} s, {} MiB): p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        busy.seconds,
        mib(busy.snapshot_bytes),
        busy.p50,
        busy.p99,
        busy.longest
    );
    let begin = Instant::now();
    server.restart()?;
    server.wait_until_it_listens()?;
    while !answers(&server) {
        ensure!(
            begin.elapsed() < WAIT_MAX,
            "{name} does not answer {} s after it was started again",
            WAIT_MAX.as_secs()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{name:8} killed and started again: a linearizable get after {:.2} s", begin.elapsed().as_secs_f64());
    // What reading the data took is given back behind the first answer.
    std::thread::sleep(SETTLED_AFTER);
    let (resident, anonymous) = server.memory();
    println!(
        "{name:8} resident memory then: {} MiB, of which {} MiB are no pages of files",
        mib(resident),
        mib(anonymous)
    );
    Ok(())
}

/// Puts every key once; the seconds that it took, and the milliseconds of the longest put.
fn fill(server: &Server, keys: usize, value_bytes: usize) -> anyhow::Result<(f64, f64)> {
    let mut target = Target::new(&server.endpoint, 8, value_bytes)?;
    let mut put = Template::put("many/", value_bytes, 0);
    let begin = Instant::now();
    let mut sent = vec![begin; FILLERS];
    let (mut asked, mut answered, mut longest) = (0, 0, Duration::ZERO);
    while asked < keys.min(FILLERS) {
        put.call(&mut target.pool, asked % 8, asked, asked as u64);
        asked += 1;
    }
    let mut done = Vec::new();
    while answered < keys {
        target.pool.turn(Duration::from_secs(1), &mut done, &mut |_, _| {})?;
        let now = Instant::now();
        for (connection, call) in done.drain(..) {
            let answer = call.answer.context("the server refused a put")?;
            target.pool.connections[connection].recycle(answer);
            answered += 1;
            longest = longest.max(now - sent[call.tag]);
            sent[call.tag] = now;
            if asked < keys {
                put.call(&mut target.pool, connection, call.tag, asked as u64);
                asked += 1;
            }
        }
    }
    Ok((begin.elapsed().as_secs_f64(), longest.as_secs_f64() * 1e3))
}

/// Latencies in milliseconds.
struct Puts {
    p50: f64,
    p99: f64,
    longest: f64,
    seconds: f64,
    snapshot_bytes: u64,
}

/// One put after another, for a time or for as long as it takes to take a snapshot and send it here.
fn longest_put(server: &Server, value_bytes: usize, time: Option<Duration>) -> anyhow::Result<Puts> {
    let mut target = Target::new(&server.endpoint, 2, value_bytes)?;
    let mut put = Template::put("bench/", value_bytes, 0);
    let mut stream_ended = time.is_some();
    if time.is_none() {
        let connection = &mut target.pool.connections[1];
        let stream = connection.open(SNAPSHOT, STREAM);
        connection.say(stream, &pb::SnapshotRequest {}.encode_to_vec(), true);
    }
    let (begin, mut latencies, mut snapshot_bytes) = (Instant::now(), Vec::new(), 0);
    let (mut sent, mut done) = (begin, Vec::new());
    put.call(&mut target.pool, 0, 0, 0);
    loop {
        let mut count = |_: usize, message: &[u8]| snapshot_bytes += message.len() as u64;
        target.pool.turn(Duration::from_secs(1), &mut done, &mut count)?;
        ensure!(begin.elapsed() < WAIT_MAX, "the snapshot took longer than {} s", WAIT_MAX.as_secs());
        for (_, call) in done.drain(..) {
            if call.tag == STREAM {
                stream_ended = true;
                continue;
            }
            ensure!(call.answer.is_some(), "the server refused a put");
            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            if stream_ended && time.is_none_or(|time| begin.elapsed() >= time) {
                latencies.sort_by(f64::total_cmp);
                let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
                let seconds = begin.elapsed().as_secs_f64();
                return Ok(Puts { p50: at(0.5), p99: at(0.99), longest: at(1.0), seconds, snapshot_bytes });
            }
            sent = Instant::now();
            put.call(&mut target.pool, 0, 0, latencies.len() as u64 % 10_000);
        }
    }
}

fn answers(server: &Server) -> bool {
    let get = pb::RangeRequest { key: "many/00000000".into(), ..Default::default() }.encode_to_vec();
    let ask = || super::pool::Pool::new(&server.endpoint, 1)?.ask(RANGE, &get);
    // Before it leads it answers with an error.
    ask().ok().and_then(|answer| pb::RangeResponse::decode(&answer[..]).ok()).is_some_and(|found| found.count == 1)
}

/// A put for probes.
pub fn probe(number: u64) -> (&'static str, Vec<u8>) {
    (PUT, Template::put("probe/", 16, 0).with(number))
}
