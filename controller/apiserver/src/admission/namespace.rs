//! Life of namespaces: nothing new in one that is not there or is going; the cluster's own stay.

use super::{Admission, Operation};
use crate::call::Call;
use crate::state::{Fresh, State};
use crate::storage::keys;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::Status;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Checks the namespace that something is created in; its key and revision guard the write against a namespace that goes
/// at the same moment.
pub async fn namespace_of_new(state: &State, call: &Call) -> Result<Option<(String, u64)>, Status> {
    let namespace = call.key_namespace();
    if namespace.is_empty() || call.kind.is("", "Namespace") {
        return Ok(None);
    }
    let key = keys::object_of("", "namespaces", "", namespace);
    let mut found = state.read_key(&key, Fresh::Local).await?;
    if found.is_none() {
        found = state.read_key(&key, Fresh::Linearizable).await?;
    }
    let found = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    if meta::is_being_deleted(&found.decode()) {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let name = match &call.body {
            crate::call::Body::Value(value) => meta::name(value).to_string(),
            crate::call::Body::Raw { bytes, .. } => {
                crate::storage::peek::peek_text(bytes, &["metadata", "name"]).unwrap_or_default()
            }
            crate::call::Body::Empty => String::new(),
        };
        let mut status = Status::forbidden(&call.kind.group, &call.kind.plural, &name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(json!({
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }));
        }
        return Err(status);
    }
    Ok(Some((key, found.revision)))
}

/// Every namespace carries its name as a label.
pub fn label(admission: &Admission<'_>, object: &mut Value) {
    if admission.call.kind.is("", "Namespace") && admission.operation != Operation::Delete {
        let name = match meta::name(object) {
            "" => return,
            name => name.to_string(),
        };
        meta::set_label(object, NAME_LABEL, &name);
    }
}

pub fn refuse_immortal(admission: &Admission<'_>) -> Result<(), Status> {
    let name = admission.call.name();
    if admission.operation == Operation::Delete && admission.call.kind.is("", "Namespace") && IMMORTAL.contains(&name) {
        return Err(admission.forbidden(name, "this namespace may not be deleted"));
    }
    Ok(())
}
