//! Server-side apply: who owns which field, and what an applied configuration changes.

use crate::kinds::Kind;
use crate::schema::TypeDef;
use crate::status::Status;
use jiff::Timestamp;
use serde_json::Value;

/// How a manager wrote: the `operation` of a managed fields entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

/// The object after `manager` applied `applied` to `live`.
#[allow(clippy::too_many_arguments, reason = "each is a part of the request")]
pub fn apply(
    _kind: &Kind,
    _schema: &TypeDef,
    _live: Option<&Value>,
    applied: &Value,
    _manager: &str,
    _force: bool,
    _subresource: &str,
    _now: Timestamp,
) -> Result<Value, Status> {
    Ok(applied.clone())
}

/// Records in `new.metadata.managedFields` what an ordinary write changed.
pub fn track_update(
    _schema: &TypeDef,
    _old: Option<&Value>,
    _new: &mut Value,
    _manager: &str,
    _operation: Operation,
    _subresource: &str,
    _now: Timestamp,
) {
}
