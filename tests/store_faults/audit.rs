//! Every answer against the history: revisions number the writes, so the history is one order of all of them, and each answer
//! says where in it it belongs. Cheaper than the checker of registers, and about all keys together; but it takes the revisions'
//! word for the order.

use crate::history::{Done, Kind, Operation, Outcome};
use crate::leasing::Life;
use crate::watching::{Change, Pair, Scope, Told};
use anyhow::{Context as _, bail, ensure};
use std::collections::{BTreeMap, HashMap};

/// The changes of all keys from revision 2 on, as one watcher was told them.
pub struct Log {
    changes: Vec<Change>,
    /// By key: (revision, what was there from then on).
    keys: BTreeMap<String, Vec<(u64, Option<Pair>)>>,
}

impl Log {
    /// # Errors
    /// A revision is missing, comes late, or comes twice.
    pub fn new(told: &[(u64, Change)]) -> anyhow::Result<Log> {
        let mut log = Log { changes: Vec::new(), keys: BTreeMap::new() };
        let mut last = 1;
        for (_, change) in told {
            let Change { revision, key, pair, .. } = change;
            let same = *revision == last
                && !log.changes.iter().rev().take_while(|c| c.revision == last).any(|c| c.key == *key);
            ensure!(same || *revision == last + 1, "a watcher was told revision {revision} of {key} after {last}");
            last = *revision;
            let of_key = log.keys.entry(key.clone()).or_default();
            let before = of_key.last().and_then(|(_, pair)| *pair);
            if let Some(pair) = pair {
                let expected = before.map_or((*revision, 1), |b| (b.create, b.version + 1));
                ensure!((pair.create, pair.version) == expected, "{key} at {revision}: {pair:?} after {before:?}");
            } else {
                ensure!(before.is_some(), "{key} was deleted at {revision} and was not there");
            }
            of_key.push((*revision, *pair));
            log.changes.push(change.clone());
        }
        Ok(log)
    }

    pub fn last(&self) -> u64 {
        self.changes.last().map_or(1, |c| c.revision)
    }

    /// What was there at a revision: (value, mod revision).
    fn at(&self, key: &str, revision: u64) -> Option<(u64, u64)> {
        let of_key = self.keys.get(key)?;
        let until = of_key.partition_point(|(r, _)| *r <= revision);
        let (modified, pair) = of_key.get(until.checked_sub(1)?)?;
        pair.map(|p| (p.value, *modified))
    }

    fn value_at(&self, key: &str, revision: u64) -> Option<u64> {
        self.at(key, revision).map(|(value, _)| value)
    }

    /// All keys after the last change: (key, mod revision, the rest).
    pub fn keys(&self) -> Vec<(String, u64, Pair)> {
        let last = self.keys.iter().filter_map(|(key, all)| all.last().map(|(r, pair)| (key, r, pair)));
        last.filter_map(|(key, r, pair)| pair.map(|p| (key.clone(), *r, p))).collect()
    }

    /// A watcher was told exactly this: no gap, nothing twice, in order.
    pub fn check_told(&self, scope: Scope, told: &Told) -> anyhow::Result<()> {
        if let Some(wrong) = &told.wrong {
            bail!("{wrong}");
        }
        let meant: Vec<_> = self.changes.iter().filter(|c| c.key.as_str() >= scope.from).collect();
        for (i, meant) in meant.iter().enumerate() {
            let Some((_, got)) = told.changes.get(i) else { bail!("a watcher was never told {meant:?}") };
            let before = scope.before.then(|| self.value_at(&meant.key, meant.revision - 1));
            let same = (got.revision, &got.key, got.pair) == (meant.revision, &meant.key, meant.pair);
            ensure!(
                same && got.before == before,
                "a watcher was told {got:?} where the history has {meant:?} after {before:?}"
            );
        }
        ensure!(
            told.changes.len() == meant.len(),
            "a watcher was told more than there is: {:?}",
            told.changes.get(meant.len())
        );
        Ok(())
    }

    /// Every answer fits the history, in the order of real time.
    pub fn check_operations(&self, operations: &[Operation]) -> anyhow::Result<()> {
        let floors = Floors::new(operations);
        self.check_writes(operations, &floors)?;
        for operation in operations {
            let Outcome::Done(done) = &operation.outcome else { continue };
            let what = || format!("asked of {}: {operation:?}", operation.member);
            ensure!(done.revision <= self.last(), "{}: the history ends at {}", what(), self.last());
            if !operation.is_serializable() {
                let floor = floors.at(operation.call);
                ensure!(done.revision >= floor, "{}: revision {floor} had been told before it was called", what());
                ensure!(!done.changed || done.revision > floor, "{}: revision {floor} was another's already", what());
            }
            self.check_answer(operation, done).with_context(what)?;
        }
        Ok(())
    }

