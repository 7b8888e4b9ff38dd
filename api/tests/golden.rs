//! Replays what pure functions can answer of recorded API requests: defaulting, preparation, validation, patches, apply.
//!
//! The folder of recordings is in `SKIFF_GOLDEN`; without it the test is ignored with that reason. Each step starts from
//! the recorded answer to the step before, so one difference does not hide the next. `SKIFF_GOLDEN_SHOW=1` prints every
//! difference; `SKIFF_GOLDEN_ONLY=topic/scenario` narrows.

use serde_json::{Map, Value, json};
use skiff_api::{Kind, apply, defaults, kinds, meta, patch, schema::Schema, strategy, validate};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The least share of comparable steps that must be answered as recorded, in percent.
const EXPECTED_PERCENT: usize = 90;

#[test]
fn recorded_requests() {
    let Some(folder) = std::env::var_os("SKIFF_GOLDEN") else {
        println!("ignored: SKIFF_GOLDEN does not name a folder of recordings");
        return;
    };
    let show = std::env::var_os("SKIFF_GOLDEN_SHOW").is_some();
    let only = std::env::var("SKIFF_GOLDEN_ONLY").unwrap_or_default();
    let mut scores: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut files: Vec<_> = std::fs::read_dir(&folder).expect("the folder").flatten().map(|e| e.path()).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        let topic: Value = serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON");
        let name = topic["topic"].as_str().unwrap_or_default().to_string();
        for scenario in topic["scenarios"].as_array().into_iter().flatten() {
            let title = format!("{name}/{}", scenario["name"].as_str().unwrap_or_default());
            if scenario["profile"] != "api" || !title.starts_with(&only) {
                continue;
            }
            let mut world = World { with_managers: name == "apply", ..World::default() };
            for step in scenario["steps"].as_array().into_iter().flatten() {
                let outcome = world.step(step);
                if step["setup"] == true {
                    continue;
                }
                if let Some(outcome) = outcome {
                    let score = scores.entry(name.clone()).or_default();
                    score.1 += 1;
                    match outcome {
                        Ok(()) => score.0 += 1,
                        Err(why) if show => println!("{title} | {} | {why}", step["name"].as_str().unwrap_or_default()),
                        Err(_) => {}
                    }
                }
            }
        }
    }
    let (mut good, mut all) = (0, 0);
    for (topic, (right, of)) in &scores {
        println!("{topic}: {right}/{of}");
        good += right;
        all += of;
    }
    println!("together: {good}/{all}");
    assert!(good * 100 >= all * EXPECTED_PERCENT, "{good} of {all} steps as recorded, {EXPECTED_PERCENT} % expected");
}

#[derive(Default)]
struct World {
    /// Objects by path, as last answered.
    objects: HashMap<String, Value>,
    with_managers: bool,
}

/// A path taken apart.
struct Target {
    kind: Arc<Kind>,
    namespace: String,
    /// The object's path; for a create, the collection's.
    path: String,
    name: String,
    subresource: String,
    query: String,
}

fn target(path: &str) -> Option<Target> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, mut rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let mut namespace = String::new();
    if let ["namespaces", ns, below, ..] = rest
        && !matches!(*below, "status" | "finalize")
    {
        namespace = ns.to_string();
        rest = &rest[2..];
    }
    let kind = kinds::by_resource(group, version, rest.first()?)?;
    let name = rest.get(1).unwrap_or(&"").to_string();
    let subresource = rest.get(2).unwrap_or(&"").to_string();
    let base =
        if subresource.is_empty() { path.to_string() } else { path[..path.len() - subresource.len() - 1].to_string() };
    Some(Target { kind, namespace, path: base, name, subresource, query: query.to_string() })
}

/// Puts plausible values where the recording has placeholders.
fn concrete(value: &Value) -> Value {
    match value {
        Value::String(text) => {
            if let Some(n) = text.strip_prefix("<port-").and_then(|t| t.strip_suffix('>')) {
                return json!(30000 + n.parse::<i64>().unwrap_or(0));
            }
            Value::String(concrete_text(text))
        }
        Value::Array(items) => Value::Array(items.iter().map(concrete).collect()),
        Value::Object(map) => map.iter().map(|(k, v)| (concrete_text(k), concrete(v))).collect::<Map<_, _>>().into(),
        other => other.clone(),
    }
}

