//! What every namespace has from the start: the ServiceAccount `default`, and the cluster's CA for the pods to trust.

use crate::Controller;
use crate::action::{Action, Context, Plan, value};
use serde_json::json;
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "accounts", keys, all, plan, refused: crate::untold };

const CA_MAP: &str = "kube-root-ca.crt";

fn all(view: &View) -> Vec<Key> {
    view.namespaces.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(_: &View, change: &Change) -> Vec<Key> {
    match change.resource.plural.as_str() {
        "namespaces" => vec![change.key.clone()],
        "serviceaccounts" if change.key.name == "default" => vec![Key::new("", &change.key.namespace)],
        "configmaps" if change.key.name == CA_MAP => vec![Key::new("", &change.key.namespace)],
        _ => Vec::new(),
    }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let active = c.view.namespaces.get(key).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
    if !active {
        return plan;
    }
    let accounts = Resource::new("", "v1", "serviceaccounts");
    if c.view.service_accounts.get(&Key::new(&key.name, "default")).is_none() {
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": key.name}});
        plan.push(Action::Create { resource: accounts, object, announce: None });
    }
    let maps = Resource::new("", "v1", "configmaps");
    let map_key = Key::new(&key.name, CA_MAP);
    let data = json!({"ca.crt": c.settings.ca});
    match c.view.config_maps.get(&map_key) {
        None => {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": CA_MAP, "namespace": key.name, "annotations": {
                    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}}});
            plan.push(Action::Create { resource: maps, object, announce: None });
        }
        Some(map) if map.data.as_ref().and_then(|d| d.get("ca.crt")) != Some(&c.settings.ca) => {
            let mut object = value(&**map);
            object["data"] = data;
            plan.push(Action::Update { resource: maps, object, subresource: None });
        }
        Some(_) => {}
    }
    plan
}
