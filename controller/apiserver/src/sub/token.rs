//! `serviceaccounts/NAME/token`: a token for an account, for some audiences, for some time, bound to a pod if asked.

use crate::admission;
use crate::auth::authenticate::default_audiences;
use crate::call::{Answer, Call};
use crate::decode;
use crate::rules::{self, new_uid};
use crate::state::{Fresh, State};
use crate::storage::keys;
use crate::verbs::options;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_api::apply::Operation;
use skiff_api::meta;
use skiff_api::schema::Schema;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{defaults, kinds};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Tokens that pods get are honoured for a year: old clients read them once and never again.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600 + 7;
/// What pods ask for; only they are extended.
const POD_SECONDS: i64 = 3607;

pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "CreateOptions")?;
    let kind = kinds::Kind {
        group: "authentication.k8s.io".into(),
        version: "v1".into(),
        kind: "TokenRequest".into(),
        ..Default::default()
    };
    let mut sent = decode::object_of(call, &kind)?;
    defaults::apply_defaults(&kind, &mut sent);
    if let Some(schema) = Schema::for_kind(&kind) {
        let manager = call.manager();
        rules::track(&kind, schema, None, &mut sent, &manager, Operation::Update, "token", Timestamp::now());
    }
    let namespace = call.namespace().to_string();
    let account = state.must_read(&call.kind, &namespace, call.name(), Fresh::Linearizable).await?.decode();
    let (name, account_uid) = (meta::name(&account).to_string(), meta::uid(&account).to_string());
    let given_name = meta::name(&sent);
    if !given_name.is_empty() && given_name != name {
        let error = FieldError::invalid("metadata.name", given_name, "must match the service account name");
        return Err(Status::bad_request(error.to_string()));
    }
    let seconds = meta::i64_at(&sent, &["spec", "expirationSeconds"]).unwrap_or(DEFAULT_SECONDS);
    let mut errors = Vec::new();
    if seconds < MIN_SECONDS {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > MAX_SECONDS {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", given_name, &errors));
    }
    let bound = sent.get("spec").and_then(|s| s.get("boundObjectRef")).filter(|b| !b.is_null()).cloned();
    let pod = match &bound {
        Some(to) if call.user.node().is_some() && meta::str_at(to, &["kind"]) == "Pod" => {
            let key = keys::object_of("", "pods", &namespace, meta::str_at(to, &["name"]));
            state.read_key(&key, Fresh::Linearizable).await?.map(|found| found.decode())
        }
        _ => None,
    };
    admission::node::token(&call.user, &name, &sent, pod.as_ref())?;
    let audiences: Vec<String> =
        meta::list_at(&sent, &["spec", "audiences"]).iter().filter_map(Value::as_str).map(String::from).collect();
    let audiences = if audiences.is_empty() { default_audiences(state) } else { audiences };
    let mut private = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": account_uid}});
    if let Some(reference) = &bound {
        bind(state, &namespace, &name, reference, &mut private).await?;
    }
    let now = Timestamp::now();
    let extended = seconds == POD_SECONDS && bound.is_some() && audiences == default_audiences(state);
    let lasts = if extended { EXTENDED_SECONDS } else { seconds };
    if extended {
        private["warnafter"] = json!(now.as_second() + seconds);
    }
    let claims = json!({
        "aud": audiences,
        "exp": now.as_second() + lasts,
        "iat": now.as_second(),
        "iss": state.config.tokens.issuer(),
        "jti": new_uid(),
        "kubernetes.io": private,
        "nbf": now.as_second(),
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let token = state.config.tokens.sign(&claims);
    let value = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "uid": account_uid, "creationTimestamp": meta::format_time(now)},
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound},
        "status": {"token": token, "expirationTimestamp": meta::format_time(now + SignedDuration::from_secs(seconds))},
    });
    let mut value = value;
    if let Some(managers) = meta::at(&sent, &["metadata", "managedFields"]) {
        meta::set(&mut value, "managedFields", managers.clone());
    }
    Ok(Answer::Value { code: 201, value })
}

/// The last second that a time of the API can say: 9999-12-31T23:59:59Z.
const NEVER: i64 = 253_402_300_799;

/// A token without an end of its own, for the Secret that keeps it: it is good as long as the Secret and the account are the same.
pub fn kept(state: &State, secret: &Value, account: &str, account_uid: &str) -> String {
    let now = Timestamp::now().as_second();
    let namespace = meta::namespace(secret);
    state.config.tokens.sign(&json!({
        "aud": default_audiences(state),
        "exp": NEVER,
        "iat": now,
        "iss": state.config.tokens.issuer(),
        "jti": new_uid(),
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": account_uid},
            "secret": {"name": meta::name(secret), "uid": meta::uid(secret)},
        },
        "nbf": now,
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
    }))
}

/// Ties the token to a pod, secret or node: it ends with it.
async fn bind(
    state: &State,
    namespace: &str,
    account: &str,
    reference: &Value,
    private: &mut Value,
) -> Result<(), Status> {
    let (kind, version) = (meta::str_at(reference, &["kind"]), meta::str_at(reference, &["apiVersion"]));
    let (name, uid) = (meta::str_at(reference, &["name"]), meta::str_at(reference, &["uid"]));
    let (resource, scope, claim) = match (kind, version) {
        ("Pod", "v1") => ("pods", namespace, "pod"),
        ("Secret", "v1") => ("secrets", namespace, "secret"),
        ("Node", "v1") => ("nodes", "", "node"),
        _ => {
            return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
        }
    };
    let found = state.read_key(&keys::object_of("", resource, scope, name), Fresh::Linearizable).await?;
    let object = found.ok_or_else(|| Status::not_found("", resource, name))?.decode();
    if claim == "pod" && meta::str_at(&object, &["spec", "serviceAccountName"]) != account {
        let on = meta::str_at(&object, &["spec", "serviceAccountName"]);
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name: {on:?}"
        )));
    }
    let actual = meta::uid(&object);
    if !uid.is_empty() && uid != actual {
        let detail = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", kind, name, &detail));
    }
    private[claim] = json!({"name": name, "uid": actual});
    if claim == "pod" {
        let node = meta::str_at(&object, &["spec", "nodeName"]);
        if !node.is_empty() {
            private["node"] = json!({"name": node});
            if let Some(found) = state.read_key(&keys::object_of("", "nodes", "", node), Fresh::Local).await? {
                private["node"]["uid"] = json!(meta::uid(&found.decode()));
            }
        }
    }
    Ok(())
}
