//! Quotas: what their namespace uses, counted from what there is.
//!
//! The API server charges a quota in the transaction that creates an object; here the count is made from the start, so that what
//! went is given back and a changed limit takes hold. Both count by the same rules (`skiff_api::admission::quota`).

use crate::Controller;
use crate::action::{Action, Context, Plan, value};
use serde_json::{Value, json};
use skiff_api::admission::quota::{self, Usage};
use skiff_api::kinds;
use skiff_api::quantity::{Format, Quantity};
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "quota", keys, all, plan, refused: crate::untold };

fn resource() -> Resource {
    Resource::new("", "v1", "resourcequotas")
}

fn all(view: &View) -> Vec<Key> {
    view.resource_quotas.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    if change.key.namespace.is_empty() || view.resource_quotas.is_empty() {
        return Vec::new();
    }
    view.resource_quotas.namespace(&change.key.namespace).map(|(k, _)| k.clone()).collect()
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(held) = c.view.resource_quotas.get(key).filter(|q| q.metadata.deletion_timestamp.is_none()) else {
        return plan;
    };
    let mut object = value(&**held);
    let hard = object.pointer("/spec/hard").cloned().unwrap_or_else(|| json!({}));
    let used = count(c.view, &object, &key.namespace);
    let zero = || Quantity::from_units(0, Format::Decimal);
    let names = hard.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    let shown: Usage = names.map(|name| (name.clone(), used.get(&name).cloned().unwrap_or_else(zero))).collect();
    let status = json!({"hard": hard, "used": quota::as_value(&shown)});
    if object.get("status") != Some(&status) {
        object["status"] = status;
        plan.push(Action::Update { resource: resource(), object, subresource: Some("status") });
    }
    plan
}

/// What the namespace uses of what a quota can limit.
fn count(view: &View, held: &Value, namespace: &str) -> Usage {
    let mut used = Usage::new();
    for identity in view.identities().filter(|i| i.key.namespace == namespace) {
        let Resource { group, version, plural } = &identity.resource;
        let Some(kind) = kinds::by_resource(group, version, plural) else { continue };
        let object = match (group.as_str(), plural.as_str()) {
            ("", "pods") => view.pods.get(&identity.key).map(|pod| value(&**pod)),
            ("", "services") => view.services.get(&identity.key).map(|service| value(&**service)),
            _ => None,
        };
        let object = object.unwrap_or(Value::Null);
        if !quota::in_scope(held, &kind, &object) {
            continue;
        }
        for (name, amount) in quota::usage(&kind, &object) {
            let sum = match used.remove(&name) {
                Some(old) => old + amount,
                None => amount,
            };
            used.insert(name, sum);
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};
    use jiff::Timestamp;

    #[test]
    fn what_there_is_is_counted() {
        let mut view = View::default();
        let mut put = |plural: &str, name: &str, object: Value| {
            let resource = Resource::new("", "v1", plural);
            view.apply(&resource, &Key::new("d", name), Some(object.to_string().as_bytes())).unwrap();
        };
        let meta = |name: &str| json!({"name": name, "namespace": "d", "uid": name});
        put(
            "resourcequotas",
            "q",
            json!({"metadata": meta("q"), "spec": {"hard": {"pods": "3", "secrets": "1", "requests.cpu": "2"}}}),
        );
        put("secrets", "s", json!({"metadata": meta("s")}));
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "250m"}}}]});
        put("pods", "p", json!({"metadata": meta("p"), "spec": spec}));
        put("pods", "done", json!({"metadata": meta("done"), "spec": spec, "status": {"phase": "Succeeded"}}));
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: (std::net::Ipv4Addr::LOCALHOST, 25),
        };
        let context =
            Context { view: &view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &Liveness::default() };
        let plan = plan(&context, &Key::new("d", "q"));
        let [Action::Update { object, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!(object["status"]["used"], json!({"pods": "1", "requests.cpu": "250m", "secrets": "1"}));
    }
}
