//! From a question's bytes to an answer, or to the decision to ask upstream.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Found, TTL_S, Zone};

/// The largest UDP answer: what passes every path without fragments (DNS flag day 2020).
pub const UDP_BYTES_MAX: u16 = 1232;
const UDP_BYTES_PLAIN: u16 = 512;

/// What to do with a question.
#[derive(Debug)]
pub enum Reply {
    /// Say this.
    Answer(Box<Message>),
    /// The zone does not know the name: hand the question on.
    Forward,
    /// The beginning of an answer: the name is an alias of one that only upstream knows.
    Chase { so_far: Box<Message>, target: Name, kind: RecordType },
    /// Not a question; say nothing.
    Ignore,
}

/// Decides one question. `turn` rotates the records of an answer, so that clients which take the first spread over all.
pub fn answer(zone: &Zone, question: &[u8], turn: usize) -> Reply {
    let asked = match Message::from_vec(question) {
        Ok(asked) => asked,
        Err(_) => return refuse_bytes(question),
    };
    if asked.metadata.message_type != MessageType::Query {
        return Reply::Ignore;
    }
    let mut reply = reply_to(&asked);
    let code = match (asked.metadata.op_code, asked.queries.as_slice()) {
        (OpCode::Query, [query]) if query.query_class == DNSClass::IN => return in_zone(zone, query, reply, turn),
        (OpCode::Query, [_]) => ResponseCode::Refused,
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    reply.metadata.response_code = code;
    Reply::Answer(Box::new(reply))
}

/// An answer without content but for a code: nobody upstream could be asked, for example.
pub fn failure(question: &[u8], code: ResponseCode) -> Option<Message> {
    let asked = Message::from_vec(question).ok()?;
    let mut reply = reply_to(&asked);
    reply.metadata.response_code = code;
    Some(reply)
}

/// The bytes of an answer; over UDP cut to what the asker can take, and marked so, upon which it asks again over TCP.
pub fn encode(message: &Message, udp_bytes: Option<u16>) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    match udp_bytes {
        Some(most) if bytes.len() > usize::from(most) => message.truncate().to_vec().ok(),
        _ => Some(bytes),
    }
}

/// How much the asker takes over UDP.
pub fn udp_bytes(question: &[u8]) -> u16 {
    let offered = Message::from_vec(question).ok().and_then(|asked| asked.edns).map(|edns| edns.max_payload());
    offered.unwrap_or(UDP_BYTES_PLAIN).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX)
}

fn reply_to(asked: &Message) -> Message {
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.checking_disabled = asked.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.add_queries(asked.queries.iter().cloned());
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        reply.set_edns(edns);
    }
    reply
}

/// What cannot be read is answered only as far as its id (RFC 1035, 4.1.1).
fn refuse_bytes(question: &[u8]) -> Reply {
    match question {
        [a, b, flags, ..] if flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*a, *b]);
            Reply::Answer(Box::new(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)))
        }
        _ => Reply::Ignore,
    }
}

fn in_zone(zone: &Zone, query: &Query, mut reply: Message, turn: usize) -> Reply {
    let (name, kind) = (query.name(), query.query_type());
    let found = zone.find(name, kind);
    reply.metadata.authoritative = !matches!(found, Found::Elsewhere);
    match found {
        Found::Elsewhere => return Reply::Forward,
        Found::Records(records) => add(zone, &mut reply, name, records, turn),
        Found::Alias { targets, records } => {
            let mut target = name.clone();
            for next in targets {
                reply.add_answer(Record::from_rdata(target, TTL_S, RData::CNAME(CNAME(next.clone()))));
                target = next;
            }
            match records {
                Some(records) => add(zone, &mut reply, &target, records, turn),
                None => return Reply::Chase { so_far: Box::new(reply), target, kind },
            }
        }
        Found::Loop => reply.metadata.response_code = ResponseCode::ServFail,
        Found::NoData => say_no(zone, &mut reply, ResponseCode::NoError),
        Found::NoName => say_no(zone, &mut reply, ResponseCode::NXDomain),
    }
    Reply::Answer(Box::new(reply))
}

fn add(zone: &Zone, reply: &mut Message, name: &Name, mut records: Vec<RData>, turn: usize) {
    if !records.is_empty() {
        let middle = turn % records.len();
        records.rotate_left(middle);
    }
    for record in &records {
        // Who is sent to another name needs its address next (RFC 2782).
        if let RData::SRV(srv) = record
            && let Found::Records(addresses) = zone.find(&srv.target, RecordType::A)
        {
            for address in addresses {
                let extra = Record::from_rdata(srv.target.clone(), TTL_S, address);
                if !reply.additionals.contains(&extra) {
                    reply.add_additional(extra);
                }
            }
        }
    }
    for record in records {
        reply.add_answer(Record::from_rdata(name.clone(), TTL_S, record));
    }
}

