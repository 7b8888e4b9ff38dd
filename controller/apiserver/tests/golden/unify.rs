//! Comparing by unification: the expected side is a pattern, the actual side is text.
//!
//! What differs from run to run is a placeholder such as `<uid-3>`. A numbered placeholder binds at first sight and must be
//! the same value for the rest of the scenario; an unnumbered one matches any value of its kind.

use serde_json::Value;
use std::collections::HashMap;

/// What the numbered placeholders of one scenario stand for.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    values: HashMap<String, String>,
}

/// What of a body is compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// `metadata.managedFields` is compared too.
    pub managed_fields: bool,
    /// Column descriptions of tables are prose of the real server's own.
    pub ignore_column_prose: bool,
    /// `details.causes` is a set and `message` is not compared.
    pub causes_unordered: bool,
    /// The lists of rules in a status are sets.
    pub rules_unordered: bool,
    /// Only the shape of an error is compared, not its text.
    pub go_text: bool,
    /// The order of the events of a watch is not promised.
    pub events_unordered: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Part<'a> {
    Literal(&'a str),
    Hole { kind: &'a str, key: Option<&'a str> },
}

const NUMBERED: &[&str] = &["uid", "rv", "rand", "hash", "ip", "port", "continue", "jwt", "token", "pem"];
const PLAIN: &[&str] = &["rv", "time", "microtime", "age", "version", "server-address", "apiserver-identity"];

fn parse(pattern: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut literal_from = 0;
    let mut at = 0;
    while let Some(open) = pattern[at..].find('<').map(|i| i + at) {
        let Some(close) = pattern[open..].find('>').map(|i| i + open) else { break };
        let inner = &pattern[open + 1..close];
        let hole = match inner.rsplit_once('-') {
            Some((kind, number)) if NUMBERED.contains(&kind) && number.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Part::Hole { kind, key: Some(inner) })
            }
            _ if PLAIN.contains(&inner) => Some(Part::Hole { kind: inner, key: None }),
            _ => None,
        };
        match hole {
            Some(hole) => {
                if literal_from < open {
                    parts.push(Part::Literal(&pattern[literal_from..open]));
                }
                parts.push(hole);
                literal_from = close + 1;
                at = close + 1;
            }
            None => at = open + 1,
        }
    }
    if literal_from < pattern.len() {
        parts.push(Part::Literal(&pattern[literal_from..]));
    }
    parts
}

fn is_kind(kind: &str, text: &str) -> bool {
    let all = |f: fn(u8) -> bool| !text.is_empty() && text.bytes().all(f);
    match kind {
        "uid" => text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
        "rv" | "port" => all(|b| b.is_ascii_digit()),
        "rand" => text.len() == 5 && all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
        "hash" => text.len() <= 16 && all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "continue" => all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=')),
        "jwt" => text.split('.').count() == 3,
        "time" => text.len() == 20 && text.parse::<jiff::Timestamp>().is_ok(),
        "microtime" => text.contains('.') && text.parse::<jiff::Timestamp>().is_ok(),
        "age" => all(|b| b.is_ascii_digit() || matches!(b, b'y' | b'd' | b'h' | b'm' | b's')),
        _ => !text.is_empty(),
    }
}

impl Bindings {
    /// Whether `actual` is an instance of `pattern`; on success the new bindings are kept.
    pub fn text(&mut self, pattern: &str, actual: &str) -> bool {
        if !pattern.contains('<') {
            return pattern == actual;
        }
        let parts = parse(pattern);
        let mut trail = self.clone();
        if trail.parts(&parts, actual) {
            *self = trail;
            return true;
        }
        false
    }

