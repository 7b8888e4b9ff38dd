//! What `kubectl get` prints: columns and cells of each kind.
//!
//! The names, types and priorities of columns are an interface: scripts cut them, clients sort by them. A kind without
//! columns of its own shows its name and when it was made. Cells are plain values; ages are counted to `now`.

mod cells;
mod cluster;
mod network;
mod pods;
mod storage;
mod workloads;

use crate::kinds::Kind;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

pub use cells::human_duration;

/// The head of a column. `priority` 0 is always shown, 1 only with `-o wide`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `boolean` or `date`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `name` for the name's column, else empty.
    pub format: String,
    pub description: String,
    pub priority: i32,
}

/// One column as the families below write it: name, type, priority, description.
type Spec = (&'static str, &'static str, i32, &'static str);
/// The columns after the name, and the cells of an object (without its name).
type Printer = (&'static [Spec], fn(&Value, Timestamp) -> Vec<Value>);

const AGE: Spec = ("Age", "string", 0, "Time since the object was made");
const CONTAINERS: Spec = ("Containers", "string", 1, "Names of the containers in the template");
const IMAGES: Spec = ("Images", "string", 1, "Images of the containers in the template");
const SELECTOR: Spec = ("Selector", "string", 1, "Labels that select the pods");

fn printer(kind: &Kind) -> Printer {
    let found = match kind.group.as_str() {
        "" => pods::printer(&kind.kind)
            .or_else(|| workloads::core_printer(&kind.kind))
            .or_else(|| network::printer(&kind.kind))
            .or_else(|| storage::printer(&kind.kind))
            .or_else(|| cluster::printer(&kind.kind)),
        "apps" | "batch" | "autoscaling" | "policy" => workloads::printer(&kind.kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::printer(&kind.kind),
        "storage.k8s.io" => storage::printer(&kind.kind),
        _ => cluster::printer(&kind.kind),
    };
    found.unwrap_or((&[("Created At", "date", 0, "When the object was made")], |obj, _| vec![cells::created(obj)]))
}

/// The columns of a kind, the name first.
pub fn columns(kind: &Kind) -> Vec<Column> {
    let column = |(name, type_, priority, description): &Spec, format: &str| Column {
        name: (*name).into(),
        type_: (*type_).into(),
        format: format.into(),
        description: (*description).into(),
        priority: *priority,
    };
    let (specs, _) = printer(kind);
    let name = ("Name", "string", 0, "Name of the object");
    if kind.kind == "Event" {
        // An event's name tells nobody anything: it stands last, and only when asked for.
        return specs.iter().map(|s| column(s, if s.0 == "Name" { "name" } else { "" })).collect();
    }
    std::iter::once(column(&name, "name")).chain(specs.iter().map(|s| column(s, ""))).collect()
}

/// The cells of one object, one a column.
pub fn row(kind: &Kind, obj: &Value, now: Timestamp) -> Vec<Value> {
    let (_, print) = printer(kind);
    let rest = print(obj, now);
    if kind.kind == "Event" {
        return rest;
    }
    let mut out = Vec::with_capacity(rest.len() + 1);
    let mut name = crate::meta::name(obj).to_string();
    if kind.kind == "StorageClass"
        && crate::meta::annotation(obj, "storageclass.kubernetes.io/is-default-class") == Some("true")
    {
        name.push_str(" (default)");
    }
    out.push(name.into());
    out.extend(rest);
    out
}

/// The `conditions` of a row: a pod that has ended says so, and clients leave it out when asked for live ones.
pub fn row_conditions(kind: &Kind, obj: &Value) -> Option<Value> {
    if !kind.is("", "Pod") {
        return None;
    }
    let (reason, message) = match crate::meta::str_at(obj, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(serde_json::json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn cells_fit_columns() {
        let now = Timestamp::UNIX_EPOCH;
        for kind in kinds::builtin() {
            let odd = [serde_json::json!({}), serde_json::json!({"metadata": 1, "spec": [], "status": "x"})];
            for obj in odd {
                assert_eq!(columns(kind).len(), row(kind, &obj, now).len(), "{}", kind.kind);
            }
        }
    }
}
