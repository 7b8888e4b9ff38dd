//! Watch fan-out: many watchers of one key, on as many streams as there are connections; each put is an event for all of them.
//!
//! So many puts are under way at once, each until its event has arrived everywhere; a latency is that of a whole fan-out.

use super::load::{PUT, Target};
use super::measure::{Measured, Meter};
use super::servers::Server;
use anyhow::ensure;
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// How long the watches may take to begin, and the events of a put to arrive.
const ARRIVE_MAX: Duration = Duration::from_secs(20);

pub fn run(
    name: String,
    target: &mut Target,
    watchers: usize,
    under_way: usize,
    time: Duration,
    server: Option<&Server>,
) -> anyhow::Result<Measured> {
    let key = format!("watched/{name}");
    let create = pb::WatchCreateRequest { key: key.clone().into(), ..Default::default() };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let create = pb::WatchRequest { request_union: Some(create) }.encode_to_vec();
    let connections = target.pool.connections.len();
    let streams: Vec<_> = target.pool.connections.iter_mut().map(|c| c.open(WATCH, 0)).collect();
    let (mut seen, mut done) = (Seen::default(), Vec::new());
    // A few at a time: the server's window for requests is small.
    let (mut asked, begun) = (0, Instant::now());
    while seen.created < watchers {
        ensure!(begun.elapsed() < ARRIVE_MAX, "the watches did not begin within {} s", ARRIVE_MAX.as_secs());
        while asked < watchers && asked < seen.created + 128 {
            let connection = asked % connections;
            target.pool.connections[connection].say(streams[connection], &create, false);
            asked += 1;
        }
        target.pool.turn(Duration::from_millis(100), &mut done, &mut |_, message| seen.take(message))?;
        ensure!(done.is_empty(), "the server ended a watch stream");
    }
    let put = pb::PutRequest { key: key.into(), value: vec![b'v'; target.value_bytes].into(), ..Default::default() };
    let put = put.encode_to_vec();
    let (meter, begin) = (Meter::start(server), Instant::now());
    let (mut puts, mut waiting, mut latencies) = (0, VecDeque::new(), Vec::new());
    let mut last = begin;
    loop {
        let now = Instant::now();
        while waiting.len() < under_way && now < begin + time {
            target.pool.connections[puts % connections].call(PUT, 1, &put);
            puts += 1;
            waiting.push_back(now);
        }
        if waiting.is_empty() {
            break;
        }
        target.pool.turn(Duration::from_millis(100), &mut done, &mut |_, message| seen.take(message))?;
        for (connection, answered) in done.drain(..) {
            ensure!(answered.tag == 1, "the server ended a watch stream");
            let Some(answer) = answered.answer else { anyhow::bail!("the server refused a put") };
            target.pool.connections[connection].recycle(answer);
        }
        let now = Instant::now();
        // Each watch has its events in order, but one may be ahead of another; with all of a put's events there, no more is asked than that
        // the count is right, so the last latencies may be told a little early, never the throughput.
        while latencies.len() < seen.events / watchers
            && let Some(begun) = waiting.pop_front()
        {
            latencies.push((now - begun).as_micros() as u32);
            last = now;
        }
        ensure!(now - last < ARRIVE_MAX, "events did not arrive within {} s", ARRIVE_MAX.as_secs());
    }
    let took = begin.elapsed();
    ensure!(seen.events == puts * watchers, "{} events arrived of {} puts to {watchers} watchers", seen.events, puts);
    let measured = meter.stop_counted(name, latencies, seen.events, took);
    for (connection, stream) in target.pool.connections.iter_mut().zip(streams) {
        connection.cancel(stream);
    }
    target.pool.turn(Duration::ZERO, &mut done, &mut |_, _| {})?;
    Ok(measured)
}

/// What has come on the streams.
#[derive(Default)]
struct Seen {
    created: usize,
    events: usize,
}

impl Seen {
    /// Counts without decoding: only the fields' heads are looked at.
    fn take(&mut self, message: &[u8]) {
        let mut at = 0;
        while let Some(key) = varint(message, &mut at) {
            match (key >> 3, key & 7) {
                (field, 0) => {
                    let value = varint(message, &mut at);
                    self.created += usize::from(field == 3 && value == Some(1));
                }
                (field, 2) => {
                    self.events += usize::from(field == 11);
                    at += varint(message, &mut at).unwrap_or(0) as usize;
                }
                _ => return,
            }
        }
    }
}

fn varint(message: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_as_a_decoder_would() {
        let mut seen = Seen::default();
        let event = skiff_proto::etcd::mvccpb::Event::default();
        let answer = pb::WatchResponse {
            header: Some(pb::ResponseHeader { revision: 300, ..Default::default() }),
            watch_id: 5,
            events: vec![event; 3],
            ..Default::default()
        };
        seen.take(&answer.encode_to_vec());
        seen.take(&pb::WatchResponse { created: true, ..Default::default() }.encode_to_vec());
        assert_eq!((seen.created, seen.events), (1, 3));
    }
}
