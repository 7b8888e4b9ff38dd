//! Which keys there are, in order, and where their versions lie.
//!
//! Keys are not here: they are read where the newest version lies. The index is a sorted list of places, cut into leaves that are found by
//! the least key that belongs in them. Most keys have one version, and cost one place; the leaf keeps a list aside for each of the others.

use super::blocks::{At, Blocks};
use super::slab::Slab;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Keys of a leaf. More cost more to insert among, fewer make more leaves.
const LEAF_KEYS: usize = if cfg!(feature = "simulation") { 4 } else { 512 };

pub struct Index {
    /// In order; the first is there always, and for all keys before the second. No other is empty.
    leaves: BTreeMap<Box<[u8]>, Leaf>,
    len: usize,
    leaf_keys: usize,
}

/// Some neighbours.
#[derive(Default)]
struct Leaf {
    /// Where the newest version of each key lies, in order of key; and, in [`At::list`], one more than the number of the key's list, if it has one.
    places: Vec<At>,
    /// All versions of the keys that have several, oldest first.
    lists: Slab<Vec<At>>,
}

impl Leaf {
    fn find(&self, blocks: &Blocks, key: &[u8]) -> Result<usize, usize> {
        self.places.binary_search_by(|place| blocks.key(*place).cmp(key))
    }

    /// The versions of the key at a place, oldest first.
    fn versions(&self, place: usize) -> &[At] {
        match self.places[place].list.checked_sub(1) {
            Some(list) => self.lists.get(list.into()).map_or(&[], |list| list),
            None => std::slice::from_ref(&self.places[place]),
        }
    }

    /// What stands for a key with these versions.
    fn place_of(&mut self, versions: Vec<At>) -> Option<At> {
        let newest = *versions.last()?;
        let list = match versions.len() {
            1 => 0,
            // A leaf has too few keys for the number not to fit.
            _ => self.lists.insert(versions) as u16 + 1,
        };
        Some(At { list, ..newest })
    }

    /// Takes the versions from what stands for them.
    fn take(&mut self, place: At) -> Vec<At> {
        match place.list.checked_sub(1) {
            Some(list) => self.lists.remove(list.into()).unwrap_or_default(),
            None => vec![place],
        }
    }

    /// Adds a key that is not there yet. A leaf that is full keeps its lower part and gives the upper one.
    fn insert(&mut self, place: usize, at: At, leaf_keys: usize) -> Option<Leaf> {
        let len = self.places.len();
        if len < leaf_keys {
            self.places.insert(place, at);
            return None;
        }
        // Keys often come in order, and then what is before them stays full.
        let split = if place == len { place } else { len / 2 };
        let mut upper = Leaf::default();
        let places = self.places.split_off(split);
        upper.extend(self, places);
        self.places.shrink_to_fit();
        match place <= split && split < leaf_keys {
            true => self.places.insert(place, at),
            false => upper.places.insert(place - split, at),
        }
        Some(upper)
    }

