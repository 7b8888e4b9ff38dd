//! What goes wrong, and changes of membership while it does.

use crate::checks::Violation;
use crate::tally;
use crate::world::{Event, World};
use raft::eraftpb::ConfChangeType;
use skiff_store::simulation::*;

/// A change that was asked for is through by then, or never will be: longer than a pause.
const CHANGES_US: u64 = 4_000_000;

impl World {
    pub fn nemesis(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let next = self.rng.between(10_000, 350_000);
        self.after(next, Event::Nemesis);
        if self.now() < self.quiet_until {
            return Ok(());
        }
        let count = self.nodes.iter().filter(|n| n.exists).count();
        let leading =
            self.nodes.iter().position(|n| n.run.as_ref().is_some_and(|r| r.shared.leadership.borrow().is_leader()));
        let victim = match leading {
            Some(leader) if self.rng.chance(450) => leader,
            _ => self.rng.below(count as u64) as usize,
        };
        let now = self.now();
        let favourites = self.favourites.clone();
        let favourite = self.rng.chance(500).then(|| self.rng.pick(&favourites)).flatten();
        let action = favourite.unwrap_or_else(|| self.rng.below(100));
        self.trace(|| format!("nemesis {action} on member {victim}"));
        match action {
            0..12 => self.crash(victim),
            12..24 => {
                let operations = self.rng.below(12);
                self.nodes[victim].disk.die_after(operations);
            }
            24..32 => {
                let us = if self.rng.chance(300) { 3_000_000 } else { 900_000 };
                tally::count("process: paused");
                self.nodes[victim].paused_until = now + self.rng.between(10_000, us);
            }
            32..42 => self.cut_off(victim),
            42..50 => {
                for other in 0..count {
                    if self.rng.chance(600) {
                        tally::count("network: a direction cut");
                        self.cuts.insert(if self.rng.chance(500) { (victim, other) } else { (other, victim) });
                    }
                }
            }
            50..66 => self.cuts.clear(),
            66..70 => self.loss_per_mille = self.rng.pick(&[0, 10, 50, 200]).unwrap_or(0),
            70..73 => self.slow_disks = !self.slow_disks,
            73..75 => self.nodes[victim].disk.fail_syncs(true),
            75..78 => self.nodes[victim].disk.fill(!self.nodes[victim].disk.is_full()),
            78..80 => {
                for node in 0..count {
                    self.crash(node);
                }
            }
            80..83 => self.flip(victim),
            83..88 => {
                if let Some(run) = &self.nodes[victim].run {
                    let to = self.nodes[self.rng.below(count as u64) as usize].id;
                    let leads = run.shared.leadership.borrow().is_leader();
                    if leads && to != run.shared.id && run.shared.look().conf_state.voters.contains(&to) {
                        tally::count("group: leadership handed over");
                        run.shared.input(Input::TransferTo(to));
                        self.raft_later(victim);
                        if self.rng.chance(400) {
                            // It hears of its successor last of all.
                            self.cuts.extend((0..count).map(|other| (other, victim)));
                        }
                    }
                }
            }
            88..90 => self.blink_beside_a_cut(leading, victim),
            _ => {
                if let Some(leader) = leading {
                    self.change_members(leader);
                }
            }
        }
        Ok(())
    }

    /// At most one member of a run is damaged: what a majority has lost, nobody can give back.
    /// Nobody hears it any more; a little later it hears nobody either.
    pub fn mute(&mut self, victim: usize) {
        self.cuts.extend((0..self.nodes.len()).map(|other| (victim, other)));
        let us = self.rng.between(20_000, 200_000);
        self.after(us, Event::CutOff(victim));
    }

    pub fn cut_off(&mut self, victim: usize) {
        tally::count("network: a member cut off");
        self.cuts.extend((0..self.nodes.len()).flat_map(|other| [(victim, other), (other, victim)]));
    }

    /// While nobody writes, one member hears its leader no more, and stands for election some time later. Shortly before, the others, which
    /// have just promised the leader their silence, die, are back in a moment, and do not hear it either.
    fn blink_beside_a_cut(&mut self, leading: Option<usize>, deaf: usize) {
        let Some(leader) = leading.filter(|leader| *leader != deaf) else { return };
        self.quiet_until = self.now() + 1_200_000;
        self.cuts.extend([(leader, deaf), (deaf, leader)]);
        let last = self.rng.between(350_000, 900_000);
        for other in (0..self.nodes.len()).filter(|other| ![leader, deaf].contains(other)) {
            self.after(last, Event::Cut(leader, other));
            self.after(last, Event::Blink(other));
        }
    }

