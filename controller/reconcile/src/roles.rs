//! Aggregated ClusterRoles: a role whose rules are those of all roles that its selectors name.

use crate::Controller;
use crate::action::{Action, Context, Plan};
use crate::owned::{matches, selector};
use serde_json::json;
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "roles", keys, all, plan, refused: crate::untold };

fn aggregated(view: &View) -> Vec<Key> {
    view.cluster_roles.iter().filter(|(_, r)| r.aggregation_rule.is_some()).map(|(k, _)| k.clone()).collect()
}

fn all(view: &View) -> Vec<Key> {
    aggregated(view)
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    if change.resource.plural == "clusterroles" { aggregated(view) } else { Vec::new() }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(role) = c.view.cluster_roles.get(key) else { return plan };
    let Some(selectors) = role.aggregation_rule.as_ref().and_then(|a| a.cluster_role_selectors.as_ref()) else {
        return plan;
    };
    let mut rules = Vec::new();
    for one in selectors.iter().map(selector) {
        for (other, part) in c.view.cluster_roles.iter() {
            if other == key || !matches(&one, part.metadata.labels.as_ref()) {
                continue;
            }
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    if role.rules.clone().unwrap_or_default() != rules {
        plan.push(Action::Patch {
            resource: Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles"),
            key: key.clone(),
            subresource: None,
            patch: json!({"rules": rules}),
        });
    }
    plan
}
