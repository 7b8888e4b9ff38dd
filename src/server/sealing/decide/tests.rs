//! Servers that follow the decisions over shared records, without a store: every order of turns must come to the same end, and on the way nobody seals with a key that
//! another lacks.

use super::*;
use skiff_identity::handover::{Ask, give as hand};
use skiff_identity::sealing::SealingKey;
use std::collections::BTreeMap;

#[derive(Default)]
struct Server {
    keys: SealingKeys,
    ask: Option<Ask>,
    away: bool,
}

struct World {
    records: Records,
    servers: BTreeMap<MemberId, Server>,
    leader: MemberId,
    prefixes: Vec<String>,
    /// With what things are sealed that were written; None: in the clear.
    stored: Vec<Option<KeyId>>,
}

impl World {
    /// Servers of which the first `with` have the keys of a founded cluster, and the others none.
    fn new(servers: u64, with: u64) -> World {
        let keys = SealingKeys::generate().unwrap();
        let made = |id| {
            (id, Server { keys: if id <= with { keys.clone() } else { SealingKeys::default() }, ..Server::default() })
        };
        World {
            records: Records::default(),
            servers: (1..=servers).map(made).collect(),
            leader: servers,
            prefixes: vec!["/secrets/".into()],
            stored: vec![None],
        }
    }

    /// One step of one server; false: it had nothing to do.
    fn step(&mut self, me: MemberId) -> bool {
        let members: Vec<_> = self.servers.keys().copied().collect();
        let server = self.servers.get_mut(&me).unwrap();
        // Whoever may seal does, at any moment: by the plan of that moment, as the store demands.
        if follows(self.records.plan.as_ref(), &server.keys) {
            self.stored.push(server.keys.current);
            self.stored.sort();
            self.stored.dedup();
        }
        let seen = Seen {
            me,
            leads: self.leader == me,
            members: &members,
            records: &self.records,
            keys: &server.keys,
            asks: server.ask.as_ref().map(Ask::public),
            prefixes: &self.prefixes,
        };
        let Some(act) = next(&seen) else { return false };
        let records = &mut self.records;
        match act {
            Act::Take(id) => {
                let given = records.given.remove(&(me, id)).unwrap();
                server.keys.add(server.ask.take().unwrap().take(&given).unwrap());
            }
            Act::Drop(id) => drop(records.given.remove(&(me, id))),
            Act::Ask => server.ask = Some(Ask::new().unwrap()),
            Act::Use(id) => server.keys.current = Some(id),
            Act::Forget(id) => {
                assert!(!self.stored.contains(&Some(id)), "something is sealed with {id}");
                server.keys.forget(id);
            }
            Act::Report(held) => {
                if held.asks.is_none() {
                    server.ask = None;
                }
                records.servers.insert(me, held);
            }
            Act::Give { id, member, to } => {
                let given = hand(server.keys.get(id).unwrap(), &to).unwrap();
                records.given.insert((member, id), given);
            }
            Act::Make => server.keys.add(SealingKey::generate().unwrap()),
            Act::Plan(plan) => {
                let begins = plan.in_use && records.plan.as_ref().is_some_and(|before| !before.in_use);
                records.plan = Some(plan.clone());
                // Whoever seals from now on, every server can open it.
                assert!(!begins || self.servers.values().all(|s| s.keys.holds(plan.key)));
            }
            Act::Replace(plan) => {
                assert!(!self.stored.contains(&Some(plan.key)));
                let key = SealingKey::generate().unwrap();
                server.keys.add(key.clone());
                records.plan = Some(Plan { key: key.id, in_use: false, rewritten: Vec::new(), ..plan });
            }
            Act::Rewrite(plan) => {
                self.stored = vec![Some(plan.key)];
                records.plan = Some(Plan { rewritten: self.prefixes.clone(), ..plan });
            }
            Act::Clear(member) => {
                records.servers.remove(&member);
                records.given.retain(|(m, _), _| *m != member);
            }
        }
        true
    }

