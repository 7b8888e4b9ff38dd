//! Clients, and what a member's tasks do for them: sending commands again, reads, the counting of leases. What decides is the store's
//! own (`Pending`, `Shared::has_lease`, `Lessor`); what waits is written out here, because nothing may wait in a simulation.

use crate::checks::{ACKNOWLEDGED, Checks, LINEARIZABILITY, Violation, violated};
use crate::model::pairs;
use crate::world::{Event, World};
use skiff_store::simulation::*;
use skiff_store::{Error, Watcher};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

const ATTEMPT_MS: u64 = 1500;
const READ_ATTEMPT_US: u64 = 300_000;
const KEYS: u64 = 6;

type Outcome = oneshot::Receiver<Result<TxnResponse, Error>>;

struct Write {
    node: usize,
    id: (u64, u64),
    answer: Outcome,
    /// The newest revision that anybody had seen when it was asked for.
    floor: Revision,
    client: Option<usize>,
    /// Granted by it: (lease, ms from now that it lasts).
    lease: Option<(LeaseId, u64)>,
    /// Its result is a revision that the model knows.
    compared: bool,
}

enum Stage {
    Lease(u64),
    Asked { answer: oneshot::Receiver<u64>, since: u64 },
    Wait(u64),
}

enum Purpose {
    Get {
        key: Vec<u8>,
        at: Revision,
    },
    /// Before leases are counted in this term.
    Count(Term),
    KeepAlive {
        lease: LeaseId,
        term: Term,
        until_ms: u64,
    },
}

struct Read {
    node: usize,
    stage: Stage,
    floor: Revision,
    since: u64,
    purpose: Purpose,
    client: Option<usize>,
}

struct Watch {
    node: usize,
    watcher: Watcher,
    range: KeyRange,
    delivered: Revision,
}

#[derive(Default)]
pub struct Clients {
    writes: Vec<Write>,
    reads: Vec<Read>,
    watches: Vec<Watch>,
    /// The newest revision that an answer has shown.
    pub seen: Revision,
    /// Writes that were answered.
    pub acknowledged: u64,
    next_value: u64,
    leases: Vec<(LeaseId, u64)>,
}

impl Clients {
    pub const COUNT: usize = 5;

    /// Its clients never hear of what they asked.
    pub fn member_died(&mut self, node: usize) {
        self.writes.retain(|w| w.node != node);
        self.reads.retain(|r| r.node != node);
        self.watches.retain(|w| w.node != node);
    }

    pub fn finish(&self, checks: &Checks) -> Result<(), Violation> {
        if checks.model.revision < self.seen {
            return violated(
                ACKNOWLEDGED,
                format!("revision {} was seen, the log has {}", self.seen, checks.model.revision),
            );
        }
        Ok(())
    }

    fn forget(&mut self, client: usize) {
        self.writes.iter_mut().filter(|w| w.client == Some(client)).for_each(|w| w.client = None);
        self.reads.retain(|r| r.client != Some(client));
    }

    fn is_busy(&self, client: usize) -> bool {
        self.writes.iter().any(|w| w.client == Some(client)) || self.reads.iter().any(|r| r.client == Some(client))
    }
}

impl World {
    /// A client's turn: it asks for the next thing, or gives up waiting.
    pub fn client(&mut self, client: usize) -> Result<(), Violation> {
        if self.clients.is_busy(client) && self.rng.chance(985) {
            self.after(5_000, Event::Client(client));
            return Ok(());
        }
        self.clients.forget(client);
        let think = if self.rng.chance(50) { 300_000 } else { 25_000 };
        let us = self.rng.below(think);
        self.after(us + 500, Event::Client(client));
        let up: Vec<_> = (0..self.nodes.len()).filter(|i| self.nodes[*i].run.is_some()).collect();
        let Some(node) = self.rng.pick(&up) else { return Ok(()) };
        self.ask(client, node);
        self.raft_later(node);
        self.poll(node)
    }

