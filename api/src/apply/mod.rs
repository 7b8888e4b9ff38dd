//! Server-side apply: who owns which field, and what an applied configuration changes.
//!
//! The rules are those of the Kubernetes documentation on server-side apply. An applied configuration is merged into
//! the live object; a field that another manager owns with another value is a conflict; what the same manager applied
//! before and leaves out now goes, unless somebody else owns it too. Ordinary writes own what they change.

mod managers;
mod path;
mod typed;

use crate::kinds::{self, Kind};
use crate::meta;
use crate::schema::TypeDef;
use crate::status::{Details, Status};
use jiff::Timestamp;
use managers::{Manager, Managers};
use path::Known;
use serde_json::{Map, Value, json};
use typed::Comparison;

pub use path::{FieldSet, PathElement};

/// How a manager wrote: the `operation` of a managed fields entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

/// Who owns what was there before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// An annotation larger than this is dropped rather than stored (bytes, of all annotations).
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// The object after `manager` applied `applied` to `live`, `managedFields` included. It is neither defaulted nor
/// validated yet.
///
/// Errors: 400 for a configuration that carries `managedFields` or another version, 500 (as upstream) for one that does
/// not fit the schema, 409 with a cause for each conflict.
#[allow(clippy::too_many_arguments, reason = "each is a part of the request")]
pub fn apply(
    kind: &Kind,
    schema: &TypeDef,
    live: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    subresource: &str,
    now: Timestamp,
) -> Result<Value, Status> {
    if meta::api_version(applied) != kind.api_version() {
        let text = format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {}",
            meta::api_version(applied),
            kind.api_version()
        );
        return Err(Status::bad_request(text));
    }
    if meta::at(applied, &["metadata", "managedFields"]).is_some_and(|v| !v.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let problems = typed::check(Known::Type(schema), applied);
    if !problems.is_empty() {
        return Err(does_not_fit(kind, applied, &problems));
    }
    let who = Manager {
        name: manager.into(),
        operation: Operation::Apply,
        api_version: kind.api_version(),
        subresource: subresource.into(),
        time: managers::stamp(now),
        set: FieldSet::default(),
    };
    let ignored = reset_fields(kind.has_status(), &schema.name, subresource);
    let base = live.cloned().unwrap_or_else(|| json!({"apiVersion": kind.api_version(), "kind": kind.kind}));
    let request = Request { schema, ignored: &ignored, live: &base, applied, who: &who };
    match request.carry_out(force) {
        // kubectl may take over what its own client-side apply wrote.
        Err(conflicts) if manager == "kubectl" && request.allowed_by_last_applied(&conflicts) => {
            request.carry_out(true)
        }
        other => other,
    }
    .map(|merged| update_last_applied(merged, &base, applied, manager))
    .map_err(|conflicts| conflict_status(&conflicts))
}

struct Request<'a> {
    schema: &'a TypeDef,
    ignored: &'a FieldSet,
    live: &'a Value,
    applied: &'a Value,
    who: &'a Manager,
}

/// A manager and the fields of it that the configuration would change.
type Conflict = (Manager, FieldSet);

impl Request<'_> {
    fn carry_out(&self, force: bool) -> Result<Value, Vec<Conflict>> {
        let known = Known::Type(self.schema);
        let mut managers = Managers::of(self.live);
        let before = managers.clone();
        let live = without_managed_fields(self.live);
        if managers.0.is_empty() {
            let all = Manager {
                name: BEFORE_FIRST_APPLY.into(),
                operation: Operation::Update,
                subresource: String::new(),
                set: strip(&own_update(known, &new_object(self.schema, "", ""), &live, self.ignored)),
                ..self.who.clone()
            };
            managers.0.push(all);
            managers.drop_empty();
        }
        let merged = typed::merge(known, Some(&live), Some(self.applied)).unwrap_or_else(|| live.clone());
        let set = typed::field_set(known, self.applied).without_below(self.ignored);
        let last = managers.position(self.who).map(|at| managers.0[at].set.clone());
        let mine = Manager { set, ..self.who.clone() };
        match managers.position(self.who) {
            Some(at) => managers.0[at] = Manager { time: managers.0[at].time.clone(), ..mine },
            None => managers.0.push(mine),
        }
        let merged = prune(known, &merged, &managers, last.as_ref());
        let changed = typed::compare(known, &live, &merged).without_below(self.ignored);
        give_way(&mut managers, self.who, &changed, force)?;
        for entry in &mut managers.0 {
            entry.set = strip(&entry.set);
        }
        managers.drop_empty();
        let mine_now = managers.position(self.who).map(|at| &managers.0[at].set);
        let mine_before = before.position(self.who).map(|at| &before.0[at].set);
        if (merged != live || mine_now != mine_before)
            && let Some(at) = managers.position(self.who)
        {
            managers.0[at].time = self.who.time.clone();
        }
        managers.cap();
        let mut out = merged;
        managers.write(&mut out);
        Ok(out)
    }

    /// Whether all conflicts are fields that client-side apply set, and that are still as it set them.
    fn allowed_by_last_applied(&self, conflicts: &[Conflict]) -> bool {
        let Some(text) = meta::annotation(self.live, LAST_APPLIED) else { return false };
        let Ok(last) = serde_json::from_str::<Value>(text) else { return false };
        let known = Known::Type(self.schema);
        if !typed::check(known, &last).is_empty() {
            return false;
        }
        let Comparison { added, removed, modified } = typed::compare(known, &last, &without_managed_fields(self.live));
        let allowed = typed::field_set(known, &last).difference(&modified).difference(&added).difference(&removed);
        conflicts.iter().all(|(_, set)| set.difference(&allowed).is_empty())
    }
}