/// "No" carries the zone's start of authority, whose last number says how long to remember it (RFC 2308).
fn say_no(zone: &Zone, reply: &mut Message, code: ResponseCode) {
    reply.metadata.response_code = code;
    if let (Some(owner), authority) = zone.start_of_authority() {
        reply.add_authority(Record::from_rdata(owner, TTL_S, authority));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn zone() -> Zone {
        let web = r#"{"metadata":{"name":"web","namespace":"d"},"spec":{"clusterIP":"10.43.0.9","ports":[{"name":"http","port":80}]}}"#;
        let away = r#"{"metadata":{"name":"away","namespace":"d"},"spec":{"type":"ExternalName","externalName":"example.com"}}"#;
        let many = r#"{"metadata":{"name":"many","namespace":"d"},"spec":{"clusterIP":"None"}}"#;
        let services: Vec<_> =
            [web, away, many].iter().map(|text| Arc::new(serde_json::from_str(text).unwrap())).collect();
        let endpoints: Vec<String> = (0..200).map(|n| format!(r#"{{"addresses":["10.42.0.{n}"]}}"#)).collect();
        let slice = format!(
            r#"{{"metadata":{{"name":"m","namespace":"d","labels":{{"kubernetes.io/service-name":"many"}}}},"addressType":"IPv4","endpoints":[{}]}}"#,
            endpoints.join(",")
        );
        Zone::new("cluster.local", &services, &[Arc::new(serde_json::from_str(&slice).unwrap())])
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn said(name: &str, kind: RecordType, turn: usize) -> Message {
        match answer(&zone(), &question(name, kind), turn) {
            Reply::Answer(message) => *message,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn no_is_said_in_two_ways_both_with_authority() {
        for (name, kind, code) in [
            ("web.d.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
            ("nope.d.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ] {
            let message = said(name, kind, 0);
            assert_eq!(
                (message.metadata.response_code, message.answers.len(), message.authorities.len()),
                (code, 0, 1)
            );
            assert!(message.metadata.authoritative && message.metadata.recursion_available);
        }
    }

    #[test]
    fn a_port_brings_its_address_along() {
        let message = said("_http._tcp.web.d.svc.cluster.local.", RecordType::SRV, 0);
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 1));
    }

    #[test]
    fn long_answers_are_cut_over_udp_and_turn() {
        let (one, two) =
            (said("many.d.svc.cluster.local.", RecordType::A, 0), said("many.d.svc.cluster.local.", RecordType::A, 1));
        assert_ne!(one.answers[0], two.answers[0]);
        assert_eq!(one.answers.len(), 200);
        assert!(encode(&one, None).unwrap().len() > 1232);
        let cut = Message::from_vec(&encode(&one, Some(512)).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.metadata.id == one.metadata.id);
    }

    /// Whatever comes in a packet, the agent goes on: it is one process for all pods of its node.
    #[test]
    fn no_packet_ends_the_agent() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let zone = zone();
        let seeds = [
            question("web.d.svc.cluster.local.", RecordType::A),
            question("_http._tcp.web.d.svc.cluster.local.", RecordType::SRV),
            question("away.d.svc.cluster.local.", RecordType::ANY),
            question("9.0.43.10.in-addr.arpa.", RecordType::PTR),
        ];
        let mut random = StdRng::seed_from_u64(53);
        for round in 0..60_000usize {
            let mut packet = seeds[round % seeds.len()].clone();
            match round % 3 {
                0 => packet = (0..random.random_range(0..600)).map(|_| random.random()).collect(),
                1 => packet.truncate(random.random_range(0..packet.len() + 1)),
                _ => packet.extend((0..random.random_range(0..64)).map(|_| random.random::<u8>())),
            }
            for _ in 0..random.random_range(0..6) {
                if let Some(byte) = packet.len().checked_sub(1).map(|last| random.random_range(0..=last)) {
                    packet[byte] = random.random();
                }
            }
            let most = udp_bytes(&packet);
            assert!((UDP_BYTES_PLAIN..=UDP_BYTES_MAX).contains(&most));
            match answer(&zone, &packet, round) {
                Reply::Answer(message) | Reply::Chase { so_far: message, .. } => {
                    if let Some(bytes) = encode(&message, Some(most)) {
                        assert!(bytes.len() <= usize::from(most) || message.queries.len() > 1, "{packet:?}");
                    }
                }
                Reply::Forward => drop(failure(&packet, ResponseCode::ServFail)),
                Reply::Ignore => {}
            }
        }
    }

    #[test]
    fn what_is_not_a_question_of_ours() {
        let zone = zone();
        assert!(matches!(answer(&zone, &question("example.com.", RecordType::A), 0), Reply::Forward));
        assert!(matches!(answer(&zone, &question("away.d.svc.cluster.local.", RecordType::A), 0), Reply::Chase { .. }));
        for junk in [&[][..], &[1], &[0, 1, 0x80, 0], &[0xff; 40]] {
            assert!(matches!(answer(&zone, junk, 0), Reply::Ignore), "{junk:?}");
        }
        let Reply::Answer(message) = answer(&zone, &[0, 7, 1, 0, 0, 1], 0) else { panic!("cut short") };
        assert_eq!((message.metadata.id, message.metadata.response_code), (7, ResponseCode::FormErr));
    }
}
