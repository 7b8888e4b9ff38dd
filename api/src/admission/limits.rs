//! LimitRange: what containers get when they ask for nothing, and between which bounds an object must stay.
//!
//! Source: Kubernetes documentation, "Limit Ranges".

use crate::meta;
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Says on a pod which of its amounts came from limits.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

fn amounts(holder: &Value, key: &str) -> Amounts {
    let map = meta::map_at(holder, &[key]).into_iter().flat_map(Map::iter);
    map.filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value)?))).collect()
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    meta::list_at(range, &["spec", "limits"]).iter().filter(move |limit| meta::str_at(limit, &["type"]) == kind)
}

/// Fills what the containers of a new pod leave open, as `range` says, and notes it in an annotation.
pub fn fill(pod: &mut Value, range: &Value) {
    let (mut limits, mut requests) = (Map::new(), Map::new());
    for item in items(range, "Container") {
        limits.extend(meta::map_at(item, &["default"]).cloned().unwrap_or_default());
        requests.extend(meta::map_at(item, &["defaultRequest"]).cloned().unwrap_or_default());
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = meta::str_at(container, &["name"]).to_string();
            for (key, defaults, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill_amounts(container, key, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        meta::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// The names of what was filled in, in order.
fn fill_amounts(container: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set: Vec<String> = defaults
        .keys()
        .filter(|name| meta::at(container, &["resources", key, name.as_str()]).is_none())
        .cloned()
        .collect();
    set.sort();
    if set.is_empty() || !container.is_object() {
        return Vec::new();
    }
    for holder in [&[][..], &[key][..]] {
        let resources = &mut container["resources"];
        let place = holder.iter().fold(resources, |at, key| &mut at[*key]);
        if !place.is_object() {
            *place = json!({});
        }
    }
    for name in &set {
        container["resources"][key][name] = defaults[name].clone();
    }
    set
}

/// What of a pod or a claim is out of the bounds of `range`.
pub fn violations(object: &Value, range: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if meta::kind(object) == "PersistentVolumeClaim" {
        let resources = meta::at(object, &["spec", "resources"]).unwrap_or(&Value::Null);
        let requests = amounts(resources, "requests");
        for item in items(range, "PersistentVolumeClaim") {
            let bounds = Bounds { kind: "PersistentVolumeClaim", requests: &requests, limits: &Amounts::new() };
            bounds.min(item, &mut found);
            bounds.max_request(item, &mut found);
        }
        return found;
    }
    for item in meta::list_at(range, &["spec", "limits"]) {
        match meta::str_at(item, &["type"]) {
            "Container" => {
                for list in ["containers", "initContainers"] {
                    for container in meta::list_at(object, &["spec", list]) {
                        let resources = container.get("resources").unwrap_or(&Value::Null);
                        let (requests, limits) = (amounts(resources, "requests"), amounts(resources, "limits"));
                        Bounds { kind: "Container", requests: &requests, limits: &limits }.check(item, &mut found);
                    }
                }
            }
            "Pod" => {
                let (requests, limits) = (pod_total(object, "requests"), pod_total(object, "limits"));
                Bounds { kind: "Pod", requests: &requests, limits: &limits }.check(item, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// What a pod asks for as a whole: all containers together, or the largest init container where that is more. Init
/// containers that stay (restartPolicy Always) count with the containers. Resources of the pod itself decide alone.
pub fn pod_total(pod: &Value, key: &str) -> BTreeMap<String, Quantity> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let of = |holder: &Value| amounts(holder.get("resources").unwrap_or(&Value::Null), key);
    let mut total = Amounts::new();
    for container in meta::list_at(spec, &["containers"]) {
        add(&mut total, of(container));
    }
    let (mut staying, mut largest) = (Amounts::new(), Amounts::new());
    for container in meta::list_at(spec, &["initContainers"]) {
        if meta::str_at(container, &["restartPolicy"]) == "Always" {
            add(&mut total, of(container));
            add(&mut staying, of(container));
            keep_largest(&mut largest, staying.clone());
        } else {
            let mut with_staying = of(container);
            add(&mut with_staying, staying.clone());
            keep_largest(&mut largest, with_staying);
        }
    }
    keep_largest(&mut total, largest);
    total.extend(of(spec));
    total
}

fn add(total: &mut Amounts, more: Amounts) {
    for (name, amount) in more {
        let sum = match total.remove(&name) {
            Some(old) => old + amount,
            None => amount,
        };
        total.insert(name, sum);
    }
}

fn keep_largest(total: &mut Amounts, other: Amounts) {
    for (name, amount) in other {
        if total.get(&name).is_none_or(|old| *old < amount) {
            total.insert(name, amount);
        }
    }
}

/// What one object asks for, to be held against one item of a LimitRange.
struct Bounds<'a> {
    kind: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

impl Bounds<'_> {
    fn check(&self, item: &Value, found: &mut Vec<String>) {
        self.min(item, found);
        self.max(item, found);
        self.ratio(item, found);
    }

    fn min(&self, item: &Value, found: &mut Vec<String>) {
        for (name, min) in amounts(item, "min") {
            let head = format!("minimum {name} usage per {} is {min}", self.kind);
            match self.requests.get(&name) {
                None => found.push(format!("{head}.  No request is specified")),
                Some(request) if *request < min => found.push(format!("{head}, but request is {request}")),
                Some(_) => match self.limits.get(&name) {
                    Some(limit) if *limit < min => found.push(format!("{head}, but limit is {limit}")),
                    _ => {}
                },
            }
        }
    }

    fn max(&self, item: &Value, found: &mut Vec<String>) {
        for (name, max) in amounts(item, "max") {
            let head = format!("maximum {name} usage per {} is {max}", self.kind);
            match self.limits.get(&name) {
                None => found.push(format!("{head}.  No limit is specified")),
                Some(limit) if *limit > max => found.push(format!("{head}, but limit is {limit}")),
                Some(_) => match self.requests.get(&name) {
                    Some(request) if *request > max => found.push(format!("{head}, but request is {request}")),
                    _ => {}
                },
            }
        }
    }

    fn max_request(&self, item: &Value, found: &mut Vec<String>) {
        for (name, max) in amounts(item, "max") {
            let head = format!("maximum {name} usage per {} is {max}", self.kind);
            match self.requests.get(&name) {
                None => found.push(format!("{head}.  No request is specified")),
                Some(request) if *request > max => found.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }

    fn ratio(&self, item: &Value, found: &mut Vec<String>) {
        for (name, most) in amounts(item, "maxLimitRequestRatio") {
            let head = format!("{name} max limit to request ratio per {} is {most}", self.kind);
            let Some(request) = self.requests.get(&name).filter(|r| !r.is_zero()) else {
                found.push(format!("{head}, but no request is specified or request is 0"));
                continue;
            };
            let Some(limit) = self.limits.get(&name).filter(|l| !l.is_zero()) else {
                found.push(format!("{head}, but no limit is specified or limit is 0"));
                continue;
            };
            let ratio = limit.ratio(request);
            if ratio > most.milli_value() as f64 / 1000.0 {
                found.push(format!("{head}, but provided ratio is {ratio:.6}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_is_left_open_is_filled() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1", "memory": "1Gi"}}]}});
        let mut filled = pod(json!({"requests": {"cpu": "2"}}));
        fill(&mut filled, &range);
        assert_eq!(
            filled.pointer("/spec/containers/0/resources"),
            Some(&json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "1"}}))
        );
        let note = "LimitRanger plugin set: memory request for container c; cpu limit for container c";
        assert_eq!(meta::annotation(&filled, ANNOTATION), Some(note));
        let once = filled.clone();
        fill(&mut filled, &range);
        assert_eq!(filled, once);
    }

    #[test]
    fn bounds() {
        let range = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "2"}},
            {"type": "Pod", "min": {"cpu": "1"}}]}});
        let check = |resources: Value, expect: &[&str]| assert_eq!(violations(&pod(resources), &range), expect);
        check(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), &[]);
        check(
            json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "3"}}),
            &[
                "maximum cpu usage per Container is 2, but limit is 3",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 6.000000",
                "minimum cpu usage per Pod is 1, but request is 500m",
            ],
        );
    }
}
