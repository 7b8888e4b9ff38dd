//! What is accepted because Kubernetes accepts it, and on which nothing acts yet: the writer hears so at once.
//!
//! One table, from which a line is struck when its feature comes. Every sentence begins with [`PREFIX`], so that tools can tell them from
//! upstream's warnings.

use crate::kinds::Kind;
use crate::meta;
use serde_json::Value;

/// How each of these warnings begins.
pub const PREFIX: &str = "skiff: ";

/// Kinds on whose objects nothing acts: group, kind, what that means.
const KINDS: &[(&str, &str, &str)] = &[
    ("networking.k8s.io", "NetworkPolicy", "a NetworkPolicy is stored, but no traffic is held back by it yet"),
    ("networking.k8s.io", "Ingress", "an Ingress is stored, but nothing routes by it yet"),
    ("networking.k8s.io", "IngressClass", "an IngressClass is stored, but nothing routes by it yet"),
    ("batch", "Job", "a Job is stored, but no pods are made for it yet"),
    ("batch", "CronJob", "a CronJob is stored, but no jobs are made from it yet"),
    ("apps", "StatefulSet", "a StatefulSet is stored, but no pods are made for it yet"),
    ("apps", "DaemonSet", "a DaemonSet is stored, but no pods are made for it yet"),
    (
        "",
        "ReplicationController",
        "a ReplicationController is stored, but no pods are made for it yet; use a Deployment",
    ),
    ("autoscaling", "HorizontalPodAutoscaler", "a HorizontalPodAutoscaler is stored, but nothing is scaled by it yet"),
    ("", "PersistentVolumeClaim", "a PersistentVolumeClaim is stored, but no volume is bound to it yet"),
    ("", "PersistentVolume", "a PersistentVolume is stored, but no claim is bound to it yet"),
    ("storage.k8s.io", "StorageClass", "a StorageClass is stored, but no volumes are made by it yet"),
    (
        "storage.k8s.io",
        "VolumeAttributesClass",
        "a VolumeAttributesClass is stored, but no volume is changed by it yet",
    ),
    ("storage.k8s.io", "VolumeAttachment", "a VolumeAttachment is stored, but nothing is attached by it yet"),
    ("storage.k8s.io", "CSIDriver", "a CSIDriver is stored, but drivers are not called yet"),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        "a CertificateSigningRequest is stored, but no certificate is issued for it yet",
    ),
    (
        "scheduling.k8s.io",
        "PriorityClass",
        "pods are placed in order of priority, but none is preempted for another yet",
    ),
    (
        "node.k8s.io",
        "RuntimeClass",
        "every pod runs by the one runtime of its node; the handler of a RuntimeClass is not looked at yet",
    ),
    (
        "",
        "Endpoints",
        "Endpoints are stored, but not mirrored into EndpointSlices yet, and traffic goes by those: write an EndpointSlice",
    ),
];

/// Subresources of pods by which nothing is done.
const SUBRESOURCES: &[(&str, &str)] = &[
    (
        "resize",
        "a resize is recorded, but the containers keep the resources that they were started with: replace the pod",
    ),
    ("ephemeralcontainers", "ephemeral containers are recorded, but not started yet"),
];

/// Volumes of pods that are not mounted.
const VOLUMES: &[(&str, &str)] = &[
    ("persistentVolumeClaim", "claims are not bound yet, so the pod will not start"),
    ("ephemeral", "claims are not bound yet, so the pod will not start"),
    ("image", "image volumes are not mounted yet, so the pod will not start"),
    ("csi", "drivers are not called yet, so the pod will not start"),
    ("nfs", "network volumes are not mounted yet, so the pod will not start"),
    ("iscsi", "network volumes are not mounted yet, so the pod will not start"),
];

