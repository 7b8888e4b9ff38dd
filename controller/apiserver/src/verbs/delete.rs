//! `delete` and `deletecollection`: at once, after a grace period, or when the last finalizer is gone.

use crate::admission::{Admission, Operation};
use crate::call::{Answer, Body, Call, List};
use crate::decode;
use crate::services;
use crate::state::{Fresh, State};
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::verbs::commit::{Committed, Write, commit};
use crate::verbs::options::{dry_run_errors, refuse};
use crate::verbs::read;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{Kind, meta, strategy};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS_MAX: usize = 16;

/// How a deletion is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body where there is one, otherwise from the query.
    pub fn read(call: &Call) -> Result<Self, Status> {
        let document = decode::document(&call.body)?.map(|d| d.value);
        let Some(body) = document else {
            let query = &call.query;
            let options = DeleteOptions {
                grace_seconds: query.integer("gracePeriodSeconds")?,
                propagation: query.get("propagationPolicy").map(String::from),
                orphan_dependents: query.has("orphanDependents").then(|| query.flag("orphanDependents")),
                dry_run: query.has("dryRun"),
                ..Default::default()
            };
            options.check(&query.all("dryRun").collect::<Vec<_>>())?;
            return Ok(options);
        };
        let (version, kind) = (meta::api_version(&body), meta::kind(&body));
        if !kind.is_empty() && kind != "DeleteOptions" {
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \
                 \"pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        let text = |path: &[&str]| meta::at(&body, path).and_then(Value::as_str).map(String::from);
        let dry_run: Vec<&str> = meta::list_at(&body, &["dryRun"]).iter().filter_map(Value::as_str).collect();
        let options = DeleteOptions {
            grace_seconds: meta::i64_at(&body, &["gracePeriodSeconds"]),
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            propagation: text(&["propagationPolicy"]),
            orphan_dependents: meta::at(&body, &["orphanDependents"]).and_then(Value::as_bool),
            dry_run: !dry_run.is_empty() || call.dry_run(),
        };
        options.check(&dry_run)?;
        Ok(options)
    }

    fn check(&self, dry_run: &[&str]) -> Result<(), Status> {
        let mut errors = Vec::new();
        let at = "propagationPolicy";
        if let (Some(policy), Some(_)) = (&self.propagation, self.orphan_dependents) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(at, policy.clone(), detail));
        }
        if let Some(policy) = &self.propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            errors.push(FieldError::not_supported(at, policy.clone(), &["Foreground", "Background", "Orphan", "nil"]));
        }
        errors.extend(dry_run_errors(dry_run));
        refuse("DeleteOptions", &errors)
    }

    /// The finalizers of an object after this deletion was asked for.
    fn finalizers(&self, current: Vec<&str>) -> Vec<String> {
        let orphan = self.orphan_dependents == Some(true) || self.propagation.as_deref() == Some("Orphan");
        let foreground = self.propagation.as_deref() == Some("Foreground");
        let said = self.orphan_dependents.is_some() || self.propagation.is_some();
        let mut out: Vec<String> = current.iter().map(ToString::to_string).collect();
        if said {
            out.retain(|f| f != ORPHAN && f != FOREGROUND);
            if orphan {
                out.push(ORPHAN.into());
            }
            if foreground {
                out.push(FOREGROUND.into());
            }
        }
        out
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub fn is_finished(kind: &Kind, object: &Value) -> bool {
    meta::is_being_deleted(object)
        && meta::finalizers(object).is_empty()
        && meta::i64_at(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && (!kind.is("", "Namespace") || meta::list_at(object, &["spec", "finalizers"]).is_empty())
}

/// Kinds whose deletion answers with the object instead of a Status.
fn returns_object(kind: &Kind) -> bool {
    kind.group.is_empty()
        && matches!(
            kind.kind.as_str(),
            "Pod"
                | "PodTemplate"
                | "Service"
                | "ServiceAccount"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "ResourceQuota"
        )
}

/// What to do with an object that someone wants deleted.
#[derive(Debug)]
enum Step {
    /// It stays as it is: it is being deleted already.
    Stay,
    /// Keep it, marked; its finalizers or its agent end it.
    Mark(Value),
    /// The object as its deletion leaves it, for the answer.
    Remove(Value),
}

/// Decides, as a function of the object and the clock.
fn plan(kind: &Kind, object: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let mut new = object.clone();
    let finalizers = options.finalizers(meta::finalizers(object));
    match finalizers.is_empty() {
        true => meta::unset(&mut new, "finalizers"),
        false => meta::set(&mut new, "finalizers", json!(finalizers)),
    }
    if kind.is("", "Namespace") {
        return plan_namespace(object, new, now);
    }
    let marked = meta::is_being_deleted(object);
    let old_grace = meta::i64_at(object, &["metadata", "deletionGracePeriodSeconds"]);
    let mut grace = strategy::grace_period(kind, object, options.grace_seconds);
    if let (true, Some(old)) = (marked, old_grace) {
        // A deletion under way can only be hastened.
        grace = if options.grace_seconds.is_some() { grace.min(old) } else { old };
    }
    let until = |grace: i64| match meta::deletion_timestamp(object).zip(old_grace) {
        Some((at, old)) => meta::seconds_after(meta::seconds_after(at, old.saturating_neg()), grace),
        None => meta::seconds_after(now, grace),
    };
    if grace == 0 && finalizers.is_empty() && (marked || !kind.is("", "Pod")) {
        let mut last = object.clone();
        if old_grace.is_some_and(|old| old > 0) {
            meta::set(&mut last, "deletionTimestamp", meta::format_time(until(0)));
            meta::set(&mut last, "deletionGracePeriodSeconds", 0);
        }
        return Step::Remove(last);
    }
    if marked && old_grace.unwrap_or(0) == grace {
        return if new == *object { Step::Stay } else { Step::Mark(new) };
    }
    meta::set(&mut new, "deletionTimestamp", meta::format_time(until(grace)));
    meta::set(&mut new, "deletionGracePeriodSeconds", grace);
    if meta::generation(object) > 0 {
        meta::set(&mut new, "generation", meta::generation(object) + 1);
    }
    Step::Mark(new)
}

/// A namespace goes when its content is gone: its finalizers in `spec` say so.
fn plan_namespace(object: &Value, mut new: Value, now: Timestamp) -> Step {
    if !meta::is_being_deleted(object) {
        meta::set(&mut new, "deletionTimestamp", meta::format_time(now));
        if let Some(map) = new.as_object_mut() {
            let status = map.entry("status").or_insert_with(|| json!({}));
            status["phase"] = json!("Terminating");
        }
        return Step::Mark(new);
    }
    if meta::list_at(object, &["spec", "finalizers"]).is_empty() && meta::finalizers(object).is_empty() {
        return Step::Remove(object.clone());
    }
    if new == *object { Step::Stay } else { Step::Mark(new) }
}

pub async fn delete(state: &State, call: &mut Call) -> Result<Answer, Status> {
    let options = DeleteOptions::read(call)?;
    let name = call.name().to_string();
    delete_one(state, call, &name, &options).await
}

/// Deletes one object of the call's kind and namespace.
pub async fn delete_one(state: &State, call: &mut Call, name: &str, options: &DeleteOptions) -> Result<Answer, Status> {
    let kind = call.kind.clone();
    let namespace = call.key_namespace().to_string();
    let key = keys::object(&kind, &namespace, name);
    for _ in 0..ATTEMPTS_MAX {
        let current = state.must_read(&kind, &namespace, name, Fresh::Linearizable).await?;
        let object = current.decode();
        check_preconditions(&kind, name, &object, options)?;
        let mut admission = Admission { state, call, operation: Operation::Delete, old: Some(&object) };
        admission.validate(&Value::Null).await?;
        let step = plan(&kind, &object, options, Timestamp::now());
        let mut write = Write { key: key.clone(), expected: current.revision, fence: call.fence, ..Default::default() };
        let removed = matches!(step, Step::Remove(_));
        let bytes = match step {
            Step::Stay => return Ok(Answer::ok(&kind, current)),
            Step::Mark(new) => {
                let bytes = Stored::encode(&new, &kind.kind, &kind.api_version());
                write.value = Some(bytes.clone());
                bytes
            }
            Step::Remove(last) => {
                write.claims = services::release(&kind, &object);
                Stored::encode(&last, &kind.kind, &kind.api_version())
            }
        };
        let committed = if options.dry_run {
            Committed::Done(Stored { bytes, revision: current.revision })
        } else {
            match commit(state, write).await? {
                Committed::Done(stored) if !removed => Committed::Done(stored),
                Committed::Done(gone) => Committed::Done(Stored { bytes, revision: gone.revision }),
                Committed::Raced => Committed::Raced,
            }
        };
        match committed {
            Committed::Done(_) if removed && !returns_object(&kind) => {
                let status = Status::deleted(&kind.group, &kind.plural, name, meta::uid(&object));
                return Ok(Answer::success(status));
            }
            // A pod that ends at once is marked first, so that watchers see it go; now it goes.
            Committed::Done(stored) if !removed && is_finished(&kind, &stored.decode()) && !options.dry_run => {}
            Committed::Done(stored) => return Ok(Answer::ok(&kind, stored)),
            Committed::Raced => {}
        }
    }
    Err(Status::conflict(&kind.group, &kind.plural, name, Status::MODIFIED))
}

fn check_preconditions(kind: &Kind, name: &str, object: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let refuse = |detail: String| Err(Status::conflict(&kind.group, &kind.kind, name, &detail));
    if let Some(uid) = &options.uid
        && uid != meta::uid(object)
    {
        return refuse(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and \
             then recreated",
            meta::uid(object)
        ));
    }
    if let Some(version) = &options.resource_version
        && version != meta::resource_version(object)
    {
        return refuse(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object \
             might have been modified",
            meta::resource_version(object)
        ));
    }
    Ok(())
}