    fn parts(&mut self, parts: &[Part<'_>], actual: &str) -> bool {
        let Some((first, rest)) = parts.split_first() else { return actual.is_empty() };
        match first {
            Part::Literal(text) => actual.strip_prefix(text).is_some_and(|left| self.parts(rest, left)),
            Part::Hole { kind, key } => {
                if let Some(bound) = key.and_then(|k| self.values.get(k)).cloned() {
                    return actual.strip_prefix(bound.as_str()).is_some_and(|left| self.parts(rest, left));
                }
                for end in (1..=actual.len()).rev().filter(|end| actual.is_char_boundary(*end)) {
                    let (value, left) = actual.split_at(end);
                    if !is_kind(kind, value) {
                        continue;
                    }
                    let mut trail = self.clone();
                    if let Some(key) = key {
                        // Different numbers of a version or an identity stand for different values.
                        let family = format!("{kind}-");
                        let distinct = matches!(*kind, "uid" | "rv");
                        if distinct && trail.values.iter().any(|(k, v)| k.starts_with(&family) && v == value) {
                            continue;
                        }
                        trail.values.insert(key.to_string(), value.to_string());
                    }
                    if trail.parts(rest, left) {
                        *self = trail;
                        return true;
                    }
                }
                false
            }
        }
    }

    /// Compares two documents; an error names the place and both sides.
    pub fn value(&mut self, path: &str, expected: &Value, actual: &Value, rules: Rules) -> Result<(), String> {
        match (expected, actual) {
            (Value::Object(want), Value::Object(have)) => {
                let mut left: Vec<&String> = have.keys().filter(|k| rules.compares(path, k)).collect();
                for (key, want_value) in want.iter().filter(|(k, _)| rules.compares(path, k)) {
                    let at = format!("{path}/{key}");
                    let found = match left.iter().position(|k| *k == key) {
                        Some(i) => Some(i),
                        None if key.contains('<') => left.iter().position(|k| self.clone().text(key, k)),
                        None => None,
                    };
                    let Some(index) = found else {
                        return Err(format!("{at}: missing, expected {}", short(want_value)));
                    };
                    let have_key = left.remove(index);
                    if have_key != key {
                        self.text(key, have_key);
                    }
                    if rules.go_text && is_error_text(path, key) {
                        continue;
                    }
                    if key == "managedFields" {
                        self.managed_fields(&at, want_value, &have[have_key], rules)?;
                    } else if rules.is_set(path, key) {
                        self.set(&at, want_value, &have[have_key], rules)?;
                    } else {
                        self.value(&at, want_value, &have[have_key], rules)?;
                    }
                }
                match left.first() {
                    Some(extra) => Err(format!("{path}/{extra}: not expected, is {}", short(&have[*extra]))),
                    None => Ok(()),
                }
            }
            (Value::Array(want), Value::Array(have)) => {
                for (i, (w, h)) in want.iter().zip(have).enumerate() {
                    self.value(&format!("{path}/{i}"), w, h, rules)?;
                }
                if want.len() != have.len() {
                    let extra = want.get(have.len()).or(have.get(want.len())).map(short).unwrap_or_default();
                    return Err(format!("{path}: {} items expected, {} found; first: {extra}", want.len(), have.len()));
                }
                Ok(())
            }
            (Value::String(want), Value::String(have)) if self.text(want, have) => Ok(()),
            (Value::String(want), Value::Number(have))
                if want.starts_with('<') && self.text(want, &have.to_string()) =>
            {
                Ok(())
            }
            (want, have) if want == have => Ok(()),
            (want, have) => Err(format!("{path}: expected {}, found {}", short(want), short(have))),
        }
    }

    fn managed_fields(&mut self, path: &str, want: &Value, have: &Value, rules: Rules) -> Result<(), String> {
        let name = |v: &Value| {
            let part = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_string();
            [part("manager"), part("operation"), part("apiVersion"), part("subresource")]
        };
        let sorted = |v: &Value| {
            let mut list = v.as_array().cloned().unwrap_or_default();
            list.sort_by_key(name);
            Value::Array(list)
        };
        self.value(path, &sorted(want), &sorted(have), rules)
    }

    /// Two lists with the same members in any order.
    pub fn set(&mut self, path: &str, want: &Value, have: &Value, rules: Rules) -> Result<(), String> {
        let (Value::Array(want), Value::Array(have)) = (want, have) else { return self.value(path, want, have, rules) };
        let mut left: Vec<&Value> = have.iter().collect();
        for w in want {
            let found = left.iter().position(|h| {
                let mut trail = self.clone();
                let same = trail.value(path, w, h, rules).is_ok();
                if same {
                    *self = trail;
                }
                same
            });
            match found {
                Some(i) => left.remove(i),
                None => return Err(format!("{path}: no member like {}", short(w))),
            };
        }
        left.first().map_or(Ok(()), |extra| Err(format!("{path}: a member too many: {}", short(extra))))
    }
}

impl Rules {
    fn compares(&self, path: &str, key: &str) -> bool {
        match key {
            "managedFields" => self.managed_fields || !path.ends_with("/metadata"),
            "description" => !(self.ignore_column_prose && path.contains("/columnDefinitions/")),
            "message" => !(self.causes_unordered && path.is_empty()),
            _ => true,
        }
    }

    fn is_set(&self, path: &str, key: &str) -> bool {
        match key {
            "causes" => self.causes_unordered && path == "/details",
            "resourceRules" | "nonResourceRules" => self.rules_unordered,
            _ => false,
        }
    }
}

fn is_error_text(path: &str, key: &str) -> bool {
    key == "message" && (path.is_empty() || path.starts_with("/details/causes"))
        || key == "reason" && path.starts_with("/details/causes")
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 260 { format!("{}...", text.chars().take(260).collect::<String>()) } else { text }
}

/// What the comparison itself promises.
pub fn check_binding() {
    let mut bindings = Bindings::default();
    assert!(bindings.text("a <rv-1> b", "a 17 b"));
    assert!(bindings.text("<rv-1>", "17"));
    assert!(!bindings.text("<rv-1>", "18"));
    assert!(!bindings.text("<rv-2>", "17"), "another number is another version");
    assert!(bindings.text("x-<rand-1>", "x-ab12c"));
    assert!(bindings.text("supported values: \"Node\", \"<empty>\"", "supported values: \"Node\", \"<empty>\""));
}
