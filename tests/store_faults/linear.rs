//! Whether a history of one key could have come from one register, as Wing and Gong's search decides it, with Lowe's memory of
//! the states that were tried already. Histories are split by key beforehand: a store is linearizable if each of its keys is.
//!
//! An operation whose outcome is unknown may take effect at any time after its call, or never, which is the same as after
//! everything else.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// What a register holds: the number of the write that put its value there; None when the key is not there.
pub type State = Option<u64>;

/// What an operation asked, and what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Read(State),
    /// `before`: what the answer said was there, if it said so.
    Write {
        value: u64,
        before: Option<State>,
    },
    Delete {
        before: Option<State>,
    },
    /// A compare-and-swap that took place.
    Swapped {
        expected: State,
        value: u64,
    },
    /// One that was told that something else was there.
    NotSwapped {
        expected: State,
        found: State,
    },
    /// One that was told nothing.
    MaybeSwapped {
        expected: State,
        value: u64,
    },
}

impl Step {
    /// The state after it; None if it cannot have been answered so in this one.
    fn apply(self, state: State) -> Option<State> {
        let fits = |said: Option<State>| said.is_none_or(|s| s == state);
        match self {
            Step::Read(found) => (found == state).then_some(state),
            Step::Write { value, before } => fits(before).then_some(Some(value)),
            Step::Delete { before } => fits(before).then_some(None),
            Step::Swapped { expected, value } => (expected == state).then_some(Some(value)),
            Step::NotSwapped { expected, found } => (expected != state && found == state).then_some(state),
            Step::MaybeSwapped { expected, value } => Some(if expected == state { Some(value) } else { state }),
        }
    }

    /// What it shows of others' writes.
    fn shows(self) -> [State; 2] {
        match self {
            Step::Read(found) => [found, None],
            Step::Write { before, .. } | Step::Delete { before } => [before.flatten(), None],
            Step::Swapped { expected, .. } | Step::MaybeSwapped { expected, .. } => [expected, None],
            Step::NotSwapped { expected, found } => [expected, found],
        }
    }

