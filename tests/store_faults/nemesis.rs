//! What goes wrong, at random under one seed: at most two things at once, each for a while.

use crate::cluster::{Cluster, SLOTS, slot};
use crate::members;
use crate::network::{self, Slow};
use crate::workload::write_much;
use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use skiff_local::Direction;
use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

const AT_ONCE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Kill,
    KillAll,
    /// SIGTERM: it hands its office over, if it has one.
    Terminate,
    Pause,
    Cut,
    CutOneWay,
    /// Two members, of which one or both do not hear the other; both hear everyone else.
    Deaf,
    Slow,
    FullDisk,
    FrozenDisk,
    MoveLeader,
    Grow,
    Shrink,
}

/// What members a round begins with, and what may happen to them.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub members: usize,
    /// Faults and how often each is chosen.
    pub faults: &'static [(Fault, u32)],
    pub seconds: u64,
}

pub const EVERYTHING: &[(Fault, u32)] = &[
    (Fault::Kill, 18),
    (Fault::KillAll, 3),
    (Fault::Terminate, 6),
    (Fault::Pause, 14),
    (Fault::Cut, 10),
    (Fault::CutOneWay, 12),
    (Fault::Deaf, 10),
    (Fault::Slow, 6),
    (Fault::FullDisk, 6),
    (Fault::FrozenDisk, 8),
    (Fault::MoveLeader, 5),
    (Fault::Grow, 6),
    (Fault::Shrink, 6),
];

/// Mostly changes of membership, so that a group of one becomes one of five, and small again.
pub const MEMBERSHIP: &[(Fault, u32)] = &[
    (Fault::Grow, 40),
    (Fault::Shrink, 20),
    (Fault::Kill, 8),
    (Fault::Pause, 5),
    (Fault::CutOneWay, 4),
    (Fault::MoveLeader, 6),
    (Fault::FrozenDisk, 4),
];

struct Active {
    fault: Fault,
    victims: Vec<String>,
    until: Instant,
}

/// The faults of one round.
pub struct Nemesis<'c> {
    cluster: &'c mut Cluster,
    rng: StdRng,
    plan: Plan,
    active: Vec<Active>,
    freezers: Vec<Child>,
    pub done: BTreeMap<Fault, usize>,
    pub largest: usize,
}