fn concrete_text(text: &str) -> String {
    let mut out = text.replace("<time>", "2026-01-01T00:00:00Z").replace("<microtime>", "2026-01-01T00:00:00.000001Z");
    for (tag, make) in [
        ("uid", (|n| format!("00000000-0000-0000-0000-{n:012}")) as fn(usize) -> String),
        ("ip", |n| format!("10.96.1.{n}")),
        ("rand", |n| format!("r{n:04}")),
        ("hash", |n| format!("hash{n}")),
        ("rv", |n| format!("{n}")),
    ] {
        for n in (1..60).rev() {
            out = out.replace(&format!("<{tag}-{n}>"), &make(n));
        }
    }
    out
}

fn repeat(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains("${repeat:") => {
            let mut out = text.clone();
            while let Some((head, tail)) = out.clone().split_once("${repeat:") {
                let Some((spec, rest)) = tail.split_once('}') else { break };
                let (what, times) = spec.rsplit_once(':').unwrap_or((spec, "1"));
                out = format!("{head}{}{rest}", what.repeat(times.parse().unwrap_or(1)));
            }
            Value::String(out)
        }
        Value::Array(items) => Value::Array(items.iter().map(repeat).collect()),
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (repeat(&Value::String(k.clone())).as_str().unwrap_or(k).to_string(), repeat(v)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

type Outcome = Option<Result<(), String>>;

impl World {
    fn step(&mut self, step: &Value) -> Outcome {
        let target = target(step["path"].as_str()?)?;
        let method = step["method"].as_str()?;
        let response = &step["response"];
        let status = response["status"].as_u64()?;
        let expected = concrete(&repeat(&response["body"]));
        let text = step["body"].to_string();
        let outcome = if text.replace("${repeat", "").contains("${") || step["body"].is_null() {
            None
        } else {
            self.compare(step, &target, method, status, &expected)
        };
        self.remember(&target, method, status, &expected);
        outcome
    }

    fn remember(&mut self, target: &Target, method: &str, status: u64, expected: &Value) {
        let is_object = expected["kind"] == json!(target.kind.kind);
        if target.query.contains("dryRun") || !is_object || status >= 300 {
            return;
        }
        let path = match method {
            "POST" => format!("{}/{}", target.path, meta::name(expected)),
            _ => target.path.clone(),
        };
        self.objects.insert(path, expected.clone());
    }

    fn compare(&self, step: &Value, target: &Target, method: &str, status: u64, expected: &Value) -> Outcome {
        let kind = &target.kind;
        let body = repeat(&step["body"]);
        let content = step["contentType"].as_str().unwrap_or("application/json");
        let old = self.objects.get(&target.path);
        if !matches!(target.subresource.as_str(), "" | "status") || !matches!(status, 200 | 201 | 422) {
            return None;
        }
        if status == 422 && expected.pointer("/details/kind") != Some(&json!(kind.kind)) {
            return None;
        }
        let made: Result<Value, Value> = match (method, content) {
            ("POST", "application/json") if target.name.is_empty() && body.is_object() => {
                self.create(target, body, expected)
            }
            ("PUT", "application/json") if body.is_object() => self.update(target, body, old?, expected),
            ("PATCH", "application/apply-patch+yaml") if body.is_object() => {
                return self.apply(target, &body, old, expected, status);
            }
            ("PATCH", _) => {
                let schema = Schema::for_kind(kind)?;
                let patched = match content {
                    "application/json-patch+json" => patch::json_patch(old?, body.to_string().as_bytes()),
                    "application/merge-patch+json" => patch::merge_patch(old?, &body),
                    "application/strategic-merge-patch+json" => patch::strategic(schema, old?, &body),
                    _ => return None,
                };
                match patched {
                    Ok(new) => self.update(target, new, old?, expected),
                    Err(status) => Err(status.to_value()),
                }
            }
            _ => return None,
        };
        Some(judge(kind, made, expected, status, step["goText"] == true, self.with_managers))
    }

    fn create(&self, target: &Target, mut obj: Value, expected: &Value) -> Result<Value, Value> {
        let kind = &target.kind;
        read(kind, &mut obj)?;
        if kind.namespaced && meta::namespace(&obj).is_empty() {
            meta::set(&mut obj, "namespace", target.namespace.clone());
        }
        defaults::apply_defaults(kind, &mut obj);
        if self.with_managers {
            track(kind, None, &mut obj, target);
        }
        let expected_meta = |key: &str| meta::at(expected, &["metadata", key]).cloned();
        let uid = expected_meta("uid").or_else(|| find_uid(expected));
        meta::set(&mut obj, "creationTimestamp", "2026-01-01T00:00:00Z");
        meta::set(&mut obj, "uid", uid.unwrap_or_else(|| json!("00000000-0000-0000-0000-000000000001")));
        if meta::name(&obj).is_empty() && !meta::generate_name(&obj).is_empty() {
            let made = expected_meta("name").unwrap_or_else(|| json!(format!("{}r0002", meta::generate_name(&obj))));
            meta::set(&mut obj, "name", made);
        }
        admit(kind, &mut obj, expected);
        strategy::prepare_for_create(kind, &mut obj);
        refuse(kind, &obj, validate::create(kind, &obj))
    }

    fn update(&self, target: &Target, mut new: Value, old: &Value, expected: &Value) -> Result<Value, Value> {
        let kind = &target.kind;
        read(kind, &mut new)?;
        if kind.namespaced && meta::namespace(&new).is_empty() {
            meta::set(&mut new, "namespace", target.namespace.clone());
        }
        defaults::apply_defaults(kind, &mut new);
        if self.with_managers {
            track(kind, Some(old), &mut new, target);
        }
        if target.subresource == "status" {
            strategy::prepare_for_status_update(kind, &mut new, old);
            return refuse(kind, &new, validate::status_update(kind, &new, old));
        }
        strategy::prepare_for_update(kind, &mut new, old);
        admit(kind, &mut new, expected);
        refuse(kind, &new, validate::update(kind, &new, old))
    }

    fn apply(&self, target: &Target, body: &Value, old: Option<&Value>, expected: &Value, status: u64) -> Outcome {
        let kind = &target.kind;
        let schema = Schema::for_kind(kind)?;
        let manager = query(&target.query, "fieldManager")?;
        let force = query(&target.query, "force").is_some_and(|f| f == "true");
        let merged = match apply::apply(kind, schema, old, body, &manager, force, &target.subresource, now()) {
            Ok(merged) => merged,
            Err(status_found) => return Some(judge(kind, Err(status_found.to_value()), expected, status, false, true)),
        };
        let world = World::default();
        let made = match old {
            Some(old) => world.update(target, merged, old, expected),
            None => world.create(target, merged, expected),
        };
        Some(judge(kind, made, expected, status, false, true))
    }
}

fn now() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn query(query: &str, key: &str) -> Option<String> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=').map(str::to_string))
}

fn track(kind: &Kind, old: Option<&Value>, new: &mut Value, target: &Target) {
    let manager = query(&target.query, "fieldManager").unwrap_or_else(|| "golden".into());
    if let Some(schema) = Schema::for_kind(kind) {
        apply::track_update(schema, old, new, &manager, apply::Operation::Update, &target.subresource, now());
    }
}

/// A made uid that the answer mentions only inside labels.
fn find_uid(expected: &Value) -> Option<Value> {
    let text = expected.to_string();
    let at = text.find("00000000-0000-0000-0000-")?;
    Some(json!(text.get(at..at + 36)?))
}

fn read(kind: &Kind, obj: &mut Value) -> Result<(), Value> {
    let Some(schema) = Schema::for_kind(kind) else { return Ok(()) };
    if let Some(problem) = schema.type_error(obj) {
        return Err(json!({"message": problem, "decode": true}));
    }
    schema.prune(obj);
    if let Some(map) = obj.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.clone().into());
    }
    Ok(())
}