    /// Gives turns in any order until nobody has anything to do; `seed` sets the order.
    fn settle(&mut self, seed: u64) {
        let mut random = seed;
        for turn in 0..5000 {
            let ids: Vec<_> = self.servers.iter().filter(|(_, s)| !s.away).map(|(id, _)| *id).collect();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(turn);
            let first = usize::try_from(random >> 33).unwrap() % ids.len();
            // One server acts; only where it rests are the others asked.
            if !ids[first..].iter().chain(&ids[..first]).any(|id| self.step(*id)) {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.records);
    }

    fn rotate(&mut self, by: MemberId) -> KeyId {
        let key = SealingKey::generate().unwrap();
        self.servers.get_mut(&by).unwrap().keys.add(key.clone());
        // As the order does: the plan and what that server says of itself in one write.
        self.records.servers.get_mut(&by).unwrap().keys.push(key.id);
        let plan = self.records.plan.as_mut().unwrap();
        (plan.key, plan.in_use, plan.rewritten) = (key.id, false, Vec::new());
        key.id
    }

    /// Everybody seals with the plan's key, and everything is sealed with it.
    fn assert_done(&self) -> KeyId {
        let plan = self.records.plan.clone().unwrap();
        assert!(plan.in_use && plan.rewritten == self.prefixes, "{plan:?}");
        assert!(self.servers.values().all(|s| s.keys.current == Some(plan.key)), "{:?}", self.records);
        assert!(self.stored.iter().all(|key| *key == Some(plan.key)));
        assert!(self.records.given.is_empty() && self.records.servers.values().all(|held| held.asks.is_none()));
        plan.key
    }
}

#[test]
fn a_cluster_comes_to_one_key_from_wherever_it_begins() {
    for seed in 0..50 {
        // A founder alone; one that others joined; one of an older version, without keys; one where a server lost its file.
        for (servers, with) in [(1, 1), (3, 3), (1, 0), (3, 0), (3, 2), (3, 1)] {
            let mut world = World::new(servers, with);
            world.settle(seed);
            world.assert_done();
        }
    }
}

#[test]
fn a_rotation_waits_for_the_server_that_is_away_and_for_none_that_was_removed() {
    for seed in 0..50 {
        let mut world = World::new(3, 3);
        world.settle(seed);
        let old = world.assert_done();
        world.servers.get_mut(&2).unwrap().away = true;
        let new = world.rotate(1);
        world.settle(seed);
        assert!(!world.records.plan.as_ref().unwrap().in_use, "a server is away that could not read it");
        assert_eq!(world.servers[&1].keys.current, Some(old));
        if seed % 2 == 0 {
            world.servers.get_mut(&2).unwrap().away = false;
        } else {
            world.servers.remove(&2);
        }
        world.settle(seed);
        assert_eq!(world.assert_done(), new);
        assert!(world.servers.values().all(|s| s.keys.holds(old)), "old snapshots stay readable");
        world.records.plan.as_mut().unwrap().forgotten.push(old);
        world.settle(seed);
        assert!(world.servers.values().all(|s| !s.keys.holds(old)));
        world.assert_done();
    }
}

#[test]
fn whoever_joins_with_older_keys_writes_nothing_until_it_has_caught_up() {
    for seed in 0..50 {
        let mut world = World::new(3, 3);
        world.settle(seed);
        let before = world.servers[&1].keys.clone();
        let new = world.rotate(1);
        world.settle(seed);
        if seed % 2 == 0 {
            world.records.plan.as_mut().unwrap().forgotten.extend(before.current);
            world.settle(seed);
        }
        world.servers.insert(4, Server { keys: before, ..Server::default() });
        assert!(!follows(world.records.plan.as_ref(), &world.servers[&4].keys));
        world.settle(seed);
        assert_eq!(world.assert_done(), new);
    }
}

#[test]
fn a_server_that_begins_anew_while_it_asks_is_answered_again() {
    let mut world = World::new(3, 3);
    world.settle(0);
    world.rotate(1);
    // Up to the answer, which it then cannot open any more.
    while !world.records.given.keys().any(|(member, _)| *member == 2) {
        let moved = [2, 1].iter().fold(false, |moved, id| moved | world.step(*id));
        assert!(moved, "{:?}", world.records);
    }
    world.servers.get_mut(&2).unwrap().ask = None;
    world.settle(0);
    world.assert_done();
}

#[test]
fn another_kind_is_sealed_when_it_is_named() {
    let mut world = World::new(1, 1);
    world.settle(0);
    world.prefixes.push("/configmaps/".into());
    world.stored.push(None);
    world.settle(0);
    world.assert_done();
}

#[test]
fn a_key_that_no_server_has_is_replaced() {
    let mut world = World::new(3, 3);
    world.settle(0);
    let lost = world.assert_done();
    world.stored = vec![None];
    for server in world.servers.values_mut() {
        server.keys = SealingKeys::default();
    }
    world.settle(0);
    assert_ne!(world.assert_done(), lost);
}
