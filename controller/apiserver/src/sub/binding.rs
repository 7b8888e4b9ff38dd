//! `binding`: the scheduler's word on where a pod runs, said once.

use crate::call::{Answer, Call};
use crate::decode;
use crate::state::{Fresh, State};
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::verbs::commit::{Committed, Write, commit};
use crate::verbs::{create, options};
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::status::Status;

const ATTEMPTS_MAX: usize = 8;

/// A Binding posted below a pod, or (the old way) to `bindings`.
pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "CreateOptions")?;
    let Some(kind) = kinds::by_kind("", "v1", "Binding") else { return Err(Status::no_such_resource()) };
    let mut binding = decode::object_of(call, &kind)?;
    create::check_namespace(call, &mut binding)?;
    let name = meta::name(&binding).to_string();
    if !call.info.name.is_empty() && name != call.info.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target = meta::str_at(&binding, &["target", "name"]).to_string();
    let mut problems = Vec::new();
    let target_kind = meta::str_at(&binding, &["target", "kind"]);
    if !matches!(target_kind, "" | "Node") {
        problems
            .push(format!("target.kind: Unsupported value: {target_kind:?}: supported values: \"Node\", \"<empty>\""));
    }
    if target.is_empty() {
        problems.push("target.name: Required value".to_string());
    }
    if let Some(all) = skiff_api::status::aggregate(problems.into_iter()) {
        return Err(Status::generic(all));
    }
    let Some(pods) = kinds::by_kind("", "v1", "Pod") else { return Err(Status::no_such_resource()) };
    let key = keys::object(&pods, call.namespace(), &name);
    for _ in 0..ATTEMPTS_MAX {
        let Some(current) = state.read_key(&key, Fresh::Linearizable).await? else {
            return Err(Status::not_found("", "pods", &name));
        };
        let old = current.decode();
        let new = bound(&old, &binding, &target)?;
        if call.dry_run() {
            return Ok(Answer::success(Status::success(201)));
        }
        let write = Write {
            key: key.clone(),
            expected: current.revision,
            value: Some(Stored::encode(&new, "Pod", "v1")),
            fence: call.fence,
            ..Default::default()
        };
        if let Committed::Done(_) = commit(state, write).await? {
            return Ok(Answer::success(Status::success(201)));
        }
    }
    Err(Status::conflict("", "pods/binding", &name, Status::MODIFIED))
}

/// The pod on its node, or why not. Nobody is noted as the writer: a binding is no write of fields.
fn bound(old: &Value, binding: &Value, target: &str) -> Result<Value, Status> {
    let name = meta::name(old);
    let refuse = |detail: String| Err(Status::conflict("", "pods/binding", name, &detail));
    let (uid, version) = (meta::uid(binding), meta::resource_version(binding));
    if !uid.is_empty() && uid != meta::uid(old) {
        let detail = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/pods/{}/{name}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::namespace(old),
            meta::uid(old)
        );
        return Err(Status::conflict("", "pods", name, &detail));
    }
    if !version.is_empty() && version != meta::resource_version(old) {
        return Err(Status::conflict("", "pods", name, Status::MODIFIED));
    }
    if meta::is_being_deleted(old) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    match meta::str_at(old, &["spec", "nodeName"]) {
        "" => {}
        node => return refuse(format!("pod {name} is already assigned to node {node:?}")),
    }
    if !meta::list_at(old, &["spec", "schedulingGates"]).is_empty() {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = json!(target);
    for (key, value) in meta::labels(binding).into_iter().flatten() {
        meta::set_label(&mut new, key, value.as_str().unwrap_or_default());
    }
    for (key, value) in meta::annotations(binding).into_iter().flatten() {
        meta::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
    }
    let now = Timestamp::now();
    let mut conditions = meta::list_at(old, &["status", "conditions"]).to_vec();
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::format_time(now),
    });
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(condition) if condition["status"] == "True" => {}
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
    new["status"]["conditions"] = Value::Array(conditions);
    Ok(new)
}
