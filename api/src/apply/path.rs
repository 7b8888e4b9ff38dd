//! Paths into an object, and sets of them: what `managedFields` holds.
//!
//! A path element names a field, an item of a keyed list, a value of a set, or an index. A set is a tree: the members of
//! a node are paths that end there, the children lead further. Its JSON form is the API's `fieldsV1`:
//! `{"f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:name": {}}}}}`.

use crate::schema::{Shape, TypeDef};
use crate::validate::error::go_quote;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathElement {
    Field(String),
    /// The key fields of a list item, sorted by name.
    Key(Vec<(String, Value)>),
    Value(Value),
    Index(usize),
}

impl PathElement {
    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (tag, rest) = text.split_once(':')?;
        Some(match tag {
            "f" => Self::Field(rest.to_string()),
            "v" => Self::Value(serde_json::from_str(rest).ok()?),
            "i" => Self::Index(rest.parse().ok()?),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
                let mut keys: Vec<(String, Value)> = keys.into_iter().collect();
                keys.sort_by(|a, b| a.0.cmp(&b.0));
                Self::Key(keys)
            }
            _ => return None,
        })
    }

    /// The member of `fieldsV1`.
    fn encoded(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(i) => format!("i:{i}"),
            Self::Key(keys) => {
                let map: Map<String, Value> = keys.iter().cloned().collect();
                format!("k:{}", Value::Object(map))
            }
        }
    }
}

/// As a path shows it: `.spec`, `[name="c"]`, `[="v"]`, `[0]`.
impl std::fmt::Display for PathElement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |v: &Value| match v {
            Value::String(s) => go_quote(s),
            other => other.to_string(),
        };
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Value(value) => write!(f, "[={}]", shown(value)),
            Self::Index(i) => write!(f, "[{i}]"),
            Self::Key(keys) => {
                let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={}", shown(v))).collect();
                write!(f, "[{}]", parts.join(","))
            }
        }
    }
}

fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x.as_f64().partial_cmp(&y.as_f64()).unwrap_or(Ordering::Equal),
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        _ => a.to_string().cmp(&b.to_string()),
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => order(a, b),
            (Self::Key(a), Self::Key(b)) => {
                let pairs = a.iter().zip(b).map(|((ka, va), (kb, vb))| ka.cmp(kb).then_with(|| order(va, vb)));
                pairs.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}
impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<PathElement>,
    children: BTreeMap<PathElement, FieldSet>,
}

