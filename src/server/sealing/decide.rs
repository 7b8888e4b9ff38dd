//! What a server does next about sealing keys. It looks at what all have written and does one thing; then it looks again.
//!
//! A key is used only once every server has it, so whatever a server writes, every other can read. A rotation goes through these states, each of which is seen, not
//! hoped for: one server has the new key; every server has it; every server seals with it; everything in the store is sealed with it. A server that is away holds
//! the rotation up, and it goes on when that server is back or was removed.

use super::records::{Held, Plan, Records};
use skiff_identity::sealing::{KeyId, SealingKeys};
use skiff_store::MemberId;

/// What one server sees.
#[derive(Debug)]
pub struct Seen<'a> {
    pub me: MemberId,
    pub leads: bool,
    /// Every server of the cluster.
    pub members: &'a [MemberId],
    pub records: &'a Records,
    /// The keys that this server has.
    pub keys: &'a SealingKeys,
    /// The public key with which it asks for one that it lacks.
    pub asks: Option<&'a [u8]>,
    /// The prefixes below which this server seals.
    pub prefixes: &'a [String],
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Take the key that was given to us.
    Take(KeyId),
    /// Remove an answer to a question that we no longer ask.
    Drop(KeyId),
    /// Make a public key, to be given a key that we lack.
    Ask,
    /// Seal with this key from now on.
    Use(KeyId),
    Forget(KeyId),
    /// Say what we have.
    Report(Held),
    /// Give a key to a member who asks with this public key.
    Give {
        id: KeyId,
        member: MemberId,
        to: Vec<u8>,
    },
    /// Make the cluster's first key.
    Make,
    Plan(Plan),
    /// The plan's key is lost: no server has it. Unless something is sealed with it, another takes its place.
    Replace(Plan),
    /// Seal everything anew that is not sealed with the plan's key, below every prefix.
    Rewrite(Plan),
    /// Remove what a member left that there is no more.
    Clear(MemberId),
}

/// The next step; None while there is nothing to do.
pub fn next(seen: &Seen<'_>) -> Option<Act> {
    own(seen).or_else(|| give(seen)).or_else(|| if seen.leads { lead(seen) } else { None })
}

/// Whether this server's keys are what the plan asks for: then it may seal, and not before. Once a key is in use nothing is written in the clear any more.
pub fn follows(plan: Option<&Plan>, keys: &SealingKeys) -> bool {
    plan.is_none_or(|plan| {
        let current = keys.current;
        let forgotten = current.is_some_and(|id| plan.forgotten.contains(&id));
        !forgotten && (!plan.in_use || current == Some(plan.key))
    })
}

/// What concerns this server's own keys.
fn own(seen: &Seen<'_>) -> Option<Act> {
    let Seen { me, records, keys, .. } = *seen;
    if let Some(plan) = &records.plan {
        if let Some(id) = plan.forgotten.iter().find(|id| keys.holds(**id) && keys.current != Some(**id)) {
            return Some(Act::Forget(*id));
        }
        if plan.in_use && keys.current != Some(plan.key) && keys.holds(plan.key) {
            return Some(Act::Use(plan.key));
        }
    }
    let lacking = lacking(seen, keys.ids().collect());
    if let Some(asks) = seen.asks {
        let answer = lacking.iter().find(|id| records.given.get(&(me, **id)).is_some_and(|given| given.to == asks));
        if let Some(id) = answer {
            return Some(Act::Take(*id));
        }
    } else if !lacking.is_empty() {
        return Some(Act::Ask);
    }
    let asks = seen.asks.filter(|_| !lacking.is_empty()).map(<[u8]>::to_vec);
    let held = Held::of(keys, seen.prefixes, asks);
    if records.servers.get(&me) != Some(&held) {
        return Some(Act::Report(held));
    }
    let ours = records.given.iter().filter(|((member, _), _)| *member == me);
    let mut late = ours.filter(|(_, given)| Some(&given.to) != held.asks.as_ref());
    late.next().map(|((_, id), _)| Act::Drop(*id))
}

/// The keys that a server who has `has` should have: those that others have, and the one of the plan.
fn lacking(seen: &Seen<'_>, has: Vec<KeyId>) -> Vec<KeyId> {
    let records = seen.records;
    let known = records.servers.values().flat_map(|held| held.keys.iter().copied());
    let wanted = known.chain(records.plan.iter().map(|plan| plan.key));
    let forgotten = |id: &KeyId| records.plan.as_ref().is_some_and(|plan| plan.forgotten.contains(id));
    let mut wanted: Vec<_> = wanted.filter(|id| !has.contains(id) && !forgotten(id)).collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

/// Gives one key to a member who asks, if it is on us: of those who have the key, the one with the lowest id.
fn give(seen: &Seen<'_>) -> Option<Act> {
    let Seen { me, members, records, keys, .. } = *seen;
    for member in members.iter().filter(|member| **member != me) {
        let Some(held) = records.servers.get(member) else { continue };
        let Some(to) = &held.asks else { continue };
        let Some(id) = lacking(seen, held.keys.clone()).into_iter().find(|id| giver(seen, *id).is_some()) else {
            continue;
        };
        let given = records.given.get(&(*member, id)).is_some_and(|given| given.to == *to);
        if !given && keys.holds(id) && giver(seen, id) == Some(me) {
            return Some(Act::Give { id, member: *member, to: to.clone() });
        }
    }
    None
}

fn giver(seen: &Seen<'_>, id: KeyId) -> Option<MemberId> {
    let has = |member: &&MemberId| seen.records.servers.get(member).is_some_and(|held| held.keys.contains(&id));
    seen.members.iter().filter(has).min().copied()
}

/// What the leader does for all.
fn lead(seen: &Seen<'_>) -> Option<Act> {
    let Seen { members, records, keys, .. } = *seen;
    let gone = records.servers.keys().chain(records.given.keys().map(|(member, _)| member));
    if let Some(gone) = gone.into_iter().find(|member| !members.contains(member)) {
        return Some(Act::Clear(*gone));
    }
    let Some(plan) = &records.plan else {
        // Every member says what it has before a key is made: one may have a key already.
        if !members.iter().all(|member| records.servers.contains_key(member)) {
            return None;
        }
        let Some(key) = keys.current.or_else(|| keys.ids().last()) else { return Some(Act::Make) };
        return Some(Act::Plan(Plan { key, in_use: false, rewritten: Vec::new(), forgotten: Vec::new() }));
    };
    let reported = members.iter().all(|member| records.servers.contains_key(member));
    let lost = reported && giver(seen, plan.key).is_none() && !keys.holds(plan.key);
    if lost {
        return Some(Act::Replace(plan.clone()));
    }
    let all = |is: &dyn Fn(&Held) -> bool| members.iter().all(|member| records.servers.get(member).is_some_and(is));
    if !plan.in_use {
        let everywhere = all(&|held| held.keys.contains(&plan.key));
        return everywhere.then(|| Act::Plan(Plan { in_use: true, ..plan.clone() }));
    }
    // Nobody writes with another key while this plan stands. But who joined with older keys, or was away, is told of as not complete.
    if !all(&|held| held.seals_with == Some(plan.key)) {
        return None;
    }
    (!plan.covers(&records.prefixes(seen.prefixes))).then(|| Act::Rewrite(plan.clone()))
}

#[cfg(test)]
mod tests;
