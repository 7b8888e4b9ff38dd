//! Watch answers as bytes. The events of an answer are encoded once for all the watches that are told the same; only the head differs.

use crate::convert;
use bytes::{Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, message};
use skiff_proto::etcd::etcdserverpb::ResponseHeader;
use skiff_proto::etcd::mvccpb;
use skiff_store::{Event, EventKind, Published, Revision};
use std::sync::Arc;

/// Numbers of the fields of a WatchResponse.
const HEADER: u32 = 1;
const WATCH_ID: u32 = 2;
const FRAGMENT: u32 = 7;
const EVENTS: u32 = 11;

/// What a watch wants of its range's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flavour {
    pub puts: bool,
    pub deletes: bool,
    pub prev_kv: bool,
    /// Nothing before this revision.
    pub from: Revision,
}

impl Flavour {
    fn wants(&self, event: &Event) -> bool {
        let kind = match event.kind {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        };
        kind && event.kv.mod_revision >= self.from
    }
}

/// The header field of an answer.
pub fn header(header: &ResponseHeader) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    message::encode(HEADER, header, &mut bytes);
    bytes
}

/// The id field of an answer, and the mark of one that others follow. In `space`, so that it costs no memory.
pub fn watch_id(id: i64, more: bool, space: &mut [u8; 16]) -> &[u8] {
    let mut rest = &mut space[..];
    if id != 0 {
        encode_key(WATCH_ID, WireType::Varint, &mut rest);
        encode_varint(id as u64, &mut rest);
    }
    if more {
        encode_key(FRAGMENT, WireType::Varint, &mut rest);
        encode_varint(1, &mut rest);
    }
    let left = rest.len();
    let used = space.len() - left;
    &space[..used]
}

fn push(event: &Event, prev_kv: bool, bytes: &mut BytesMut) {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    let prev_kv = event.prev.as_deref().filter(|_| prev_kv).map(convert::pair);
    let event = mvccpb::Event { r#type: kind as i32, kv: Some(convert::pair(&event.kv)), prev_kv };
    message::encode(EVENTS, &event, bytes);
}

/// The events of one answer, in as many forms as its watches want, each made once.
pub struct Events<'n> {
    news: &'n [Arc<Published>],
    first: Revision,
    made: Vec<(Flavour, Bytes)>,
}

impl<'n> Events<'n> {
    pub fn new(news: &'n [Arc<Published>]) -> Self {
        let first = news.first().and_then(|p| p.events.first()).map_or(0, |e| e.kv.mod_revision);
        Events { news, first, made: Vec::new() }
    }

    /// The field of all the events that a watch wants; empty if there are none.
    pub fn of(&mut self, flavour: Flavour) -> &Bytes {
        let flavour = Flavour { from: if flavour.from <= self.first { 0 } else { flavour.from }, ..flavour };
        let i = match self.made.iter().position(|(made, _)| *made == flavour) {
            Some(i) => i,
            None => {
                self.made.push((flavour, self.make(flavour)));
                self.made.len() - 1
            }
        };
        &self.made[i].1
    }

    fn make(&self, flavour: Flavour) -> Bytes {
        let whole = flavour.puts && flavour.deletes && flavour.from == 0;
        let of = |published: &Published| {
            let mut bytes = BytesMut::new();
            let wanted = published.events.iter().filter(|e| flavour.wants(e));
            wanted.for_each(|e| push(e, flavour.prev_kv, &mut bytes));
            bytes.freeze()
        };
        let mut parts = self.news.iter().map(|published| match whole {
            // Other streams with the same range are told the same.
            true => published.encoded[usize::from(flavour.prev_kv)].get_or_init(|| of(published)).clone(),
            false => of(published),
        });
        match (parts.next(), parts.len()) {
            (Some(only), 0) => only,
            (first, _) => {
                let mut bytes = BytesMut::new();
                first.into_iter().chain(parts).for_each(|part| bytes.extend_from_slice(&part));
                bytes.freeze()
            }
        }
    }