impl FieldSet {
    /// Reads `fieldsV1`. None when it is not in that form.
    pub fn from_fields_v1(fields: &Value) -> Option<Self> {
        let mut set = FieldSet::default();
        for (key, inner) in fields.as_object()? {
            if key == "." {
                continue;
            }
            let element = PathElement::parse(key)?;
            let inner_map = inner.as_object()?;
            if inner_map.is_empty() || inner_map.contains_key(".") {
                set.members.insert(element.clone());
            }
            let child = Self::from_fields_v1(inner)?;
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }

    pub fn to_fields_v1(&self) -> Value {
        let mut out = Map::new();
        let all: BTreeSet<&PathElement> = self.members.iter().chain(self.children.keys()).collect();
        for element in all {
            let mut inner = Map::new();
            if let Some(child) = self.children.get(element) {
                if self.members.contains(element) {
                    inner.insert(".".into(), Value::Object(Map::new()));
                }
                if let Value::Object(below) = child.to_fields_v1() {
                    inner.extend(below);
                }
            }
            out.insert(element.encoded(), Value::Object(inner));
        }
        Value::Object(out)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    pub fn has(&self, element: &PathElement) -> bool {
        self.members.contains(element)
    }

    pub fn child(&self, element: &PathElement) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.children {
            let merged = match out.children.get(element) {
                Some(ours) => ours.union(theirs),
                None => theirs.clone(),
            };
            out.children.insert(element.clone(), merged);
        }
        out
    }

    /// Paths of this set that are not in the other.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, false)
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, true)
    }

    fn combine(&self, other: &FieldSet, both: bool) -> FieldSet {
        let members = self.members.iter().filter(|m| other.members.contains(m) == both).cloned().collect();
        let mut children = BTreeMap::new();
        for (element, ours) in &self.children {
            let left = match (other.children.get(element), both) {
                (Some(theirs), _) => ours.combine(theirs, both),
                (None, true) => continue,
                (None, false) => ours.clone(),
            };
            if !left.is_empty() {
                children.insert(element.clone(), left);
            }
        }
        FieldSet { members, children }
    }

    /// This set without the given paths and everything below them.
    pub fn without_below(&self, other: &FieldSet) -> FieldSet {
        let members = self.members.iter().filter(|m| !other.members.contains(m)).cloned().collect();
        let mut children = BTreeMap::new();
        for (element, ours) in &self.children {
            if other.members.contains(element) {
                continue;
            }
            let left = match other.children.get(element) {
                Some(theirs) => ours.without_below(theirs),
                None => ours.clone(),
            };
            if !left.is_empty() {
                children.insert(element.clone(), left);
            }
        }
        FieldSet { members, children }
    }

    /// Also counts the named fields that lead to members: owning `a.b.c` is owning `a`, where `a` is a type's field.
    pub fn with_named_fields(&self, shape: Known) -> FieldSet {
        let mut members = self.members.clone();
        let mut children = BTreeMap::new();
        for (element, child) in &self.children {
            if let (PathElement::Field(name), Known::Type(def)) = (element, shape)
                && def.field(name).is_some()
            {
                members.insert(element.clone());
            }
            children.insert(element.clone(), child.with_named_fields(shape.step(element)));
        }
        FieldSet { members, children }
    }

    /// Every path, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        out.extend(self.members.iter().map(|m| format!("{prefix}{m}")));
        for (element, child) in &self.children {
            child.collect(&format!("{prefix}{element}"), out);
        }
    }
}

/// What the schema says about the place a walk has reached.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    Type(&'a TypeDef),
    Shape(&'a Shape),
}

impl<'a> Known<'a> {
    pub fn of(shape: &'a Shape) -> Self {
        match shape {
            Shape::Object(def) => Known::Type(def.get()),
            other => Known::Shape(other),
        }
    }

    /// The shape below `element`; `Any` where the schema does not say.
    pub fn step(self, element: &PathElement) -> Known<'a> {
        let below = match (self, element) {
            (Known::Type(def), PathElement::Field(name)) => def.field(name).map(|f| &f.shape),
            (Known::Shape(Shape::Map(map)), PathElement::Field(_)) => Some(&map.value),
            (Known::Shape(Shape::List(list)), _) => Some(&list.item),
            _ => None,
        };
        below.map_or(Known::Shape(&Shape::Any), Known::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_v1_round_trip() {
        for fields in [
            json!({}),
            json!({"f:data": {".": {}, "f:a": {}}}),
            json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}}),
            json!({"f:metadata": {"f:finalizers": {"v:\"e.com/a\"": {}}}}),
        ] {
            let set = FieldSet::from_fields_v1(&fields).expect("a set");
            assert_eq!(set.to_fields_v1(), fields);
        }
        assert_eq!(FieldSet::from_fields_v1(&json!({"x:1": {}})), None);
        assert_eq!(FieldSet::from_fields_v1(&json!([1])), None);
    }

    #[test]
    fn algebra() {
        let set = |fields: Value| FieldSet::from_fields_v1(&fields).expect("a set");
        let a = set(json!({"f:x": {".": {}, "f:y": {}}, "f:z": {}}));
        let b = set(json!({"f:x": {"f:y": {}}}));
        assert_eq!(a.difference(&b).to_fields_v1(), json!({"f:x": {}, "f:z": {}}));
        assert_eq!(a.intersection(&b), b);
        assert_eq!(b.union(&a), a);
        assert_eq!(a.paths(), [".x", ".z", ".x.y"]);
    }
}