    fn check_answer(&self, operation: &Operation, done: &Done) -> anyhow::Result<()> {
        let before = if done.changed { done.revision - 1 } else { done.revision };
        for (key, found) in operation.keys().iter().zip(&done.found) {
            let meant = self.at(key, done.revision);
            ensure!(*found == meant, "{key} was {meant:?} at {}", done.revision);
        }
        if let Some(said) = done.before {
            let meant = self.value_at(&operation.key, before);
            ensure!(said == meant, "{meant:?} was there before");
        }
        match operation.kind {
            Kind::Swap { expected, .. } => {
                let there = self.value_at(&operation.key, before);
                ensure!((there == expected) == done.changed, "{there:?} was there to compare with");
            }
            Kind::PutBoth { .. } | Kind::Put { .. } => ensure!(done.changed, "a put changes something"),
            Kind::GetBoth { .. } => {
                let values: Vec<_> = done.found.iter().map(|f| f.map(|(value, _)| value)).collect();
                ensure!(values.windows(2).all(|w| w[0] == w[1]), "the two keys were only ever written together");
            }
            Kind::Get { .. } | Kind::Delete => {}
        }
        Ok(())
    }

    /// Each write that was acknowledged is in the history at its revision, and nothing else is there but writes of unknown
    /// outcome, once each.
    fn check_writes(&self, operations: &[Operation], floors: &Floors) -> anyhow::Result<()> {
        let writers: HashMap<u64, &Operation> = operations.iter().filter_map(|o| Some((o.value()?, o))).collect();
        let mut deletions: HashMap<(&str, u64), usize> = HashMap::new();
        let mut maybe_deleted: HashMap<&str, usize> = HashMap::new();
        let mut written: HashMap<u64, u64> = HashMap::new();
        for change in self.changes.iter().filter(|c| c.key.starts_with("r/") || c.key.starts_with("p/")) {
            let Some(pair) = change.pair else {
                *deletions.entry((&change.key, change.revision)).or_default() += 1;
                continue;
            };
            let Some(writer) = writers.get(&pair.value) else { bail!("nobody wrote {change:?}") };
            ensure!(writer.keys().contains(&change.key.as_str()), "{change:?} was written by {writer:?}");
            let first = *written.entry(pair.value).or_insert(change.revision);
            ensure!(
                first == change.revision,
                "a write took effect at {first} and again at {}: {writer:?}",
                change.revision
            );
            match &writer.outcome {
                Outcome::Done(done) if done.changed && done.revision == change.revision => {}
                Outcome::Unknown => {
                    let floor = floors.at(writer.call);
                    ensure!(
                        change.revision > floor,
                        "{change:?} was written before it was asked for (after {floor}): {writer:?}"
                    );
                }
                _ => bail!("{change:?} is in the history, but was answered so: {writer:?}"),
            }
        }
        for operation in operations {
            match (&operation.outcome, operation.kind) {
                (Outcome::Done(done), Kind::Delete) if done.changed => {
                    let there = deletions.remove(&(operation.key.as_str(), done.revision));
                    ensure!(there.is_some(), "an acknowledged deletion is lost: {operation:?}");
                }
                (Outcome::Unknown, Kind::Delete) => *maybe_deleted.entry(&operation.key).or_default() += 1,
                (Outcome::Done(done), _) if done.changed => {
                    let value = operation.value();
                    let there = operation
                        .keys()
                        .iter()
                        .all(|key| self.at(key, done.revision) == value.map(|v| (v, done.revision)));
                    ensure!(there, "an acknowledged write is lost: {operation:?}");
                }
                _ => {}
            }
        }
        for ((key, revision), _) in deletions {
            let left = maybe_deleted.get_mut(key).filter(|left| **left > 0);
            let left = left.with_context(|| format!("nobody deleted {key} at {revision}"))?;
            *left -= 1;
        }
        Ok(())
    }

    /// No lease ended before the time that its client was promised.
    pub fn check_leases(&self, lives: &[Life], told: &[(Scope, Told)]) -> anyhow::Result<()> {
        let mut ended: HashMap<&str, u64> = HashMap::new();
        for (at, change) in told.iter().flat_map(|(_, told)| &told.changes) {
            if change.pair.is_none() && change.key.starts_with("l/") {
                let first = ended.entry(&change.key).or_insert(*at);
                *first = (*first).min(*at);
            }
        }
        for life in lives {
            let Some(at) = ended.get(life.key.as_str()) else { bail!("the key of a lease is there still: {life:?}") };
            let asked = life.revoked.is_some_and(|asked| asked <= *at);
            ensure!(asked || *at >= life.until, "a lease ended {} ms early: {life:?}", (life.until - at) / 1_000_000);
        }
        Ok(())
    }
}

