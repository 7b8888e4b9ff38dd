//! `update`, and the loop that all changes of existing objects share.
//!
//! A change is a function from the current object to the new one. It runs again when somebody else wrote in between,
//! unless the client named the version that it saw: then it is told of the conflict.

use crate::admission::{Admission, Operation, quota};
use crate::call::{Answer, Call};
use crate::decode;
use crate::rules;
use crate::services;
use crate::state::{Fresh, State};
use crate::storage::encode::Stored;
use crate::storage::forms;
use crate::storage::keys;
use crate::verbs::commit::{Committed, Write, commit};
use crate::verbs::{create, delete, options};
use jiff::Timestamp;
use serde_json::Value;
use skiff_api::schema::Schema;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{Kind, apply, defaults, meta, strategy, validate};

/// How often a change is tried again when others write the same object.
const ATTEMPTS_MAX: usize = 16;

/// What a change makes of an object.
pub struct Changed {
    pub object: Value,
    /// The applier has recorded its fields already.
    pub tracked: bool,
}

/// Kinds that a PUT may create (`AllowCreateOnUpdate` upstream).
fn created_by_update(kind: &Kind) -> bool {
    matches!(
        (kind.group.as_str(), kind.kind.as_str()),
        ("", "Endpoints" | "Event" | "Service" | "LimitRange")
            | ("events.k8s.io", "Event")
            | ("coordination.k8s.io", "Lease")
            | ("rbac.authorization.k8s.io", _)
    )
}

/// Kinds whose PUT must name the version it replaces.
fn needs_version(kind: &Kind) -> bool {
    matches!(
        (kind.group.as_str(), kind.kind.as_str()),
        ("coordination.k8s.io", "Lease")
            | ("policy", "PodDisruptionBudget")
            | ("apiextensions.k8s.io", _)
            | ("node.k8s.io", _)
    )
}

pub async fn update(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "UpdateOptions")?;
    let mut sent = decode::object(call)?;
    check_name(call, &sent)?;
    create::check_namespace(call, &mut sent)?;
    defaults::apply_defaults(&call.kind, &mut sent);
    if created_by_update(&call.kind) && call.info.subresource.is_empty() {
        let found = state.read(&call.kind, call.namespace(), call.name(), Fresh::Linearizable).await?;
        if found.is_none() {
            if !matches!(meta::resource_version(&sent), "" | "0") {
                return Err(call.conflict(call.name(), "StorageError: invalid object, Code: 4, Key: , ResourceVersion: 0, AdditionalErrorMsg: Precondition failed"));
            }
            create::require_right(state, call).await?;
            meta::unset(&mut sent, "resourceVersion");
            return create::insert(state, call, sent, true).await;
        }
    }
    if needs_version(&call.kind) && matches!(meta::resource_version(&sent), "" | "0") {
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(Status::invalid(&call.kind.group, &call.kind.plural, call.name(), &[error]));
    }
    change(state, call, |_, _| Ok(Changed { object: sent.clone(), tracked: false })).await
}

/// The name of the body must be that of the path.
pub fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    let (given, wanted) = (meta::name(object), call.name());
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != wanted {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({wanted})"
        )));
    }
    Ok(())
}

/// Carries a change out on the call's object, through its own path or its `status`.
pub async fn change(
    state: &State,
    call: &mut Call,
    mut make: impl FnMut(&mut Call, &Value) -> Result<Changed, Status>,
) -> Result<Answer, Status> {
    let kind = call.kind.clone();
    let key = keys::object(&kind, call.namespace(), call.name());
    for attempt in 0..ATTEMPTS_MAX {
        let fresh = if attempt == 0 && state.store.revision() > 0 { Fresh::Local } else { Fresh::Linearizable };
        let mut current = state.read_key(&key, fresh).await?;
        if current.is_none() && fresh == Fresh::Local {
            current = state.read_key(&key, Fresh::Linearizable).await?;
        }
        let current = current.ok_or_else(|| call.not_found())?;
        let old = forms::as_kind(current.clone(), &kind).decode();
        let outcome = attempt_change(state, call, &key, &current, &old, &mut make).await;
        match outcome {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            // What was read locally may have been behind: a refusal is only given on what is true now.
            Err(_) if fresh == Fresh::Local => {
                let latest = state.read_key(&key, Fresh::Linearizable).await?;
                if latest.as_ref().map(|l| l.revision) == Some(current.revision) {
                    return Err(outcome.err().unwrap_or_else(Status::unauthorized));
                }
            }
            Err(status) => return Err(status),
        }
    }
    Err(call.conflict(call.name(), Status::MODIFIED))
}

