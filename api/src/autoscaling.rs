//! The two forms of a HorizontalPodAutoscaler. `autoscaling/v1` knows one metric, the CPU's utilization; what else `v2` says rides along in annotations, in the
//! words of v1's internal metric types, so that whoever writes an object back loses nothing.
//!
//! Source: Kubernetes documentation, "Horizontal Pod Autoscaling", "API Object"; the annotations' names and forms are part of `autoscaling/v1`.

use crate::meta;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The `v2` form of a `v1` object.
pub fn to_v2(object: &mut Value) {
    let target = take(object, "spec", "targetCPUUtilizationPercentage");
    let current = take(object, "status", "currentCPUUtilizationPercentage");
    let mut metrics: Vec<Value> =
        read(object, METRICS).as_array().map(|l| l.iter().map(|m| source(m, true)).collect()).unwrap_or_default();
    if let Some(percent) = target {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if metrics.is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    set(object, "spec", "metrics", metrics.into());
    let mut seen: Vec<Value> =
        read(object, CURRENT).as_array().map(|l| l.iter().map(|m| source(m, false)).collect()).unwrap_or_default();
    if let Some(percent) = current {
        seen.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}),
        );
    }
    if object.get("status").is_some_and(Value::is_object) {
        set(object, "status", "currentMetrics", if seen.is_empty() { Value::Null } else { seen.into() });
    }
    let (conditions, behavior) = (read(object, CONDITIONS), read(object, BEHAVIOR));
    if conditions.is_array() {
        set(object, "status", "conditions", conditions);
    }
    if behavior.is_object() {
        set(object, "spec", "behavior", behavior);
    }
    for name in [METRICS, CURRENT, CONDITIONS, BEHAVIOR] {
        forget(object, name);
    }
}

/// The `v1` form of a `v2` object.
pub fn to_v1(object: &mut Value) {
    let wanted = list(take(object, "spec", "metrics"));
    let (cpu, others) = apart(wanted, "target");
    if let Some(percent) = cpu {
        set(object, "spec", "targetCPUUtilizationPercentage", percent);
    }
    keep(object, METRICS, others.iter().map(|m| flat(m, true)).collect());
    let seen = list(take(object, "status", "currentMetrics"));
    let (cpu, others) = apart(seen, "current");
    if let Some(percent) = cpu {
        set(object, "status", "currentCPUUtilizationPercentage", percent);
    }
    keep(object, CURRENT, others.iter().map(|m| flat(m, false)).collect());
    let conditions = list(take(object, "status", "conditions"));
    keep(object, CONDITIONS, conditions);
    if let Some(behavior) = take(object, "spec", "behavior").filter(|b| !b.is_null()) {
        meta::set_annotation(object, BEHAVIOR, &behavior.to_string());
    }
}

/// The CPU's utilization, and the other metrics. `part` is `target` or `current`.
fn apart(metrics: Vec<Value>, part: &str) -> (Option<Value>, Vec<Value>) {
    let mut cpu = None;
    let mut others = Vec::new();
    for metric in metrics {
        let percent = metric.pointer(&format!("/resource/{part}/averageUtilization")).filter(|p| !p.is_null());
        let is_cpu = metric["type"] == "Resource" && metric.pointer("/resource/name").is_some_and(|n| n == "cpu");
        match percent {
            Some(percent) if is_cpu && cpu.is_none() => cpu = Some(percent.clone()),
            _ => others.push(metric),
        }
    }
    (cpu, others)
}

