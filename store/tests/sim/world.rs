//! The world: a queue of events in virtual time, the members, and the network between them. One thread, one seed.
//!
//! What `driver`'s threads do in a process happens here as events, each after a delay that the seed draws: a turn of the raft thread, a
//! round of the disk, a piece of applying, background work. Between two events anything else may happen, a crash too.

use crate::checks::{Checks, LIVENESS, ONE_AUTHORITY, RECOVERY, Violation, violated};
use crate::clients::Clients;
use crate::node::{Node, TICK_US};
use crate::rng::Rng;
use crate::tally;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use skiff_store::simulation::*;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A run's chaos lasts so long, in virtual microseconds; then everything is healed.
const CHAOS_US: (u64, u64) = (2_000_000, 9_000_000);
/// By then after the healing, a write must have been agreed on and everybody must have caught up.
const HEALED_US: u64 = 30_000_000;

pub enum Event {
    Tick(usize, u64),
    Raft(usize, u64),
    Disk(usize, u64),
    Apply(usize, u64),
    Job(usize, u64, Box<dyn FnOnce() + Send>),
    Deliver(usize, Input),
    /// What `transport::send_snapshot` and `peer::receive` do: the sender makes its offer, ...
    SnapshotOffer {
        from: usize,
        to: usize,
        message: Message,
    },
    /// ... the receiver says where to go on, ...
    SnapshotBegin(Transfer),
    /// ... the sender reads the next piece, ...
    SnapshotRead(Transfer),
    /// ... which arrives, ...
    SnapshotChunk(Transfer, Vec<u8>),
    /// ... until all of it is there and is looked at.
    SnapshotEnd(Transfer, Result<(), Refused>),
    Forward {
        from: usize,
        incarnation: u64,
        to: usize,
        commands: Vec<Bytes>,
        sequences: Vec<u64>,
    },
    ForwardAnswer {
        to: usize,
        incarnation: u64,
        accepted: bool,
        sequences: Vec<u64>,
    },
    Closed(usize, usize),
    Campaign(usize, usize),
    Restart(usize),
    /// Dies and is back in a moment.
    Blink(usize),
    Mute(usize),
    /// From one to the other, nothing comes through any more.
    Cut(usize, usize),
    CutOff(usize),
    Housekeeping(usize, u64),
    Client(usize),
    Nemesis,
}

/// A snapshot on its way.
pub struct Transfer {
    pub from: usize,
    pub to: usize,
    /// Of the sender and the receiver.
    pub incarnations: (u64, u64),
    pub offer: Offer,
    pub ticket: u64,
    pub have: u64,
}

struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    pub clock: Arc<AtomicU64>,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    pub rng: Rng,
    pub sizes: Sizes,
    pub nodes: Vec<Node>,
    pub checks: Checks,
    pub clients: Clients,
    /// One-way cuts.
    pub cuts: BTreeSet<(usize, usize)>,
    pub loss_per_mille: u64,
    pub slow_disks: bool,
    pub chaos: bool,
    /// By receiver: the network damaged a piece of a snapshot that no checksum on the way noticed.
    pub garbled: Vec<bool>,
    began: Instant,
    pub events: u64,
    traced: bool,
    /// Until then clients do nothing, and nothing else goes wrong.
    pub quiet_until: u64,
    /// When a change of members was asked for last.
    pub changed_at: Option<u64>,
    /// Faults that this seed has many of, if it has any: a rare case often wants the same kind of fault twice.
    pub favourites: Vec<u64>,
}

