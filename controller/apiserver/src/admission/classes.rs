//! Classes that the cluster defines: what an object gets when it names none, and what a pod gets from its runtime's.

use super::{Admission, Operation};
use crate::state::{Fresh, State};
use crate::storage::keys;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::Status;

/// All objects of a kind of the cluster's scope.
async fn all(state: &State, group: &str, resource: &str) -> Result<Vec<Value>, Status> {
    let found = state.scan(&keys::prefix_of(group, resource)).await?;
    Ok(found.kvs.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()).collect())
}

/// The class that is marked as the default: the newest, where there are several.
async fn default_of(state: &State, group: &str, resource: &str, annotation: &str) -> Result<Option<String>, Status> {
    let mut marked = all(state, group, resource).await?;
    marked.retain(|class| meta::annotation(class, annotation) == Some("true"));
    marked.sort_by(|a, b| {
        let made = meta::creation_timestamp(b).cmp(&meta::creation_timestamp(a));
        made.then_with(|| meta::name(a).cmp(meta::name(b)))
    });
    Ok(marked.first().map(|class| meta::name(class).to_string()))
}

/// Ingresses and claims that name no class get the default one.
pub async fn default_class(admission: &Admission<'_>, object: &mut Value) -> Result<(), Status> {
    let kind = &admission.call.kind;
    let (group, resource, mark, field, old_way) = match (kind.group.as_str(), kind.kind.as_str()) {
        ("networking.k8s.io", "Ingress") => (
            "networking.k8s.io",
            "ingressclasses",
            "ingressclass.kubernetes.io/is-default-class",
            "ingressClassName",
            "kubernetes.io/ingress.class",
        ),
        ("", "PersistentVolumeClaim") => (
            "storage.k8s.io",
            "storageclasses",
            "storageclass.kubernetes.io/is-default-class",
            "storageClassName",
            "volume.beta.kubernetes.io/storage-class",
        ),
        _ => return Ok(()),
    };
    let named = meta::at(object, &["spec", field]).is_some() || meta::annotation(object, old_way).is_some();
    if named || !object["spec"].is_object() || !admission.call.info.subresource.is_empty() {
        return Ok(());
    }
    if let Some(name) = default_of(admission.state, group, resource, mark).await? {
        object["spec"][field] = json!(name);
    }
    Ok(())
}

/// The priority class for pods that name none.
pub async fn default_priority(state: &State) -> Result<Option<Value>, Status> {
    let mut marked = all(state, "scheduling.k8s.io", "priorityclasses").await?;
    marked.retain(|class| meta::bool_at(class, &["globalDefault"]));
    // There should be one; of several, the least important counts.
    Ok(marked.into_iter().min_by_key(|class| meta::i64_at(class, &["value"])))
}

/// Only one priority class may be the default.
pub async fn one_default_priority(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    let deletes = admission.operation == Operation::Delete;
    if deletes
        || !admission.call.kind.is("scheduling.k8s.io", "PriorityClass")
        || !meta::bool_at(object, &["globalDefault"])
    {
        return Ok(());
    }
    match default_priority(admission.state).await? {
        Some(other) if meta::name(&other) != meta::name(object) => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(&other)
            );
            Err(admission.forbidden(meta::name(object), &why))
        }
        _ => Ok(()),
    }
}

/// A pod's runtime class says where it can run and what it costs on top.
pub async fn runtime_class(admission: &Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    let refuse = |pod: &Value, why: String| Err(admission.forbidden(meta::name(pod), &why));
    let name = meta::str_at(pod, &["spec", "runtimeClassName"]).to_string();
    let own = meta::at(pod, &["spec", "overhead"]).filter(|o| o.as_object().is_some_and(|m| !m.is_empty())).cloned();
    if name.is_empty() {
        return match own {
            Some(_) => {
                refuse(pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into())
            }
            None => Ok(()),
        };
    }
    let key = keys::object_of("node.k8s.io", "runtimeclasses", "", &name);
    let Some(class) = admission.state.read_key(&key, Fresh::Linearizable).await? else {
        return refuse(pod, format!("pod rejected: RuntimeClass {name:?} not found"));
    };
    let class = class.decode();
    let overhead = meta::at(&class, &["overhead", "podFixed"]).cloned();
    match (&own, &overhead) {
        (Some(own), Some(fixed)) if own != fixed => {
            return refuse(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        (Some(_), None) => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return refuse(pod, why.into());
        }
        (None, Some(fixed)) => pod["spec"]["overhead"] = fixed.clone(),
        _ => {}
    }
    let mut selector = meta::map_at(pod, &["spec", "nodeSelector"]).cloned().unwrap_or_default();
    for (key, value) in meta::map_at(&class, &["scheduling", "nodeSelector"]).into_iter().flatten() {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            );
            return refuse(pod, why);
        }
        selector.insert(key.clone(), value.clone());
    }
    if !selector.is_empty() {
        pod["spec"]["nodeSelector"] = Value::Object(selector);
    }
    let mut tolerations = meta::list_at(pod, &["spec", "tolerations"]).to_vec();
    for toleration in meta::list_at(&class, &["scheduling", "tolerations"]) {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if !tolerations.is_empty() {
        pod["spec"]["tolerations"] = Value::Array(tolerations);
    }
    Ok(())
}
