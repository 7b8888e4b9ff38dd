//! From a body to an object: JSON or YAML, with every duplicate key and unknown field noticed.
//!
//! How strict to be is the request's `fieldValidation`: `Strict` refuses, `Warn` (the default) tells, `Ignore` is silent.

/// A walk looks at keys and passes over what is no map and no list.
macro_rules! passes_over_scalars {
    () => {
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }
        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }
        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }
        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }
        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }
    };
}

mod order;

use crate::call::{Body, Call};
use crate::http::protobuf;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use skiff_api::Kind;
use skiff_api::schema::{PROBLEMS_MAX, Schema, Step, Trail};
use skiff_api::status::Status;
use std::fmt;

/// The media types that a body of an object may have.
pub const READABLE: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];

/// A parsed body, before it is known what it should be.
#[derive(Debug, Default)]
pub struct Document {
    pub value: Value,
    /// In the words clients know: `duplicate field "data.a"`.
    pub duplicates: Vec<String>,
}

/// What the client wants to hear of fields that it got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn of(call: &Call) -> Self {
        match call.query.text("fieldValidation") {
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }
}

/// Reads a body; None when it is empty.
pub fn document(body: &Body) -> Result<Option<Document>, Status> {
    match body {
        Body::Empty => Ok(None),
        Body::Value(value) => Ok(Some(Document { value: value.clone(), duplicates: Vec::new() })),
        Body::Raw { bytes, .. } if bytes.is_empty() => Ok(None),
        Body::Raw { bytes, media } => match media.as_str() {
            "application/json" | "" => json(bytes).map(Some).map_err(|problem| {
                let text = String::from_utf8_lossy(bytes);
                Status::bad_request(format!("couldn't get version/kind; json parse error: {problem} ({})", clip(&text)))
            }),
            "application/yaml" => yaml(bytes)
                .map(Some)
                .map_err(|problem| Status::bad_request(format!("error converting YAML to JSON: {problem}"))),
            protobuf::MEDIA => match protobuf::decode(bytes) {
                Ok(value) => Ok(Some(Document { value, duplicates: Vec::new() })),
                Err(protobuf::Problem::Unknown(_)) => Err(Status::unsupported_media_type(READABLE)),
                Err(problem) => Err(Status::bad_request(format!("the protobuf body cannot be read: {problem}"))),
            },
            _ => Err(Status::unsupported_media_type(READABLE)),
        },
    }
}

fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(200).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}

/// Parses JSON; duplicates are kept in mind, the last one wins. The error is worded as Go's.
pub fn json(bytes: &[u8]) -> Result<Document, String> {
    let mut duplicates = Vec::new();
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    let seed = Node { at: None, duplicates: &mut duplicates };
    let value = seed.deserialize(&mut decoder).map_err(|e| json_problem(&e, bytes))?;
    decoder.end().map_err(|e| json_problem(&e, bytes))?;
    Ok(Document { value, duplicates })
}

/// Go's words for what is wrong with a JSON text.
pub fn json_problem(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let mut offset = 0;
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if index + 1 == error.line() {
            offset += error.column().saturating_sub(1);
            break;
        }
        offset += line.len() + 1;
    }
    match bytes.get(offset) {
        Some(byte) => format!("invalid character '{}' looking for beginning of value", *byte as char),
        None => error.to_string(),
    }
}

/// Parses YAML as kubectl's library reads it (YAML 1.1 booleans and octals).
pub fn yaml(bytes: &[u8]) -> Result<Document, String> {
    use serde_yaml::DuplicateKeyPolicy;
    let text = std::str::from_utf8(bytes).map_err(|e| format!("yaml: the text is not UTF-8: {e}"))?;
    let read = |policy| {
        let options = serde_yaml::options! { duplicate_keys: policy, legacy_octal_numbers: true, with_snippet: false };
        serde_yaml::from_str_with_options::<Value>(text, options)
    };
    match read(DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(Document { value, duplicates: Vec::new() }),
        Err(serde_yaml::Error::DuplicateMappingKey { key, location }) => {
            let value = read(DuplicateKeyPolicy::LastWins).map_err(|e| format!("yaml: {e}"))?;
            let first = set_already(&key.unwrap_or_default(), location.line());
            let options = serde_yaml::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough, legacy_octal_numbers: true, with_snippet: false };
            let mut duplicates = Vec::new();
            // What the look for all of them cannot read is told by the first.
            let _ = serde_yaml::with_deserializer_from_str_with_options(text, options, |decoder| {
                Walk { duplicates: &mut duplicates }.deserialize(decoder)
            });
            if duplicates.is_empty() {
                duplicates.push(first);
            }
            Ok(Document { value, duplicates })
        }
        Err(e) => Err(format!("yaml: {e}")),
    }
}

fn set_already(key: &str, line: u64) -> String {
    format!("line {line}: key {key:?} already set in map")
}