fn refuse(kind: &Kind, obj: &Value, errs: Vec<validate::FieldError>) -> Result<Value, Value> {
    if errs.is_empty() {
        return Ok(obj.clone());
    }
    Err(skiff_api::Status::invalid(&kind.group, &kind.kind, meta::name(obj), &errs).to_value())
}

/// What admission and allocation add is the server's: taken from the answer.
fn admit(kind: &Kind, obj: &mut Value, expected: &Value) {
    let take = |obj: &mut Value, path: &str| {
        if let (None, Some(value)) = (obj.pointer(path), expected.pointer(path)) {
            let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
            if let Some(map) = obj.pointer_mut(parent).and_then(Value::as_object_mut) {
                map.insert(key.to_string(), value.clone());
            }
        }
    };
    match kind.kind.as_str() {
        "Pod" => {
            for key in ["serviceAccountName", "serviceAccount", "priority", "preemptionPolicy"] {
                take(obj, &format!("/spec/{key}"));
            }
            for list in ["/spec/tolerations", "/spec/volumes"] {
                let missing = expected.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
                let added = missing.into_iter().filter(|v| {
                    v["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access"))
                        || v["key"].as_str().is_some_and(|k| k.starts_with("node.kubernetes.io/"))
                });
                extend(obj, list, added);
            }
            for containers in ["containers", "initContainers"] {
                let count = obj.pointer(&format!("/spec/{containers}")).and_then(Value::as_array).map_or(0, Vec::len);
                for i in 0..count {
                    let at = format!("/spec/{containers}/{i}/volumeMounts");
                    let mounts = expected.pointer(&at).and_then(Value::as_array).cloned().unwrap_or_default();
                    let token = mounts
                        .into_iter()
                        .filter(|m| m["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access")));
                    extend(obj, &at, token);
                }
            }
            if expected["kind"] == "Status" && meta::str_at(obj, &["spec", "serviceAccountName"]).is_empty() {
                obj["spec"]["serviceAccountName"] = json!("default");
            }
        }
        "Service" => {
            take(obj, "/spec/clusterIP");
            take(obj, "/spec/clusterIPs");
            take(obj, "/spec/healthCheckNodePort");
            let count = obj.pointer("/spec/ports").and_then(Value::as_array).map_or(0, Vec::len);
            for i in 0..count {
                take(obj, &format!("/spec/ports/{i}/nodePort"));
            }
        }
        _ => {}
    }
}