impl<'c> Nemesis<'c> {
    pub fn new(cluster: &'c mut Cluster, plan: Plan, seed: u64) -> Nemesis<'c> {
        let rng = StdRng::seed_from_u64(seed);
        Nemesis {
            cluster,
            rng,
            plan,
            active: Vec::new(),
            freezers: Vec::new(),
            done: BTreeMap::new(),
            largest: plan.members,
        }
    }

    /// Hurts the group for the time of the plan, and mends it.
    pub fn run(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(self.plan.seconds);
        while Instant::now() < end {
            let now = Instant::now();
            for over in self.active.extract_if(.., |a| a.until <= now).collect::<Vec<_>>() {
                self.undo(&over).with_context(|| format!("undoing {:?} of {:?}", over.fault, over.victims))?;
            }
            if self.active.len() < AT_ONCE {
                self.strike()?;
            }
            let pause = Duration::from_millis(self.rng.random_range(20..400));
            let next = self.active.iter().map(|a| a.until).min().filter(|_| self.active.len() == AT_ONCE);
            std::thread::sleep(next.map_or(pause, |at| at.saturating_duration_since(Instant::now())));
            self.cluster.check_ends()?;
            // Whoever stopped for want of room is started again once there is some.
            for name in self.cluster.may_have_stopped.clone() {
                if !self.active.iter().any(|a| a.victims.contains(&name)) {
                    self.cluster.start_again(&name)?;
                }
            }
        }
        self.finish()
    }

    /// Mends everything.
    fn finish(&mut self) -> anyhow::Result<()> {
        for mut freezer in self.freezers.drain(..) {
            let status = freezer.wait()?;
            anyhow::ensure!(status.success(), "what froze a disk ended with {status}");
        }
        self.active.clear();
        self.cluster.check_ends()?;
        self.cluster.heal()?;
        members::settle(self.cluster).map(drop)
    }

    fn pick(&mut self) -> Fault {
        let sum: u32 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.random_range(0..sum);
        for (fault, weight) in self.plan.faults {
            if at < *weight {
                return *fault;
            }
            at -= weight;
        }
        Fault::Kill
    }

    /// A member to which nothing happens at the moment.
    fn victim(&mut self) -> Option<String> {
        let busy = |name: &String| self.active.iter().any(|a| a.victims.contains(name));
        let free: Vec<_> = self.cluster.running.iter().filter(|n| !busy(n)).cloned().collect();
        (!free.is_empty()).then(|| free[self.rng.random_range(0..free.len())].clone())
    }

    fn strike(&mut self) -> anyhow::Result<()> {
        let fault = self.pick();
        let Some(mut name) = self.victim() else { return Ok(()) };
        let leader =
            members::leader(self.cluster).filter(|leader| !self.active.iter().any(|a| a.victims.contains(leader)));
        if let Some(leader) = leader.filter(|_| self.rng.random_ratio(4, 10)) {
            name = leader;
        }
        let mut victims = vec![name.clone()];
        let mut millis = self.rng.random_range(100..2500);
        let host = &self.cluster.host;
        match fault {
            Fault::Kill => self.cluster.kill(&name)?,
            Fault::KillAll => {
                if !self.active.is_empty() {
                    return Ok(());
                }
                victims = self.cluster.running.iter().cloned().collect();
                for name in &victims {
                    self.cluster.kill(name)?;
                }
                millis = self.rng.random_range(0..300);
            }
            Fault::Terminate => self.cluster.terminate(&name)?,
            Fault::Pause if !self.cluster.is_alive(&name)? => return Ok(()),
            Fault::Pause => self.cluster.signal(&name, Signal::SIGSTOP)?,
            Fault::Cut => host.cut(&name, Direction::Both)?,
            Fault::CutOneWay => {
                let way = if self.rng.random_ratio(1, 2) { Direction::In } else { Direction::Out };
                host.cut(&name, way)?;
            }
            Fault::Deaf => {
                let others: Vec<_> = self.cluster.running.iter().filter(|n| **n != name).cloned().collect();
                if others.is_empty() {
                    return Ok(());
                }
                let other = others[self.rng.random_range(0..others.len())].clone();
                if self.active.iter().any(|a| a.victims.contains(&other)) {
                    return Ok(());
                }
                let host = &self.cluster.host;
                network::deafen(host, &name, &[self.cluster.address(&other)?])?;
                if self.rng.random_ratio(1, 2) {
                    network::deafen(host, &other, &[self.cluster.address(&name)?])?;
                }
                victims.push(other);
            }
            Fault::Slow => {
                let (kbit, queue_ms) = (self.rng.random_range(200..4000), self.rng.random_range(50..800));
                network::slow(host, &name, Some(Slow { kbit, queue_ms }))?;
            }
            Fault::FullDisk => {
                self.cluster.may_have_stopped.insert(name.clone());
                self.cluster.disk(&name)?.fill()?;
                write_much(self.cluster, 40)?;
            }
            Fault::FrozenDisk => {
                millis = self.rng.random_range(50..1200);
                self.freezers.push(self.cluster.disk(&name)?.freeze(Duration::from_millis(millis))?);
            }
            Fault::MoveLeader => {
                if !members::move_leader(self.cluster, &name) {
                    return Ok(());
                }
                millis = 50;
            }
            Fault::Grow => {
                let Some(free) = (0..SLOTS).map(slot).find(|n| !self.cluster.running.contains(n)) else {
                    return Ok(());
                };
                self.cluster.join(&free)?;
                self.largest = self.largest.max(self.cluster.running.len());
                victims = vec![free];
                millis += 500;
            }
            Fault::Shrink => {
                if !members::remove(self.cluster, &name, self.plan.members.min(3))? {
                    return Ok(());
                }
                millis = 100;
            }
        }
        *self.done.entry(fault).or_default() += 1;
        self.active.push(Active { fault, victims, until: Instant::now() + Duration::from_millis(millis) });
        Ok(())
    }

    fn undo(&mut self, over: &Active) -> anyhow::Result<()> {
        let name = &over.victims[0];
        match over.fault {
            Fault::Kill | Fault::KillAll | Fault::Terminate => {
                for name in &over.victims {
                    self.cluster.start_again(name)?;
                }
            }
            Fault::Pause => self.cluster.signal(name, Signal::SIGCONT)?,
            Fault::Cut | Fault::CutOneWay => self.cluster.host.heal(name)?,
            Fault::Deaf => {
                for name in &over.victims {
                    network::deafen(&self.cluster.host, name, &[])?;
                }
            }
            Fault::Slow => network::slow(&self.cluster.host, name, None)?,
            Fault::FullDisk => {
                self.cluster.disk(name)?.free()?;
                self.cluster.start_again(name)?;
            }
            Fault::FrozenDisk | Fault::MoveLeader | Fault::Shrink => {}
            // A member that could not join in time gave up.
            Fault::Grow => self.cluster.start_again(name)?,
        }
        Ok(())
    }
}
