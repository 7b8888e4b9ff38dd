//! `namespaces/NAME/finalize`: how the namespace controller says that a namespace is empty.

use crate::call::{Answer, Call};
use crate::decode;
use crate::state::State;
use crate::verbs::options;
use crate::verbs::update::{Changed, change, check_name};
use serde_json::Value;
use skiff_api::status::Status;

pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "UpdateOptions")?;
    let sent = decode::object(call)?;
    check_name(call, &sent)?;
    let finalizers = sent.get("spec").and_then(|s| s.get("finalizers")).cloned();
    let version = sent.get("metadata").and_then(|m| m.get("resourceVersion")).cloned();
    change(state, call, |_, old| {
        let mut object = old.clone();
        match finalizers.as_ref().and_then(Value::as_array).filter(|l| !l.is_empty()) {
            Some(list) => object["spec"]["finalizers"] = Value::Array(list.clone()),
            None => {
                if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.shift_remove("finalizers");
                }
            }
        }
        if let Some(version) = &version {
            object["metadata"]["resourceVersion"] = version.clone();
        }
        Ok(Changed { object, tracked: false })
    })
    .await
}