/// The field of a metric that is named by its type: `ContainerResource` has `containerResource`.
fn field_of(metric: &Value) -> String {
    let kind = meta::str_at(metric, &["type"]);
    let mut letters = kind.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Names of the values in a target or a current value, here and in the flat form.
fn names(field: &str, wanted: bool) -> [(&'static str, &'static str); 3] {
    let average = match (field, wanted) {
        ("object", _) => "averageValue",
        (_, true) => "targetAverageValue",
        (_, false) => "currentAverageValue",
    };
    match wanted {
        true => {
            [("averageUtilization", "targetAverageUtilization"), ("averageValue", average), ("value", "targetValue")]
        }
        false => {
            [("averageUtilization", "currentAverageUtilization"), ("averageValue", average), ("value", "currentValue")]
        }
    }
}

/// A metric as the annotation has it: its values beside its name.
fn flat(metric: &Value, wanted: bool) -> Value {
    let field = field_of(metric);
    let Some(Value::Object(mut inner)) = metric.get(&field).cloned() else { return metric.clone() };
    let mut values = inner.remove(if wanted { "target" } else { "current" }).unwrap_or_default();
    for (here, there) in names(&field, wanted) {
        if let Some(value) = values.get_mut(here).map(Value::take).filter(|v| !v.is_null()) {
            inner.insert(there.into(), value);
        }
    }
    if let Some(mut identifier) = inner.remove("metric") {
        inner.insert("metricName".into(), identifier["name"].take());
        if let Some(selector) = identifier.get_mut("selector").map(Value::take).filter(|s| !s.is_null()) {
            inner.insert(if field == "external" { "metricSelector" } else { "selector" }.into(), selector);
        }
    }
    if let Some(described) = inner.remove("describedObject") {
        inner.insert("target".into(), described);
    }
    json!({"type": metric["type"], field: inner})
}

/// A metric of the annotation as `v2` has it.
fn source(metric: &Value, wanted: bool) -> Value {
    let field = field_of(metric);
    let Some(Value::Object(mut inner)) = metric.get(&field).cloned() else { return metric.clone() };
    if let Some(described) = inner.remove("target") {
        inner.insert("describedObject".into(), described);
    }
    let mut values = Map::new();
    for (here, there) in names(&field, wanted) {
        if let Some(value) = inner.remove(there) {
            values.insert(here.into(), value);
        }
    }
    if wanted {
        let kind = match (values.contains_key("averageUtilization"), values.contains_key("averageValue")) {
            (true, _) => "Utilization",
            (_, true) => "AverageValue",
            _ => "Value",
        };
        values.insert("type".into(), kind.into());
    }
    if let Some(name) = inner.remove("metricName") {
        let mut identifier = json!({"name": name});
        if let Some(selector) = inner.remove("selector").or_else(|| inner.remove("metricSelector")) {
            identifier["selector"] = selector;
        }
        inner.insert("metric".into(), identifier);
    }
    inner.insert(if wanted { "target" } else { "current" }.into(), values.into());
    json!({"type": metric["type"], field: inner})
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn take(object: &mut Value, part: &str, field: &str) -> Option<Value> {
    object.get_mut(part)?.as_object_mut()?.shift_remove(field)
}

fn set(object: &mut Value, part: &str, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut()
        && let Some(part) = map.entry(part).or_insert_with(|| json!({})).as_object_mut()
    {
        part.insert(field.into(), value);
    }
}

/// The JSON of an annotation; null when there is none, or none that can be read.
fn read(object: &Value, name: &str) -> Value {
    meta::annotation(object, name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn keep(object: &mut Value, name: &str, values: Vec<Value>) {
    if !values.is_empty() {
        meta::set_annotation(object, name, &Value::from(values).to_string());
    }
}

fn forget(object: &mut Value, name: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.shift_remove(name);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_one_number_in_v1() {
        let mut object = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 60}, "status": {"currentCPUUtilizationPercentage": 7}});
        let v1 = object.clone();
        to_v2(&mut object);
        let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}});
        assert_eq!(object["spec"], json!({"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": cpu}]}));
        assert_eq!(object["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"], 7);
        to_v1(&mut object);
        assert_eq!(object, v1);
        let mut none = json!({"metadata": {}, "spec": {"maxReplicas": 1}});
        to_v2(&mut none);
        assert_eq!(none["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }

    #[test]
    fn nothing_is_lost_on_the_way_through_v1() {
        let metric = |name: &str| json!({"name": name, "selector": {"matchLabels": {"a": "b"}}});
        let v2 = json!({
            "metadata": {"name": "h", "annotations": {"mine": "stays"}},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 5}}},
                {"type": "Pods", "pods": {"metric": metric("p"), "target": {"type": "AverageValue", "averageValue": "3"}}},
                {"type": "Object", "object": {"metric": metric("o"), "describedObject": {"kind": "Service", "name": "s"}, "target": {"type": "Value", "value": "4"}}},
                {"type": "External", "external": {"metric": metric("e"), "target": {"type": "Value", "value": "5"}}},
            ], "behavior": {"scaleDown": {"selectPolicy": "Disabled"}}},
            "status": {"currentReplicas": 1, "currentMetrics": [
                {"type": "Pods", "pods": {"metric": metric("p"), "current": {"averageValue": "9"}}},
            ], "conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let mut object = v2.clone();
        to_v1(&mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(object["spec"].as_object().map(Map::len), Some(2));
        assert!(
            object["metadata"]["annotations"][METRICS]
                .as_str()
                .is_some_and(|t| t.contains(r#""targetAverageValue":"1Gi""#))
        );
        to_v2(&mut object);
        assert_eq!(object, v2);
    }
}