/// Whether two encodings say the same; the order of keys does not count.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let value = |bytes| serde_json::from_slice::<Value>(bytes).ok();
    a == b || a.len() == b.len() && value(a) == value(b)
}

async fn attempt_change(
    state: &State,
    call: &mut Call,
    key: &str,
    current: &Stored,
    old: &Value,
    make: &mut impl FnMut(&mut Call, &Value) -> Result<Changed, Status>,
) -> Result<Option<Answer>, Status> {
    let kind = call.kind.clone();
    let name = meta::name(old).to_string();
    let Changed { object: mut new, tracked } = make(call, old)?;
    let given_version = meta::resource_version(&new).to_string();
    let given_uid = meta::uid(&new).to_string();
    // Who replaces an object by its uid means that one; a patch that changes the uid is merely wrong.
    if call.info.verb == "update" && !given_uid.is_empty() && given_uid != meta::uid(old) {
        let detail =
            format!("Precondition failed: UID in precondition: {given_uid}, UID in object meta: {}", meta::uid(old));
        return Err(call.conflict(&name, &detail));
    }
    if !matches!(given_version.as_str(), "" | "0") && given_version != current.revision.to_string() {
        if given_version.parse::<u64>().is_err() {
            let error =
                FieldError::invalid("metadata.resourceVersion", given_version.clone(), "must be an unsigned integer");
            return Err(Status::invalid(&kind.group, &kind.kind, &name, &[error]));
        }
        return Err(call.conflict(&name, Status::MODIFIED));
    }
    rules::dedupe_owners(call, &mut new);
    rules::keep_system_fields(&mut new, old);
    let subresource = call.info.subresource.clone();
    if let (Some(schema), false) = (Schema::for_kind(&kind), tracked) {
        let manager = call.manager();
        rules::track(
            &kind,
            schema,
            Some(old),
            &mut new,
            &manager,
            apply::Operation::Update,
            &subresource,
            Timestamp::now(),
        );
    }
    let mut admission = Admission { state, call, operation: Operation::Update, old: Some(old) };
    admission.mutate(&mut new).await?;
    let errors = match subresource.as_str() {
        "finalize" => Vec::new(),
        "status" => {
            strategy::prepare_for_status_update(&kind, &mut new, old);
            validate::status_update(&kind, &new, old)
        }
        "approval" => {
            strategy::prepare_for_approval(&kind, &mut new, old);
            validate::approval(&new, old)
        }
        "resize" => {
            strategy::prepare_for_resize(&kind, &mut new, old);
            validate::resize(&new, old)
        }
        "ephemeralcontainers" => {
            strategy::prepare_for_ephemeral_containers(&kind, &mut new, old);
            validate::ephemeral_containers(&new, old)
        }
        _ => {
            strategy::prepare_for_update(&kind, &mut new, old);
            validate::update(&kind, &new, old)
        }
    };
    if !errors.is_empty() {
        return Err(Status::invalid(&kind.group, &kind.kind, &name, &errors));
    }
    let mut admission = Admission { state, call, operation: Operation::Update, old: Some(old) };
    admission.validate(&new).await?;
    let claims = services::claim(state, &kind, &mut new, Some(old)).await?;
    let also = quota::charge(state, call, &new, Some(old)).await?;
    for warning in skiff_api::warnings::idle::of_write(&kind, &subresource, &new) {
        call.warn(warning);
    }
    for warning in skiff_api::warnings::of(&kind, &new, Some(old)) {
        call.warn(warning);
    }
    apply::restore_times_if_unchanged(old, &mut new);
    let bytes = Stored::encode(&new, &kind.kind, &kind.api_version());
    if call.dry_run() {
        let object = Stored { bytes, revision: current.revision };
        return Ok(Some(Answer::ok(&kind, object)));
    }
    if delete::is_finished(&kind, &new) {
        // The last finalizer is gone: this write is the deletion.
        let write = Write {
            key: key.into(),
            expected: current.revision,
            claims: services::release(&kind, old),
            fence: call.fence,
            ..Default::default()
        };
        return Ok(match commit(state, write).await? {
            Committed::Done(_) => Some(Answer::ok(&kind, Stored { bytes, revision: current.revision })),
            Committed::Raced => None,
        });
    }
    if is_same(&bytes, &current.bytes) {
        return Ok(Some(Answer::ok(&kind, current.clone())));
    }
    let write = Write {
        key: key.into(),
        expected: current.revision,
        value: Some(bytes),
        claims,
        also,
        fence: call.fence,
        ..Default::default()
    };
    Ok(match commit(state, write).await? {
        Committed::Done(object) => Some(Answer::ok(&kind, object)),
        Committed::Raced if !matches!(given_version.as_str(), "" | "0") => None,
        Committed::Raced => None,
    })
}
