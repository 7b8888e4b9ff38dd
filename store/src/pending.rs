//! Commands of this process that wait for their outcome, and which of them must be sent (again).
//!
//! A command is done when this member has applied it. Until then it may have to be sent more than once: the leader was replaced, or
//! refused it, or the way there was cut. The machine applies it once however often it arrives. One task looks after all
//! of them, so that a waiting request costs a place in a map and nothing else.

use crate::command::Proposal;
use crate::error::Error;
use crate::machine::Outcome;
use crate::types::*;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Where an outcome goes.
pub type Answer = oneshot::Sender<Result<TxnResponse, Error>>;

struct Waiting {
    proposal: Arc<Proposal>,
    answer: Answer,
    deadline_ms: u64,
    /// When it was sent last; None = not since it was last needed.
    sent_ms: Option<u64>,
    ever_sent: bool,
}

#[derive(Default)]
pub struct Pending {
    waiting: HashMap<u64, Waiting>,
    unsent: Vec<u64>,
    /// Where those who wait run.
    runtime: Option<tokio::runtime::Handle>,
}

/// So many outcomes at once are handed out by a task among those that wait for them: waking each from another thread costs more.
const CROWD: usize = 4;

impl Pending {
    /// Takes in a command. `sent` says whether it is on its way to the log already.
    pub fn add(&mut self, proposal: Arc<Proposal>, answer: Answer, now_ms: u64, deadline_ms: u64, sent: bool) {
        let sequence = proposal.command.sequence;
        if !sent {
            self.unsent.push(sequence);
        }
        let sent_ms = sent.then_some(now_ms);
        self.waiting.insert(sequence, Waiting { proposal, answer, deadline_ms, sent_ms, ever_sent: sent });
    }

    /// Many outcomes at once are handed out there from now on.
    pub fn answer_on(&mut self, runtime: tokio::runtime::Handle) {
        self.runtime = Some(runtime);
    }

    /// Hands out outcomes.
    pub fn answer(&mut self, outcomes: impl Iterator<Item = Outcome>) {
        let found = outcomes.filter_map(|o| self.waiting.remove(&o.sequence).map(|waiting| (waiting, o.result)));
        let found: Vec<_> = found.collect();
        let hand_out = |found: Vec<(Waiting, _)>| {
            for (waiting, result) in found {
                let _ = waiting.answer.send(result);
            }
        };
        match &self.runtime {
            Some(runtime) if found.len() >= CROWD => drop(runtime.spawn(async move { hand_out(found) })),
            _ => hand_out(found),
        }
    }

    /// A command was refused, or did not arrive.
    pub fn send_again(&mut self, sequence: u64) {
        if let Some(waiting) = self.waiting.get_mut(&sequence) {
            waiting.sent_ms = None;
            self.unsent.push(sequence);
        }
    }

    /// There is another leader: whatever was sent to the last one may be lost.
    pub fn send_all_again(&mut self) {
        self.unsent = self.waiting.keys().copied().collect();
        self.waiting.values_mut().for_each(|w| w.sent_ms = None);
    }

    /// Answers what has waited too long, and marks for another attempt what was sent longer than `attempt_ms` ago.
    pub fn look(&mut self, now_ms: u64, attempt_ms: u64) {
        let waiting = std::mem::take(&mut self.waiting);
        for (sequence, mut w) in waiting {
            if w.answer.is_closed() && !w.ever_sent {
                continue;
            }
            if now_ms >= w.deadline_ms {
                let error = match w.ever_sent {
                    true => Error::Unknown("no answer in time".into()),
                    false => Error::NoLeader,
                };
                let _ = w.answer.send(Err(error));
                continue;
            }
            if w.sent_ms.is_some_and(|sent| now_ms >= sent + attempt_ms) {
                w.sent_ms = None;
                self.unsent.push(sequence);
            }
            self.waiting.insert(sequence, w);
        }
    }

    /// What has to be sent now, in order; the leader's term is `term`. Leader-only work of an older term is answered instead.
    pub fn take_unsent(&mut self, term: Term, now_ms: u64) -> Vec<Arc<Proposal>> {
        let mut sequences = std::mem::take(&mut self.unsent);
        sequences.sort_unstable();
        sequences.dedup();
        let mut proposals = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let Some(waiting) = self.waiting.get_mut(&sequence) else { continue };
            let fence = waiting.proposal.command.fence;
            if fence != 0 && term > fence {
                if let Some(waiting) = self.waiting.remove(&sequence) {
                    // What was sent while its term lasted may be in the log, and be carried out there.
                    let error = match waiting.ever_sent && !bug!("sent_work_called_fenced") {
                        true => Error::Unknown(format!("term {fence} ended while it was under way")),
                        false => Error::Fenced { fence, term },
                    };
                    let _ = waiting.answer.send(Err(error));
                }
                continue;
            }
            waiting.sent_ms = Some(now_ms);
            waiting.ever_sent = true;
            proposals.push(waiting.proposal.clone());
        }
        proposals
    }

    pub fn fail_all(&mut self, error: &Error) {
        for (_, waiting) in self.waiting.drain() {
            let _ = waiting.answer.send(Err(error.clone()));
        }
        self.unsent.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Kind};

    fn proposal(sequence: u64, fence: Term) -> Arc<Proposal> {
        Arc::new(Proposal::new(Command { origin: 1, sequence, fence, kind: Kind::Nothing }))
    }

    fn sequences(pending: &mut Pending, term: Term, now: u64) -> Vec<u64> {
        pending.take_unsent(term, now).iter().map(|p| p.command.sequence).collect()
    }

    #[test]
    fn commands_are_sent_until_they_are_answered_or_too_old() {
        let mut pending = Pending::default();
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        pending.add(proposal(1, 0), first, 0, 1000, true);
        pending.add(proposal(2, 0), second, 0, 1000, false);
        assert_eq!(sequences(&mut pending, 1, 10), [2]);
        assert_eq!(sequences(&mut pending, 1, 10), [0; 0]);
        pending.look(400, 300);
        assert_eq!(sequences(&mut pending, 1, 400), [1, 2]);
        pending.send_all_again();
        pending.send_again(2);
        assert_eq!(sequences(&mut pending, 2, 500), [1, 2]);
        let result = Ok(TxnResponse::default());
        let outcome = Outcome { origin: 1, sequence: 1, result, events: Vec::new(), lease: None };
        pending.answer([outcome].into_iter());
        assert!(first_answer.try_recv().unwrap().is_ok());
        pending.look(1000, 300);
        assert!(matches!(second_answer.try_recv().unwrap(), Err(Error::Unknown(_))));
        assert!(pending.is_empty());
    }

    #[test]
    fn what_never_left_did_not_happen_and_old_leaders_work_is_not_sent() {
        let mut pending = Pending::default();
        let (never, mut never_answer) = oneshot::channel();
        pending.add(proposal(1, 0), never, 0, 100, false);
        pending.look(100, 300);
        assert!(matches!(never_answer.try_recv().unwrap(), Err(Error::NoLeader)));
        let (fenced, mut fenced_answer) = oneshot::channel();
        pending.add(proposal(2, 3), fenced, 0, 100, false);
        assert_eq!(sequences(&mut pending, 4, 0), [0; 0]);
        assert!(matches!(fenced_answer.try_recv().unwrap(), Err(Error::Fenced { fence: 3, term: 4 })));
    }
}
