//! What a field is when nobody set it.
//!
//! [`apply_defaults`] first brings an object into the form of a typed round trip (see [`TypeDef::normalize`]), then
//! fills in the defaults of its kind. Sources: the Kubernetes API reference, field by field. One file a family.
//!
//! [`TypeDef::normalize`]: crate::schema::TypeDef::normalize

mod admission;
mod network;
mod pod;
mod policy;
mod storage;
mod workloads;

pub(crate) use workloads::TEMPLATE_GENERATION;

use crate::kinds::Kind;
use crate::schema::Schema;
use base64::Engine as _;
use serde_json::{Map, Value};

/// Fills in what is absent. Applying it twice changes nothing.
pub fn apply_defaults(kind: &Kind, obj: &mut Value) {
    if let Some(def) = Schema::for_kind(kind) {
        def.normalize(obj);
    }
    let Some(map) = obj.as_object_mut() else { return };
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::pod(map),
        ("", "PodTemplate") => pod::template(map),
        ("", "ReplicationController") => workloads::replication_controller(map),
        ("apps", "Deployment") => workloads::deployment(map),
        ("apps", "ReplicaSet") => workloads::replica_set(map),
        ("apps", "StatefulSet") => workloads::stateful_set(map),
        ("apps", "DaemonSet") => workloads::daemon_set(map),
        ("batch", "Job") => workloads::job(map),
        ("batch", "CronJob") => workloads::cron_job(map),
        ("", "Service") => network::service(map),
        ("", "Endpoints") => network::endpoints(map),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(map),
        ("networking.k8s.io", "NetworkPolicy") => network::network_policy(map),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(map),
        ("", "PersistentVolume") => storage::persistent_volume(map),
        ("", "PersistentVolumeClaim") => storage::claim(map),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(map),
        ("storage.k8s.io", "CSIDriver") => storage::csi_driver(map),
        ("", "Namespace") => policy::namespace(map),
        ("", "Node") => policy::node(map),
        ("", "Secret") => secret(map),
        ("", "LimitRange") => policy::limit_range(map),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => policy::role_binding(map),
        ("scheduling.k8s.io", "PriorityClass") => or(map, "preemptionPolicy", "PreemptLowerPriority"),
        ("autoscaling", "HorizontalPodAutoscaler") => policy::autoscaler(map, &kind.version),
        ("certificates.k8s.io", "CertificateSigningRequest") => policy::signing_request(map),
        ("authentication.k8s.io", "TokenRequest") => with(map, "spec", |spec| or(spec, "expirationSeconds", 3600)),
        ("admissionregistration.k8s.io", name) => admission::registration(name, map),
        _ => {}
    }
}

/// What was written as text is kept as data; the text wins over data of the same key (Kubernetes API, `Secret.stringData`).
fn secret(map: &mut Map<String, Value>) {
    or(map, "type", "Opaque");
    let Some(Value::Object(text)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
    if !data.is_object() {
        *data = Value::Object(Map::new());
    }
    for (key, value) in text {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        data[key] = encoded.into();
    }
}

/// Sets `key` unless something is there.
fn or(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_string(), value.into());
    }
}

/// Runs `act` on the object at `key`, if there is one.
fn with(map: &mut Map<String, Value>, key: &str, act: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(inner) = map.get_mut(key).and_then(Value::as_object_mut) {
        act(inner);
    }
}

/// Runs `act` on each object in the list at `key`.
fn each(map: &mut Map<String, Value>, key: &str, mut act: impl FnMut(&mut Map<String, Value>)) {
    for item in map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(inner) = item.as_object_mut() {
            act(inner);
        }
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or("")
}

fn empty() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn check(group: &str, plural: &str, mut obj: Value, expect: &[(&str, Value)]) {
        let kind = kinds::by_resource(group, "v1", plural).expect(plural);
        apply_defaults(&kind, &mut obj);
        for (pointer, want) in expect {
            assert_eq!(obj.pointer(pointer), Some(want), "{pointer} of {obj}");
        }
        let once = obj.clone();
        apply_defaults(&kind, &mut obj);
        assert_eq!(obj, once, "twice");
    }

    #[test]
    fn table() {
        check(
            "",
            "pods",
            json!({"spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]}}),
            &[
                ("/spec/restartPolicy", json!("Always")),
                ("/spec/containers/0/imagePullPolicy", json!("Always")),
                ("/spec/containers/0/ports/0/protocol", json!("TCP")),
                ("/spec/containers/0/livenessProbe/httpGet/path", json!("/")),
                ("/spec/containers/0/livenessProbe/periodSeconds", json!(10)),
                ("/spec/containers/0/resources/requests/cpu", json!("1")),
                ("/spec/volumes/0/emptyDir", json!({})),
                ("/spec/enableServiceLinks", json!(true)),
            ],
        );
        check(
            "",
            "services",
            json!({"spec": {"ports": [{"port": 80}]}}),
            &[
                ("/spec/type", json!("ClusterIP")),
                ("/spec/ports/0/targetPort", json!(80)),
                ("/spec/sessionAffinity", json!("None")),
                ("/spec/internalTrafficPolicy", json!("Cluster")),
            ],
        );
        check(
            "apps",
            "deployments",
            json!({"spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}}}),
            &[
                ("/spec/replicas", json!(0)),
                ("/spec/strategy/rollingUpdate/maxSurge", json!("25%")),
                ("/spec/template/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
            ],
        );
    }
}
