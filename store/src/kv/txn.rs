//! Transactions: checked whole, then carried out whole, at one revision.

use super::Kv;
use crate::error::Error;
use crate::types::*;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;

impl Kv {
    /// Carries out a transaction. On an error nothing has changed. The second value holds the events, if there were any; they all
    /// have the new revision.
    pub fn txn(&mut self, txn: &Txn) -> Result<(TxnResponse, Vec<Arc<Event>>), Error> {
        if let Err(e) = self.check(txn, &mut Changed::default()) {
            if bug!("failed_txn_partly_applied") {
                self.begin_anyway(txn);
            }
            return Err(e);
        }
        let next = self.revision + 1;
        let mut events = Vec::new();
        let mut response = self.run(txn, next, &mut events);
        self.note(&events);
        response.revision = self.revision;
        Ok((response, events))
    }

    /// What a transaction must not do that is refused: its first operation.
    #[cold]
    fn begin_anyway(&mut self, txn: &Txn) {
        if let Some(Op::Put(put)) = self.branch(txn).first().cloned() {
            let (next, mut events) = (self.revision + 1, Vec::new());
            self.put(&put, next, &mut events);
            self.note(&events);
        }
    }

    /// Answers a transaction that only reads, without the log.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnResponse, Error> {
        self.check(txn, &mut Changed::default())?;
        Ok(self.run_reads(txn))
    }

    /// Finds what would fail before anything is changed: which branches run depends on the state before the transaction
    /// only, as comparisons of nested transactions see that state too.
    fn check(&self, txn: &Txn, changed: &mut Changed) -> Result<(), Error> {
        for op in self.branch(txn) {
            match op {
                Op::Put(put) => {
                    if put.lease != 0 && !put.ignore_lease && !self.leases.holds(put.lease) {
                        return Err(Error::LeaseNotFound(put.lease));
                    }
                    if (put.ignore_value || put.ignore_lease) && !self.has(&put.key) {
                        return Err(Error::KeyNotFound(text(&put.key)));
                    }
                    changed.put(&put.key)?;
                }
                Op::Delete(delete) => changed.delete(&delete.range)?,
                Op::Range(range) => self.check_revision(range.revision)?,
                Op::Txn(nested) => self.check(nested, changed)?,
            }
        }
        Ok(())
    }

    fn branch<'t>(&self, txn: &'t Txn) -> &'t [Op] {
        if txn.compare.iter().all(|c| self.holds(c)) { &txn.success } else { &txn.failure }
    }

    fn run(&mut self, txn: &Txn, revision: Revision, events: &mut Vec<Arc<Event>>) -> TxnResponse {
        // All comparisons, nested ones too, are decided on the state before the first write.
        let plan = self.plan(txn);
        self.carry_out(txn, &plan, revision, events)
    }

    fn plan(&self, txn: &Txn) -> Plan {
        let succeeded = txn.compare.iter().all(|c| self.holds(c));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let nested = branch.iter().filter_map(|op| match op {
            Op::Txn(nested) => Some(self.plan(nested)),
            _ => None,
        });
        Plan { succeeded, nested: nested.collect() }
    }

    fn carry_out(&mut self, txn: &Txn, plan: &Plan, revision: Revision, events: &mut Vec<Arc<Event>>) -> TxnResponse {
        let branch = if plan.succeeded { &txn.success } else { &txn.failure };
        let mut nested_plans = plan.nested.iter();
        let mut responses = Vec::with_capacity(branch.len());
        for op in branch {
            responses.push(match op {
                Op::Put(put) => {
                    let prev = self.put(put, revision, events);
                    OpResponse::Put { prev: prev.filter(|_| put.prev_kv) }
                }
                Op::Delete(delete) => {
                    let gone = self.delete(&delete.range, revision, events);
                    OpResponse::Delete { deleted: gone.len(), prev: if delete.prev_kv { gone } else { Vec::new() } }
                }
                Op::Range(range) => OpResponse::Range(self.range_unchecked(range)),
                Op::Txn(nested) => match nested_plans.next() {
                    Some(plan) => OpResponse::Txn(self.carry_out(nested, plan, revision, events)),
                    None => continue,
                },
            });
        }
        TxnResponse { revision, succeeded: plan.succeeded, responses }
    }

    fn run_reads(&self, txn: &Txn) -> TxnResponse {
        let succeeded = txn.compare.iter().all(|c| self.holds(c));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch.iter().filter_map(|op| match op {
            Op::Range(range) => Some(OpResponse::Range(self.range_unchecked(range))),
            Op::Txn(nested) => Some(OpResponse::Txn(self.run_reads(nested))),
            Op::Put(_) | Op::Delete(_) => None,
        });
        TxnResponse { revision: self.revision, succeeded, responses: responses.collect() }
    }
}

/// Which branch runs, for a transaction and those nested in that branch.
struct Plan {
    succeeded: bool,
    nested: Vec<Plan>,
}

/// The keys that a transaction has changed so far: each may be changed once. Most transactions change one, which costs nothing.
#[derive(Default)]
struct Changed {
    first: Option<Bytes>,
    more: HashSet<Bytes>,
}

impl Changed {
    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        let Some(first) = &self.first else {
            self.first = Some(key.clone());
            return Ok(());
        };
        if first == key || !self.more.insert(key.clone()) {
            return Err(Error::DuplicateKey(text(key)));
        }
        Ok(())
    }

    fn delete(&mut self, range: &KeyRange) -> Result<(), Error> {
        match self.first.iter().chain(&self.more).find(|key| range.contains(key)) {
            Some(key) => Err(Error::DuplicateKey(text(key))),
            None => Ok(()),
        }
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
