//! Which keys there are, in order, and where their versions lie.
//!
//! Keys are not here: they are read where the versions lie. The index is a sorted list of places, cut into leaves that are found by
//! the least key that belongs in them. Most keys have one version, and cost one place; the others have a list aside.

use super::blocks::{At, Blocks};
use super::slab::Slab;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Keys of a leaf. More cost more to insert among, fewer make more leaves.
const LEAF_KEYS: usize = if cfg!(feature = "simulation") { 4 } else { 512 };
/// In the place of a block: the offset is the number of a list.
const LIST: u32 = u32::MAX;

pub struct Index {
    /// In order; the first is there always, and for all keys before the second. No other is empty.
    leaves: BTreeMap<Box<[u8]>, Vec<At>>,
    /// The versions of keys that have several, oldest first.
    lists: Slab<Vec<At>>,
    len: usize,
    leaf_keys: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index::with_leaf_keys(LEAF_KEYS)
    }
}

impl Index {
    pub fn with_leaf_keys(leaf_keys: usize) -> Self {
        let leaves = BTreeMap::from([(Box::default(), Vec::new())]);
        Index { leaves, lists: Slab::default(), len: 0, leaf_keys }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The versions of a key, oldest first.
    pub fn get(&self, blocks: &Blocks, key: &[u8]) -> &[At] {
        let leaf = self.leaf(key).map_or(&[][..], |(_, leaf)| leaf);
        match find(&self.lists, blocks, leaf, key) {
            Ok(place) => self.versions(&leaf[place]),
            Err(_) => &[],
        }
    }

    /// Adds the newest version of a key.
    pub fn push(&mut self, blocks: &Blocks, key: &[u8], at: At) {
        let Index { leaves, lists, len, leaf_keys } = self;
        let Some((_, leaf)) = leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back() else {
            return;
        };
        match find(lists, blocks, leaf, key) {
            Ok(place) if leaf[place].block == LIST => {
                if let Some(list) = lists.get_mut(leaf[place].offset) {
                    list.push(at);
                }
            }
            Ok(place) => leaf[place] = At { block: LIST, offset: lists.insert(vec![leaf[place], at]) },
            Err(place) => {
                *len += 1;
                if leaf.len() < *leaf_keys {
                    leaf.insert(place, at);
                    return;
                }
                // Keys often come in order, and then what is before them stays full.
                let split = if place == leaf.len() { place } else { leaf.len() / 2 };
                let mut upper = leaf.split_off(split);
                match place <= split && split < *leaf_keys {
                    true => leaf.insert(place, at),
                    false => upper.insert(place - split, at),
                }
                leaf.shrink_to_fit();
                if let Some(least) = upper.first().map(|entry| key_of(lists, blocks, entry).into()) {
                    leaves.insert(least, upper);
                }
            }
        }
    }

    /// Adds a key with its versions, oldest first. It must come after all keys that there are.
    pub fn append(&mut self, key: &[u8], versions: &[At]) {
        let entry = match versions {
            [] => return,
            [one] => *one,
            several => At { block: LIST, offset: self.lists.insert(several.to_vec()) },
        };
        self.len += 1;
        match self.leaves.last_entry() {
            Some(mut last) if last.get().len() < self.leaf_keys => last.get_mut().push(entry),
            _ => drop(self.leaves.insert(key.into(), vec![entry])),
        }
    }

    /// Forgets the oldest versions of a key, and the key with the last of them.
    pub fn drop_oldest(&mut self, blocks: &Blocks, key: &[u8], count: usize) {
        let Some((least, leaf)) = self.leaf(key) else { return };
        let (least, Ok(place)) = (least.to_vec(), find(&self.lists, blocks, leaf, key)) else { return };
        let Some(leaf) = self.leaves.get_mut(&least[..]) else { return };
        let entry = &mut leaf[place];
        if entry.block != LIST {
            if count == 0 {
                return;
            }
        } else if let Some(list) = self.lists.get_mut(entry.offset) {
            list.drain(..count.min(list.len()));
            match list[..] {
                [] => drop(self.lists.remove(entry.offset)),
                [one] => {
                    self.lists.remove(entry.offset);
                    *entry = one;
                    return;
                }
                _ => {
                    if list.capacity() > 2 * list.len() + 4 {
                        list.shrink_to_fit();
                    }
                    return;
                }
            }
        }
        leaf.remove(place);
        self.len -= 1;
        self.tidy(&least);
    }

    /// A version lies elsewhere now.
    pub fn moved(&mut self, blocks: &Blocks, from: At, to: At) {
        let Index { leaves, lists, .. } = self;
        let key = blocks.key(to);
        let Some((_, leaf)) = leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back() else {
            return;
        };
        let Ok(place) = find(lists, blocks, leaf, key) else { return };
        let entry = &mut leaf[place];
        let known = match entry.block {
            LIST => lists.get_mut(entry.offset).and_then(|list| list.iter_mut().find(|at| **at == from)),
            _ => Some(entry).filter(|at| **at == from),
        };
        if let Some(at) = known {
            *at = to;
        }
    }

    /// The versions of each key from `start` on and before `end` (None = to the last), in order of key.
    pub fn range<'a>(
        &'a self,
        blocks: &Blocks,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = &'a [At]> + use<'a> {
        let before = |key: &[u8], leaf: &[At]| leaf.partition_point(|entry| key_of(&self.lists, blocks, entry) < key);
        let (least, first) = self.leaf(start).unwrap_or((&[], &[]));
        let skip = before(start, first);
        let stop = end.filter(|end| *end > start).map_or(Bound::Unbounded, Bound::Excluded);
        let nothing = end.is_some_and(|end| end <= start);
        let leaves = self.leaves.range::<[u8], _>((Bound::Included(least), stop));
        // Only the last leaf can hold keys that are not before the end.
        let last = leaves.clone().next_back().map(|(least, leaf)| {
            let places = end.map_or(leaf.len(), |end| before(end, leaf));
            (&**least, places)
        });
        let leaves = leaves.take_while(move |_| !nothing).enumerate();
        leaves.flat_map(move |(i, (least, leaf))| {
            let until = last.filter(|(last, _)| std::ptr::eq(*last, &**least)).map_or(leaf.len(), |(_, places)| places);
            let from = if i == 0 { skip.min(until) } else { 0 };
            leaf[from..until].iter().map(move |entry| self.versions(entry))
        })
    }

    fn leaf(&self, key: &[u8]) -> Option<(&[u8], &[At])> {
        let (least, leaf) = self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        Some((least, leaf))
    }

    fn versions<'a>(&'a self, entry: &'a At) -> &'a [At] {
        match entry.block {
            LIST => self.lists.get(entry.offset).map_or(&[], |list| list),
            _ => std::slice::from_ref(entry),
        }
    }

    /// A leaf of which little is left joins the one before it, or gives back memory.
    fn tidy(&mut self, least: &[u8]) {
        let Some(leaf) = self.leaves.get_mut(least) else { return };
        let len = leaf.len();
        if leaf.capacity() > 4 * len + 8 {
            leaf.shrink_to(2 * len);
        }
        if least.is_empty() || len > self.leaf_keys / 8 {
            return;
        }
        let before = self.leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(least))).next_back();
        if before.is_none_or(|(_, before)| before.len() + len > self.leaf_keys / 2) && len > 0 {
            return;
        }
        let rest = self.leaves.remove(least).unwrap_or_default();
        if let Some(before) = self.leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(least))).next_back() {
            before.1.extend(rest);
        }
    }
}

/// The key of a place in a leaf.
fn key_of<'b>(lists: &Slab<Vec<At>>, blocks: &'b Blocks, entry: &At) -> &'b [u8] {
    match entry.block {
        LIST => lists.get(entry.offset).and_then(|list| list.first()).map_or(&[], |at| blocks.key(*at)),
        _ => blocks.key(*entry),
    }
}

fn find(lists: &Slab<Vec<At>>, blocks: &Blocks, leaf: &[At], key: &[u8]) -> Result<usize, usize> {
    leaf.binary_search_by(|entry| key_of(lists, blocks, entry).cmp(key))
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
            let at = self.blocks.push(&record);
            self.index.push(&self.blocks, key, at);
            self.model.entry(key.to_vec()).or_default().push(at);
        }

        fn drop_oldest(&mut self, key: &[u8], count: usize) {
            self.index.drop_oldest(&self.blocks, key, count);
            if let Some(versions) = self.model.get_mut(key) {
                versions.drain(..count.min(versions.len()));
                if versions.is_empty() {
                    self.model.remove(key);
                }
            }
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
