//! The RBAC objects of the store as a [`Policy`], kept up to date by a watch.
//!
//! The copy may be some milliseconds behind. A yes is given on it; before a no, it catches up with what was committed.

use super::follow::{Followed, Index};
use super::rbac::{Attributes, Decision, Policy, PolicyKind, RoleRef, Rule};
use super::user::{MASTERS, UserInfo};
use crate::storage::keys;
use crate::storage::objects::Objects;
use skiff_api::status::Status;
use std::sync::Arc;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Index for Policy {
    fn take(&mut self, key: &str, object: Option<&[u8]>) {
        let Some((resource, id)) = key.split_once('/') else { return };
        let (namespace, name) = match resource {
            "roles" | "rolebindings" => id.split_once('/').unwrap_or(("", id)),
            _ => ("", id),
        };
        let kind = if resource.ends_with("bindings") { PolicyKind::Binding } else { PolicyKind::Role };
        let object = object.and_then(|v| serde_json::from_slice(v).ok());
        self.update(kind, namespace, name, object.as_ref());
    }
}

#[derive(Clone, Default)]
pub struct PolicyCache {
    policy: Followed<Policy>,
}

impl PolicyCache {
    /// Catches up with every write that was acknowledged before the call, on whichever server; reads nothing.
    pub async fn refresh(&self, store: &Objects) -> Result<(), Status> {
        self.policy.reach(store).await
    }

    /// Follows the store until it stops.
    pub async fn follow(self, store: Objects) {
        self.policy.follow(store, format!("{}{GROUP}/", keys::ROOT)).await;
    }

    pub fn decide(&self, user: &UserInfo, wanted: &Attributes) -> Decision {
        self.policy.with(|p| p.decide(user, wanted))
    }

    pub fn allows(&self, user: &UserInfo, wanted: &Attributes) -> bool {
        user.is_in(MASTERS) || matches!(self.decide(user, wanted), Decision::Allow(_))
    }

    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        self.policy.with(|p| p.rules_for(user, namespace))
    }

    /// The first of them, in at most about `bytes_max`.
    pub fn first_rules_for(&self, user: &UserInfo, namespace: &str, bytes_max: usize) -> (Vec<Rule>, Vec<String>) {
        self.policy.with(|p| p.first_rules_for(user, namespace, bytes_max))
    }

    pub fn rules_of_role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<Vec<Rule>>> {
        self.policy.with(|p| p.rules_of_role(role, namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skiff_store::{Op, Store, Txn};

    /// A no costs no reading of roles, and is never given on what was true before an acknowledged write.
    #[tokio::test]
    async fn a_storm_of_denials_reads_the_roles_once() {
        let store = Objects::from(Store::in_memory().await);
        let cache = PolicyCache::default();
        let following = tokio::spawn(cache.clone().follow(store.clone()));
        let put = async |key: String, value: serde_json::Value| {
            store.txn(Txn::of(Op::put(key.into_bytes(), value.to_string().into_bytes()))).await.unwrap();
        };
        let wanted = |name: &str| Attributes {
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "a".into(),
            name: name.into(),
            ..Default::default()
        };
        let root = format!("{}{GROUP}/", keys::ROOT);
        let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
        put(format!("{root}roles/a/r"), role).await;
        for round in 0..300 {
            put(format!("{}core/pods/a/p{round}", keys::ROOT), json!({})).await;
            let user = UserInfo::new(format!("u{round}"), []);
            cache.refresh(&store).await.unwrap();
            assert!(!cache.allows(&user, &wanted("p")), "{round}");
            if round % 10 == 0 {
                let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": user.name}]});
                put(format!("{root}rolebindings/a/b{round}"), binding).await;
                cache.refresh(&store).await.unwrap();
                assert!(cache.allows(&user, &wanted("p")), "the binding {round} was acknowledged");
            }
        }
        assert_eq!(cache.policy.loads(), 1);
        following.abort();
    }
}