    fn writes(self) -> Option<u64> {
        match self {
            Step::Write { value, .. } | Step::Swapped { value, .. } | Step::MaybeSwapped { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// An operation with its times, on any clock that all clients share.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub call: u64,
    /// None: nobody knows its outcome.
    pub end: Option<u64>,
    pub step: Step,
}

/// A place in the list of calls and ends, by time.
struct Place {
    event: usize,
    is_call: bool,
    next: usize,
    before: usize,
}

/// The head of the list, which also stands behind its last place.
const HEAD: usize = 0;

/// Looks for an order; gives the longest that was found when there is none for all, as indexes of `events`.
///
/// # Errors
/// The history is not linearizable.
pub fn check(events: &[Event]) -> Result<(), Vec<usize>> {
    let events: Vec<(usize, Event)> = relevant(events);
    let (mut places, ends) = list(&events);
    let mut open = events.iter().filter(|(_, e)| e.end.is_some()).count();
    let mut done = vec![0u64; events.len().div_ceil(64)];
    // Deletions of unknown outcome are all alike: the one called first may stand for any other. So it is enough to count those
    // taken, to take one only where there is something to delete, and to come back to a state only with fewer.
    let unsure = |event: &Event| event.end.is_none() && matches!(event.step, Step::Delete { .. });
    let deletions: HashMap<usize, usize> =
        by_call(&events).filter(|i| unsure(&events[*i].1)).enumerate().map(|(rank, i)| (i, rank)).collect();
    let mut deleted = 0;
    let mut tried: HashMap<(Box<[u64]>, State), usize> = HashMap::new();
    let mut taken: Vec<(usize, State)> = Vec::new();
    let mut best: Vec<usize> = Vec::new();
    let mut state: State = None;
    let mut at = places[HEAD].next;
    while open > 0 {
        let Place { event, is_call, next, .. } = places[at];
        if at != HEAD && is_call {
            let call = at;
            at = next;
            let Some(after) = events[event].1.step.apply(state) else { continue };
            let deletion = deletions.get(&event);
            if deletion.is_some_and(|rank| *rank != deleted || state.is_none()) {
                continue;
            }
            match deletion {
                Some(_) => deleted += 1,
                None => done[event / 64] |= 1 << (event % 64),
            }
            let known = match tried.entry((done.clone().into_boxed_slice(), after)) {
                Entry::Occupied(known) if *known.get() <= deleted => true,
                Entry::Occupied(mut known) => known.insert(deleted) <= deleted,
                Entry::Vacant(new) => *new.insert(deleted) != deleted,
            };
            if known {
                match deletion {
                    Some(_) => deleted -= 1,
                    None => done[event / 64] &= !(1 << (event % 64)),
                }
                continue;
            }
            unlink(&mut places, call);
            if let Some(end) = ends[event] {
                unlink(&mut places, end);
                open -= 1;
            }
            taken.push((call, state));
            state = after;
            at = places[HEAD].next;
            if taken.len() > best.len() {
                best = taken.iter().map(|(call, _)| places[*call].event).collect();
            }
        } else {
            // An operation that ended has to come before whatever is called after that: one of those taken was the wrong one.
            let Some((call, before)) = taken.pop() else {
                return Err(best.into_iter().map(|event| events[event].0).collect());
            };
            let event = places[call].event;
            if let Some(end) = ends[event] {
                relink(&mut places, end);
                open += 1;
            }
            relink(&mut places, call);
            match deletions.get(&event) {
                Some(_) => deleted -= 1,
                None => done[event / 64] &= !(1 << (event % 64)),
            }
            state = before;
            at = places[call].next;
        }
    }
    Ok(())
}

/// Indexes of events in the order of their calls.
fn by_call(events: &[(usize, Event)]) -> impl Iterator<Item = usize> {
    let mut order: Vec<_> = (0..events.len()).collect();
    order.sort_by_key(|i| (events[*i].1.call, *i));
    order.into_iter()
}

/// Without writes of unknown outcome whose value nobody was ever shown: every other operation tells what it found, so an order
/// without them is an order too. They would make the search long.
fn relevant(events: &[Event]) -> Vec<(usize, Event)> {
    let shown: HashSet<u64> = events.iter().flat_map(|e| e.step.shows()).flatten().collect();
    let all = events.iter().copied().enumerate();
    all.filter(|(_, e)| e.end.is_some() || e.step.writes().is_none_or(|value| shown.contains(&value))).collect()
}

/// The list, and where in it the end of each event is. Of a call and an end at the same moment the call is first: they overlap.
fn list(events: &[(usize, Event)]) -> (Vec<Place>, Vec<Option<usize>>) {
    let calls = events.iter().enumerate().map(|(i, (_, e))| (e.call, false, i));
    let ends = events.iter().enumerate().filter_map(|(i, (_, e))| Some((e.end?, true, i)));
    let mut order: Vec<_> = calls.chain(ends).collect();
    order.sort_unstable();
    let mut places = vec![Place { event: 0, is_call: false, next: 1, before: order.len() }];
    let mut where_ends = vec![None; events.len()];
    for (i, (_, is_end, event)) in order.iter().enumerate() {
        let place = i + 1;
        let next = if place == order.len() { HEAD } else { place + 1 };
        places.push(Place { event: *event, is_call: !is_end, next, before: i });
        if *is_end {
            where_ends[*event] = Some(place);
        }
    }
    if order.is_empty() {
        places[HEAD].next = HEAD;
    }
    (places, where_ends)
}

fn unlink(places: &mut [Place], at: usize) {
    let (before, next) = (places[at].before, places[at].next);
    places[before].next = next;
    places[next].before = before;
}

fn relink(places: &mut [Place], at: usize) {
    let (before, next) = (places[at].before, places[at].next);
    places[before].next = at;
    places[next].before = at;
}

/// Checks each key by itself.
///
/// # Errors
/// Says which key is not linearizable, and between which operations the search came to its end.
pub fn check_keys(by_key: &HashMap<String, Vec<Event>>) -> anyhow::Result<usize> {
    let mut checked = 0;
    for (key, events) in by_key {
        checked += events.len();
        let Err(order) = check(events) else { continue };
        let told = |event: &Event| {
            format!("{:?} called at {} us, ended {:?}", event.step, event.call / 1000, event.end.map(|e| e / 1000))
        };
        let last: Vec<_> = order.iter().rev().take(6).rev().map(|i| told(&events[*i])).collect();
        let taken: HashSet<_> = order.iter().collect();
        let mut rest: Vec<_> =
            events.iter().enumerate().filter(|(i, e)| !taken.contains(i) && e.end.is_some()).collect();
        rest.sort_unstable_by_key(|(_, e)| e.end);
        let rest: Vec<_> = rest.iter().take(6).map(|(_, e)| told(e)).collect();
        anyhow::bail!(
            "{key} is not linearizable: {} of {} operations fit, the last ones being\n  {}\nand then none of\n  {}",
            order.len(),
            events.len(),
            last.join("\n  "),
            rest.join("\n  ")
        );
    }
    Ok(checked)
}

/// Histories that are linearizable and histories that are not.
pub fn tells_them_apart() -> anyhow::Result<()> {
    use Step::*;
    let done = |call, end, step| Event { call, end: Some(end), step };
    let open = |call, step| Event { call, end: None, step };
    let write = |value| Write { value, before: None };
    let check_one = |what: &str, events: &[Event], good: bool| {
        anyhow::ensure!(
            check(events).is_ok() == good,
            "{what}: the checker says it is {}",
            if good { "wrong" } else { "right" }
        );
        Ok(())
    };
    check_one("nothing", &[], true)?;
    check_one("a read of nothing", &[done(0, 1, Read(None))], true)?;
    check_one("a read of what is written later", &[done(0, 1, Read(Some(1))), done(2, 3, write(1))], false)?;
    check_one("one after the other", &[done(0, 1, write(1)), done(2, 3, Read(Some(1)))], true)?;
    check_one("a lost write", &[done(0, 1, write(1)), done(2, 3, Read(None))], false)?;
    let stale = [done(0, 1, write(1)), done(2, 3, write(2)), done(4, 5, Read(Some(1)))];
    check_one("a stale read", &stale, false)?;
    let overlap = [done(0, 1, write(1)), done(2, 9, write(2)), done(3, 4, Read(Some(1))), done(5, 6, Read(Some(2)))];
    check_one("a read on each side of a write under way", &overlap, true)?;
    let back = [done(0, 1, write(1)), done(2, 9, write(2)), done(3, 4, Read(Some(2))), done(5, 6, Read(Some(1)))];
    check_one("a new value, then the old one again", &back, false)?;
    check_one("a call at the moment of an end overlaps it", &[done(0, 2, write(1)), done(2, 3, Read(None))], true)?;
    let twice = [done(0, 1, write(1)), done(2, 3, write(2)), done(4, 5, Read(Some(2))), done(6, 7, Read(Some(1)))];
    check_one("a write that takes effect twice", &twice, false)?;
    let late = [open(0, write(1)), done(1, 2, write(2)), done(3, 4, Read(Some(2))), done(5, 6, Read(Some(1)))];
    check_one("an unknown outcome that took effect late", &late, true)?;
    let late_twice = [
        late[0],
        late[1],
        done(3, 4, Read(Some(1))),
        done(5, 6, write(3)),
        done(7, 8, Read(Some(3))),
        done(9, 10, Read(Some(1))),
    ];
    check_one("an unknown outcome that took effect twice", &late_twice, false)?;
    let early = [done(0, 1, Read(Some(1))), open(2, write(1))];
    check_one("an unknown outcome that took effect before its call", &early, false)?;
    let never = [open(0, write(1)), open(0, Delete { before: None }), done(1, 2, write(2)), done(3, 4, Read(Some(2)))];
    check_one("unknown outcomes that never took effect", &never, true)?;
    let swap = |expected, value| Swapped { expected, value };
    check_one("two swaps from the same value", &[done(0, 9, swap(None, 1)), done(0, 9, swap(None, 2))], false)?;
    check_one("two swaps in turn", &[done(0, 9, swap(Some(2), 1)), done(0, 9, swap(None, 2))], true)?;
    let refused = NotSwapped { expected: None, found: Some(1) };
    check_one("a swap refused for good reason", &[done(0, 9, write(1)), done(0, 9, refused)], true)?;
    let refused = NotSwapped { expected: Some(1), found: Some(1) };
    check_one("a swap refused for none", &[done(0, 1, write(1)), done(2, 3, refused)], false)?;
    let maybe = MaybeSwapped { expected: Some(1), value: 2 };
    check_one("a swap that happened unseen", &[done(0, 1, write(1)), open(2, maybe), done(3, 4, Read(Some(2)))], true)?;
    check_one(
        "a swap that cannot have happened",
        &[done(0, 1, write(3)), open(2, maybe), done(3, 4, Read(Some(2)))],
        false,
    )?;
    let delete = |before| Delete { before: Some(before) };
    check_one("a deletion of what was there", &[done(0, 1, write(1)), done(2, 3, delete(Some(1)))], true)?;
    check_one(
        "a second deletion of it",
        &[done(0, 1, write(1)), done(2, 3, delete(Some(1))), done(4, 5, delete(Some(1)))],
        false,
    )?;
    let before = Write { value: 2, before: Some(None) };
    check_one("a write that overlooked another", &[done(0, 1, write(1)), done(2, 3, before)], false)?;
    is_quick_enough()
}

/// A long history with many at once, and many outcomes unknown, must not take the search long; one stale read in it is still
/// found.
fn is_quick_enough() -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    let mut events = Vec::new();
    for i in 1..600u64 {
        let (call, value) = (i * 10, i * 2);
        events.push(Event { call, end: (i % 7 != 0).then_some(call + 45), step: Step::Write { value, before: None } });
        events.push(Event {
            call: call + 46,
            end: Some(call + 52),
            step: Step::Write { value: value + 1, before: None },
        });
        if i % 100 == 0 {
            events.push(Event { call, end: None, step: Step::Delete { before: None } });
        }
    }
    events.push(Event { call: 60_000, end: Some(60_001), step: Step::Read(Some(599 * 2 + 1)) });
    anyhow::ensure!(check(&events).is_ok(), "many writes at once are linearizable");
    events.push(Event { call: 70_000, end: Some(70_001), step: Step::Read(Some(3)) });
    anyhow::ensure!(check(&events).is_err(), "a value of long ago is not");
    anyhow::ensure!(began.elapsed().as_secs() < 20, "the search took {:?}", began.elapsed());
    Ok(())
}