/// Notices each key of a YAML text that comes twice in a map, with its line, in the order in which the maps end their values.
struct Walk<'d> {
    duplicates: &'d mut Vec<String>,
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
        f.write_str("YAML")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<serde_yaml::Spanned<String>>()? {
            map.next_value_seed(Walk { duplicates: self.duplicates })?;
            let line = key.referenced.line();
            if let Some(key) = seen.replace(key.value)
                && self.duplicates.len() < PROBLEMS_MAX
            {
                self.duplicates.push(set_already(&key, line));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Walk { duplicates: self.duplicates })?.is_some() {}
        Ok(())
    }

    passes_over_scalars!();
}

/// The duplicates of a YAML text in one, as Go's reader tells them.
pub fn yaml_problem(duplicates: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))
}

/// Builds a value and notices keys that come twice in a map.
struct Node<'d> {
    at: Option<&'d Trail<'d>>,
    duplicates: &'d mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Value, D::Error> {
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let here = Trail { parent: self.at, step: Step::Key(&key) };
            let value = map.next_value_seed(Node { at: Some(&here), duplicates: self.duplicates })?;
            if out.contains_key(&key) && self.duplicates.len() < PROBLEMS_MAX {
                self.duplicates.push(format!("duplicate field {:?}", here.to_string()));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let here = Trail { parent: self.at, step: Step::Index(out.len()) };
            match seq.next_element_seed(Node { at: Some(&here), duplicates: self.duplicates })? {
                Some(value) => out.push(value),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
}

/// Reads the body as an object of the call's kind. Kind and apiVersion may be absent only for requests from inside.
pub fn object(call: &mut Call) -> Result<Value, Status> {
    let kind = call.kind.clone();
    object_of(call, &kind)
}

/// Reads the body as an object of `kind`: unknown fields are told and taken out, types are checked.
pub fn object_of(call: &mut Call, kind: &Kind) -> Result<Value, Status> {
    let Some(document) = document(&call.body)? else {
        return Err(Status::bad_request(format!("the request has no body, but a {} is needed", kind.kind)));
    };
    let inside = matches!(call.body, Body::Value(_));
    let mut value = document.value;
    check_type(&mut value, kind, &call.body, inside)?;
    let is_yaml = matches!(&call.body, Body::Raw { media, .. } if media == "application/yaml");
    let mut problems = document.duplicates;
    let duplicates = if is_yaml { problems.len() } else { 0 };
    clean(&mut value, kind, &mut problems)
        .map_err(|why| Status::bad_request(format!("{} {why}", cannot_be_handled(kind))))?;
    if let (Body::Raw { bytes, .. }, false) = (&call.body, is_yaml) {
        problems = order::sort(bytes, problems);
    }
    tell(call, &problems, |all| {
        let all = match duplicates {
            0 => all,
            some => {
                let first = yaml_problem(&problems[..some]);
                [&[first][..], &problems[some..]].concat().join(", ")
            }
        };
        Status::bad_request(format!("{} strict decoding error: {all}", cannot_be_handled(kind)))
    })?;
    Ok(value)
}

fn cannot_be_handled(kind: &Kind) -> String {
    format!("{} in version {:?} cannot be handled as a {}:", kind.kind, kind.version, kind.kind)
}

/// Takes unknown fields out (they are added to `problems`) and checks the types of the rest.
pub fn clean(value: &mut Value, kind: &Kind, problems: &mut Vec<String>) -> Result<(), String> {
    let Some(schema) = Schema::for_kind(kind) else { return Ok(()) };
    if let Some(error) = schema.type_error(value) {
        return Err(error);
    }
    problems.extend(schema.prune(value).iter().map(ToString::to_string));
    Ok(())
}

/// Warns or refuses, as the request wants.
pub fn tell(call: &mut Call, problems: &[String], refuse: impl Fn(String) -> Status) -> Result<(), Status> {
    if problems.is_empty() {
        return Ok(());
    }
    match FieldValidation::of(call) {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Strict => Err(refuse(problems.join(", "))),
        FieldValidation::Warn => {
            problems.iter().for_each(|p| call.warn(p.clone()));
            Ok(())
        }
    }
}

/// The body must say the kind that the path says.
fn check_type(value: &mut Value, kind: &Kind, body: &Body, inside: bool) -> Result<(), Status> {
    let text = || match body {
        Body::Raw { bytes, .. } => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ \
             APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            skiff_json_type(value)
        )));
    };
    if inside {
        map.entry("kind").or_insert_with(|| kind.kind.clone().into());
        map.entry("apiVersion").or_insert_with(|| kind.api_version().into());
    }
    let found = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let (found_kind, found_version) = (found("kind"), found("apiVersion"));
    if found_kind.is_empty() && found_version.is_empty() {
        // A built-in kind may be left out: the path says what it is.
        map.insert("kind".into(), kind.kind.clone().into());
        map.insert("apiVersion".into(), kind.api_version().into());
        return Ok(());
    }
    if found_kind.is_empty() {
        let text = text();
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): Object 'Kind' is missing in '{text}' ({})",
            kind.kind,
            clip(&text)
        )));
    }
    if found_version != kind.api_version() && !found_version.is_empty() {
        let known = skiff_api::kinds::of_object(value).is_some();
        if !known || found_kind == kind.kind {
            return Err(Status::bad_request(format!(
                "the API version in the data ({found_version}) does not match the expected API version ({})",
                kind.api_version()
            )));
        }
    }
    if found_kind != kind.kind {
        let (_, version) = skiff_api::kinds::split_api_version(&found_version);
        return Err(Status::bad_request(format!(
            "{found_kind} in version {version:?} cannot be handled as a {}: converting ({version}.{found_kind}) to ({}.{}): \
             unknown conversion",
            kind.kind,
            internal_group(&kind.group),
            kind.kind
        )));
    }
    Ok(())
}

