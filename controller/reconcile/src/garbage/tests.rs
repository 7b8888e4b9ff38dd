//! Every case that the documentation of garbage collection names, as a row: who is there, and what becomes of the one that is asked about.

use super::*;
use crate::action::{Liveness, Settings};
use jiff::Timestamp;
use skiff_api::view::Resource;

/// An object of the little world of a test. Maps live in namespace `d` unless they say otherwise.
struct Thing {
    resource: Resource,
    namespace: &'static str,
    uid: &'static str,
    meta: Value,
}

fn map(uid: &'static str) -> Thing {
    Thing { resource: Resource::new("", "v1", "configmaps"), namespace: "d", uid, meta: json!({}) }
}

fn role(uid: &'static str) -> Thing {
    let resource = Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles");
    Thing { resource, namespace: "", uid, meta: json!({}) }
}

impl Thing {
    fn within(self, namespace: &'static str) -> Self {
        Thing { namespace, ..self }
    }
    fn deleting(mut self, finalizers: &[&str]) -> Self {
        self.meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.held(finalizers)
    }
    fn held(mut self, finalizers: &[&str]) -> Self {
        self.meta["finalizers"] = json!(finalizers);
        self
    }
    /// A reference: (apiVersion, kind, name and uid, blockOwnerDeletion).
    fn of(mut self, api_version: &str, kind: &str, name: &str, uid: &str, blocks: bool) -> Self {
        let reference =
            json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": blocks});
        match self.meta["ownerReferences"].as_array_mut() {
            Some(list) => list.push(reference),
            None => self.meta["ownerReferences"] = json!([reference]),
        }
        self
    }
    fn of_map(self, uid: &str) -> Self {
        self.of("v1", "ConfigMap", uid, uid, true)
    }
}

fn world(things: Vec<Thing>) -> View {
    let mut view = View::default();
    for thing in things {
        put(&mut view, thing);
    }
    view
}

fn put(view: &mut View, thing: Thing) -> Change {
    let mut meta = thing.meta;
    for (field, text) in
        [("name", thing.uid), ("namespace", thing.namespace), ("uid", thing.uid), ("resourceVersion", "7")]
    {
        meta[field] = json!(text);
    }
    let object = json!({"metadata": meta}).to_string();
    view.apply(&thing.resource, &Key::new(thing.namespace, thing.uid), Some(object.as_bytes())).unwrap()
}

fn planned(view: &View, uid: &str) -> Plan {
    let settings = Settings {
        ca: String::new(),
        eviction_grace_ms: 0,
        event_ttl_seconds: 0,
        cluster_cidr: ([10, 42, 0, 0].into(), 16),
    };
    let context = Context { view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &Liveness::default() };
    plan(&context, &uid_key(uid))
}

/// A plan in short: what is deleted how, which owners or finalizers are left, what is told, and whether it is looked at again.
fn short(plan: &Plan) -> String {
    let mut said: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::Delete { uid, propagation, resource_version, .. } => {
                assert_eq!(resource_version.as_deref(), Some("7"), "a deletion holds for what was read");
                format!("delete {uid} {}", propagation.unwrap_or("-"))
            }
            Action::Patch { key, patch, .. } => {
                assert_eq!(patch["metadata"]["resourceVersion"], "7", "a patch holds for what was read");
                let owners = patch["metadata"].get("ownerReferences").map(|owners| {
                    let one = |o: &Value| {
                        format!(
                            "{}{}",
                            o["uid"].as_str().unwrap(),
                            if o["blockOwnerDeletion"] == true { "!" } else { "" }
                        )
                    };
                    format!(
                        "owners[{}]",
                        owners.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(",")
                    )
                });
                let finalizers = patch["metadata"].get("finalizers").map(|f| format!("finalizers{f}"));
                format!("{} {}", key.name, owners.or(finalizers).unwrap())
            }
            Action::Event(note) => format!("event {}", note.reason),
            other => panic!("{other:?}"),
        })
        .collect();
    if plan.again_at.is_some() {
        said.push("again".into());
    }
    said.join("; ")
}

fn check(what: &str, things: Vec<Thing>, uid: &str, expect: &str) {
    assert_eq!(short(&planned(&world(things), uid)), expect, "{what}");
}

#[test]
fn dependents_by_what_their_owners_are() {
    check("no owner", vec![map("x")], "x", "");
    check("its owner is there", vec![map("o"), map("x").of_map("o")], "x", "");
    check("its owner is gone", vec![map("x").of_map("o")], "x", "delete x Background");
    check(
        "a namesake with another uid",
        vec![map("o"), map("x").of("v1", "ConfigMap", "o", "old", true)],
        "x",
        "delete x Background",
    );
    check(
        "the uid under another name",
        vec![map("o"), map("x").of("v1", "ConfigMap", "p", "o", true)],
        "x",
        "delete x Background",
    );
    check("one of two is gone", vec![map("o"), map("x").of_map("o").of_map("p")], "x", "x owners[o!]");
    check("both are gone", vec![map("x").of_map("o").of_map("p")], "x", "delete x Background");
    check("already being deleted", vec![map("x").of_map("o").deleting(&["a.example/b"])], "x", "");
    check("it wanted to orphan", vec![map("x").of_map("o").held(&[ORPHAN])], "x", "delete x Orphan");
    check("it wanted to wait", vec![map("x").of_map("o").held(&[FOREGROUND])], "x", "delete x Foreground");
    check(
        "an owner that is being deleted by itself still owns",
        vec![map("o").deleting(&["a.example/b"]), map("x").of_map("o")],
        "x",
        "",
    );
    check("an owner that orphans still owns", vec![map("o").deleting(&[ORPHAN]), map("x").of_map("o")], "x", "");
}