    /// The same in parts of at most about `bytes_max`, at least one event each.
    pub fn parts_of(&self, flavour: Flavour, bytes_max: usize) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let (mut part, mut event) = (BytesMut::new(), BytesMut::new());
        for wanted in self.news.iter().flat_map(|p| &p.events).filter(|e| flavour.wants(e)) {
            push(wanted, flavour.prev_kv, &mut event);
            if !part.is_empty() && part.len() + event.len() > bytes_max {
                parts.push(part.split().freeze());
            }
            part.extend_from_slice(&event);
            event.clear();
        }
        if !part.is_empty() {
            parts.push(part.freeze());
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use skiff_proto::etcd::etcdserverpb::WatchResponse;
    use skiff_store::KeyValue;

    const ALL: Flavour = Flavour { puts: true, deletes: true, prev_kv: false, from: 0 };

    fn event(kind: EventKind, revision: Revision, len: usize) -> Arc<Event> {
        let value = vec![1; len].into();
        let kv = KeyValue { key: "k".into(), value, create_revision: 1, mod_revision: revision, version: 1, lease: 0 };
        let prev = Arc::new(KeyValue { value: "before".into(), mod_revision: revision - 1, ..kv.clone() });
        Arc::new(Event { kind, kv: Arc::new(kv), prev: Some(prev) })
    }

    fn news(events: &[(EventKind, Revision)]) -> Vec<Arc<Published>> {
        let of = |(kind, revision): &(EventKind, Revision)| {
            let events = vec![event(*kind, *revision, 3)];
            Arc::new(Published { revision: *revision, events, ..Default::default() })
        };
        events.iter().map(of).collect()
    }

    fn decoded(parts: &[&[u8]]) -> WatchResponse {
        WatchResponse::decode(&parts.concat()[..]).unwrap()
    }

    #[test]
    fn an_answer_put_together_is_what_a_client_decodes() {
        let news = news(&[(EventKind::Put, 7), (EventKind::Delete, 8)]);
        let mut events = Events::new(&news);
        let head = header(&ResponseHeader { cluster_id: 9, member_id: 1, revision: 8, raft_term: 2 });
        let mut space = [0; 16];
        let answer = decoded(&[&head, watch_id(-1, true, &mut space), events.of(ALL)]);
        assert_eq!((answer.watch_id, answer.fragment, answer.header.unwrap().revision), (-1, true, 8));
        assert_eq!(answer.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision).collect::<Vec<_>>(), [7, 8]);
        assert!(answer.events.iter().all(|e| e.prev_kv.is_none()));
        assert_eq!(watch_id(0, false, &mut space), b"");
        let before = decoded(&[events.of(Flavour { prev_kv: true, ..ALL })]);
        assert!(before.events.iter().all(|e| e.prev_kv.as_ref().unwrap().value == "before"));
    }

    #[test]
    fn each_watch_is_told_what_it_wants_and_no_more() {
        let news = news(&[(EventKind::Put, 7), (EventKind::Delete, 8), (EventKind::Put, 9)]);
        let mut events = Events::new(&news);
        let mut check = |flavour: Flavour, expect: &[i64]| {
            let answer = decoded(&[events.of(flavour)]);
            let revisions: Vec<_> = answer.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision).collect();
            assert_eq!(revisions, expect, "{flavour:?}");
        };
        check(ALL, &[7, 8, 9]);
        check(Flavour { from: 7, ..ALL }, &[7, 8, 9]);
        check(Flavour { from: 8, ..ALL }, &[8, 9]);
        check(Flavour { puts: false, ..ALL }, &[8]);
        check(Flavour { deletes: false, from: 9, ..ALL }, &[9]);
        check(Flavour { from: 10, ..ALL }, &[]);
    }

    #[test]
    fn answers_that_are_too_large_are_split_between_events() {
        let check = |sizes: &[usize], expect: &[usize]| {
            let events = sizes.iter().map(|size| event(EventKind::Put, 5, *size)).collect();
            let news = [Arc::new(Published { revision: 5, events, ..Default::default() })];
            let parts = Events::new(&news).parts_of(ALL, 120);
            let shape: Vec<_> = parts.iter().map(|part| decoded(&[part]).events.len()).collect();
            assert_eq!(shape, expect, "{sizes:?}");
        };
        check(&[10, 10], &[2]);
        check(&[80, 80, 10], &[1, 2]);
        check(&[500, 10], &[1, 1]);
        check(&[], &[]);
    }
}
