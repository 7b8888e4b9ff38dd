//! What is wrong with an object, or with a change of it.
//!
//! [`create`], [`update`] and [`status_update`] find the rules of a kind; each topic has its file. Errors come in the
//! order upstream finds them, because clients show them in that order.

pub mod error;

use crate::kinds::Kind;
pub use error::{FieldError, FieldErrorKind};
use serde_json::Value;

/// What is wrong with a new object.
pub fn create(_kind: &Kind, _obj: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// What is wrong with a change from `old` to `new` (through the object's own path).
pub fn update(_kind: &Kind, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// What is wrong with a change through the `status` path.
pub fn status_update(_kind: &Kind, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
