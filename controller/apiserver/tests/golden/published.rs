//! What the published OpenAPI documents say of merging and owning fields (`x-kubernetes-*`), beside upstream's documents: clients merge by it.

use libtest_mimic::Failed;
use serde_json::{Map, Value};
use skiff_api::{kinds, schema};
use std::path::Path;

/// Said of types in more places than we serve, or of none of ours.
const NOT_COMPARED: [&str; 2] = ["x-kubernetes-group-version-kind", "x-kubernetes-unions"];

/// Every type and field that is in both: a mark of one must be a mark of the other. `folder` holds `api__v1_openapi.json` and the like.
pub fn compare(folder: &Path) -> Result<(), Failed> {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(version) = name.strip_suffix("_openapi.json").and_then(|n| n.split_once("__")) else { continue };
        let theirs: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let version = version.1.replace("__", "/");
        let ours = schema::openapi_v3(&version, kinds::builtin());
        let schemas = |document: &Value| document["components"]["schemas"].as_object().cloned().unwrap_or_default();
        let theirs = schemas(&theirs);
        for (name, ours) in schemas(&ours) {
            let Some(theirs) = theirs.get(&name) else { continue };
            differ(&name, &ours, theirs, &mut wrong);
            for (field, ours) in ours["properties"].as_object().into_iter().flatten() {
                compared += 1;
                match theirs["properties"].get(field) {
                    Some(theirs) => differ(&format!("{name}.{field}"), ours, theirs, &mut wrong),
                    None => wrong.push(format!("{name}.{field} is none of upstream's")),
                }
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    if compared < 1000 {
        return Err(format!("only {compared} fields of {} were compared", folder.display()).into());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn differ(name: &str, ours: &Value, theirs: &Value, wrong: &mut Vec<String>) {
    let (ours, theirs) = (marks(ours), marks(theirs));
    if ours != theirs {
        wrong.push(format!("{name}: {} and upstream {}", Value::Object(ours), Value::Object(theirs)));
    }
}

fn marks(schema: &Value) -> Map<String, Value> {
    let all = schema.as_object().into_iter().flatten();
    let of = |(key, _): &(&String, &Value)| key.starts_with("x-kubernetes-") && !NOT_COMPARED.contains(&key.as_str());
    // A map is granular where nothing is said.
    let mut marks: Vec<_> =
        all.filter(of).filter(|(_, v)| **v != "granular").map(|(k, v)| (k.clone(), v.clone())).collect();
    marks.sort_by(|a, b| a.0.cmp(&b.0));
    marks.into_iter().collect()
}