    fn ask(&mut self, client: usize, node: usize) {
        let key = |n: u64| format!("k{n}").into_bytes();
        let (one, two) = (self.rng.below(KEYS), self.rng.below(KEYS));
        self.clients.next_value += 1;
        let value = format!("v{}", self.clients.next_value).into_bytes();
        let latest = self.clients.seen;
        let put = |k: u64| Op::put(key(k), value.clone());
        let lease = self.clients.leases.get(self.rng.below(6) as usize).map(|l| l.0);
        let txn = |success| Kind::Txn(Txn { success, ..Default::default() });
        let kind = match self.rng.below(100) {
            0..22 => txn(vec![put(one)]),
            22..28 => txn(vec![Op::delete(key(one))]),
            28..34 => {
                let known = self.checks.model.history.range(..=latest).next_back();
                let revision = known.and_then(|(_, (_, keys))| keys.get(&key(one))).map_or(0, |p| p.modified);
                let compare = vec![Compare::mod_revision(key(one), revision)];
                Kind::Txn(Txn { compare, success: vec![put(one)], failure: vec![Op::get(key(one))], fence: None })
            }
            34..38 => txn(vec![put(one), put(two)]),
            38..44 => {
                let id = self.rng.between(1, 1 << 40) as LeaseId;
                let ttl_s = self.rng.between(2, 4) as i64;
                self.clients.leases.insert(0, (id, ttl_s as u64));
                self.clients.leases.truncate(12);
                let promised = Some((id, self.now_ms() + ttl_s as u64 * 1000));
                return self.submit(node, 0, Kind::LeaseGrant(Lease { id, ttl_s }), Some(client), promised, true);
            }
            44..50 => match lease {
                Some(lease) => {
                    let put = Put { key: key(one).into(), value: value.into(), lease, ..Default::default() };
                    txn(vec![Op::Put(put)])
                }
                None => return,
            },
            50..60 => return self.keep_alive(client),
            60..62 => match lease {
                Some(lease) => {
                    let _ = self.checks.promise(lease, None);
                    Kind::LeaseRevoke(lease)
                }
                None => return,
            },
            62..65 => {
                let at = self.rng.between(latest.saturating_sub(12), latest + 1);
                return self.submit(node, 0, Kind::Compact(at), Some(client), None, false);
            }
            65..69 => {
                let term = self.nodes[node].run.as_ref().map_or(0, |r| r.shared.leadership.borrow().term);
                let fence = term.saturating_sub(self.rng.below(2));
                return self.submit(node, fence, txn(vec![put(one)]), Some(client), None, true);
            }
            69..72 => return self.watch(node),
            pick => {
                let at =
                    if pick > 94 { self.rng.between(latest.saturating_sub(6).max(1), latest.max(1) + 1) } else { 0 };
                return self.read(node, Purpose::Get { key: key(one), at }, Some(client));
            }
        };
        self.submit(node, 0, kind, Some(client), None, true);
    }

    /// As `Store::submit`.
    pub fn submit(
        &mut self,
        node: usize,
        fence: Term,
        kind: Kind,
        client: Option<usize>,
        lease: Option<(LeaseId, u64)>,
        compared: bool,
    ) {
        let Some(run) = &mut self.nodes[node].run else { return };
        run.sequence += 1;
        let (shared, sequence) = (&run.shared, run.sequence);
        let proposal = Arc::new(Proposal::new(Command { origin: shared.origin, sequence, fence, kind }));
        let (answer, outcome) = oneshot::channel();
        let leads = shared.leadership.borrow().is_leader();
        let now = shared.clock.now_ms();
        lock(&shared.pending).add(proposal.clone(), answer, now, now + 10_000, leads);
        if leads {
            let _ = shared.inbox.send(Wake::Propose(proposal));
        }
        let id = (shared.origin, sequence);
        let floor = self.clients.seen;
        self.clients.writes.push(Write { node, id, answer: outcome, floor, client, lease, compared });
        self.raft_later(node);
    }

    fn keep_alive(&mut self, client: usize) {
        let leading = |n: &crate::node::Node| n.run.as_ref().is_some_and(|r| r.shared.leadership.borrow().is_leader());
        let leaders: Vec<_> = (0..self.nodes.len()).filter(|i| leading(&self.nodes[*i])).collect();
        let Some(node) = self.rng.pick(&leaders) else { return };
        let pick = self.rng.below(8) as usize;
        let Some((lease, ttl_s)) = self.clients.leases.get(pick).copied() else { return };
        let until_ms = self.now_ms() + ttl_s * 1000;
        let Some(run) = &self.nodes[node].run else { return };
        let term = run.shared.leadership.borrow().term;
        if let Some(times) = run.shared.lease_times(term, &[lease], true)
            && times[0].is_some()
        {
            self.read(node, Purpose::KeepAlive { lease, term, until_ms }, Some(client));
        }
    }

    fn watch(&mut self, node: usize) {
        let Some(run) = &self.nodes[node].run else { return };
        let single = self.rng.chance(400);
        let range = if single { KeyRange::key(format!("k{}", self.rng.below(KEYS))) } else { KeyRange::prefix("k") };
        let machine = run.shared.look();
        let back = self.rng.below(8);
        let start = (machine.kv.revision() + 1).saturating_sub(back).max(machine.kv.compacted() + 1);
        let request = WatchRequest { range: range.clone(), start_revision: start };
        let applied = run.shared.applied.subscribe();
        if let Ok(watcher) = run.shared.hub.register(request, &machine.kv, applied) {
            let watch = Watch { node, watcher, range, delivered: start - 1 };
            self.clients.watches.push(watch);
        }
    }