/// Told about a write of `obj`, through `subresource` or (empty) itself.
pub fn of_write(kind: &Kind, subresource: &str, obj: &Value) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    if !subresource.is_empty() {
        if kind.is("", "Pod") {
            found.extend(SUBRESOURCES.iter().filter(|(sub, _)| *sub == subresource).map(|(_, text)| text.to_string()));
        }
    } else {
        let same = |(group, name, _): &&(&str, &str, &str)| kind.is(group, name);
        found.extend(KINDS.iter().filter(same).map(|(.., text)| text.to_string()));
        match (kind.group.as_str(), kind.kind.as_str()) {
            ("", "Pod") => pod(&mut found, meta::at(obj, &["spec"]), "spec"),
            ("apps", "Deployment" | "ReplicaSet") => {
                pod(&mut found, meta::at(obj, &["spec", "template", "spec"]), "spec.template.spec");
            }
            ("", "Service") if meta::str_at(obj, &["spec", "type"]) == "LoadBalancer" => {
                found.push(
                    "no load balancer is made for the Service yet; it is reached at its cluster address and node ports"
                        .into(),
                );
            }
            _ => {}
        }
    }
    found.into_iter().map(|text| format!("{PREFIX}{text}")).collect()
}

fn pod(found: &mut Vec<String>, spec: Option<&Value>, at: &str) {
    let Some(spec) = spec else { return };
    let is_set = |value: &Value, key: &str| value.get(key).is_some_and(|v| !v.is_null());
    for (i, volume) in meta::list_at(spec, &["volumes"]).iter().enumerate() {
        let unmounted = VOLUMES.iter().filter(|(source, _)| is_set(volume, source));
        found.extend(unmounted.map(|(source, text)| format!("{at}.volumes[{i}].{source}: {text}")));
        if volume.get("emptyDir").is_some_and(|dir| is_set(dir, "sizeLimit")) {
            found.push(format!("{at}.volumes[{i}].emptyDir.sizeLimit: nothing holds the volume to it yet"));
        }
    }
    if !meta::list_at(spec, &["resourceClaims"]).is_empty() {
        found.push(format!("{at}.resourceClaims: devices are not handed out yet"));
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in meta::list_at(spec, &[list]).iter().enumerate() {
            let limits = container.get("resources").and_then(|r| r.get("limits"));
            if limits.is_some_and(|limits| is_set(limits, "ephemeral-storage")) {
                let place = format!("{at}.{list}[{i}].resources.limits[ephemeral-storage]");
                found.push(format!("{place}: nothing holds the container to it yet"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    #[test]
    fn the_writer_hears_what_nothing_acts_on() {
        let check = |group: &str, plural: &str, sub: &str, obj: Value, expect: &[&str]| {
            let kind = kinds::builtin().iter().find(|k| k.group == group && k.plural == plural).cloned().unwrap();
            let found = of_write(&kind, sub, &obj);
            assert!(found.iter().all(|text| text.starts_with(PREFIX)));
            assert_eq!(found.len(), expect.len(), "{plural}: {found:?}");
            assert!(found.iter().zip(expect).all(|(text, part)| text.contains(part)), "{plural}: {found:?}");
        };
        check("networking.k8s.io", "networkpolicies", "", json!({}), &["NetworkPolicy"]);
        check("batch", "jobs", "", json!({}), &["Job"]);
        check("batch", "jobs", "status", json!({}), &[]);
        check("", "services", "", json!({"spec": {"type": "ClusterIP"}}), &[]);
        check("", "services", "", json!({"spec": {"type": "LoadBalancer"}}), &["load balancer"]);
        check("", "configmaps", "", json!({}), &[]);
        check("", "pods", "", json!({"spec": {"containers": [{"name": "c"}], "volumes": [{"emptyDir": {}}]}}), &[]);
        check("", "pods", "resize", json!({}), &["keep the resources"]);
        check("", "pods", "ephemeralcontainers", json!({}), &["not started"]);
        let spec = json!({
            "volumes": [{"emptyDir": {"sizeLimit": "1Gi"}}, {"image": {}}, {"persistentVolumeClaim": {"claimName": "c"}}],
            "containers": [{"resources": {"limits": {"ephemeral-storage": "1Gi"}}}], "resourceClaims": [{"name": "r"}],
        });
        let expect = [
            "volumes[0].emptyDir.sizeLimit",
            "volumes[1].image",
            "volumes[2].persistentVolumeClaim",
            "resourceClaims",
            "containers[0]",
        ];
        check("", "pods", "", json!({"spec": spec}), &expect);
        check("apps", "deployments", "", json!({"spec": {"template": {"spec": spec}}}), &expect);
        for (group, name, _) in KINDS {
            assert!(
                kinds::by_kind(group, "v1", name).is_some() || *name == "HorizontalPodAutoscaler",
                "{name} is no kind"
            );
        }
    }
}
