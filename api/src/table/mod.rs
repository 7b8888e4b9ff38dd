//! What `kubectl get` prints: columns and cells of each kind.

use crate::kinds::Kind;
use crate::meta;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The head of a column. `priority` 0 is always shown, 1 only with `-o wide`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub type_: String,
    pub format: String,
    pub description: String,
    pub priority: i32,
}

pub fn columns(_kind: &Kind) -> Vec<Column> {
    let column = |name: &str, format: &str, description: &str| Column {
        name: name.into(),
        type_: "string".into(),
        format: format.into(),
        description: description.into(),
        priority: 0,
    };
    vec![column("Name", "name", "Name of the object"), column("Age", "", "Time since creation")]
}

/// The cells of one object, one a column.
pub fn row(_kind: &Kind, obj: &Value, _now: Timestamp) -> Vec<Value> {
    vec![meta::name(obj).into(), meta::str_at(obj, &["metadata", "creationTimestamp"]).into()]
}
