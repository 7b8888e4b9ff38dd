//! Secrets of the type `kubernetes.io/service-account-token`: whoever makes one, for an account that is there, finds the account's token in it. It goes with its
//! account, and its token ends with it.
//!
//! Source: Kubernetes documentation, "Managing Service Accounts", "Manual Secret management for ServiceAccounts".

use crate::Controller;
use crate::action::{Action, Context, Plan, value};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "credentials", keys, all, plan, refused: crate::untold };

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

fn resource() -> Resource {
    Resource::new("", "v1", "secrets")
}

fn is_credential(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE)
}

fn annotation<'s>(secret: &'s Secret, name: &str) -> &'s str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str).unwrap_or_default()
}

fn all(view: &View) -> Vec<Key> {
    view.secrets.iter().filter(|(_, s)| is_credential(s)).map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    match (change.resource.group.as_str(), change.resource.plural.as_str()) {
        ("", "secrets") => vec![change.key.clone()],
        ("", "serviceaccounts") => {
            let own = view.secrets.namespace(&change.key.namespace);
            let own = own.filter(|(_, s)| is_credential(s) && annotation(s, ACCOUNT) == change.key.name);
            own.map(|(k, _)| k.clone()).collect()
        }
        _ => Vec::new(),
    }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(secret) = c.view.secrets.get(key).filter(|s| is_credential(s)) else { return plan };
    if secret.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let name = annotation(secret, ACCOUNT);
    let account = c.view.service_accounts.get(&Key::new(&key.namespace, name));
    let uid = account.and_then(|a| a.metadata.uid.clone()).unwrap_or_default();
    let meant = annotation(secret, ACCOUNT_UID);
    // Another account of the same name is not the one that this was for.
    if uid.is_empty() || !meant.is_empty() && meant != uid {
        plan.push(Action::Delete {
            resource: resource(),
            key: key.clone(),
            uid: secret.metadata.uid.clone().unwrap_or_default(),
            resource_version: secret.metadata.resource_version.clone(),
            propagation: None,
            grace_seconds: None,
        });
        return plan;
    }
    let mut wanted = Secret::clone(secret);
    wanted.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid.clone());
    let data = wanted.data.get_or_insert_default();
    data.insert("namespace".into(), ByteString(key.namespace.clone().into_bytes()));
    if !c.settings.ca.is_empty() {
        data.insert("ca.crt".into(), ByteString(c.settings.ca.clone().into_bytes()));
    }
    if data.get("token").is_none_or(|token| token.0.is_empty()) {
        plan.push(Action::Sign { object: value(&wanted), account: name.into(), account_uid: uid });
    } else if wanted != **secret {
        plan.push(Action::Update { resource: resource(), object: value(&wanted), subresource: None });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn planned(account: Option<&str>, secret: Value) -> Vec<Action> {
        let mut view = View::default();
        let mut put = |plural: &str, name: &str, object: Value| {
            let key = Key::new("d", name);
            view.apply(&Resource::new("", "v1", plural), &key, Some(object.to_string().as_bytes())).unwrap();
        };
        if let Some(uid) = account {
            put("serviceaccounts", "robot", json!({"metadata": {"name": "robot", "namespace": "d", "uid": uid}}));
        }
        put("secrets", "s", secret);
        let settings = Settings {
            ca: "authority".into(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: ([10, 42, 0, 0].into(), 16),
        };
        let liveness = Liveness::default();
        let context = Context { view: &view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &liveness };
        plan(&context, &Key::new("d", "s")).actions
    }

    fn secret(kind: &str, uid: &str, token: &str) -> Value {
        let mut annotations = json!({ACCOUNT: "robot"});
        if !uid.is_empty() {
            annotations[ACCOUNT_UID] = json!(uid);
        }
        let text = |text: &str| json!(ByteString(text.into()));
        let mut secret = json!({"metadata": {"name": "s", "namespace": "d", "uid": "s1", "annotations": annotations}, "type": kind, "data": {}});
        if !token.is_empty() {
            secret["data"] = json!({"token": text(token), "ca.crt": text("authority"), "namespace": text("d")});
        }
        secret
    }

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let check = |what: &str, account: Option<&str>, secret: Value, expect: &str| {
            let actions = planned(account, secret);
            let seen: Vec<&str> = actions
                .iter()
                .map(|action| match action {
                    Action::Sign { .. } => "sign",
                    Action::Update { .. } => "update",
                    Action::Delete { .. } => "delete",
                    _ => "other",
                })
                .collect();
            assert_eq!(seen.join(","), expect, "{what}");
        };
        check("a new one", Some("a1"), secret(TYPE, "", ""), "sign");
        check("its account was made anew", Some("a2"), secret(TYPE, "a1", "t"), "delete");
        check("its account is gone", None, secret(TYPE, "a1", "t"), "delete");
        check("no such account", None, secret(TYPE, "", ""), "delete");
        check("whole", Some("a1"), secret(TYPE, "a1", "t"), "");
        check("its token was taken out", Some("a1"), secret(TYPE, "a1", ""), "sign");
        check("a token that somebody put there", Some("a1"), secret(TYPE, "", "t"), "update");
        check("another type", None, secret("Opaque", "", ""), "");
        let mut old = secret(TYPE, "a1", "t");
        old["data"]["ca.crt"] = json!(ByteString("another".into()));
        check("another authority", Some("a1"), old, "update");
        let mut going = secret(TYPE, "a1", "t");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        check("one that is being deleted", None, going, "");
        let [Action::Sign { object, account, account_uid }] = &planned(Some("a1"), secret(TYPE, "", ""))[..] else {
            panic!()
        };
        assert_eq!((account.as_str(), account_uid.as_str()), ("robot", "a1"));
        assert_eq!(object["metadata"]["annotations"][ACCOUNT_UID], "a1");
        assert_eq!(object["data"]["namespace"], json!(ByteString("d".into())));
    }
}
