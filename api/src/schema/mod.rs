//! The one schema engine: which fields a kind has, and of which type.

use crate::kinds::Kind;
use serde_json::{Value, json};
use std::sync::Arc;

/// The fields of one object type.
#[derive(Debug, Clone, Default)]
pub struct TypeDef {}

pub struct Schema;

/// A field that the schema does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    /// `spec.containers[0].imagePulPolicy`
    pub path: String,
}

impl std::fmt::Display for UnknownField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown field \"{}\"", self.path)
    }
}

impl Schema {
    pub fn for_kind(_kind: &Kind) -> Option<&'static TypeDef> {
        static EMPTY: TypeDef = TypeDef {};
        Some(&EMPTY)
    }
}

impl TypeDef {
    /// Unknown fields, in the order of the document.
    pub fn unknown_fields(&self, _obj: &Value) -> Vec<UnknownField> {
        Vec::new()
    }
    /// Removes unknown fields and tells which.
    pub fn prune(&self, _obj: &mut Value) -> Vec<UnknownField> {
        Vec::new()
    }
    /// The first value of a wrong type, in the words of Go's decoder: `json: cannot unmarshal ...`.
    pub fn type_error(&self, _obj: &Value) -> Option<String> {
        None
    }
}

/// The OpenAPI v3 document of one group and version.
pub fn openapi_v3(group_version: &str, _kinds: &[Arc<Kind>]) -> Value {
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": group_version}, "paths": {}, "components": {"schemas": {}}})
}
