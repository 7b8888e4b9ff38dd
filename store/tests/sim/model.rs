//! What the committed log means, computed a second time and as simply as can be: the yardstick for every member and every client.

use skiff_store::simulation::*;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

type Key = Vec<u8>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    pub value: Vec<u8>,
    pub create: Revision,
    pub modified: Revision,
    pub version: u64,
    pub lease: LeaseId,
}

/// (key, whether it is a deletion, value).
pub type Change = (Key, bool, Vec<u8>);
pub type Keys = BTreeMap<Key, Pair>;

/// What a command came to: the store's revision after it and which branch ran; None if it was refused.
pub type Result = Option<(Revision, bool)>;

#[derive(Default)]
pub struct Model {
    pub revision: Revision,
    keys: Keys,
    leases: BTreeMap<LeaseId, i64>,
    pub results: HashMap<(u64, u64), Result>,
    /// The changes of each revision, and the keys after it.
    pub history: BTreeMap<Revision, (Vec<Change>, Arc<Keys>)>,
    /// The leases that an entry ended.
    pub ended: Vec<LeaseId>,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Model { revision: 1, ..Default::default() };
        model.history.insert(1, (Vec::new(), Arc::default()));
        model
    }

    pub fn apply(&mut self, term: Term, command: &Command) {
        let id = (command.origin, command.sequence);
        if self.results.contains_key(&id) {
            return;
        }
        let refused = command.fence != 0 && command.fence != term;
        let mut changes = Vec::new();
        let done = if refused { None } else { self.carry_out(&command.kind, &mut changes) };
        if !changes.is_empty() {
            self.revision += 1;
            self.history.insert(self.revision, (changes, Arc::new(self.keys.clone())));
        }
        self.results.insert(id, done.map(|succeeded| (self.revision, succeeded)));
    }

    fn carry_out(&mut self, kind: &Kind, changes: &mut Vec<Change>) -> Option<bool> {
        match kind {
            Kind::Txn(txn) => {
                let succeeded = txn.compare.iter().all(|c| self.holds(c));
                let branch = if succeeded { &txn.success } else { &txn.failure };
                let mut seen = Vec::new();
                for op in branch {
                    let Op::Put(put) = op else { continue };
                    if seen.contains(&&put.key) || (put.lease != 0 && !self.leases.contains_key(&put.lease)) {
                        return None;
                    }
                    seen.push(&put.key);
                }
                for op in branch {
                    match op {
                        Op::Put(put) => self.put(put, changes),
                        Op::Delete(delete) => self.delete(&delete.range.start, changes),
                        Op::Range(_) | Op::Txn(_) => {}
                    }
                }
                return Some(succeeded);
            }
            Kind::LeaseGrant(lease) => {
                if self.leases.contains_key(&lease.id) {
                    return None;
                }
                self.leases.insert(lease.id, lease.ttl_s);
            }
            Kind::LeaseRevoke(id) => {
                self.leases.remove(id)?;
                self.ended.push(*id);
                let keys: Vec<_> = self.keys.iter().filter(|(_, p)| p.lease == *id).map(|(k, _)| k.clone()).collect();
                keys.iter().for_each(|key| self.delete(key, changes));
            }
            // Whether a compaction is refused depends on the ones before it; nobody asks for its result here.
            Kind::Compact(_) | Kind::Member(_) | Kind::Alarm { .. } | Kind::Nothing => {}
        }
        Some(true)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let modified = self.keys.get(&compare.range.start[..]).map_or(0, |p| p.modified);
        compare.target == CompareTarget::ModRevision(modified)
    }

    fn put(&mut self, put: &Put, changes: &mut Vec<Change>) {
        let next = self.revision + 1;
        let before = self.keys.get(&put.key[..]);
        let pair = Pair {
            value: put.value.to_vec(),
            create: before.map_or(next, |p| p.create),
            modified: next,
            version: before.map_or(1, |p| p.version + 1),
            lease: put.lease,
        };
        self.keys.insert(put.key.to_vec(), pair);
        changes.push((put.key.to_vec(), false, put.value.to_vec()));
    }

    fn delete(&mut self, key: &[u8], changes: &mut Vec<Change>) {
        if self.keys.remove(key).is_some() {
            changes.push((key.to_vec(), true, Vec::new()));
        }
    }

    pub fn digest(&self) -> u64 {
        digest(self.revision, &self.keys, &self.leases)
    }
}

fn digest(revision: Revision, keys: &Keys, leases: &BTreeMap<LeaseId, i64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (revision, keys, leases).hash(&mut hasher);
    hasher.finish()
}

pub fn pairs(kvs: &[KeyValue]) -> Keys {
    let pair = |kv: &KeyValue| Pair {
        value: kv.value.to_vec(),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    };
    kvs.iter().map(|kv| (kv.key.to_vec(), pair(kv))).collect()
}

/// As [`Model::digest`], of what a member has.
pub fn digest_of(machine: &Machine) -> u64 {
    let all = RangeRequest { range: KeyRange::prefix(""), ..Default::default() };
    let keys = machine.kv.range(&all).map(|r| pairs(&r.kvs)).unwrap_or_default();
    let leases = machine.kv.leases().map(|l| (l.id, l.ttl_s)).collect();
    digest(machine.kv.revision(), &keys, &leases)
}
