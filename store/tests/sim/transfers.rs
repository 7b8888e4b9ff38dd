//! Snapshots on their way from one member to another: the steps of `transport` and `peer`, a piece at a time, and what befalls them.

use crate::checks::{TRANSFERS, Violation, violated};
use crate::world::{Event, Transfer, World};
use raft::eraftpb::Message;
use skiff_store::simulation::*;
use std::sync::atomic::Ordering;

impl World {
    /// Whether both ends still are who they were, and the network brings this.
    fn goes_on(&mut self, transfer: &Transfer) -> bool {
        let lives =
            self.is_same(transfer.from, transfer.incarnations.0) && self.is_same(transfer.to, transfer.incarnations.1);
        let broken = self.chaos && self.rng.chance(60);
        lives && !broken && !self.loses(transfer.from, transfer.to)
    }

    fn is_same(&self, i: usize, incarnation: u64) -> bool {
        self.nodes[i].run.is_some() && self.nodes[i].incarnation == incarnation
    }

    pub fn offer(&mut self, from: usize, to: usize, message: Message) {
        let incarnations = (self.nodes[from].incarnation, self.nodes[to].incarnation);
        let Some(run) = &self.nodes[from].run else { return };
        let index = message.get_snapshot().get_metadata().index;
        run.shared.sending.hold(index);
        match run.shared.sending.offer(&*run.shared.disk, message, 1) {
            Ok(offer) => {
                let us = self.delay();
                let transfer = Transfer { from, to, incarnations, offer, ticket: 0, have: 0 };
                self.after(us, Event::SnapshotBegin(transfer));
            }
            Err(_) => self.transfer_over(from, to, incarnations.0, index, false),
        }
    }

    pub fn begin_transfer(&mut self, mut transfer: Transfer) {
        if !self.goes_on(&transfer) {
            return self.break_off(transfer);
        }
        let Some(run) = &self.nodes[transfer.to].run else { return };
        let applied = run.shared.applied_index.load(Ordering::Relaxed);
        let begun = lock(&run.shared.incoming).begin(&*run.shared.disk, &transfer.offer, 1, applied);
        self.trace(|| format!("{:?} is offered to {}: {begun:?}", transfer.offer.identity, transfer.to));
        match begun {
            Ok(Begun::From { ticket, have }) => {
                (transfer.ticket, transfer.have) = (ticket, have);
                if have == 0 {
                    self.garbled[transfer.to] = false;
                }
                let us = self.delay();
                self.after(us, Event::SnapshotRead(transfer));
            }
            Ok(Begun::Needless) => self.arrived(transfer),
            Err(_) => self.break_off(transfer),
        }
    }

    pub fn read_piece(&mut self, transfer: Transfer) -> Result<(), Violation> {
        if !self.goes_on(&transfer) {
            self.break_off(transfer);
            return Ok(());
        }
        let us = self.delay();
        let Transfer { have, offer, .. } = &transfer;
        if *have == offer.identity.size {
            let Some(run) = &self.nodes[transfer.to].run else { return Ok(()) };
            let checked = check_part(&*run.shared.disk, &offer.identity, 1);
            self.after(us, Event::SnapshotEnd(transfer, checked));
            return Ok(());
        }
        let disk = self.nodes[transfer.from].disk.clone();
        let file = disk.open_read_at(&snapshots::file_name(offer.identity.index), *have);
        match file.and_then(|mut file| read_chunk(&mut *file, self.sizes.snapshot_chunk_bytes)) {
            Ok(mut data) if !data.is_empty() => {
                if self.chaos && self.rng.chance(5) {
                    let at = self.rng.below(data.len() as u64) as usize;
                    data[at] ^= 1 << self.rng.below(8);
                    self.garbled[transfer.to] = true;
                }
                self.after(us, Event::SnapshotChunk(transfer, data));
                Ok(())
            }
            // Only its own member removes it, and must not while it is sent.
            other if !disk.is_dead() => {
                let detail = format!("{:?} cannot be read from byte {have} on: {other:?}", offer.identity);
                violated(TRANSFERS, detail)
            }
            _ => {
                self.break_off(transfer);
                Ok(())
            }
        }
    }

    pub fn take_piece(&mut self, mut transfer: Transfer, data: Vec<u8>) {
        if !self.goes_on(&transfer) {
            return self.break_off(transfer);
        }
        let Some(run) = &self.nodes[transfer.to].run else { return };
        let taken = lock(&run.shared.incoming).take(&*run.shared.disk, transfer.ticket, &data);
        match taken {
            Ok(have) => {
                transfer.have = have;
                let us = self.delay();
                self.after(us, Event::SnapshotRead(transfer));
            }
            Err(_) => self.break_off(transfer),
        }
    }

    pub fn end_transfer(&mut self, transfer: Transfer, checked: Result<(), Refused>) -> Result<(), Violation> {
        if !self.is_same(transfer.to, transfer.incarnations.1) {
            self.break_off(transfer);
            return Ok(());
        }
        let Some(run) = &self.nodes[transfer.to].run else { return Ok(()) };
        let finished = lock(&run.shared.incoming).finish(&*run.shared.disk, transfer.ticket, checked);
        match finished {
            Ok(()) => self.arrived(transfer),
            // Every byte came as it was sent: then going on where another attempt ended was wrong.
            Err(problem @ (Refused::Wrong { .. } | Refused::Cluster)) if !self.garbled[transfer.to] => {
                return violated(TRANSFERS, format!("member {}: {problem}", transfer.to));
            }
            Err(_) => self.break_off(transfer),
        }
        Ok(())
    }

    fn arrived(&mut self, transfer: Transfer) {
        // At once: it is the process that received it that hears of it, not its next life.
        if let Some(run) = &self.nodes[transfer.to].run {
            run.shared.input(Input::Message(Box::new(transfer.offer.message.clone())));
        }
        self.raft_later(transfer.to);
        self.over(transfer, true);
    }

    fn break_off(&mut self, transfer: Transfer) {
        if self.is_same(transfer.to, transfer.incarnations.1)
            && let Some(run) = &self.nodes[transfer.to].run
            // The receiver may hear of it after the next attempt.
            && self.rng.chance(700)
        {
            lock(&run.shared.incoming).leave(transfer.ticket);
        }
        self.over(transfer, false);
    }

    fn over(&mut self, transfer: Transfer, ok: bool) {
        let index = transfer.offer.identity.index;
        self.transfer_over(transfer.from, transfer.to, transfer.incarnations.0, index, ok);
    }

    fn transfer_over(&mut self, from: usize, to: usize, incarnation: u64, index: u64, ok: bool) {
        let Some(run) = self.nodes[from].run.as_ref().filter(|_| self.nodes[from].incarnation == incarnation) else {
            return;
        };
        // Its disk may be dead; then the member is soon.
        let _ = run.shared.sending.let_go(&*run.shared.disk, index);
        let (us, id) = (self.delay(), self.nodes[to].id);
        self.after(us, Event::Deliver(from, Input::SnapshotSent(id, ok)));
    }
}
