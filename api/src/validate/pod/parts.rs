//! Changes of a running pod through paths of their own: resources (`resize`), containers to look into it
//! (`ephemeralcontainers`).

use super::whole;
use crate::meta;
use crate::strategy::qos_class;
use crate::validate::check::{Errors, Path, list, text};
use crate::validate::error::FieldError;
use crate::validate::metadata;
use serde_json::{Map, Value};

const MIRROR: &str = "kubernetes.io/config.mirror";

fn spec_of(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}

/// Both paths judge the pod as a whole first. False when nothing more needs to be said.
fn begin(errs: &mut Errors, new: &Value, old: &Value, what: &str) -> bool {
    metadata::update(errs, new, old);
    whole(errs, new);
    if meta::annotation(old, MIRROR).is_some() {
        errs.push(FieldError::forbidden("", format!("static pods {what}")));
    }
    errs.is_empty()
}

pub(in crate::validate) fn resize(errs: &mut Errors, new: &Value, old: &Value) {
    if !begin(errs, new, old, "cannot be resized") {
        return;
    }
    let (spec, was, path) = (spec_of(new), spec_of(old), Path::new("spec"));
    if text(was.get("os").unwrap_or(&Value::Null), "name") == "windows" {
        errs.push(FieldError::forbidden("", "windows pods cannot be resized"));
    }
    if qos_class(old) != qos_class(new) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errs.push(FieldError::invalid(&path, qos_class(old), detail));
        return;
    }
    let mut only_resources = true;
    for name in ["containers", "initContainers"] {
        for (i, (container, before)) in list(spec, name).iter().zip(list(was, name)).enumerate() {
            let at = path.child(name).index(i).child("resources");
            for key in ["limits", "requests"] {
                let amounts = |c: &Value| meta::map_at(c, &["resources", key]).cloned().unwrap_or_default();
                let (now, had) = (amounts(container), amounts(before));
                if had.keys().any(|resource| is_resizable(resource) && !now.contains_key(resource)) {
                    errs.push(FieldError::forbidden(at.child(key), format!("resource {key} cannot be removed")));
                }
                only_resources &= fixed(&now) == fixed(&had);
            }
            only_resources &= container.get("resizePolicy") == before.get("resizePolicy");
        }
    }
    if !only_resources {
        errs.push(FieldError::forbidden(&path, "only cpu and memory resources are mutable"));
    }
}

fn is_resizable(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory")
}

/// Amounts that a running container keeps.
fn fixed(amounts: &Map<String, Value>) -> Map<String, Value> {
    amounts.iter().filter(|(name, _)| !is_resizable(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub(in crate::validate) fn ephemeral_containers(errs: &mut Errors, new: &Value, old: &Value) {
    if !begin(errs, new, old, "do not support ephemeral containers") {
        return;
    }
    let at = Path::new("spec").child("ephemeralContainers");
    let now = list(spec_of(new), "ephemeralContainers");
    for container in list(spec_of(old), "ephemeralContainers") {
        let name = text(container, "name");
        match now.iter().find(|c| text(c, "name") == name) {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errs.push(FieldError::forbidden(&at, detail));
            }
            Some(found) if found != container => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errs.push(FieldError::forbidden(&at, detail));
            }
            Some(_) => {}
        }
    }
}
