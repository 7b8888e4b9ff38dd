//! Looking at one field of stored bytes without decoding the rest: what selectors need from an object of some kilobytes
//! are a few labels or one word.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// The value at `path`, if every step of it is there.
pub fn peek(json: &[u8], path: &[&str]) -> Option<Value> {
    let mut decoder = serde_json::Deserializer::from_slice(json);
    Step(path).deserialize(&mut decoder).ok().flatten()
}

/// The text at `path`.
pub fn peek_text(json: &[u8], path: &[&str]) -> Option<String> {
    match peek(json, path)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

struct Step<'p>(&'p [&'p str]);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(decoder).map(Some);
        }
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if found.is_none() && key == self.0[0] {
                found = map.next_value_seed(Step(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there() {
        let check = |path: &[&str], expect: Option<&str>| {
            let json =
                br#"{"a":[1,{"b":2}],"metadata":{"labels":{"x":"y"},"n":null},"spec":{"nodeName":"n1"},"t":"u"}"#;
            assert_eq!(peek(json, path).map(|v| v.to_string()).as_deref(), expect, "{path:?}");
        };
        check(&["metadata", "labels"], Some(r#"{"x":"y"}"#));
        check(&["spec", "nodeName"], Some("\"n1\""));
        check(&["spec", "other"], None);
        check(&["a", "b"], None);
        check(&["t", "u"], None);
        check(&["metadata", "n"], Some("null"));
    }
}