/// The first word of a group, as Go packages are named: `core`, `apps`, `rbac`.
fn internal_group(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) }
}

fn skiff_json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_told_with_their_path() {
        let document = json(br#"{"data":{"a":"b","a":"c"},"data":{"a":"d"},"l":[{"x":1,"x":2}]}"#).unwrap();
        assert_eq!(
            document.duplicates,
            ["duplicate field \"data.a\"", "duplicate field \"data\"", "duplicate field \"l[0].x\""]
        );
        assert_eq!(document.value["data"]["a"], "d");
        let document = yaml(b"a: 1\nb:\n  c: 1\n  c: 2\n").unwrap();
        assert_eq!(document.duplicates, ["line 4: key \"c\" already set in map"]);
        assert_eq!(document.value["b"]["c"], 2);
        let document = yaml(b"a: 1\nb:\n- {c: 1, c: 2}\n- d: x\n  d: [y]\n  e: 1\na: 3\nb: 4\n").unwrap();
        let expect = ["line 3: key \"c\"", "line 5: key \"d\"", "line 7: key \"a\"", "line 8: key \"b\""];
        assert_eq!(document.duplicates, expect.map(|words| format!("{words} already set in map")));
        let all = yaml_problem(&document.duplicates[2..]);
        let expect =
            "yaml: unmarshal errors:\n  line 7: key \"a\" already set in map\n  line 8: key \"b\" already set in map";
        assert_eq!(all, expect);
    }

    /// Texts that grow when they are read: aliases of aliases, and depth without end. Each is refused, or taken as what it is, in no time.
    #[test]
    fn what_grows_when_it_is_read_is_refused() {
        let laughs = |levels: usize| {
            let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
            for n in 1..levels {
                let aliases = vec![format!("*a{}", n - 1); 10].join(",");
                text.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
            }
            text
        };
        let merged = |levels: usize| {
            let mut text = "a0: &a0 {k: v}\n".to_string();
            for n in 1..levels {
                let before = n - 1;
                text.push_str(&format!("a{n}: &a{n} {{<<: *a{before}, l{n}: *a{before}, r{n}: *a{before}}}\n"));
            }
            text
        };
        let wide = format!("a: &a {:?}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 200_000].join(","));
        for (what, text) in [
            ("aliases of aliases", laughs(12)),
            ("merges of merges", merged(40)),
            ("a long text, often", wide),
            ("deep sequences", "[".repeat(500_000)),
            ("deep mappings", "{a: ".repeat(500_000)),
            ("deep blocks", "- ".repeat(500_000)),
            ("an alias of itself", "a: &a [*a]\n".to_string()),
        ] {
            let began = std::time::Instant::now();
            assert!(yaml(text.as_bytes()).is_err(), "{what}");
            assert!(began.elapsed() < std::time::Duration::from_secs(5), "{what}: {:?}", began.elapsed());
        }
        // What people write: a few anchors, and a file as large as a body may be.
        let document = yaml(b"a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n").unwrap();
        assert_eq!(document.value, serde_json::json!({"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}));
        let text = "w".repeat(100);
        let large = (0..20_000).map(|n| format!("k{n}: [a, {{c: {text}}}]\n")).collect::<String>();
        assert_eq!(yaml(large.as_bytes()).unwrap().value.as_object().map(serde_json::Map::len), Some(20_000));
    }

    /// Long keys above many small mistakes: each path would hold all of them.
    #[test]
    fn many_mistakes_below_long_keys_cost_little() {
        let long = "k".repeat(10_000);
        let mistakes = vec![r#""a":1,"a":1"#; 20_000].join(",");
        let body = format!("{}{{{mistakes}}}{}", format!(r#"{{"{long}":"#).repeat(50), "}".repeat(50));
        let document = json(body.as_bytes()).unwrap();
        assert_eq!(document.duplicates.len(), PROBLEMS_MAX);
    }

    #[test]
    fn broken_json_is_told_in_go_words() {
        assert_eq!(json(b"{").unwrap_err(), "unexpected end of JSON input");
        assert_eq!(json(b"x").unwrap_err(), "invalid character 'x' looking for beginning of value");
    }
}
