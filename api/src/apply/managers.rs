//! The entries of `metadata.managedFields`: who wrote, how, when, and which fields.

use super::Operation;
use super::path::FieldSet;
use crate::meta;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// How many managers that update are kept apart; the oldest beyond are merged.
const UPDATE_MANAGERS_MAX: usize = 10;
const OLD_UPDATES: &str = "ancient-changes";

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<String>,
    pub set: FieldSet,
}

impl Manager {
    /// Whether both entries are the same manager's: appliers are one whatever version they write.
    pub fn is_same(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As a conflict names it.
    pub fn shown(&self) -> String {
        let mut text = crate::validate::error::go_quote(&self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource \"{}\"", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    fn decode(entry: &Value) -> Option<Self> {
        let operation = match meta::str_at(entry, &["operation"]) {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let set = match entry.get("fieldsV1") {
            Some(fields) => FieldSet::from_fields_v1(fields)?,
            None => FieldSet::default(),
        };
        let text = |key: &str| meta::str_at(entry, &[key]).to_string();
        let time = entry.get("time").and_then(Value::as_str).map(str::to_string);
        Some(Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time,
            set,
        })
    }

    fn encode(&self) -> Value {
        let mut entry = Map::new();
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        if !self.name.is_empty() {
            entry.insert("manager".into(), self.name.clone().into());
        }
        entry.insert("operation".into(), operation.into());
        entry.insert("apiVersion".into(), self.api_version.clone().into());
        if let Some(time) = &self.time {
            entry.insert("time".into(), time.clone().into());
        }
        entry.insert("fieldsType".into(), "FieldsV1".into());
        entry.insert("fieldsV1".into(), self.set.to_fields_v1());
        if !self.subresource.is_empty() {
            entry.insert("subresource".into(), self.subresource.clone().into());
        }
        Value::Object(entry)
    }
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Managers(pub Vec<Manager>);

impl Managers {
    /// Entries of `obj`; none when they cannot be read.
    pub fn of(obj: &Value) -> Managers {
        let entries = meta::list_at(obj, &["metadata", "managedFields"]);
        Managers(entries.iter().map(Manager::decode).collect::<Option<Vec<_>>>().unwrap_or_default())
    }

    pub fn position(&self, who: &Manager) -> Option<usize> {
        self.0.iter().position(|m| m.is_same(who))
    }

    pub fn drop_empty(&mut self) {
        self.0.retain(|m| !m.set.is_empty());
    }

    /// Merges the oldest updates when there are too many.
    pub fn cap(&mut self) {
        let mut updaters: Vec<Manager> = self.0.iter().filter(|m| m.operation == Operation::Update).cloned().collect();
        if updaters.len() <= UPDATE_MANAGERS_MAX {
            return;
        }
        updaters.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.name.cmp(&b.name)));
        let mut left = updaters.len();
        let mut first_of_version: Vec<Manager> = Vec::new();
        for old in &updaters {
            if left <= UPDATE_MANAGERS_MAX {
                break;
            }
            let Some(first) = first_of_version.iter().find(|f| f.api_version == old.api_version).cloned() else {
                first_of_version.push(old.clone());
                continue;
            };
            let bucket = Manager { name: OLD_UPDATES.into(), subresource: String::new(), ..first.clone() };
            if self.position(&bucket).is_none()
                && let Some(at) = self.position(&first)
            {
                self.0[at] = Manager { set: self.0[at].set.clone(), ..bucket.clone() };
            }
            let taken = self.position(old).map(|at| self.0.remove(at));
            if let (Some(taken), Some(at)) = (taken, self.position(&bucket)) {
                self.0[at].set = self.0[at].set.union(&taken.set);
                self.0[at].time = taken.time;
            }
            left -= 1;
        }
    }

    /// Writes the entries into `obj`, in the order the API shows them.
    pub fn write(mut self, obj: &mut Value) {
        if self.0.is_empty() {
            meta::unset(obj, "managedFields");
            return;
        }
        let rank = |m: &Manager| u8::from(m.operation == Operation::Update);
        self.0.sort_by(|a, b| {
            let key = |m: &Manager| (m.time.clone(), m.name.clone(), m.api_version.clone(), m.subresource.clone());
            rank(a).cmp(&rank(b)).then_with(|| key(a).cmp(&key(b)))
        });
        meta::set(obj, "managedFields", Value::Array(self.0.iter().map(Manager::encode).collect()));
    }
}

/// A request that empties `managedFields` on purpose: `[]` or one empty entry.
pub(super) fn is_reset(obj: &Value) -> bool {
    match meta::at(obj, &["metadata", "managedFields"]) {
        Some(Value::Array(entries)) => match entries.as_slice() {
            [] => true,
            [only] => only.as_object().is_some_and(|m| m.values().all(|v| v.as_str() == Some("") || v.is_null())),
            _ => false,
        },
        _ => false,
    }
}

pub(super) fn stamp(now: Timestamp) -> Option<String> {
    Some(meta::format_time(now))
}
