//! Which objects a list or watch is about: labels and fields, looked at in the stored bytes.

use crate::call::Call;
use crate::storage::keys;
use crate::storage::peek::peek;
use serde_json::{Map, Value};
use skiff_api::Kind;
use skiff_api::selector::{FieldSelector, LabelSelector};
use skiff_api::status::Status;
use skiff_store::{KeyRange, KeyValue};
use std::sync::Arc;

/// The label and field selectors of a request.
#[derive(Clone, Debug)]
pub struct Selection {
    kind: Arc<Kind>,
    labels: LabelSelector,
    fields: FieldSelector,
    prefix: String,
}

impl Selection {
    /// The selection of a call. A name for which the call was authorized is demanded of every object, wherever it stood.
    pub fn parse(call: &Call) -> Result<Self, Status> {
        let selection = Self::of(&call.kind, call.query.text("labelSelector"), call.query.text("fieldSelector"))?;
        let name = &call.info.name;
        if name.is_empty() {
            return Ok(selection);
        }
        match selection.fields.required("metadata.name") {
            Some(same) if same == name => Ok(selection),
            None if selection.fields.is_everything() => {
                Ok(Selection { fields: selection.fields.and("metadata.name", name), ..selection })
            }
            _ => Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name")),
        }
    }

    pub fn of(kind: &Arc<Kind>, labels: &str, fields: &str) -> Result<Self, Status> {
        Ok(Selection {
            kind: kind.clone(),
            labels: LabelSelector::parse(labels).map_err(|e| Status::bad_request(e.to_string()))?,
            fields: FieldSelector::parse(kind, fields)?,
            prefix: keys::prefix(kind),
        })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// The name that the fields demand, when they demand one.
    fn name(&self) -> Option<&str> {
        let term = self.fields.terms().iter().find(|t| t.field == "metadata.name" && !t.negated)?;
        (!term.value.is_empty()).then_some(term.value.as_str())
    }

    /// The keys that can match: one key where the fields demand a name.
    pub fn range(&self, kind: &Kind, namespace: &str) -> KeyRange {
        match self.name() {
            Some(name) if !kind.namespaced || !namespace.is_empty() => {
                KeyRange::key(keys::object(kind, namespace, name).into_bytes())
            }
            _ => keys::range(&keys::scope(kind, namespace)),
        }
    }

    pub fn matches(&self, kv: &KeyValue) -> bool {
        self.fields_match(kv) && self.labels_match(kv)
    }

    fn labels_match(&self, kv: &KeyValue) -> bool {
        if self.labels.is_everything() {
            return true;
        }
        let labels = match peek(&kv.value, &["metadata", "labels"]) {
            Some(Value::Object(labels)) => labels,
            _ => Map::new(),
        };
        self.labels.matches(Some(&labels))
    }

    fn fields_match(&self, kv: &KeyValue) -> bool {
        let mut decode = false;
        for term in self.fields.terms() {
            // The key answers for names without looking at the object.
            let found = match term.field.as_str() {
                "metadata.name" => keys::split(&self.prefix, &kv.key).map(|(_, name)| name),
                "metadata.namespace" => keys::split(&self.prefix, &kv.key).map(|(ns, _)| ns),
                _ => {
                    decode = true;
                    continue;
                }
            };
            if (found.unwrap_or_default() == term.value) == term.negated {
                return false;
            }
        }
        if !decode {
            return true;
        }
        if let Some(answer) = self.simple_fields(kv) {
            return answer;
        }
        serde_json::from_slice(&kv.value).is_ok_and(|object: Value| self.fields.matches(&self.kind, &object))
    }

    /// The field that agents ask for all the time, without decoding; None where the general rule is needed.
    fn simple_fields(&self, kv: &KeyValue) -> Option<bool> {
        let [term] = self.fields.terms() else { return None };
        if term.field != "spec.nodeName" {
            return None;
        }
        let found = peek(&kv.value, &["spec", "nodeName"]);
        let found = found.as_ref().and_then(Value::as_str).unwrap_or_default();
        Some((found == term.value) != term.negated)
    }
}
