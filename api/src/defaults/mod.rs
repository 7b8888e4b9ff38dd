//! What a field is when nobody set it.

use crate::kinds::Kind;
use serde_json::Value;

/// Fills in what is absent. Applying it twice changes nothing.
pub fn apply_defaults(_kind: &Kind, _obj: &mut Value) {}