/// Takes what `who` changes away from the others; without `force`, taking is a conflict.
fn give_way(managers: &mut Managers, who: &Manager, changed: &Comparison, force: bool) -> Result<(), Vec<Conflict>> {
    let taken = changed.modified.union(&changed.added);
    let mut conflicts: Vec<Conflict> = Vec::new();
    for entry in managers.0.iter().filter(|m| !m.is_same(who)) {
        let both = entry.set.intersection(&taken);
        if !both.is_empty() {
            conflicts.push((entry.clone(), both));
        }
    }
    if !force && !conflicts.is_empty() {
        conflicts.sort_by(|a, b| a.0.name.cmp(&b.0.name).then_with(|| a.0.shown().cmp(&b.0.shown())));
        return Err(conflicts);
    }
    for entry in managers.0.iter_mut().filter(|m| !m.is_same(who)) {
        entry.set = entry.set.difference(&taken).difference(&changed.removed);
    }
    managers.drop_empty();
    Ok(())
}

/// Removes what the manager applied last time and does not apply now, unless somebody owns it.
fn prune(known: Known, merged: &Value, managers: &Managers, last: Option<&FieldSet>) -> Value {
    let Some(last) = last.filter(|l| !l.is_empty()) else { return merged.clone() };
    let left = |value: Option<Value>| value.unwrap_or_else(|| Value::Object(Map::new()));
    let paths = |value: &Value| typed::field_set(known, value).with_named_fields(known);
    let last = last.with_named_fields(known);
    let mut pruned = left(typed::remove(known, merged, &last));
    let all = paths(merged);
    let owned = managers.0.iter().fold(FieldSet::default(), |all, m| all.union(&m.set)).with_named_fields(known);
    let unowned = all.difference(&paths(&pruned).union(&owned));
    pruned = left(typed::remove(known, merged, &unowned));
    let gone = all.difference(&paths(&pruned)).intersection(&last);
    left(typed::remove(known, merged, &gone))
}

/// The fields that a write which turned `old` into `new` owns.
fn own_update(known: Known, old: &Value, new: &Value, ignored: &FieldSet) -> FieldSet {
    let changed = typed::compare(known, old, new).without_below(ignored);
    changed.modified.union(&changed.added)
}

/// Records in `new.metadata.managedFields` what an ordinary write changed.
///
/// `old` is None for a create. Call it on the defaulted object, before admission and before the server sets what it
/// allocates: those are nobody's. Fields that the path cannot write (`status` on the object's own path, the rest on the
/// status path) are not counted.
pub fn track_update(
    schema: &TypeDef,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    operation: Operation,
    subresource: &str,
    now: Timestamp,
) {
    let known = Known::Type(schema);
    let live = old.cloned().unwrap_or(Value::Null);
    let mut managers = if subresource.is_empty() && managers::is_reset(new) {
        Managers::default()
    } else {
        let given = if subresource.is_empty() { Managers::of(new) } else { Managers::default() };
        if given.0.is_empty() { Managers::of(&live) } else { given }
    };
    meta::unset(new, "managedFields");
    // An object that nobody tracks is not tracked by an update either.
    if managers.0.is_empty() && old.is_some() {
        return;
    }
    let has_status = kinds::of_object(new).map_or(schema.field("status").is_some(), |kind| kind.has_status());
    let ignored = reset_fields(has_status, &schema.name, subresource);
    let before = match old {
        Some(old) => without_managed_fields(old),
        None => new_object(schema, meta::api_version(new), meta::kind(new)),
    };
    let changed = typed::compare(known, &before, new).without_below(&ignored);
    let who = Manager {
        name: manager.into(),
        operation,
        api_version: meta::api_version(new).into(),
        subresource: subresource.into(),
        time: managers::stamp(now),
        set: strip(&changed.modified.union(&changed.added)),
    };
    let taken = changed.modified.union(&changed.added);
    for entry in &mut managers.0 {
        entry.set = entry.set.difference(&taken).difference(&changed.removed);
    }
    if !who.set.is_empty() {
        match managers.position(&who) {
            Some(at) => {
                let set = managers.0[at].set.union(&who.set);
                managers.0[at] = Manager { set, ..who };
            }
            None => managers.0.push(who),
        }
    }
    managers.drop_empty();
    managers.cap();
    managers.write(new);
}