    fn flip(&mut self, victim: usize) {
        let leader =
            self.nodes.iter().filter_map(|n| n.run.as_ref()).find(|r| r.shared.leadership.borrow().is_leader());
        let Some(leader) = leader else { return };
        let (members, voters) = (leader.raft.replica().progress(), leader.shared.look().conf_state.voters.len());
        // Nor while the members may change (a leader that is paused will hear of it later): of those that are left, nobody may be lost.
        let changes = self.changed_at.is_some_and(|at| self.now() < at + CHANGES_US);
        let newest = members.iter().map(|m| m.matched).max().unwrap_or(0);
        let even = members.iter().all(|m| m.votes && m.matched + 20 > newest);
        if voters < 3
            || changes
            || !even
            || members.len() != voters
            || self.nodes.iter().any(|n| n.flipped.is_some() || n.gone)
        {
            return;
        }
        self.crash(victim);
        let disk = self.nodes[victim].disk.clone();
        self.nodes[victim].flipped = disk.flip(&mut self.rng);
        if self.nodes[victim].flipped.is_some() {
            tally::count("disk: a bit flipped");
        }
        self.trace(|| format!("flipped {:?}", self.nodes[victim].flipped));
    }

    fn change_members(&mut self, leader: usize) {
        let Some(run) = &self.nodes[leader].run else { return };
        let shared = run.shared.clone();
        let conf = shared.look().conf_state.clone();
        if conf.voters.is_empty() || self.nodes.iter().any(|n| n.flipped.is_some()) {
            return;
        }
        let newest = run.raft.replica().progress();
        let last = newest.iter().map(|m| m.matched).max().unwrap_or(0);
        let ready = |id: u64| newest.iter().any(|m| m.id == id && m.matched + 64 >= last);
        let vacancy = self.nodes.iter().position(|n| !n.exists);
        let learners: Vec<_> = sorted(&conf.learners).into_iter().filter(|id| ready(*id)).collect();
        let steps = match vacancy {
            Some(new) if self.rng.chance(if learners.is_empty() { 700 } else { 200 }) => self.take_in(leader, new),
            _ => self.other_voters(&sorted(&conf.voters), &learners, shared.id),
        };
        if steps.is_empty() {
            return;
        }
        tally::count(if steps.len() > 1 { "group: many members changed at once" } else { "group: a member changed" });
        if steps.len() > 1 && self.rng.chance(300) {
            // It hears perhaps that the change is agreed on, and nobody hears it from it.
            let us = self.rng.between(200, 4_000);
            self.after(us, Event::Mute(leader));
        }
        self.changed_at = Some(self.now());
        let change = change_of(&steps);
        shared.input(Input::Change(change));
        self.raft_later(leader);
    }
}

impl World {
    /// A new member begins as a learner.
    fn take_in(&mut self, leader: usize, new: usize) -> Vec<(MemberId, ConfChangeType)> {
        let id = self.nodes[new].id;
        let member =
            Member { id, name: new.to_string(), peer_addr: new.to_string(), learner: true, ..Default::default() };
        self.submit(leader, 0, Kind::Member(member), None, None, true);
        self.nodes[new].exists = true;
        self.after(50_000, Event::Restart(new));
        vec![(id, ConfChangeType::AddLearnerNode)]
    }

    /// One learner votes from now on, or one voter is removed, or all of that and more at once.
    fn other_voters(
        &mut self,
        voters: &[MemberId],
        learners: &[MemberId],
        leader: MemberId,
    ) -> Vec<(MemberId, ConfChangeType)> {
        let promote = |id: &MemberId| (*id, ConfChangeType::AddNode);
        let remove = |id: &MemberId| (*id, ConfChangeType::RemoveNode);
        if self.rng.chance(600) {
            return match learners.first() {
                Some(learner) => vec![promote(learner)],
                None if voters.len() > 3 => {
                    let leaves = self.rng.pick(voters).filter(|id| *id != leader);
                    leaves.iter().map(remove).collect()
                }
                None => Vec::new(),
            };
        }
        let one = self.rng.chance(150);
        let stay: Vec<_> =
            voters.iter().filter(|id| if one { **id == leader } else { self.rng.chance(600) }).copied().collect();
        // Members that were removed are gone for good here: some must be left. A leader that leaves is rare: it hands over first.
        let leaves = |id: &&MemberId| !stay.contains(id) && (**id != leader || stay.len() > 2);
        let steps: Vec<_> = learners.iter().map(promote).chain(voters.iter().filter(leaves).map(remove)).collect();
        let left = voters.len() + learners.len() - steps.iter().filter(|s| s.1 == ConfChangeType::RemoveNode).count();
        if left > 0 { steps } else { Vec::new() }
    }
}

fn sorted(ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}
