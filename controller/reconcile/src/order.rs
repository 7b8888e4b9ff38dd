//! Which writes of a plan must wait for which: those that concern the same object come in the plan's order, the others need not.
//!
//! A pod that is told why it ends and then deleted must be told first: what is written after the deletion, or refused because of it, is told to nobody.

use crate::action::Action;
use skiff_api::view::{Key, Resource};
use std::collections::BTreeMap;

/// The object that an action changes; None where nothing can wait for it: news, and an object that gets its name when it is made.
fn object(action: &Action) -> Option<(Resource, Key)> {
    let named = |object: &serde_json::Value| {
        let word = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        Some(Key::new(word("namespace"), word("name"))).filter(|key| !key.name.is_empty())
    };
    match action {
        Action::Create { resource, object, .. } | Action::Update { resource, object, .. } => {
            Some((resource.clone(), named(object)?))
        }
        Action::Patch { resource, key, .. } | Action::Delete { resource, key, .. } => {
            Some((resource.clone(), key.clone()))
        }
        Action::Sign { object, .. } => Some((Resource::new("", "v1", "secrets"), named(object)?)),
        Action::Finalize { object } => Some((Resource::new("", "v1", "namespaces"), named(object)?)),
        Action::Event(_) => None,
    }
}

/// The actions in lines, by the first of each: a line's actions run one after the other, and none after one that failed; lines need not wait for each
/// other.
pub fn lines(actions: &[Action]) -> Vec<Vec<&Action>> {
    let mut lines: Vec<Vec<&Action>> = Vec::new();
    let mut known = BTreeMap::new();
    for action in actions {
        let line = object(action).map(|object| *known.entry(object).or_insert(lines.len()));
        match line.and_then(|line| lines.get_mut(line)) {
            Some(line) => line.push(action),
            None => lines.push(vec![action]),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> Resource {
        Resource::new("", "v1", "pods")
    }

    fn update(name: &str) -> Action {
        let object = json!({"metadata": {"namespace": "d", "name": name}});
        Action::Update { resource: pods(), object, subresource: Some("status") }
    }

    fn delete(name: &str) -> Action {
        Action::Delete {
            resource: pods(),
            key: Key::new("d", name),
            uid: String::new(),
            resource_version: None,
            propagation: None,
            grace_seconds: None,
        }
    }

    fn create(metadata: serde_json::Value) -> Action {
        Action::Create { resource: pods(), object: json!({"metadata": metadata}), announce: None }
    }

    #[test]
    fn writes_of_one_object_keep_their_order() {
        let nameless = create(json!({"namespace": "d", "generateName": "p-"}));
        let elsewhere = create(json!({"namespace": "e", "name": "p"}));
        let node = Action::Patch {
            resource: Resource::new("", "v1", "nodes"),
            key: Key::new("d", "p"),
            subresource: None,
            patch: json!({}),
        };
        let secret = json!({"metadata": {"namespace": "d", "name": "p"}});
        let sign = Action::Sign { object: secret, account: "a".into(), account_uid: "u".into() };
        let plan = [
            update("p"),
            update("q"),
            nameless.clone(),
            delete("p"),
            elsewhere.clone(),
            node.clone(),
            nameless.clone(),
            sign.clone(),
            delete("q"),
        ];
        let expect = [
            vec![update("p"), delete("p")],
            vec![update("q"), delete("q")],
            vec![nameless.clone()],
            vec![elsewhere],
            vec![node],
            vec![nameless],
            vec![sign],
        ];
        let lines: Vec<Vec<_>> = lines(&plan).into_iter().map(|l| l.into_iter().cloned().collect()).collect();
        assert_eq!(lines, expect);
    }
}
