//! The downward API: what a pod may ask about itself (`fieldRef`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

/// What is known only on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, the first one preferred.
    pub host_ips: Vec<String>,
    /// The pod's addresses; empty before there are any.
    pub pod_ips: Vec<String>,
}

/// The value of a field path. `volume` permits the paths that only files may ask for.
pub fn field(pod: &Pod, path: &str, situation: &Situation, volume: bool) -> Result<String, String> {
    let (base, subscript) = match path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        Some((base, key)) => (base, Some(key)),
        None => (path, None),
    };
    let meta = &pod.metadata;
    let map = match base {
        "metadata.labels" => Some(meta.labels.as_ref()),
        "metadata.annotations" => Some(meta.annotations.as_ref()),
        _ => None,
    };
    if let Some(map) = map {
        return match subscript {
            Some(key) => Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default()),
            None if volume => Ok(lines(map)),
            None => Err(format!("unsupported fieldPath: {path}")),
        };
    }
    let spec = pod.spec.as_ref();
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => Some(situation.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" => situation.host_ips.first().cloned(),
        "status.hostIPs" => Some(situation.host_ips.join(",")),
        "status.podIP" => situation.pod_ips.first().cloned(),
        "status.podIPs" => Some(situation.pod_ips.join(",")),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    };
    Ok(text.unwrap_or_default())
}

/// `key="value"` a line, the value escaped, in the order of keys.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b/c": "x\"y"}},
            "spec": {"containers": [], "serviceAccountName": "sa"}
        }))
        .unwrap();
        let situation =
            Situation { node_name: "node".into(), host_ips: vec!["1.1.1.1".into()], pod_ips: vec!["2.2.2.2".into()] };
        let check = |path: &str, volume: bool, expect: Option<&str>| {
            assert_eq!(field(&pod, path, &situation, volume).ok().as_deref(), expect, "{path}");
        };
        check("metadata.name", false, Some("p"));
        check("metadata.labels['b/c']", false, Some("x\"y"));
        check("metadata.labels['none']", false, Some(""));
        check("metadata.labels", true, Some("a=\"1\"\nb/c=\"x\\\"y\""));
        check("metadata.labels", false, None);
        check("metadata.annotations", true, Some(""));
        check("spec.nodeName", false, Some("node"));
        check("spec.serviceAccountName", false, Some("sa"));
        check("status.podIP", false, Some("2.2.2.2"));
        check("status.hostIPs", false, Some("1.1.1.1"));
        check("status.phase", false, None);
    }
}