pub async fn delete_collection(state: &State, call: &mut Call) -> Result<Answer, Status> {
    let options = DeleteOptions::read(call)?;
    let Answer::List(list) = read::list(state, call).await? else {
        return Err(Status::internal_error("a list did not answer with a list"));
    };
    let mut gone = Vec::new();
    let prefix_kind = call.kind.clone();
    for item in &list.items {
        let object = item.decode();
        let name = meta::name(&object).to_string();
        call.info.namespace = meta::namespace(&object).to_string();
        match delete_one(state, call, &name, &options).await {
            Ok(Answer::Object { object, .. }) => gone.push(object),
            Ok(_) => gone.push(item.clone()),
            Err(status) if status.code() == 404 => {}
            Err(status) => return Err(status),
        }
    }
    Ok(Answer::List(List {
        kind: prefix_kind,
        items: gone,
        revision: list.revision,
        continue_token: String::new(),
        remaining: None,
    }))
}

/// The options of a deletion from inside, as a body.
pub fn options_body(options: &DeleteOptions) -> Body {
    let mut value = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
    if let Some(seconds) = options.grace_seconds {
        value["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(policy) = &options.propagation {
        value["propagationPolicy"] = json!(policy);
    }
    if let Some(uid) = &options.uid {
        value["preconditions"]["uid"] = json!(uid);
    }
    if let Some(version) = &options.resource_version {
        value["preconditions"]["resourceVersion"] = json!(version);
    }
    if options.dry_run {
        value["dryRun"] = json!(["All"]);
    }
    Body::Value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_period_can_be_planned() {
        let kind = skiff_api::kinds::by_kind("", "v1", "Pod").unwrap();
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        for own in [0, 1, -1, i64::MAX, i64::MIN] {
            for asked in [None, Some(0), Some(1), Some(-1), Some(i64::MAX), Some(i64::MIN)] {
                let mut pod = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": own}});
                let options = DeleteOptions { grace_seconds: asked, ..Default::default() };
                // Deleted, and deleted again in every way.
                for again in [None, Some(0), Some(5), Some(i64::MAX)] {
                    if let Step::Mark(marked) = plan(&kind, &pod, &options, now) {
                        assert!(meta::deletion_timestamp(&marked).is_some(), "{own} {asked:?}");
                        pod = marked;
                    }
                    let again = DeleteOptions { grace_seconds: again, ..Default::default() };
                    let _ = plan(&kind, &pod, &again, now);
                }
            }
        }
        // What others stored does not matter either.
        for (at, grace) in [
            ("9999-12-30T22:00:00Z", i64::MIN),
            ("-009999-01-02T01:59:59Z", i64::MAX),
            ("2026-01-01T00:00:00Z", i64::MAX),
        ] {
            let metadata = json!({"name": "p", "deletionTimestamp": at, "deletionGracePeriodSeconds": grace});
            let pod = json!({"metadata": metadata, "spec": {"nodeName": "n"}});
            let _ = plan(&kind, &pod, &DeleteOptions { grace_seconds: Some(3), ..Default::default() }, now);
        }
    }

    #[test]
    fn a_deletion_is_planned() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let check = |object: Value, options: DeleteOptions, expect: &str| {
            let kind = skiff_api::kinds::by_kind("", "v1", "ConfigMap").unwrap();
            let found = match plan(&kind, &object, &options, now) {
                Step::Stay => "stay".to_string(),
                Step::Remove(_) => "remove".to_string(),
                Step::Mark(new) => new["metadata"].to_string(),
            };
            assert_eq!(found, expect);
        };
        let foreground = DeleteOptions { propagation: Some("Foreground".into()), ..Default::default() };
        check(json!({"metadata": {"name": "a"}}), DeleteOptions::default(), "remove");
        let marked = r#"{"name":"a","finalizers":["foregroundDeletion"],"deletionTimestamp":"2026-01-02T03:04:05Z","deletionGracePeriodSeconds":0}"#;
        check(json!({"metadata": {"name": "a"}}), foreground.clone(), marked);
        check(json!({"metadata": serde_json::from_str::<Value>(marked).unwrap()}), foreground, "stay");
        let generation = r#"{"name":"a","generation":3,"finalizers":["x/y"],"deletionTimestamp":"2026-01-02T03:04:05Z","deletionGracePeriodSeconds":0}"#;
        let with_finalizer = json!({"metadata": {"name": "a", "generation": 2, "finalizers": ["x/y"]}});
        check(with_finalizer, DeleteOptions::default(), generation);
    }
}
