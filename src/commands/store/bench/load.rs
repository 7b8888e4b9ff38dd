//! The loads: clients that each ask, wait for the answer, and ask again.

use super::measure::{Measured, Meter};
use super::pool::Pool;
use super::servers::Server;
use anyhow::Context as _;
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use std::time::{Duration, Instant};

/// Keys that puts and gets choose from.
const KEYS: u64 = 10_000;
/// Keys of the range load.
const RANGE_KEYS: usize = 1000;
/// What stands for a key's number in a request that was encoded ahead.
const NUMBER: &[u8] = b"########";

pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A server under load.
pub struct Target {
    pub pool: Pool,
    pub value_bytes: usize,
}

impl Target {
    pub fn new(endpoint: &str, connections: usize, value_bytes: usize) -> anyhow::Result<Target> {
        let mut target = Target { pool: Pool::new(endpoint, connections)?, value_bytes };
        let put = Template::put("range/", value_bytes, 0);
        for i in 0..RANGE_KEYS {
            let message = put.with(i as u64);
            target.pool.ask(PUT, &message)?;
        }
        Ok(target)
    }
}

/// A request that was encoded once; only the number in its keys differs from call to call.
#[derive(Clone)]
pub struct Template {
    pub path: &'static str,
    message: Vec<u8>,
    numbers: Vec<usize>,
}

impl Template {
    fn new(path: &'static str, message: &impl prost::Message) -> Template {
        let message = message.encode_to_vec();
        let at = |i: &usize| message[*i..].starts_with(NUMBER);
        let numbers = (0..message.len().saturating_sub(NUMBER.len() - 1)).filter(at).collect();
        Template { path, message, numbers }
    }

    pub fn put(prefix: &str, value_bytes: usize, lease: i64) -> Template {
        Template::new(PUT, &put(prefix, value_bytes, lease))
    }

    fn get(serializable: bool) -> Template {
        let request = pb::RangeRequest { key: key("bench/"), serializable, ..Default::default() };
        Template::new(RANGE, &request)
    }

    fn txn(value_bytes: usize) -> Template {
        let put = put("bench/", value_bytes, 0);
        let compare = pb::Compare {
            result: pb::compare::CompareResult::Greater as i32,
            target: pb::compare::CompareTarget::Version as i32,
            key: put.key.clone(),
            target_union: Some(pb::compare::TargetUnion::Version(-1)),
            ..Default::default()
        };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
        Template::new(TXN, &pb::TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() })
    }

    /// The request for the key of this number.
    pub fn with(&self, number: u64) -> Vec<u8> {
        let mut message = self.message.clone();
        self.number(&mut message, number);
        message
    }

    fn number(&self, message: &mut [u8], mut number: u64) {
        let mut digits = [b'0'; NUMBER.len()];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        for at in &self.numbers {
            message[*at..*at + NUMBER.len()].copy_from_slice(&digits);
        }
    }

    /// Begins the call for the key of this number.
    pub fn call(&mut self, pool: &mut Pool, connection: usize, tag: usize, number: u64) {
        let mut message = std::mem::take(&mut self.message);
        self.number(&mut message, number);
        pool.connections[connection].call(self.path, tag, &message);
        self.message = message;
    }
}

fn key(prefix: &str) -> bytes::Bytes {
    [prefix.as_bytes(), NUMBER].concat().into()
}

fn put(prefix: &str, value_bytes: usize, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key(prefix), value: vec![b'v'; value_bytes].into(), lease, ..Default::default() }
}

/// What is asked of a server, by how many clients.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Calls that do nothing.
    Floor(usize),
    Put(usize),
    Get(usize),
    GetSerializable(usize),
    /// All of a thousand keys at once.
    Range(usize),
    /// A compare and a put.
    Txn(usize),
    /// Three gets and a put.
    Mixed(usize),
    /// A lease granted, a key put under it, the lease revoked: three calls.
    LeaseChurn(usize),
    /// So many watchers of a key, and so many puts whose events are under way at once; the operations are events that arrived.
    Watch(usize, usize),
}

/// Numbers that look random and are the same in each run.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0x1000_0001))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// One client.
struct Client {
    numbers: Numbers,
    begun: Instant,
    /// The calls of the operation at hand that are answered.
    step: usize,
    lease: i64,
}

impl Load {
    pub fn name(&self) -> String {
        match self {
            Load::Floor(n) => format!("floor c={n}"),
            Load::Put(n) => format!("put c={n}"),
            Load::Get(n) => format!("get c={n}"),
            Load::GetSerializable(n) => format!("get-serial c={n}"),
            Load::Range(n) => format!("range-1000 c={n}"),
            Load::Txn(n) => format!("txn c={n}"),
            Load::Mixed(n) => format!("mixed c={n}"),
            Load::LeaseChurn(n) => format!("lease-churn c={n}"),
            Load::Watch(n, under_way) => format!("watch w={n} p={under_way}"),
        }
    }