/// Puts the old times back when nothing but times in `managedFields` changed, so that a write without effect is none.
pub fn restore_times_if_unchanged(old: &Value, new: &mut Value) {
    let same = |old: &Value, new: &Value, but: &[&str]| match (old.as_object(), new.as_object()) {
        (Some(old), Some(new)) => {
            let counted = |map: &Map<String, Value>| map.keys().filter(|k| !but.contains(&k.as_str())).count();
            counted(old) == counted(new)
                && old.iter().all(|(key, value)| but.contains(&key.as_str()) || new.get(key) == Some(value))
        }
        _ => old == new,
    };
    let metadata = |obj: &'_ Value| obj.get("metadata").cloned().unwrap_or(Value::Null);
    if !same(old, new, &["metadata"]) {
        return;
    }
    let (was, is) = (metadata(old), metadata(new));
    let (before, after) = (meta::list_at(&was, &["managedFields"]), meta::list_at(&is, &["managedFields"]));
    let same_managers = before.len() == after.len() && before.iter().zip(after).all(|(a, b)| same(a, b, &["time"]));
    if same_managers && same(&was, &is, &["managedFields", "resourceVersion"]) {
        *new = old.clone();
    }
}

/// An object of a type before anybody wrote to it: what its type always carries is there already, so that a writer owns
/// what it puts in and not the place itself.
fn new_object(schema: &TypeDef, api_version: &str, kind: &str) -> Value {
    let mut obj = json!({"apiVersion": api_version, "kind": kind});
    schema.normalize(&mut obj);
    obj
}

fn without_managed_fields(obj: &Value) -> Value {
    let mut out = obj.clone();
    meta::unset(&mut out, "managedFields");
    out
}

/// Fields that are the server's, or that name the object: nobody owns them.
fn strip(set: &FieldSet) -> FieldSet {
    const METADATA: [&str; 9] = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let field = |name: &str| PathElement::Field(name.into());
    let mut server = FieldSet::default();
    for name in ["apiVersion", "kind", "metadata"] {
        server.insert(&[field(name)]);
    }
    for name in METADATA {
        server.insert(&[field("metadata"), field(name)]);
    }
    set.difference(&server)
}

/// Fields that a path cannot write.
fn reset_fields(has_status: bool, type_name: &str, subresource: &str) -> FieldSet {
    let field = |name: &str| PathElement::Field(name.into());
    let mut out = FieldSet::default();
    match subresource {
        "" | "scale" | "ephemeralcontainers" | "resize" if has_status => out.insert(&[field("status")]),
        "status" => {
            out.insert(&[field("spec")]);
            let kept: &[&str] = match type_name {
                "apps.v1.Deployment" => &["labels"],
                "core.v1.Pod" => &["deletionTimestamp", "ownerReferences"],
                _ => &[],
            };
            kept.iter().for_each(|name| out.insert(&[field("metadata"), field(name)]));
        }
        "approval" => {
            out.insert(&[field("spec")]);
            out.insert(&[field("status"), field("certificate")]);
        }
        _ => {}
    }
    out
}

/// Keeps the annotation of client-side apply in step, for objects that have it.
fn update_last_applied(mut merged: Value, live: &Value, applied: &Value, manager: &str) -> Value {
    if manager != "kubectl" || meta::annotation(live, LAST_APPLIED).is_none() {
        return merged;
    }
    let mut last = applied.clone();
    if let Some(annotations) = last.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.shift_remove(LAST_APPLIED);
    }
    let text = format!("{}\n", sorted(&last));
    let others = meta::annotations(&merged).into_iter().flatten().filter(|(k, _)| *k != LAST_APPLIED);
    let size: usize = others.map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size + LAST_APPLIED.len() + text.len() <= ANNOTATIONS_MAX {
        meta::set_annotation(&mut merged, LAST_APPLIED, &text);
    }
    merged
}

/// The same document with all members in order: the annotation's form.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut members: Vec<(String, Value)> = map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn does_not_fit(kind: &Kind, applied: &Value, problems: &[String]) -> Status {
    let text = match problems {
        [one] => one.clone(),
        many => format!("errors:\n{}", many.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n")),
    };
    Status::generic(format!(
        "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {text}",
        meta::namespace(applied),
        meta::name(applied),
        kind.group,
        kind.version,
        kind.kind
    ))
}

fn conflict_status(conflicts: &[Conflict]) -> Status {
    let mut causes = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    let mut count = 0;
    for (manager, set) in conflicts {
        let shown = manager.shown();
        lines.push(format!("conflicts with {shown}:"));
        for path in set.paths() {
            count += 1;
            lines.push(format!("- {path}"));
            causes.push(json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {shown}"),
                "field": path,
            }));
        }
    }
    let message = match (count, conflicts, causes.first()) {
        (1, [(manager, _)], Some(cause)) => {
            let path = meta::str_at(cause, &["field"]);
            format!("Apply failed with 1 conflict: conflict with {}: {path}", manager.shown())
        }
        _ => format!("Apply failed with {count} conflicts: {}", lines.join("\n")),
    };
    Status::failure(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
}

#[cfg(test)]
mod tests;
