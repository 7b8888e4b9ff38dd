//! Join tokens are Secrets with an end; this removes those whose end has come some time ago. They count as expired before that already: this only keeps the
//! store tidy. For a while they stay, so that who shows one hears that it has expired, and not that nobody knows it.
//!
//! Source of the form: Kubernetes documentation, "Authenticating with Bootstrap Tokens".

use crate::Controller;
use crate::action::{Action, Context, Plan};
use crate::clock::after;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "tokens", keys, all, plan, refused: crate::untold };

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
/// How long an expired token is remembered.
const KEPT: SignedDuration = SignedDuration::from_hours(1);

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE)
}

fn all(view: &View) -> Vec<Key> {
    view.secrets.namespace(NAMESPACE).filter(|(_, s)| is_token(s)).map(|(k, _)| k.clone()).collect()
}

fn keys(_: &View, change: &Change) -> Vec<Key> {
    let is_secret = change.resource.plural == "secrets" && change.resource.group.is_empty();
    if is_secret && change.key.namespace == NAMESPACE && !change.gone { vec![change.key.clone()] } else { Vec::new() }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(secret) = c.view.secrets.get(key).filter(|s| is_token(s)) else { return plan };
    // One without an end stays; one whose end cannot be read is left for a person to look at, though nobody may use it.
    let Some(end) = secret.data.as_ref().and_then(|d| d.get("expiration")) else { return plan };
    let Some(end) = std::str::from_utf8(&end.0).ok().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return plan;
    };
    let goes = after(end, KEPT);
    if c.now < goes {
        plan.again(goes);
        return plan;
    }
    plan.push(Action::Delete {
        resource: Resource::new("", "v1", "secrets"),
        key: key.clone(),
        uid: secret.metadata.uid.clone().unwrap_or_default(),
        resource_version: secret.metadata.resource_version.clone(),
        propagation: None,
        grace_seconds: None,
    });
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};
    use serde_json::json;

    #[test]
    fn tokens_go_when_their_time_is_over() {
        let check = |kind: &str, end: Option<&str>, deleted: bool, again: bool| {
            let mut view = View::default();
            let mut secret =
                json!({"metadata": {"name": "t", "namespace": NAMESPACE, "uid": "u"}, "type": kind, "data": {}});
            if let Some(end) = end {
                secret["data"]["expiration"] = json!(k8s_openapi::ByteString(end.into()));
            }
            let key = Key::new(NAMESPACE, "t");
            view.apply(&Resource::new("", "v1", "secrets"), &key, Some(secret.to_string().as_bytes())).unwrap();
            let settings = Settings {
                ca: String::new(),
                eviction_grace_ms: 0,
                event_ttl_seconds: 0,
                cluster_cidr: ([10, 42, 0, 0].into(), 16),
            };
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let plan = plan(&Context { view: &view, now, settings: &settings, liveness: &Liveness::default() }, &key);
            let deletes = plan.actions.iter().any(|a| matches!(a, Action::Delete { .. }));
            assert_eq!((deletes, plan.again_at.is_some()), (deleted, again), "{kind} {end:?}");
        };
        check(TYPE, Some("2025-12-31T22:59:59Z"), true, false);
        check(TYPE, Some("2025-12-31T23:00:00Z"), true, false);
        check(TYPE, Some("2025-12-31T23:00:01Z"), false, true);
        check(TYPE, Some("2026-01-01T00:00:01Z"), false, true);
        check(TYPE, None, false, false);
        check(TYPE, Some("soon"), false, false);
        check("Opaque", Some("2025-12-31T00:00:00Z"), false, false);
    }
}