fn extend(obj: &mut Value, pointer: &str, items: impl Iterator<Item = Value>) {
    let items: Vec<Value> = items.collect();
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let Some(map) = obj.pointer_mut(parent).and_then(Value::as_object_mut) else { return };
    if items.is_empty() {
        return;
    }
    let list = map.entry(key).or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        for item in items {
            if !list.iter().any(|have| have["key"] == item["key"] && have["name"] == item["name"]) {
                list.push(item);
            }
        }
    }
}

fn judge(
    kind: &Kind,
    made: Result<Value, Value>,
    expected: &Value,
    status: u64,
    go_text: bool,
    managers: bool,
) -> Result<(), String> {
    match (made, status) {
        (Ok(mut object), 200 | 201) => {
            let mut want = expected.clone();
            comparable(kind, &mut object, managers);
            comparable(kind, &mut want, managers);
            match difference("", &want, &object) {
                None => Ok(()),
                Some(why) => Err(why),
            }
        }
        (Err(found), 422) => {
            let fields = |v: &Value| -> Vec<(String, String)> {
                let causes = v.pointer("/details/causes").and_then(Value::as_array).cloned().unwrap_or_default();
                causes
                    .iter()
                    .map(|c| {
                        let message =
                            if go_text { String::new() } else { c["message"].as_str().unwrap_or_default().to_string() };
                        (c["field"].as_str().unwrap_or_default().to_string(), message)
                    })
                    .collect()
            };
            let (want, have) = (fields(expected), fields(&found));
            if want == have { Ok(()) } else { Err(format!("causes\n    want {want:?}\n    have {have:?}")) }
        }
        (Ok(_), _) => Err(format!("{status} expected, accepted: {}", expected["message"])),
        (Err(found), _) => Err(format!("{status} expected, refused: {}", found["message"])),
    }
}

fn comparable(kind: &Kind, obj: &mut Value, managers: bool) {
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        meta::unset(obj, key);
    }
    if !managers {
        meta::unset(obj, "managedFields");
    }
    for entry in obj.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(map) = entry.as_object_mut() {
            map.shift_remove("time");
        }
    }
    if let Some(list) = obj.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
        list.sort_by_key(|e| e["manager"].to_string());
    }
    if kind.is("", "Pod")
        && let Some(list) = obj.pointer_mut("/spec/volumes").and_then(Value::as_array_mut)
    {
        list.iter_mut().for_each(|v| {
            if let Some(sources) = v.pointer_mut("/projected/sources").and_then(Value::as_array_mut) {
                sources.retain(|s| s.pointer("/configMap/name") != Some(&json!("openshift-service-ca.crt")));
            }
        });
    }
}

fn difference(path: &str, want: &Value, have: &Value) -> Option<String> {
    match (want, have) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for key in keys {
                let at = format!("{path}/{key}");
                match (a.get(key), b.get(key)) {
                    (Some(x), Some(y)) => {
                        if let Some(found) = difference(&at, x, y) {
                            return Some(found);
                        }
                    }
                    (Some(x), None) => return Some(format!("{at}: missing {x}")),
                    (None, Some(y)) => return Some(format!("{at}: unexpected {y}")),
                    _ => {}
                }
            }
            None
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (x, y))| difference(&format!("{path}/{i}"), x, y))
        }
        _ => (want != have).then(|| format!("{path}: want {want}, have {have}")),
    }
}