    /// Adds keys that were another's, and come after these.
    fn extend(&mut self, other: &mut Leaf, places: Vec<At>) {
        for place in places {
            let place = match place.list {
                0 => Some(place),
                _ => {
                    let versions = other.take(place);
                    self.place_of(versions)
                }
            };
            self.places.extend(place);
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index::with_leaf_keys(LEAF_KEYS)
    }
}

impl Index {
    /// `leaf_keys` must be less than 2^16.
    pub fn with_leaf_keys(leaf_keys: usize) -> Self {
        Index { leaves: BTreeMap::from([(Box::default(), Leaf::default())]), len: 0, leaf_keys }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The versions of a key, oldest first.
    pub fn get(&self, blocks: &Blocks, key: &[u8]) -> &[At] {
        let found = self.leaf(key).and_then(|(_, leaf)| Some((leaf, leaf.find(blocks, key).ok()?)));
        found.map_or(&[], |(leaf, place)| leaf.versions(place))
    }

    /// Adds the newest version of a key: `write` gets those that there are, oldest first, and says where the new one lies.
    pub fn push(&mut self, blocks: &mut Blocks, key: &[u8], write: impl FnOnce(&mut Blocks, &[At]) -> At) {
        let leaf_keys = self.leaf_keys;
        let Some((_, leaf)) = self.leaf_mut(key) else { return };
        match leaf.find(blocks, key) {
            Ok(place) => {
                let mut versions = leaf.take(leaf.places[place]);
                versions.push(write(blocks, &versions));
                if let Some(newest) = leaf.place_of(versions) {
                    leaf.places[place] = newest;
                }
            }
            Err(place) => {
                let upper = leaf.insert(place, write(blocks, &[]), leaf_keys);
                self.len += 1;
                if let Some((least, upper)) = upper.and_then(|upper| Some((*upper.places.first()?, upper))) {
                    self.leaves.insert(blocks.key(least).into(), upper);
                }
            }
        }
    }

    /// Adds a key with its versions, oldest first. It must come after all keys that there are.
    pub fn append(&mut self, key: &[u8], versions: &[At]) {
        let full = self.leaves.last_key_value().is_none_or(|(_, leaf)| leaf.places.len() >= self.leaf_keys);
        if full {
            self.leaves.insert(key.into(), Leaf::default());
        }
        let Some(mut last) = self.leaves.last_entry() else { return };
        let place = last.get_mut().place_of(versions.to_vec());
        self.len += place.is_some() as usize;
        last.get_mut().places.extend(place);
    }

    /// Forgets the oldest versions of a key, and the key with the last of them. `count` gets all of them, oldest first, and says how many. Gives
    /// those that are forgotten.
    pub fn drop_oldest(&mut self, blocks: &Blocks, key: &[u8], count: impl FnOnce(&[At]) -> usize) -> Vec<At> {
        let Some((least, leaf)) = self.leaf_mut(key) else { return Vec::new() };
        let Ok(place) = leaf.find(blocks, key) else { return Vec::new() };
        let versions = leaf.versions(place);
        let count = count(versions).min(versions.len());
        if count == 0 {
            return Vec::new();
        }
        let mut gone = leaf.take(leaf.places[place]);
        let mut left = gone.split_off(count);
        left.shrink_to_fit();
        match leaf.place_of(left) {
            Some(newest) => leaf.places[place] = newest,
            None => {
                leaf.places.remove(place);
                let least = least.to_vec();
                self.len -= 1;
                self.tidy(&least);
            }
        }
        gone
    }

    /// Lets a version lie elsewhere, if it is still referred to: `to` moves it and says where.
    pub fn relocate(&mut self, blocks: &mut Blocks, from: At, to: impl FnOnce(&mut Blocks) -> At) {
        let Some((_, leaf)) = self.leaf_mut(blocks.key(from)) else { return };
        let Ok(place) = leaf.find(blocks, blocks.key(from)) else { return };
        let Some(of_key) = leaf.versions(place).iter().position(|at| *at == from) else { return };
        let mut versions = leaf.take(leaf.places[place]);
        versions[of_key] = to(blocks);
        if let Some(newest) = leaf.place_of(versions) {
            leaf.places[place] = newest;
        }
    }

    /// The versions of each key from `start` on and before `end` (None = to the last), in order of key.
    pub fn range<'a>(
        &'a self,
        blocks: &Blocks,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = &'a [At]> + use<'a> {
        let before = |key: &[u8], leaf: &Leaf| leaf.places.partition_point(|place| blocks.key(*place) < key);
        let (least, skip) = self.leaf(start).map_or((&[][..], 0), |(least, leaf)| (least, before(start, leaf)));
        let stop = end.filter(|end| *end > start).map_or(Bound::Unbounded, Bound::Excluded);
        let nothing = end.is_some_and(|end| end <= start);
        let leaves = self.leaves.range::<[u8], _>((Bound::Included(least), stop));
        // Only the last leaf can hold keys that are not before the end.
        let last = leaves.clone().next_back().map(|(least, leaf)| {
            let places = end.map_or(leaf.places.len(), |end| before(end, leaf));
            (&**least, places)
        });
        let leaves = leaves.take_while(move |_| !nothing).enumerate();
        leaves.flat_map(move |(i, (least, leaf))| {
            let last = last.filter(|(last, _)| std::ptr::eq(*last, &**least));
            let until = last.map_or(leaf.places.len(), |(_, places)| places);
            let from = if i == 0 { skip.min(until) } else { 0 };
            (from..until).map(move |place| leaf.versions(place))
        })
    }

    fn leaf(&self, key: &[u8]) -> Option<(&[u8], &Leaf)> {
        let (least, leaf) = self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        Some((least, leaf))
    }

    fn leaf_mut(&mut self, key: &[u8]) -> Option<(&[u8], &mut Leaf)> {
        let (least, leaf) = self.leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        Some((least, leaf))
    }

    /// A leaf of which little is left joins the one before it, or gives back memory.
    fn tidy(&mut self, least: &[u8]) {
        let Some(leaf) = self.leaves.get_mut(least) else { return };
        let len = leaf.places.len();
        if leaf.places.capacity() > 4 * len + 8 {
            leaf.places.shrink_to(2 * len);
        }
        if least.is_empty() || len > self.leaf_keys / 8 {
            return;
        }
        let before = self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(least))).next_back();
        if before.is_none_or(|(_, before)| before.places.len() + len > self.leaf_keys / 2) && len > 0 {
            return;
        }
        let mut rest = self.leaves.remove(least).unwrap_or_default();
        if let Some((_, before)) = self.leaf_mut(least) {
            let places = std::mem::take(&mut rest.places);
            before.extend(&mut rest, places);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;
    use std::collections::BTreeMap;

    /// An index with small leaves, and what it should say.
    struct Checked {
        index: Index,
        blocks: Blocks,
        model: BTreeMap<Vec<u8>, Vec<At>>,
        revision: u64,
    }

    impl Checked {
        fn new() -> Self {
            let (index, blocks) = (Index::with_leaf_keys(8), Blocks::with_block_bytes(300));
            Checked { index, blocks, model: BTreeMap::new(), revision: 1 }
        }

        fn push(&mut self, key: &[u8]) {
            self.revision += 1;
            let revision = self.revision;
            let record = Record { version: 1, create_revision: revision, ..Record::tombstone(key, revision) };
            let known = self.model.entry(key.to_vec()).or_default();
            let mut written = At::default();
            self.index.push(&mut self.blocks, key, |blocks, before| {
                assert_eq!(before, known);
                written = blocks.push(&record);
                written
            });
            known.push(written);
        }

        fn drop_oldest(&mut self, key: &[u8], count: usize) {
            let gone = self.index.drop_oldest(&self.blocks, key, |_| count);
            let versions = self.model.entry(key.to_vec()).or_default();
            assert_eq!(gone, versions.drain(..count.min(versions.len())).collect::<Vec<_>>());
            if versions.is_empty() {
                self.model.remove(key);
            }
        }

        /// Moves the version of a key that was written before all others but `skip`.
        fn relocate(&mut self, key: &[u8], skip: usize) {
            let Some(at) = self.model.get_mut(key).and_then(|versions| versions.get_mut(skip)) else { return };
            let from = *at;
            self.index.relocate(&mut self.blocks, from, |blocks| {
                let record = blocks.pair(from, blocks.get(from));
                *at = blocks.settle(&Record::of(&record));
                *at
            });
            assert_ne!(*at, from);
            // Nobody refers to that place any more.
            self.index.relocate(&mut self.blocks, from, |_| panic!("moved twice"));
        }

        fn check(&self, start: &[u8], end: Option<&[u8]>) {
            let end_key = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_vec()));
            let expect: Vec<_> = match end {
                Some(end) if end <= start => Vec::new(),
                _ => self.model.range((Bound::Included(start.to_vec()), end_key)).map(|(_, v)| v.clone()).collect(),
            };
            let found: Vec<_> = self.index.range(&self.blocks, start, end).map(<[At]>::to_vec).collect();
            assert_eq!(found, expect, "{start:?} to {end:?}");
            assert_eq!(self.index.len(), self.model.len());
            let alone = self.model.get(start).map_or(&[][..], |v| v);
            assert_eq!(self.index.get(&self.blocks, start), alone);
        }
    }

