//! Nobody grants what they do not have: roles and bindings are checked against the rights of who writes them.
//!
//! Source of the rule: Kubernetes documentation, "Privilege escalation prevention and bootstrapping". The verbs `escalate`
//! (on roles) and `bind` (on the role that is bound) lift it.

use super::{Admission, Operation};
use crate::auth::rbac::{Attributes, RoleRef, Rule, escalation_message, rules_of, uncovered};
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

const GROUP: &str = "rbac.authorization.k8s.io";

pub async fn refuse_escalation(admission: &mut Admission<'_>, object: &Value) -> Result<(), Status> {
    let kind = admission.call.kind.clone();
    if kind.group != GROUP || !matches!(admission.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let user = admission.call.user.clone();
    if user.is_in(crate::auth::user::MASTERS) {
        return Ok(());
    }
    let namespace = admission.call.key_namespace().to_string();
    let binding = kind.kind.ends_with("Binding");
    // Every write is checked, not only one of the rules: a label can hand them on to a role that gathers by it.
    if admission.old.is_some_and(|old| only_lets_go(old, object)) {
        return Ok(());
    }
    let policy = &admission.state.policy;
    policy.refresh(&admission.state.store).await?;
    let wanted = if binding {
        let reference = object.get("roleRef").cloned().unwrap_or_default();
        let role: RoleRef = serde_json::from_value(reference).unwrap_or_default();
        let resource = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
        let bind = Attributes {
            verb: "bind".into(),
            group: GROUP.into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: namespace.clone(),
            name: role.name.clone(),
            ..Default::default()
        };
        if policy.allows(&user, &bind) {
            return Ok(());
        }
        match policy.rules_of_role(&role, &namespace) {
            Some(rules) => rules.to_vec(),
            None => return Err(Status::not_found(GROUP, &kind.plural, &role.name)),
        }
    } else {
        let escalate = Attributes {
            verb: "escalate".into(),
            group: GROUP.into(),
            version: "v1".into(),
            resource: kind.plural.clone(),
            namespace: namespace.clone(),
            name: meta::name(object).into(),
            ..Default::default()
        };
        if policy.allows(&user, &escalate) {
            return Ok(());
        }
        rules_of(object)
    };
    let owned = policy.rules_for(&user, &namespace).0;
    let Ok(missing) = uncovered(&owned, &wanted) else {
        let why = "its rules stand for too many single rights to be compared with yours: write fewer verbs, groups or resources into one rule";
        return Err(admission.forbidden(meta::name(object), why));
    };
    if !missing.is_empty() {
        return Err(admission.forbidden(meta::name(object), &escalation_message(&user, &missing)));
    }
    let gathers = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    if (gathers(object) || admission.old.is_some_and(gathers)) && uncovered(&owned, &everything()) != Ok(Vec::new()) {
        let why = "must have cluster-admin privileges to use the aggregationRule";
        return Err(admission.forbidden(meta::name(object), why));
    }
    Ok(())
}

/// A role that gathers others' rules may come to hold any, so whoever writes one must hold all.
fn everything() -> Vec<Rule> {
    let all = || vec!["*".to_string()];
    vec![
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Default::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Default::default() },
    ]
}

/// Whether an update changes only what the garbage collector must be able to change: owners and finalizers.
fn only_lets_go(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
            meta::unset(&mut rest, key);
        }
        rest
    };
    rest(old) == rest(new)
}
