//! Apply and tracking as scripts: who writes what, and what is owned then.

use super::*;
use crate::schema::Schema;
use std::sync::Arc;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

fn config_map() -> (Arc<Kind>, &'static TypeDef) {
    let kind = kinds::by_resource("", "v1", "configmaps").expect("config maps");
    let schema = Schema::for_kind(&kind).expect("a type");
    (kind, schema)
}

fn deployments() -> (Arc<Kind>, &'static TypeDef) {
    let kind = kinds::by_resource("apps", "v1", "deployments").expect("deployments");
    let schema = Schema::for_kind(&kind).expect("a type");
    (kind, schema)
}

fn data(pairs: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": pairs})
}

/// `manager/operation -> fieldsV1` of an object.
fn owners(obj: &Value) -> Value {
    let mut out = Map::new();
    for entry in meta::list_at(obj, &["metadata", "managedFields"]) {
        let key = format!("{}/{}", meta::str_at(entry, &["manager"]), meta::str_at(entry, &["operation"]));
        out.insert(key, entry["fieldsV1"].clone());
    }
    Value::Object(out)
}

#[test]
fn leaving_a_field_out_removes_it() {
    let (kind, schema) = config_map();
    let one = apply(&kind, schema, None, &data(json!({"a": "1", "b": "1"})), "one", false, "", at(0)).expect("applied");
    assert_eq!(owners(&one), json!({"one/Apply": {"f:data": {"f:a": {}, "f:b": {}}}}));
    let two = apply(&kind, schema, Some(&one), &data(json!({"b": "1"})), "two", false, "", at(1)).expect("same value");
    let three = apply(&kind, schema, Some(&two), &data(json!({})), "one", false, "", at(2)).expect("let go");
    assert_eq!(three["data"], json!({"b": "1"}), "the other manager keeps its field");
    let four = apply(&kind, schema, Some(&three), &data(json!({})), "two", false, "", at(3)).expect("let go");
    assert!(four.get("data").is_none_or(|d| d == &json!({})), "{four}");
}

#[test]
fn conflicts_are_told_and_forced() {
    let (kind, schema) = deployments();
    let config = |replicas: i64| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": replicas,
            "template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}})
    };
    let one = apply(&kind, schema, None, &config(1), "one", false, "", at(0)).expect("applied");
    let mut edited = one.clone();
    edited["spec"]["replicas"] = json!(5);
    track_update(schema, Some(&one), &mut edited, "hand", Operation::Update, "", at(1));
    assert_eq!(owners(&edited)["hand/Update"], json!({"f:spec": {"f:replicas": {}}}));
    let refused = apply(&kind, schema, Some(&edited), &config(1), "one", false, "", at(2)).expect_err("a conflict");
    assert_eq!(refused.code(), 409);
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"hand\" using apps/v1: .spec.replicas");
    let forced = apply(&kind, schema, Some(&edited), &config(1), "one", true, "", at(3)).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 1);
    assert_eq!(owners(&forced).get("hand/Update"), None);
    let left_out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    let gone = apply(&kind, schema, Some(&forced), &left_out, "one", false, "", at(4)).expect("let go");
    assert!(gone.pointer("/spec/template").is_none(), "{gone}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (kind, schema) = config_map();
    let check = |config: Value, message: &str| {
        let refused = apply(&kind, schema, None, &config, "one", false, "", at(0)).expect_err("refused");
        assert_eq!(refused.message, message);
    };
    let mut unknown = data(json!({}));
    unknown["nothing"] = json!(1);
    check(
        unknown,
        "failed to create typed patch object (/m; /v1, Kind=ConfigMap): .nothing: field not declared in schema",
    );
    let mut managed = data(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    check(managed, "metadata.managedFields must be nil");
}

#[test]
fn ordinary_writes_own_what_they_change() {
    let (_, schema) = config_map();
    let mut created = data(json!({"a": "1", "b": "1"}));
    track_update(schema, None, &mut created, "creator", Operation::Update, "", at(0));
    assert_eq!(owners(&created), json!({"creator/Update": {"f:data": {".": {}, "f:a": {}, "f:b": {}}}}));
    let mut put = data(json!({"a": "2", "c": "1"}));
    track_update(schema, Some(&created), &mut put, "putter", Operation::Update, "", at(1));
    assert_eq!(
        owners(&put),
        json!({"creator/Update": {"f:data": {}}, "putter/Update": {"f:data": {"f:a": {}, "f:c": {}}}})
    );
    let mut reset = data(json!({"a": "2"}));
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(schema, Some(&put), &mut reset, "x", Operation::Update, "", at(2));
    assert_eq!(owners(&reset), json!({}), "asked to forget, and an object nobody tracks stays so");
}

#[test]
fn kubectl_takes_over_client_side_apply() {
    let (kind, schema) = config_map();
    let mut created = data(json!({"a": "1", "b": "1"}));
    meta::set_annotation(&mut created, LAST_APPLIED, &format!("{}\n", data(json!({"a": "1", "b": "1"}))));
    track_update(schema, None, &mut created, "kubectl-client-side-apply", Operation::Update, "", at(0));
    let refused = apply(&kind, schema, Some(&created), &data(json!({"a": "2"})), "other", false, "", at(1));
    assert!(refused.is_err());
    let taken = apply(&kind, schema, Some(&created), &data(json!({"a": "2"})), "kubectl", false, "", at(1))
        .expect("taken over");
    assert_eq!(taken["data"], json!({"a": "2", "b": "1"}));
    assert_eq!(owners(&taken)["kubectl/Apply"], json!({"f:data": {"f:a": {}}}));
}