#[test]
fn unknown_is_not_absent() {
    let certificate = |x: Thing| x.of("cert-manager.io/v1", "Certificate", "c", "c", true);
    check("a kind that is not served", vec![certificate(map("x"))], "x", "again");
    check("beside one that is gone", vec![certificate(map("x").of_map("o"))], "x", "again");
    check("beside one that is there", vec![map("o"), certificate(map("x").of_map("o"))], "x", "again");
    let old = map("x").of("extensions/v1beta1", "Deployment", "d", "d", true);
    check("a version that is not served", vec![old], "x", "again");
    check("a namespaced owner of what has no namespace", vec![role("x").of_map("o")], "x", "again");
    check(
        "a review is never an owner",
        vec![map("x").of("authorization.k8s.io/v1", "SubjectAccessReview", "r", "r", true)],
        "x",
        "again",
    );
}

#[test]
fn owners_live_in_the_same_namespace_or_in_none() {
    check(
        "an owner in another namespace",
        vec![map("o").within("e"), map("x").of_map("o")],
        "x",
        "event OwnerRefInvalidNamespace; delete x Background",
    );
    let of_role = |x: Thing| x.of("rbac.authorization.k8s.io/v1", "ClusterRole", "r", "r", true);
    check("an owner without a namespace", vec![role("r"), of_role(map("x"))], "x", "");
    check("the same, gone", vec![of_role(map("x"))], "x", "delete x Background");
    check("of what has no namespace either", vec![role("r"), of_role(role("x"))], "x", "");
    let scaler = Thing { resource: Resource::new("autoscaling", "v2", "horizontalpodautoscalers"), ..map("h") };
    let owned = map("x").of("autoscaling/v2", "HorizontalPodAutoscaler", "h", "h", true);
    check("a kind without a version v1", vec![scaler, owned], "x", "");
}

#[test]
fn foreground() {
    let waiting = || map("o").deleting(&[FOREGROUND]);
    check("the owner waits for who blocks it", vec![waiting(), map("x").of_map("o")], "o", "");
    check("the dependent goes", vec![waiting(), map("x").of_map("o")], "x", "delete x Background");
    check(
        "in the foreground where it has its own",
        vec![waiting(), map("x").of_map("o"), map("y").of_map("x")],
        "x",
        "delete x Foreground",
    );
    check(
        "not if somebody else owns it, too",
        vec![waiting(), map("p"), map("x").of_map("o").of_map("p")],
        "x",
        "x owners[p!]",
    );
    check(
        "unless that one goes as well",
        vec![waiting(), map("p").deleting(&[FOREGROUND]), map("x").of_map("o").of_map("p")],
        "x",
        "delete x Background",
    );
    let free = map("x").of("v1", "ConfigMap", "o", "o", false);
    check("who does not block is not waited for", vec![waiting(), free], "o", "o finalizers[]");
    let free = map("x").of("v1", "ConfigMap", "o", "o", false);
    check("and goes all the same", vec![waiting(), free], "x", "delete x Background");
    check("nobody left", vec![map("o").deleting(&["a.example/b", FOREGROUND])], "o", "o finalizers[\"a.example/b\"]");
    check(
        "orphaning comes first",
        vec![map("o").deleting(&[FOREGROUND, ORPHAN]), map("x").of_map("o")],
        "o",
        "x owners[]",
    );
}

#[test]
fn circles() {
    let pair = || vec![map("a").of_map("b").deleting(&[FOREGROUND]), map("b").of_map("a")];
    check("the first waits for the second", pair(), "a", "");
    check("the second must not hold the first", pair(), "b", "b owners[a]");
    let both = || vec![map("a").of_map("b").deleting(&[FOREGROUND]), map("b").of_map("a").deleting(&[FOREGROUND])];
    check("both were asked to wait", both(), "a", "a owners[b]");
    let three = || {
        let waits = |x: Thing| x.deleting(&[FOREGROUND]);
        vec![waits(map("a").of_map("c")), waits(map("b").of_map("a")), waits(map("c").of_map("b"))]
    };
    check("three in a ring", three(), "b", "b owners[a]");
    check("one that owns itself", vec![map("a").of_map("a").deleting(&[FOREGROUND])], "a", "a owners[a]");
    check("a ring in the background: nothing was asked", vec![map("a").of_map("b"), map("b").of_map("a")], "a", "");
}

#[test]
fn orphans() {
    let owner = || map("o").deleting(&[ORPHAN]);
    check(
        "dependents are let go first",
        vec![owner(), map("x").of_map("o"), map("y").of_map("o").of_map("p")],
        "o",
        "x owners[]; y owners[p!]",
    );
    check("then the owner goes", vec![owner()], "o", "o finalizers[]");
}

/// Whatever a plan rests on, a change of it makes that plan be made anew.
#[test]
fn who_is_looked_at_after_a_change() {
    let mut view = world(vec![map("o"), map("x").of_map("o")]);
    let mut told = |thing: Thing| {
        let change = put(&mut view, thing);
        keys(&view, &change).into_iter().map(|k| k.name).collect::<Vec<_>>()
    };
    assert_eq!(told(map("o").deleting(&[FOREGROUND])), ["o", "x"], "an owner begins to wait");
    assert_eq!(told(map("o").deleting(&[FOREGROUND, "a.example/b"])), ["o"], "it waits already");
    assert_eq!(told(map("x").of("v1", "ConfigMap", "o", "o", false)), ["x", "o"], "a dependent holds it no longer");
    assert_eq!(told(map("x").of_map("o")), ["x"], "and holds it again");
    assert_eq!(told(map("x")), ["o"], "a dependent lets go");
}
