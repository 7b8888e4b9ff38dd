//! Objects and what is wrong with them: `field: message`, in order.

use super::*;
use crate::{defaults, kinds, meta, strategy};
use serde_json::json;

fn prepared(group: &str, plural: &str, mut obj: Value) -> (std::sync::Arc<Kind>, Value) {
    let kind = kinds::by_resource(group, "v1", plural).expect(plural);
    if meta::name(&obj).is_empty() {
        meta::set(&mut obj, "name", "x");
    }
    if kind.namespaced {
        meta::set(&mut obj, "namespace", "default");
    }
    defaults::apply_defaults(&kind, &mut obj);
    strategy::prepare_for_create(&kind, &mut obj);
    (kind, obj)
}

fn check(group: &str, plural: &str, obj: Value, expect: &[&str]) {
    let (kind, obj) = prepared(group, plural, obj);
    let found: Vec<String> = create(&kind, &obj).iter().map(|e| e.to_string()).collect();
    assert_eq!(found, expect, "{obj}");
}

fn pod(spec: Value) -> Value {
    let mut container = json!({"name": "c", "image": "x"});
    if let (Some(map), Some(more)) = (container.as_object_mut(), spec.get("container").and_then(Value::as_object)) {
        map.extend(more.clone());
    }
    let mut all = spec.as_object().cloned().unwrap_or_default();
    all.shift_remove("container");
    all.entry("containers").or_insert(json!([container]));
    json!({"spec": all})
}

#[test]
fn pods() {
    check("", "pods", pod(json!({})), &[]);
    check("", "pods", json!({"spec": {}}), &["spec.containers: Required value"]);
    check("", "pods", pod(json!({"container": {"image": ""}})), &["spec.containers[0].image: Required value"]);
    check(
        "",
        "pods",
        pod(json!({"container": {"ports": [{"containerPort": 65536}]}})),
        &["spec.containers[0].ports[0].containerPort: Invalid value: 65536: must be between 1 and 65535, inclusive"],
    );
    check(
        "",
        "pods",
        pod(json!({"container": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}})),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
    );
    check(
        "",
        "pods",
        pod(json!({"container": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}})),
        &["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    check(
        "",
        "pods",
        pod(json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]})),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        "",
        "pods",
        pod(json!({"tolerations": [{"operator": "Exists", "effect": "X"}]})),
        &[
            "spec.tolerations[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
}

#[test]
fn pod_changes() {
    let (kind, old) = prepared("", "pods", pod(json!({"activeDeadlineSeconds": 10})));
    let check = |change: fn(&mut Value), expect: &[&str]| {
        let mut new = old.clone();
        change(&mut new);
        let found: Vec<String> = update(&kind, &new, &old).iter().map(|e| e.field.clone()).collect();
        assert_eq!(found, expect);
    };
    check(|pod| pod["spec"]["containers"][0]["image"] = json!("y"), &[]);
    check(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(5), &[]);
    check(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(20), &["spec.activeDeadlineSeconds"]);
    check(|pod| pod["spec"]["nodeName"] = json!("n"), &["spec"]);
    check(|pod| pod["spec"]["containers"] = json!([]), &["spec.containers", "spec.containers"]);
}

#[test]
fn workloads_and_services() {
    let template =
        || json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    check(
        "apps",
        "deployments",
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template()}}),
        &[],
    );
    check(
        "apps",
        "deployments",
        json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": template()}}),
        &["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"],
    );
    check(
        "apps",
        "deployments",
        json!({"spec": {"replicas": -1, "selector": {"matchLabels": {"a": "b"}}, "template": template()}}),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check("", "services", json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}), &[]);
    check("", "services", json!({"spec": {}}), &["spec.ports: Required value"]);
    check("", "services", json!({"spec": {"type": "ExternalName"}}), &["spec.externalName: Required value"]);
}

#[test]
fn rights_and_settings() {
    check(
        "rbac.authorization.k8s.io",
        "roles",
        json!({"rules": [{"verbs": ["get"], "resources": ["pods"]}]}),
        &["rules[0].apiGroups: Required value: resource rules must supply at least one api group"],
    );
    check(
        "",
        "configmaps",
        json!({"data": {"a b": ""}}),
        &[
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    check(
        "",
        "namespaces",
        json!({"metadata": {"name": "a.b"}}),
        &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
    );
}

#[test]
fn odd_objects_do_not_panic() {
    for kind in kinds::builtin() {
        for odd in [
            json!({}),
            json!(null),
            json!({"spec": [], "metadata": 1}),
            json!({"spec": {"template": 3, "containers": {"a": 1}, "ports": "x"}}),
        ] {
            let _ = create(kind, &odd);
            let _ = update(kind, &odd, &odd);
            let _ = status_update(kind, &odd, &odd);
        }
    }
}

#[test]
fn certificates_are_asked_for_in_known_words() {
    use base64::Engine;
    let pem = "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n";
    let mut request = base64::engine::general_purpose::STANDARD.encode(pem);
    request.insert(20, '\n');
    let with = |more: Value| {
        let mut spec = json!({"request": request, "usages": ["client auth"], "signerName": "example.com/signer"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "c"}, "spec": spec})
    };
    let errors = |more: Value| {
        let (kind, obj) = prepared("certificates.k8s.io", "certificatesigningrequests", with(more));
        create(&kind, &obj).iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; ")
    };
    for (more, expect) in [
        (json!({}), ""),
        (json!({"expirationSeconds": 600}), ""),
        (json!({"expirationSeconds": 10}), "may not specify a duration less than 600 seconds"),
        (json!({"usages": ["client auth", "client auth"]}), "Duplicate value: \"client auth\""),
        (json!({"usages": ["anything"]}), "spec.usages[0]: Unsupported value: \"anything\""),
        (
            json!({"signerName": "kubernetes.io/legacy-unknown"}),
            "the legacy signerName is not allowed via this API version",
        ),
        (json!({"signerName": "signer"}), "must be a fully qualified domain and path"),
    ] {
        let found = errors(more.clone());
        assert!(found.contains(expect) && found.is_empty() == expect.is_empty(), "{more}: {found}");
    }
}
