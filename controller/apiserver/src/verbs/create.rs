//! `create`: decode, default, admit, prepare, validate, and put it where nothing is yet.

use crate::admission::{self, Admission, Operation};
use crate::auth::authorize;
use crate::auth::rbac::Attributes;
use crate::call::{Answer, Call};
use crate::decode;
use crate::rules;
use crate::services;
use crate::state::{Fresh, State};
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::verbs::commit::{Committed, Write, commit};
use crate::verbs::options;
use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::schema::Schema;
use skiff_api::status::Status;
use skiff_api::{apply, defaults, strategy, validate};

/// How often a generated name or an address is drawn again.
const ATTEMPTS_MAX: usize = 8;
/// The same where quotas count the object: everybody who creates in the namespace then writes the same quota.
const QUOTA_ATTEMPTS_MAX: usize = 100;

pub async fn create(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "CreateOptions")?;
    let mut object = decode::object(call)?;
    check_namespace(call, &mut object)?;
    defaults::apply_defaults(&call.kind, &mut object);
    insert(state, call, object, true).await
}

/// A change that makes its object needs the right to create it, beside its own (as upstream: create by update and by apply).
pub async fn require_right(state: &State, call: &Call) -> Result<(), Status> {
    let wanted = Attributes { verb: "create".into(), ..Attributes::from(&call.info) };
    authorize::require(state, &call.user, &wanted).await
}

/// The namespace of the body must be that of the path, or absent.
pub fn check_namespace(call: &Call, object: &mut Value) -> Result<(), Status> {
    let given = meta::namespace(object).to_string();
    let wanted = call.key_namespace();
    if call.kind.namespaced && wanted.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    // What has no namespace is taken without the one that its file gives it.
    if call.kind.namespaced && !given.is_empty() && given != wanted {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    match wanted {
        "" => meta::unset(object, "namespace"),
        ns => meta::set(object, "namespace", ns),
    }
    Ok(())
}

/// Stores a decoded, defaulted object. With `track`, managed fields are recorded for the request's manager.
pub async fn insert(state: &State, call: &mut Call, mut object: Value, track: bool) -> Result<Answer, Status> {
    let kind = call.kind.clone();
    let now = Timestamp::now();
    rules::dedupe_owners(call, &mut object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta::unset(&mut object, key);
    }
    if !track {
        // The applier has recorded its fields already.
    } else if let Some(schema) = Schema::for_kind(&kind) {
        let manager = call.manager();
        rules::track(&kind, schema, None, &mut object, &manager, apply::Operation::Update, "", now);
    }
    let namespace_seen = admission::namespace_of_new(state, call).await?;
    let mut admission = Admission { state, call, operation: Operation::Create, old: None };
    admission.mutate(&mut object).await?;
    let given_version = meta::resource_version(&object).to_string();
    rules::stamp_new(&mut object, now);
    let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
    let template = object;
    for attempt in 1.. {
        let mut object = template.clone();
        if generated {
            rules::generate_name(&mut object);
        }
        strategy::prepare_for_create(&kind, &mut object);
        let errors = validate::create(&kind, &object);
        if !errors.is_empty() {
            return Err(Status::invalid(&kind.group, &kind.kind, meta::name(&object), &errors));
        }
        let mut admission = Admission { state, call, operation: Operation::Create, old: None };
        admission.validate(&object).await?;
        let name = meta::name(&object).to_string();
        let claims = services::claim(state, &kind, &mut object, None).await?;
        let also = admission::quota::charge(state, call, &object, None).await?;
        let subresource = call.info.subresource.clone();
        for warning in skiff_api::warnings::idle::of_write(&kind, &subresource, &object) {
            call.warn(warning);
        }
        for warning in skiff_api::warnings::of(&kind, &object, None) {
            call.warn(warning);
        }
        let bytes = Stored::encode(&object, &kind.kind, &kind.api_version());
        let key = keys::object(&kind, call.key_namespace(), &name);
        if call.dry_run() {
            if let Some(existing) = state.read_key(&key, Fresh::Linearizable).await? {
                return Err(exists(call, &name, &existing));
            }
            return Ok(Answer::Object { code: 201, kind, object: Stored { bytes, revision: 0 } });
        }
        if !given_version.is_empty() && given_version != "0" {
            return Err(Status::generic("resourceVersion should not be set on objects to be created"));
        }
        let attempts_max = if also.is_empty() { ATTEMPTS_MAX } else { QUOTA_ATTEMPTS_MAX };
        let write = Write {
            key: key.clone(),
            expected: 0,
            value: Some(bytes),
            claims,
            guards: namespace_seen.iter().cloned().collect(),
            also,
            fence: call.fence,
        };
        match commit(state, write).await? {
            Committed::Done(object) => return Ok(Answer::Object { code: 201, kind, object }),
            Committed::Raced => {}
        }
        let existing = state.read_key(&key, Fresh::Linearizable).await?;
        match existing {
            Some(existing) if !generated => return Err(exists(call, &name, &existing)),
            _ if attempt >= attempts_max => {
                return Err(Status::server_timeout(&kind.group, &kind.plural, "create", 1));
            }
            // Somebody took the name or the address, or the namespace changed: once more.
            _ => {
                admission::namespace_of_new(state, call).await?;
            }
        }
    }
    Err(Status::internal_error("creating an object ended without a result"))
}

fn exists(call: &Call, name: &str, existing: &Stored) -> Status {
    let mut status = Status::already_exists(&call.kind.group, &call.kind.plural, name);
    if meta::is_being_deleted(&existing.decode()) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