/// The highest revision that somebody had been told at a time.
struct Floors(Vec<(u64, u64)>);

impl Floors {
    fn new(operations: &[Operation]) -> Floors {
        let told = |o: &Operation| match &o.outcome {
            Outcome::Done(done) => Some((o.end, done.revision)),
            _ => None,
        };
        let mut all: Vec<_> = operations.iter().filter_map(told).collect();
        all.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut all {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Floors(all)
    }

    fn at(&self, time: u64) -> u64 {
        let until = self.0.partition_point(|(end, _)| *end < time);
        until.checked_sub(1).and_then(|i| self.0.get(i)).map_or(0, |(_, revision)| *revision)
    }
}

/// A history of a few writes, and answers of which one does not fit.
pub fn tells_what_does_not_fit() -> anyhow::Result<()> {
    let change = |revision: u64, key: &str, value: u64, version: i64, create: u64| {
        let pair = Some(Pair { value, create, version, lease: 0 });
        (revision, Change { revision, key: key.into(), pair, before: None })
    };
    let gone = |revision: u64, key: &str| (revision, Change { revision, key: key.into(), pair: None, before: None });
    let told = vec![change(2, "r/0", 1, 1, 2), change(3, "r/0", 2, 2, 2), gone(4, "r/0"), change(5, "r/0", 3, 1, 5)];
    let log = Log::new(&told)?;
    let done = |revision: u64, found: &[Option<(u64, u64)>], changed: bool| {
        Outcome::Done(Done { revision, found: found.to_vec(), before: None, changed })
    };
    let operation = |call: u64, end: u64, kind: Kind, outcome: Outcome| Operation {
        key: "r/0".into(),
        kind,
        call,
        end,
        outcome,
        member: String::new(),
    };
    let get = Kind::Get { serializable: false };
    let good = vec![
        operation(0, 10, Kind::Put { value: 1 }, done(2, &[], true)),
        operation(0, 90, Kind::Put { value: 2 }, Outcome::Unknown),
        operation(5, 30, get, done(3, &[Some((2, 3))], false)),
        operation(31, 40, Kind::Delete, Outcome::Unknown),
        operation(50, 60, Kind::Swap { expected: None, value: 3 }, done(5, &[], true)),
        operation(61, 70, Kind::Get { serializable: true }, done(2, &[Some((1, 2))], false)),
    ];
    log.check_operations(&good).context("a history that is right")?;
    let wrong = [
        ("a stale read", operation(61, 70, get, done(2, &[Some((1, 2))], false))),
        ("a lost write", operation(61, 70, Kind::Put { value: 9 }, done(6, &[], true))),
        ("a write in another's revision", operation(0, 70, Kind::Put { value: 9 }, done(3, &[], true))),
        ("a read of what was not there", operation(0, 70, get, done(4, &[Some((2, 3))], false))),
        (
            "a swap that should not have happened",
            operation(61, 70, Kind::Swap { expected: Some(1), value: 3 }, done(5, &[], true)),
        ),
    ];
    for (what, operation) in wrong {
        let all: Vec<_> = good.iter().cloned().chain([operation]).collect();
        ensure!(log.check_operations(&all).is_err(), "{what} was not found");
    }
    let refused = good.iter().cloned().map(|o| match o.outcome {
        Outcome::Unknown => Operation { outcome: Outcome::Refused, ..o },
        _ => o,
    });
    ensure!(
        log.check_operations(&refused.collect::<Vec<_>>()).is_err(),
        "a refused write that took effect was not found"
    );
    for (what, missing) in [("a gap", 1), ("a missing deletion", 2)] {
        let mut told = told.clone();
        told.remove(missing);
        ensure!(Log::new(&told).is_err(), "{what} was not found");
    }
    let again = [told.clone(), vec![told[3].clone()]].concat();
    ensure!(Log::new(&again).is_err(), "an event told twice was not found");
    let life = |until, revoked| [Life { key: "l/1".into(), until, revoked, kept_alive: 0 }];
    let ended = Told { changes: vec![(100, gone(6, "l/1").1)], ..Default::default() };
    let ended = [(Scope { from: "", before: false }, ended)];
    log.check_leases(&life(100, None), &ended)?;
    log.check_leases(&life(900, Some(50)), &ended)?;
    ensure!(log.check_leases(&life(101, None), &ended).is_err(), "a lease that ended early was not found");
    Ok(())
}