    fn read(&mut self, node: usize, purpose: Purpose, client: Option<usize>) {
        let Some(run) = &self.nodes[node].run else { return };
        let stage = match run.shared.has_lease() {
            true => Stage::Lease(run.shared.committed_index.load(Ordering::Relaxed)),
            false => self.asked(node),
        };
        let (floor, since) = (self.clients.seen, self.now());
        self.clients.reads.push(Read { node, stage, floor, since, purpose, client });
    }

    fn asked(&self, node: usize) -> Stage {
        let (question, answer) = oneshot::channel();
        if let Some(run) = &self.nodes[node].run {
            let number = run.shared.next_read();
            lock(&run.shared.reads).insert(number, question);
            run.shared.input(Input::ReadIndex(number));
        }
        Stage::Asked { answer, since: self.now() }
    }

    /// Looks what has come for the clients of a member.
    pub fn poll(&mut self, node: usize) -> Result<(), Violation> {
        let now = self.now();
        if self.nodes[node].is_paused(now) {
            return Ok(());
        }
        self.poll_writes(node)?;
        self.poll_reads(node)?;
        self.poll_watches(node)?;
        self.carry(node);
        Ok(())
    }

    fn poll_writes(&mut self, node: usize) -> Result<(), Violation> {
        let mut at = 0;
        while at < self.clients.writes.len() {
            let write = &mut self.clients.writes[at];
            let answer =
                if write.node == node { write.answer.try_recv() } else { Err(oneshot::error::TryRecvError::Empty) };
            match answer {
                Err(oneshot::error::TryRecvError::Empty) => at += 1,
                Err(oneshot::error::TryRecvError::Closed) => drop(self.clients.writes.swap_remove(at)),
                Ok(result) => {
                    let write = self.clients.writes.swap_remove(at);
                    self.answered(write, result)?;
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, write: Write, result: Result<TxnResponse, Error>) -> Result<(), Violation> {
        let meant = self.checks.model.results.get(&write.id).copied();
        match result {
            Ok(response) => {
                let Some(meant) = meant else {
                    return violated(ACKNOWLEDGED, format!("{:?} was answered and is not in the log", write.id));
                };
                if write.compared && meant != Some((response.revision, response.succeeded)) {
                    let detail = format!("{:?} was answered {response:?}; the log says {meant:?}", write.id);
                    return violated(LINEARIZABILITY, detail);
                }
                if response.revision < write.floor {
                    let detail = format!("a write at {} began after {} had been seen", response.revision, write.floor);
                    return violated(LINEARIZABILITY, detail);
                }
                self.clients.seen = self.clients.seen.max(response.revision);
                self.clients.acknowledged += 1;
                if let Some((lease, until)) = write.lease {
                    self.checks.promise(lease, Some(until))?;
                }
            }
            Err(Error::Unknown(_) | Error::NoLeader | Error::Stopped | Error::Failed(_)) => {}
            Err(error) if write.compared && matches!(meant, Some(Some(_))) => {
                return violated(LINEARIZABILITY, format!("{:?} was refused ({error}) and carried out", write.id));
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// As `Store::linearizable`, a stage at a time.
    fn poll_reads(&mut self, node: usize) -> Result<(), Violation> {
        let mut at = 0;
        while at < self.clients.reads.len() {
            if self.clients.reads[at].node != node {
                at += 1;
                continue;
            }
            let Some(run) = &self.nodes[node].run else { return Ok(()) };
            let shared = run.shared.clone();
            let now = self.now();
            let read = &mut self.clients.reads[at];
            let (next, done) = match &mut read.stage {
                Stage::Lease(index) if shared.has_applied(*index) => match shared.has_lease() {
                    true => (None, true),
                    false => (Some(self.asked(node)), false),
                },
                Stage::Wait(index) => (None, shared.has_applied(*index)),
                Stage::Asked { answer, since } => match answer.try_recv() {
                    Ok(index) => (Some(Stage::Wait(index)), false),
                    Err(_) if now > *since + READ_ATTEMPT_US => (Some(self.asked(node)), false),
                    Err(_) => (None, false),
                },
                Stage::Lease(_) => (None, false),
            };
            let read = &mut self.clients.reads[at];
            let moved = next.is_some();
            if let Some(next) = next {
                if matches!(next, Stage::Asked { .. }) {
                    read.stage = next;
                    self.raft_later(node);
                } else {
                    read.stage = next;
                    continue;
                }
            }
            if done {
                let read = self.clients.reads.swap_remove(at);
                self.looked(&shared, read)?;
            } else if !moved && now > self.clients.reads[at].since + 10_000_000 {
                self.clients.reads.swap_remove(at);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    fn looked(&mut self, shared: &Shared, read: Read) -> Result<(), Violation> {
        match read.purpose {
            Purpose::Get { key, at } => {
                let machine = shared.look();
                let request = RangeRequest { range: KeyRange::key(key.clone()), revision: at, ..Default::default() };
                let response = match machine.kv.range(&request) {
                    Ok(response) => response,
                    Err(Error::Compacted { .. }) if at < machine.kv.compacted() => return Ok(()),
                    Err(e) => return violated(LINEARIZABILITY, format!("a read of revision {at}: {e}")),
                };
                if response.revision < read.floor {
                    let detail = format!(
                        "member {:x} answered revision {}, {} had been seen",
                        shared.id, response.revision, read.floor
                    );
                    return violated(LINEARIZABILITY, detail);
                }
                let revision = if at == 0 { response.revision } else { at };
                let meant = self.checks.model.history.get(&revision).and_then(|(_, keys)| keys.get(&key).cloned());
                let seen = pairs(&response.kvs).remove(&key);
                if seen != meant {
                    return violated(
                        LINEARIZABILITY,
                        format!("{key:?} at {revision}: {seen:?}, the log says {meant:?}"),
                    );
                }
                self.clients.seen = self.clients.seen.max(response.revision);
            }
            Purpose::Count(term) => {
                if let Some(run) = &mut self.nodes[read.node].run {
                    run.counting = None;
                }
                if shared.leadership.borrow().term == term && shared.leadership.borrow().is_leader() {
                    let machine = shared.look();
                    lock(&shared.lessor).lead(term, machine.kv.leases(), shared.clock.now_ms());
                }
            }
            Purpose::KeepAlive { lease, term, until_ms } => {
                if shared.counts_for(term) {
                    self.checks.promise(lease, Some(until_ms))?;
                }
            }
        }
        Ok(())
    }

    fn poll_watches(&mut self, node: usize) -> Result<(), Violation> {
        let mut at = 0;
        while at < self.clients.watches.len() {
            let watch = &mut self.clients.watches[at];
            if watch.node != node {
                at += 1;
                continue;
            }
            let next = {
                let next = pin!(watch.watcher.next());
                next.poll(&mut Context::from_waker(Waker::noop()))
            };
            match next {
                Poll::Pending => at += 1,
                Poll::Ready(Ok(batch)) => {
                    self.checks.watched(&watch.range, watch.delivered, &batch)?;
                    watch.delivered = batch.revision;
                }
                // Its client would begin again, elsewhere perhaps.
                Poll::Ready(Err(_)) => drop(self.clients.watches.swap_remove(at)),
            }
        }
        Ok(())
    }

    /// As `transport::carry`.
    fn carry(&mut self, node: usize) {
        let Some(run) = &mut self.nodes[node].run else { return };
        let shared = run.shared.clone();
        let now = shared.leadership.borrow().clone();
        let mut pending = lock(&shared.pending);
        if run.led_by != Some((now.term, now.leader)) {
            run.led_by = Some((now.term, now.leader));
            pending.send_all_again();
        }
        let Some(leader) = now.leader else { return };
        if !pending.has_unsent() {
            return;
        }
        let proposals = pending.take_unsent(now.term, shared.clock.now_ms());
        drop(pending);
        if now.is_leader() {
            shared.input(Input::Propose(proposals));
            return self.raft_later(node);
        }
        let Some(to) = self.index_of(leader) else { return };
        let incarnation = self.nodes[node].incarnation;
        let copies = 1 + (self.chaos && self.rng.chance(30)) as usize;
        for _ in 0..copies {
            let commands = proposals.iter().map(|p| p.encoded.clone()).collect();
            let sequences = proposals.iter().map(|p| p.command.sequence).collect();
            let us = self.delay();
            if !self.loses(node, to) {
                self.after(us, Event::Forward { from: node, incarnation, to, commands, sequences });
            }
        }
    }

    /// What a member does now and then: `carry`'s look, and `keeper::count_leases`.
    pub fn housekeeping(&mut self, node: usize) -> Result<(), Violation> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let shared = run.shared.clone();
        lock(&shared.pending).look(shared.clock.now_ms(), ATTEMPT_MS);
        let leadership = shared.leadership.borrow().clone();
        let counted = lock(&shared.lessor).term();
        if !leadership.is_leader() {
            lock(&shared.lessor).stop();
        } else if counted != Some(leadership.term) {
            if run.counting != Some(leadership.term) {
                run.counting = Some(leadership.term);
                self.read(node, Purpose::Count(leadership.term), None);
                self.raft_later(node);
            }
        } else if !self.clients.writes.iter().any(|w| w.node == node && w.client.is_none()) {
            let due = lock(&shared.lessor).due(shared.clock.now_ms(), 256);
            for lease in due {
                self.submit(node, leadership.term, Kind::LeaseRevoke(lease), None, None, true);
            }
        }
        self.poll(node)
    }
}
