//! Whose hand writes: each controller acts as the service account that Kubernetes has for that work, with that account's role and no other right. A controller that
//! does the work of two acts as each for its part.
//!
//! Source of the names and roles: Kubernetes documentation, "Using RBAC Authorization", "Roles for built-in controllers". All are in kube-system.

use crate::action::Action;

/// The user that is no account: the controller manager as a whole.
pub const MANAGER: &str = "system:kube-controller-manager";

/// The account (or [`MANAGER`]) as which `controller` carries out `action`.
pub fn account(controller: &str, action: &Action) -> &'static str {
    let plural = match action {
        Action::Create { resource, .. }
        | Action::Update { resource, .. }
        | Action::Patch { resource, .. }
        | Action::Delete { resource, .. } => resource.plural.as_str(),
        Action::Finalize { .. } => "namespaces",
        Action::Sign { .. } => "secrets",
        Action::Event(_) => "events",
    };
    match (controller, plural) {
        ("deployment", _) => "deployment-controller",
        ("replicaset", _) => "replicaset-controller",
        ("endpoints", "endpoints") => "endpoint-controller",
        ("endpoints", _) => "endpointslice-controller",
        ("nodes", _) => "node-controller",
        ("pods", _) => "pod-garbage-collector",
        ("namespaces", _) => "namespace-controller",
        ("accounts", "configmaps") => "root-ca-cert-publisher",
        ("accounts", _) => "service-account-controller",
        ("roles", _) => "clusterrole-aggregation-controller",
        ("quota", _) => "resourcequota-controller",
        ("disruption", _) => "disruption-controller",
        ("tokens", _) => "token-cleaner",
        // No account may write tokens of accounts: upstream does this one as the controller manager itself.
        ("credentials", _) => MANAGER,
        // Events end by a lease of the store elsewhere; whoever collects garbage may delete anything.
        ("garbage" | "events", _) => "generic-garbage-collector",
        // A controller without a line here has no rights, and its first write says so.
        _ => "nobody",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CONTROLLERS;
    use skiff_api::view::{Key, Resource};

    #[test]
    fn every_controller_has_an_account() {
        for controller in CONTROLLERS {
            let resource = Resource::new("", "v1", "configmaps");
            let action = Action::Patch { resource, key: Key::default(), subresource: None, patch: Default::default() };
            assert_ne!(account(controller.name, &action), "nobody", "{}", controller.name);
        }
    }
}
