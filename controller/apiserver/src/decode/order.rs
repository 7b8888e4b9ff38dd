//! The mistakes of a JSON body in the order of the document, as Go's reader tells them: a field that is unknown is told where it first stands, one that comes twice where it
//! stands again; what is unknown is told once, however often it stands there, and nothing inside it is looked at.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use skiff_api::schema::{Step, Trail};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Longer bodies keep the order that they are found in: to know each key's place costs its whole path.
const BYTES_MAX: usize = 64 << 10;

const UNKNOWN: &str = "unknown field ";
const DUPLICATE: &str = "duplicate field ";

/// Puts `problems` (`unknown field "a.b"`, `duplicate field "a.b"`) of a body in the order of the document.
pub fn sort(bytes: &[u8], problems: Vec<String>) -> Vec<String> {
    if bytes.len() > BYTES_MAX || problems.len() < 2 {
        return problems;
    }
    let unknown: HashSet<String> = problems.iter().filter_map(|p| p.strip_prefix(UNKNOWN)).map(String::from).collect();
    let inside = |path: &str| {
        let ends = path.char_indices().filter(|(_, c)| matches!(c, '.' | '[' | '"')).map(|(at, _)| at);
        ends.skip(1).any(|at| unknown.contains(&format!("{}\"", &path[..at])))
    };
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    let (mut decoder, mut count) = (serde_json::Deserializer::from_slice(bytes), 0);
    let walk = Walk { at: None, places: &mut places, count: &mut count };
    if walk.deserialize(&mut decoder).is_err() {
        return problems;
    }
    let place = |problem: &str| {
        let (path, nth) = match (problem.strip_prefix(UNKNOWN), problem.strip_prefix(DUPLICATE)) {
            (Some(path), _) => (path, 0),
            (None, Some(path)) => (path, 1),
            (None, None) => return usize::MAX,
        };
        places.get(path).and_then(|places| places.get(nth)).copied().unwrap_or(usize::MAX)
    };
    let told = |problem: &String| !problem.strip_prefix(DUPLICATE).is_some_and(&inside);
    let mut sorted: Vec<String> = problems.into_iter().filter(told).collect();
    sorted.sort_by_key(|problem| place(problem));
    sorted.dedup();
    sorted
}

/// Notes where each path stands, counted by keys.
struct Walk<'d> {
    at: Option<&'d Trail<'d>>,
    places: &'d mut HashMap<String, Vec<usize>>,
    count: &'d mut usize,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<(), D::Error> {
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let here = Trail { parent: self.at, step: Step::Key(&key) };
            self.places.entry(format!("{:?}", here.to_string())).or_default().push(*self.count);
            *self.count += 1;
            map.next_value_seed(Walk { at: Some(&here), places: self.places, count: self.count })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let here = Trail { parent: self.at, step: Step::Index(index) };
            if seq.next_element_seed(Walk { at: Some(&here), places: self.places, count: self.count })?.is_none() {
                break;
            }
        }
        Ok(())
    }

    passes_over_scalars!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_stand_as_in_the_document() {
        let check = |body: &str, found: &[&str], expect: &[&str]| {
            let found = found.iter().map(|p| (*p).to_owned()).collect();
            assert_eq!(sort(body.as_bytes(), found), expect, "{body}");
        };
        let unknown = |path: &str| format!("unknown field {path:?}");
        let twice = |path: &str| format!("duplicate field {path:?}");
        let (b, c) = (unknown("a.b"), twice("c"));
        check(r#"{"a": {"b": 1}, "c": 1, "c": 2}"#, &[&c, &b], &[&b, &c]);
        check(r#"{"c": 1, "c": 2, "a": {"b": 1}}"#, &[&c, &b], &[&c, &b]);
        // Unknown, however often; and nothing inside.
        check(r#"{"a": {"b": 1, "b": 2}, "c": 1, "c": 1}"#, &[&twice("a.b"), &c, &b], &[&b, &c]);
        check(r#"{"a": {"b": {"x": 1, "x": 2}}}"#, &[&twice("a.b.x"), &b], &[&b]);
        check(r#"{"a": {"b": [{"x": 1, "x": 2}]}}"#, &[&twice("a.b[0].x"), &b], &[&b]);
        // A name that begins alike is another one.
        check(r#"{"a": {"bc": 1, "bc": 2, "b": 1}}"#, &[&twice("a.bc"), &b], &[&twice("a.bc"), &b]);
        // What is not JSON any more keeps its order.
        check(r#"{"a""#, &[&c, &b], &[&c, &b]);
    }
}