    #[test]
    fn it_says_what_a_plain_map_says() {
        let mut checked = Checked::new();
        let key = |n: u64| format!("k{:03}", n % 300).into_bytes();
        let mut lots = 1_u64;
        let mut draw = |below: u64| {
            lots = lots.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (lots >> 33) % below
        };
        for phase in 0..4 {
            for _ in 0..1500 {
                // It grows and shrinks in turn.
                match draw(10) {
                    n if n < if phase % 2 == 0 { 7 } else { 2 } => checked.push(&key(draw(1000))),
                    7 => checked.relocate(&key(draw(1000)), draw(3) as usize),
                    _ => checked.drop_oldest(&key(draw(1000)), draw(4) as usize),
                }
                let (start, end) = (key(draw(1000)), key(draw(1000)));
                checked.check(&start, Some(&end).filter(|_| draw(5) > 0).map(|end| &end[..]));
            }
            checked.check(b"", None);
        }
        while let Some(key) = checked.model.keys().next().cloned() {
            checked.drop_oldest(&key, 99);
            checked.check(&key, None);
        }
        assert_eq!(checked.index.leaves.len(), 1, "only the first leaf stays when it is empty");
    }

    #[test]
    fn keys_in_order_fill_their_leaves() {
        let (mut one, mut other) = (Checked::new(), Checked::new());
        for n in 0..80 {
            let key = format!("k{n:03}").into_bytes();
            one.push(&key);
            other.revision += 1;
            let at = other.blocks.push(&Record::tombstone(&key, other.revision));
            other.index.append(&key, &[at]);
            other.model.insert(key, vec![at]);
        }
        one.check(b"k01", Some(b"k07"));
        other.check(b"k01", Some(b"k07"));
        assert_eq!((one.index.leaves.len(), other.index.leaves.len()), (10, 10));
    }
}