/// Runs one seed; gives how many events it took.
pub fn run(seed: u64) -> Result<u64, Violation> {
    begin(seed);
    let mut world = World::new(seed);
    world.found()?;
    let chaos = world.rng.between(CHAOS_US.0, CHAOS_US.1);
    world.chaos = true;
    world.after(200_000, Event::Nemesis);
    world.until(chaos, |_| false)?;
    world.heal()?;
    let (heal, target) = (world.now(), world.clients.acknowledged);
    let healed = world.until(heal + HEALED_US, |w| w.clients.acknowledged > target + 2 && w.is_even())?;
    if !healed {
        let state: Vec<_> = world.nodes.iter().map(Node::describe).collect();
        return violated(LIVENESS, format!("{} s after healing: {state:?}", HEALED_US / 1_000_000));
    }
    world.clients.finish(&world.checks)?;
    Ok(world.events)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let sizes = Sizes {
            segment: rng.between(1000, 8000) as usize,
            segment_slack: 500,
            first_segment_bytes: rng.between(600, 3000) as usize,
            snapshot_entries: rng.between(15, 120),
            catch_up_entries: rng.between(0, 40),
            log_bytes: rng.between(2_000, 40_000) as usize,
            log_bytes_alone: 1000,
            snapshot_keys: rng.between(1, 6) as usize,
            snapshot_chunk_bytes: rng.between(20, 1500) as usize,
            sweep_revisions: 3,
        };
        let names: Vec<_> = (1..=5).map(|i| skiff_store::Peer { name: i.to_string(), addr: i.to_string() }).collect();
        let group = Group::new(&names, "sim");
        let node = |rng: &mut Rng, addr: &str| {
            let id = group.find(addr).unwrap_or_default();
            Node::new(id, rng.next(), rng.below(1 << 40))
        };
        let nodes = names.iter().map(|p| node(&mut rng, &p.addr)).collect();
        World {
            clock: Arc::new(AtomicU64::new(1)),
            queue: BinaryHeap::new(),
            order: 0,
            sizes,
            nodes,
            checks: Checks::new(),
            clients: Clients::default(),
            cuts: BTreeSet::new(),
            loss_per_mille: 0,
            slow_disks: false,
            chaos: false,
            garbled: vec![false; 5],
            began: Instant::now(),
            events: 0,
            quiet_until: 0,
            changed_at: None,
            favourites: if rng.chance(500) { vec![rng.below(100), rng.below(100)] } else { Vec::new() },
            traced: std::env::var_os("SKIFF_SIM_TRACE").is_some(),
            rng,
        }
    }

    /// Three members begin a group.
    fn found(&mut self) -> Result<(), Violation> {
        let mut names: Vec<_> =
            (1..=3).map(|i| skiff_store::Peer { name: i.to_string(), addr: i.to_string() }).collect();
        if self.rng.chance(50) {
            names.truncate(1);
        }
        let group = Group::new(&names, "sim");
        for i in 0..names.len() {
            let mut machine = Machine::new();
            group.begin(&mut machine);
            let disk = self.nodes[i].disk.clone();
            if let Err(e) = snapshots::write_whole(&*disk, machine, 1) {
                return violated(RECOVERY, format!("founding: {e}"));
            }
            self.nodes[i].exists = true;
            self.start(i)?;
        }
        for client in 0..Clients::COUNT {
            self.after(100_000 + client as u64 * 1000, Event::Client(client));
        }
        Ok(())
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Says what happens, for a replay with `SKIFF_SIM_TRACE`.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>9} us  {}", self.now(), what());
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now() / 1000
    }

    pub fn after(&mut self, us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due(self.now() + us, self.order, event)));
    }

    fn until(&mut self, end: u64, mut done: impl FnMut(&World) -> bool) -> Result<bool, Violation> {
        while let Some(Reverse(due)) = self.queue.pop() {
            if due.0 > end {
                self.queue.push(Reverse(due));
                return Ok(false);
            }
            self.clock.store(due.0, Ordering::Relaxed);
            self.events += 1;
            self.handle(due.2)?;
            if self.events.is_multiple_of(64) && done(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn start(&mut self, i: usize) -> Result<(), Violation> {
        if self.nodes[i].run.is_some() || self.nodes[i].gone || !self.nodes[i].exists {
            return Ok(());
        }
        self.nodes[i].start(&self.clock, self.sizes, &mut self.rng)?;
        let incarnation = self.nodes[i].incarnation;
        if self.nodes[i].run.is_none() {
            self.after(100_000, Event::Restart(i));
            return Ok(());
        }
        self.trace(|| format!("member {i} starts: {}", self.nodes[i].describe()));
        let Some(run) = &mut self.nodes[i].run else { return Ok(()) };
        self.checks.starts(run.shared.id, run.raft.replica().log().hard_state())?;
        let (machine, flushed) = (run.shared.clone(), run.raft.flush());
        self.checks.state(machine.id, &machine.look())?;
        self.failed_if(i, flushed);
        self.settle(i)?;
        let first = self.rng.below(TICK_US);
        self.after(first, Event::Tick(i, incarnation));
        self.after(first, Event::Housekeeping(i, incarnation));
        Ok(())
    }

    fn failed_if(&mut self, i: usize, result: Result<(), String>) {
        if let (Err(why), Some(run)) = (result, &self.nodes[i].run) {
            run.shared.fail(why);
        }
    }

    pub fn crash(&mut self, i: usize) {
        // Some are back before anybody has noticed.
        let longest = if self.rng.chance(300) { 60_000 } else { 1_500_000 };
        let us = self.rng.between(1_000, longest);
        self.crash_for(i, us);
    }

    /// A member dies, and is started again so much later.
    fn crash_for(&mut self, i: usize, down_us: u64) {
        let Some(run) = self.nodes[i].run.take() else { return };
        self.trace(|| format!("member {i} crashes: {:?}", run.shared.failure.borrow()));
        self.nodes[i].incarnation += 1;
        self.nodes[i].paused_until = 0;
        self.nodes[i].disk.crash();
        self.clients.member_died(i);
        for j in 0..self.nodes.len() {
            let us = self.rng.between(500, 20_000);
            self.after(us, Event::Closed(j, i));
        }
        self.after(down_us, Event::Restart(i));
    }

    fn heal(&mut self) -> Result<(), Violation> {
        self.chaos = false;
        self.cuts.clear();
        (self.loss_per_mille, self.slow_disks) = (0, false);
        for i in 0..self.nodes.len() {
            self.nodes[i].paused_until = 0;
            self.nodes[i].disk.fail_syncs(false);
            self.nodes[i].disk.fill(false);
            self.start(i)?;
        }
        Ok(())
    }

    /// Whether every member that can be is where the log is.
    fn is_even(&self) -> bool {
        let last = self.checks.last();
        let leader =
            self.nodes.iter().filter_map(|n| n.run.as_ref()).find(|r| r.shared.leadership.borrow().is_leader());
        let Some(leader) = leader else { return false };
        let conf = leader.shared.look().conf_state.clone();
        self.nodes
            .iter()
            .filter(|n| !n.gone && conf.voters.contains(&n.id))
            .all(|n| n.run.as_ref().is_some_and(|r| r.shared.applied_index.load(Ordering::Relaxed) + 20 > last))
    }

    /// Who runs in this incarnation, and is not paused: then the event comes later.
    fn is_up(&mut self, i: usize, incarnation: u64, event: impl FnOnce() -> Event) -> bool {
        if self.nodes[i].run.is_none() || self.nodes[i].incarnation != incarnation {
            return false;
        }
        let now = self.now();
        if self.nodes[i].is_paused(now) {
            let wait = self.nodes[i].paused_until - now;
            self.after(wait, event());
            return false;
        }
        true
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick(i, n) => {
                if self.is_up(i, n, || Event::Tick(i, n)) {
                    let now = self.began + Duration::from_micros(self.now());
                    if let Some(run) = &mut self.nodes[i].run {
                        run.raft.tick(now);
                        let flushed = run.raft.flush();
                        self.failed_if(i, flushed);
                    }
                    let late = if self.rng.chance(20) { self.rng.below(20_000) } else { self.rng.below(300) };
                    self.after(TICK_US + late, Event::Tick(i, n));
                    self.settle(i)?;
                }
            }
            Event::Raft(i, n) => {
                if self.is_up(i, n, || Event::Raft(i, n)) {
                    if let Some(run) = &mut self.nodes[i].run {
                        run.raft_due = false;
                        let mut round = Round::default();
                        while let Ok(wake) = run.inbox.try_recv() {
                            if run.raft.take_wake(wake, &mut round) {
                                break;
                            }
                        }
                        let flushed = run.raft.flush();
                        self.failed_if(i, flushed);
                    }
                    self.settle(i)?;
                }
            }
            Event::Disk(i, n) => {
                if self.is_up(i, n, || Event::Disk(i, n)) {
                    if let Some(run) = &mut self.nodes[i].run {
                        let first = run.to_write.take();
                        let done = run.queues.disk.round(first, &run.queues.to_disk);
                        run.disk_due = run.queues.disk.is_waiting();
                        let waiting = run.disk_due;
                        self.failed_if(i, done);
                        if waiting {
                            self.after(LOOK_EVERY.as_micros() as u64, Event::Disk(i, n));
                        }
                    }
                    self.raft_later(i);
                    self.settle(i)?;
                }
            }
            Event::Apply(i, n) => {
                if self.is_up(i, n, || Event::Apply(i, n)) {
                    self.apply(i)?;
                    self.raft_later(i);
                    self.settle(i)?;
                }
            }
            Event::Job(i, n, work) => {
                // The closure would be lost in a paused process's queue: it runs when it is due, which no one can tell apart.
                if self.nodes[i].run.is_some() && self.nodes[i].incarnation == n {
                    work();
                    self.raft_later(i);
                    self.settle(i)?;
                }
            }
            Event::Deliver(i, input) => {
                if let Input::Message(m) = &input {
                    self.trace(|| {
                        format!(
                            "{:?} from {:?} to {i}: term {} index {} commit {} entries {:?} reject {} snapshot {}",
                            m.msg_type,
                            self.index_of(m.from),
                            m.term,
                            m.index,
                            m.commit,
                            m.entries.iter().map(|e| e.index).collect::<Vec<_>>(),
                            m.reject,
                            m.get_snapshot().get_metadata().index
                        )
                    });
                }
                if let Some(run) = &self.nodes[i].run {
                    run.shared.input(input);
                    self.raft_later(i);
                }
            }
            Event::Closed(j, i) => {
                let dead = self.nodes[i].id;
                if self.nodes[i].run.is_none()
                    && let Some(run) = &self.nodes[j].run
                    && run.shared.leadership.borrow().leader == Some(dead)
                {
                    run.shared.input(Input::Closed(dead));
                    self.raft_later(j);
                    let us = self.rng.between(5_000, 60_000);
                    self.after(us, Event::Campaign(j, i));
                }
            }
            Event::Campaign(j, i) => {
                let dead = self.nodes[i].id;
                if let Some(run) = &self.nodes[j].run
                    && run.shared.leadership.borrow().leader.is_none_or(|leader| leader == dead)
                {
                    run.shared.input(Input::Campaign);
                    self.raft_later(j);
                }
            }
            Event::Restart(i) => self.start(i)?,
            Event::Blink(i) if self.chaos => {
                let us = self.rng.between(1_000, 30_000);
                self.crash_for(i, us);
            }
            Event::CutOff(i) if self.chaos => self.cut_off(i),
            Event::Mute(i) if self.chaos => self.mute(i),
            Event::Cut(from, to) if self.chaos => {
                self.cuts.insert((from, to));
            }
            Event::Blink(_) | Event::CutOff(_) | Event::Mute(_) | Event::Cut(..) => {}
            Event::Housekeeping(i, n) => {
                if self.is_up(i, n, || Event::Housekeeping(i, n)) {
                    self.housekeeping(i)?;
                    self.after(100_000, Event::Housekeeping(i, n));
                }
            }
            Event::Client(c) if self.chaos && self.now() < self.quiet_until => {
                self.after(20_000, Event::Client(c));
            }
            Event::Client(c) => self.client(c)?,
            Event::Nemesis => self.nemesis()?,
            other => self.transfer(other)?,
        }
        Ok(())
    }

    fn apply(&mut self, i: usize) -> Result<(), Violation> {
        let Some(run) = &mut self.nodes[i].run else { return Ok(()) };
        run.apply_due = false;
        let Some(work) = run.to_apply.pop_front() else { return Ok(()) };
        let done = lock(&run.queues.applier).carry_out(work);
        self.failed_if(i, done);
        Ok(())
    }

    pub fn raft_later(&mut self, i: usize) {
        let incarnation = self.nodes[i].incarnation;
        if let Some(run) = self.nodes[i].run.as_mut().filter(|r| !r.raft_due) {
            run.raft_due = true;
            let us = if self.rng.chance(20) { self.rng.below(5_000) } else { self.rng.below(100) };
            self.after(us, Event::Raft(i, incarnation));
        }
    }

    /// After a step of a member: what it has begun is taken over.
    pub fn settle(&mut self, i: usize) -> Result<(), Violation> {
        let jobs = take_postponed();
        let (applied, now_ms) = (take_applied(), self.now_ms());
        let is_dead = self.nodes[i].disk.is_dead();
        let Some(run) = &mut self.nodes[i].run else { return Ok(()) };
        if is_dead || run.shared.failed.load(Ordering::Relaxed) {
            self.crash(i);
            return Ok(());
        }
        if !applied.is_empty() {
            self.checks.committed(run.shared.id, &applied, now_ms)?;
            self.checks.state(run.shared.id, &run.shared.look())?;
        }
        if self.traced {
            let (base, terms) = run.raft.replica().log().terms();
            eprintln!(
                "{:>9} us  member {i} settles: log {base}+{}, snapshot {}, committed {}, applied {}",
                self.clock.load(Ordering::Relaxed),
                terms.len(),
                run.raft.replica().log().snapshot_index(),
                run.raft.replica().committed(),
                run.shared.look().index
            );
        }
        let messages = run.out.take();
        for message in &messages {
            self.checks.said(run.shared.id, message, now_ms)?;
            if message.get_msg_type() == MessageType::MsgRequestVote {
                self.checks.stands(run.shared.id, run.raft.replica().log(), run.shared.look().index)?;
            }
        }
        let leads = run.seen.is_leader() && run.raft.replica().is_leader();
        if leads {
            self.checks.is_voter(run.shared.id, &run.shared.look().conf_state)?;
        }
        let votes: Vec<_> = messages.iter().filter_map(Checks::grants).collect();
        if run.to_write.is_none() {
            run.to_write = run.queues.to_disk.try_recv().ok();
        }
        run.to_apply.extend(run.queues.to_apply.try_iter());
        let write = run.to_write.is_some() && !std::mem::replace(&mut run.disk_due, run.to_write.is_some());
        let apply = !run.to_apply.is_empty() && !std::mem::replace(&mut run.apply_due, true);
        let leadership = run.shared.leadership.borrow().clone();
        let mut led = None;
        if leadership != run.seen {
            if leadership.is_leader() {
                tally::count("group: a leader elected");
                self.checks.leads(run.shared.id, leadership.term, run.raft.replica().log())?;
                led = Some(run.shared.id);
            }
            run.seen = leadership.clone();
            if self.traced {
                eprintln!(
                    "{:>9} us  member {i}: term {} led by {:x?}",
                    now_ms * 1000,
                    leadership.term,
                    leadership.leader
                );
            }
        }
        if let Some(id) = led {
            self.leads_alone(id)?;
        }
        for (candidate, term) in votes {
            self.keeps_silence(self.nodes[i].id, candidate, term)?;
        }
        let incarnation = self.nodes[i].incarnation;
        if write {
            let us = match self.rng.below(100) {
                0 if self.slow_disks => {
                    tally::count("disk: a stall of 0.1 to 1 s");
                    self.rng.between(100_000, 1_000_000)
                }
                0..5 => self.rng.below(30_000),
                _ => self.rng.between(50, 1_500),
            };
            self.after(us, Event::Disk(i, incarnation));
        }
        if apply {
            let us = if self.rng.chance(30) { self.rng.below(60_000) } else { self.rng.below(300) };
            self.after(us, Event::Apply(i, incarnation));
        }
        for job in jobs {
            let us = self.rng.below(20_000);
            self.after(us, Event::Job(i, incarnation, job));
        }
        for message in messages {
            self.send(i, message);
        }
        self.poll(i)
    }

    /// A member has begun to lead: nobody else may answer reads by a lease of its own.
    fn leads_alone(&self, id: MemberId) -> Result<(), Violation> {
        for other in self.nodes.iter().filter(|n| n.id != id).filter_map(|n| n.run.as_ref()) {
            if other.raft.replica().authority() == Authority::Sole {
                let detail = format!("member {id:x} leads while {:x} takes itself for the only voter", other.shared.id);
                return violated(ONE_AUTHORITY, detail);
            }
            let left = other.shared.lease_until.load(Ordering::Relaxed).saturating_sub(other.shared.clock.now_ns());
            if left > 0 {
                let detail =
                    format!("member {id:x} leads while {:x} has a lease for {} us", other.shared.id, left / 1000);
                return violated(ONE_AUTHORITY, detail);
            }
        }
        Ok(())
    }

    /// A member votes: it must not have promised a leader its silence that reads by the lease which rests on it.
    fn keeps_silence(&self, voter: MemberId, candidate: MemberId, term: Term) -> Result<(), Violation> {
        let Some((leader, promised_in, until_ms)) = self.checks.silent.get(&voter).copied() else { return Ok(()) };
        // A vote of an earlier term that was on its way to the disk makes no leader any more.
        if term < promised_in {
            return Ok(());
        }
        let run = self.index_of(leader).and_then(|i| self.nodes[i].run.as_ref());
        let Some(run) = run.filter(|_| leader != candidate && self.now_ms() < until_ms) else { return Ok(()) };
        // The promise may have waited for the disk while that leader died and, in a later term, was elected again: it does not count there.
        if run.shared.leadership.borrow().term > promised_in {
            return Ok(());
        }
        let left = run.shared.lease_until.load(Ordering::Relaxed).saturating_sub(run.shared.clock.now_ns());
        if left > 0 {
            let detail = format!(
                "{voter:x} votes for {candidate:x} in {term}; in {promised_in} it promised {leader:x} silence until {until_ms} ms"
            );
            return violated(ONE_AUTHORITY, detail);
        }
        Ok(())
    }

    pub fn index_of(&self, id: MemberId) -> Option<usize> {
        self.nodes.iter().position(|n| n.id == id)
    }

    pub fn delay(&mut self) -> u64 {
        match self.rng.below(200) {
            0 => self.rng.below(400_000),
            1..10 => self.rng.below(40_000),
            _ => self.rng.between(100, 2_000),
        }
    }

    /// Whether the network loses what goes from one to the other now.
    pub fn loses(&mut self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to)) || self.rng.chance(self.loss_per_mille)
    }

    fn send(&mut self, from: usize, message: Message) {
        let Some(to) = self.index_of(message.to) else { return };
        let us = self.delay();
        if is_snapshot(&message) {
            return self.after(us, Event::SnapshotOffer { from, to, message });
        }
        if self.loses(from, to) || self.nodes[to].run.is_none() {
            tally::count("network: a message lost");
            if self.rng.chance(200) {
                let id = self.nodes[to].id;
                self.after(us, Event::Deliver(from, Input::Unreachable(id)));
            }
            return;
        }
        if self.chaos && self.rng.chance(20) {
            tally::count("network: a message sent twice");
            let later = self.delay() * 3;
            self.after(later, Event::Deliver(to, Input::Message(Box::new(message.clone()))));
        }
        self.after(us, Event::Deliver(to, Input::Message(Box::new(message))));
    }

    /// What is no Raft message: snapshots, and commands for the leader.
    fn transfer(&mut self, event: Event) -> Result<(), Violation> {
        let us = self.delay();
        match event {
            Event::SnapshotOffer { from, to, message } => self.offer(from, to, message),
            Event::SnapshotBegin(transfer) => self.begin_transfer(transfer),
            Event::SnapshotRead(transfer) => return self.read_piece(transfer),
            Event::SnapshotChunk(transfer, data) => self.take_piece(transfer, data),
            Event::SnapshotEnd(transfer, checked) => return self.end_transfer(transfer, checked),
            Event::Forward { from, incarnation, to, commands, sequences } => {
                let Some(run) = &self.nodes[to].run else { return Ok(()) };
                let accepted = run.shared.leadership.borrow().is_leader();
                if accepted {
                    let proposals = commands.into_iter().filter_map(|c| Proposal::decode(c).ok().map(Arc::new));
                    run.shared.input(Input::Propose(proposals.collect()));
                    self.raft_later(to);
                }
                if !self.loses(to, from) {
                    self.after(us, Event::ForwardAnswer { to: from, incarnation, accepted, sequences });
                }
            }
            Event::ForwardAnswer { to, incarnation, accepted: false, sequences } => {
                if let Some(run) = self.nodes[to].run.as_ref().filter(|_| self.nodes[to].incarnation == incarnation) {
                    let mut pending = lock(&run.shared.pending);
                    sequences.iter().for_each(|s| pending.send_again(*s));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