    /// Puts the load on for a time.
    pub fn run(self, target: &mut Target, time: Duration, server: Option<&Server>) -> anyhow::Result<Measured> {
        if let Load::Watch(watchers, under_way) = self {
            return super::watch::run(self.name(), target, watchers, under_way, time, server);
        }
        let (Load::Floor(clients)
        | Load::Put(clients)
        | Load::Get(clients)
        | Load::GetSerializable(clients)
        | Load::Range(clients)
        | Load::Txn(clients)
        | Load::Mixed(clients)
        | Load::LeaseChurn(clients)
        | Load::Watch(clients, _)) = self;
        let meter = Meter::start(server);
        let begin = Instant::now();
        let mut clients: Vec<_> =
            (0..clients as u64).map(|i| Client { numbers: Numbers::new(i), begun: begin, step: 0, lease: 0 }).collect();
        let mut requests = Requests::new(self, target.value_bytes);
        let mut latencies = Vec::with_capacity(1 << 20);
        let connections = target.pool.connections.len();
        for (i, client) in clients.iter_mut().enumerate() {
            requests.ask(client, &mut target.pool, i % connections, i);
        }
        let (mut running, mut done) = (clients.len(), Vec::new());
        while running > 0 {
            target.pool.turn(Duration::from_secs(1), &mut done, &mut |_, _| {})?;
            let now = Instant::now();
            for (connection, answered) in done.drain(..) {
                let answer = answered
                    .answer
                    .with_context(|| format!("the server answered a call of {} with an error", self.name()))?;
                let client = &mut clients[answered.tag];
                if requests.answered(client, &answer)? {
                    latencies.push((now - client.begun).as_micros() as u32);
                    if now >= begin + time {
                        running -= 1;
                        continue;
                    }
                    client.begun = now;
                }
                target.pool.connections[connection].recycle(answer);
                requests.ask(client, &mut target.pool, connection, answered.tag);
            }
        }
        Ok(meter.stop(self.name(), latencies, begin.elapsed()))
    }
}

/// What the clients of a load ask.
struct Requests {
    load: Load,
    value_bytes: usize,
    first: Template,
    second: Template,
}

impl Requests {
    fn new(load: Load, value_bytes: usize) -> Requests {
        let put = Template::put("bench/", value_bytes, 0);
        let first = match load {
            Load::Floor(_) => Template::new(CHECK, &skiff_proto::health::HealthCheckRequest::default()),
            Load::Put(_) | Load::Watch(..) => put.clone(),
            Load::Get(_) | Load::Mixed(_) => Template::get(false),
            Load::GetSerializable(_) => Template::get(true),
            Load::Range(_) => {
                let (key, range_end) = ("range/".into(), "range0".into());
                Template::new(RANGE, &pb::RangeRequest { key, range_end, ..Default::default() })
            }
            Load::Txn(_) => Template::txn(value_bytes),
            Load::LeaseChurn(_) => Template::new(GRANT, &pb::LeaseGrantRequest { ttl: 60, id: 0 }),
        };
        Requests { load, value_bytes, first, second: put }
    }

    fn ask(&mut self, client: &mut Client, pool: &mut Pool, connection: usize, tag: usize) {
        let number = client.numbers.next();
        match (self.load, client.step) {
            (Load::LeaseChurn(_), 1) => {
                let mut put = Template::put("bench/", self.value_bytes, client.lease);
                put.call(pool, connection, tag, number % KEYS);
            }
            (Load::LeaseChurn(_), 2) => {
                let revoke = pb::LeaseRevokeRequest { id: client.lease };
                pool.connections[connection].call(REVOKE, tag, &revoke.encode_to_vec());
            }
            (Load::Mixed(_), _) if number & 3 == 0 => self.second.call(pool, connection, tag, (number >> 2) % KEYS),
            _ => self.first.call(pool, connection, tag, (number >> 2) % KEYS),
        }
    }

    /// Takes an answer in; whether the client's operation is over.
    fn answered(&self, client: &mut Client, answer: &[u8]) -> anyhow::Result<bool> {
        match self.load {
            Load::LeaseChurn(_) => {
                if client.step == 0 {
                    client.lease = pb::LeaseGrantResponse::decode(answer)?.id;
                }
                client.step = (client.step + 1) % 3;
                return Ok(client.step == 0);
            }
            Load::Range(_) => {
                anyhow::ensure!(answer.len() > RANGE_KEYS * self.value_bytes, "the range came back incomplete");
            }
            _ => {}
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_the_request_with_the_number_in_its_keys() {
        let put = pb::PutRequest::decode(&Template::put("bench/", 3, 7).with(1234)[..]).unwrap();
        assert_eq!((&put.key[..], &put.value[..], put.lease), (&b"bench/00001234"[..], &b"vvv"[..], 7));
        let txn = pb::TxnRequest::decode(&Template::txn(3).with(7)[..]).unwrap();
        assert_eq!(txn.compare[0].key, "bench/00000007");
    }
}
