//! Questions about rights and identities: access reviews, rules reviews, token reviews, "who am I".

use crate::auth::authenticate::{default_audiences, user_of_token};
use crate::auth::authorize;
use crate::auth::rbac::{Attributes, Decision, Rule};
use crate::auth::user::UserInfo;
use crate::call::{Answer, Call};
use crate::decode;
use crate::rules;
use crate::state::State;
use crate::verbs::options;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_api::apply::Operation;
use skiff_api::meta;
use skiff_api::schema::Schema;
use skiff_api::selector::FieldSelector;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;

/// What an answer to "what may I do" may fill; it says when that was not enough.
const RULES_BYTES_MAX: usize = 1 << 20;

pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "CreateOptions")?;
    let mut review = decode::object(call)?;
    // What one may do is asked, not written.
    if let Some(schema) = Schema::for_kind(&call.kind).filter(|_| call.kind.kind != "SelfSubjectRulesReview") {
        let (kind, manager) = (call.kind.clone(), call.manager());
        rules::track(&kind, schema, None, &mut review, &manager, Operation::Update, "", Timestamp::now());
    }
    if review.get("metadata").is_none_or(Value::is_null) {
        review["metadata"] = json!({});
    }
    let status = match call.kind.kind.as_str() {
        "SelfSubjectReview" => {
            meta::set(&mut review, "creationTimestamp", meta::format_time(Timestamp::now()));
            json!({"userInfo": call.user.to_value()})
        }
        "TokenReview" => token_review(state, &review).await?,
        "SelfSubjectRulesReview" => {
            let status = rules_review(state, call, &review).await?;
            review["spec"] = json!({});
            status
        }
        "SelfSubjectAccessReview" => {
            let wanted = wanted(&review, None)?;
            access(state, &call.user, &wanted).await?
        }
        _ => {
            let local = (call.kind.kind == "LocalSubjectAccessReview").then(|| call.namespace().to_string());
            let wanted = wanted(&review, local.as_deref())?;
            let user = subject(&review)?;
            access(state, &user, &wanted).await?
        }
    };
    let mut ordered = Map::new();
    for key in ["kind", "apiVersion", "metadata", "spec"] {
        if let Some(value) = review.get(key) {
            ordered.insert(key.into(), value.clone());
        }
    }
    ordered.insert("status".into(), status);
    Ok(Answer::Value { code: 201, value: Value::Object(ordered) })
}

fn refuse(error: FieldError) -> Status {
    let mut status = Status::invalid("authorization.k8s.io", "", "", &[error]);
    if let Some(details) = &mut status.details {
        details.kind = String::new();
    }
    status
}

/// What is asked about: a resource or a path, exactly one of them.
fn wanted(review: &Value, local: Option<&str>) -> Result<Attributes, Status> {
    let present = |key: &str| review.get("spec").and_then(|s| s.get(key)).filter(|v| !v.is_null());
    match (present("resourceAttributes"), present("nonResourceAttributes")) {
        (None, None) => Err(refuse(FieldError::invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ))),
        (Some(_), Some(other)) => {
            let shown = json!({"Path": meta::str_at(other, &["path"]), "Verb": meta::str_at(other, &["verb"])});
            Err(refuse(FieldError::invalid(
                "spec.nonResourceAttributes",
                shown,
                "cannot be specified in combination with resourceAttributes",
            )))
        }
        (Some(resource), None) => {
            let text = |key: &str| meta::str_at(resource, &[key]).to_string();
            if let Some(namespace) = local
                && text("namespace") != namespace
            {
                let at = "spec.resourceAttributes.namespace";
                return Err(refuse(FieldError::invalid(at, text("namespace"), "must match metadata.namespace")));
            }
            Ok(Attributes {
                verb: text("verb"),
                group: text("group"),
                version: text("version"),
                resource: text("resource"),
                subresource: text("subresource"),
                namespace: text("namespace"),
                name: text("name"),
                path: None,
                fields: asked_fields(resource),
            })
        }
        (None, Some(path)) => {
            if local.is_some() {
                let detail = "disallowed on this kind of request";
                return Err(refuse(FieldError::invalid("spec.nonResourceAttributes", path.clone(), detail)));
            }
            let text = |key: &str| meta::str_at(path, &[key]).to_string();
            Ok(Attributes { verb: text("verb"), path: Some(text("path")), ..Default::default() })
        }
    }
}

/// The demands of a review's field selector that are of one value each.
fn asked_fields(resource: &Value) -> FieldSelector {
    let selector = FieldSelector::read(meta::str_at(resource, &["fieldSelector", "rawSelector"])).unwrap_or_default();
    meta::list_at(resource, &["fieldSelector", "requirements"]).iter().fold(selector, |selector, term| {
        match (meta::str_at(term, &["operator"]), meta::list_at(term, &["values"])) {
            ("In", [one]) => selector.and(meta::str_at(term, &["key"]), one.as_str().unwrap_or_default()),
            _ => selector,
        }
    })
}

fn subject(review: &Value) -> Result<UserInfo, Status> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let groups: Vec<String> =
        meta::list_at(&spec, &["groups"]).iter().filter_map(Value::as_str).map(String::from).collect();
    let name = meta::str_at(&spec, &["user"]).to_string();
    if name.is_empty() && groups.is_empty() {
        return Err(refuse(FieldError::invalid("spec.user", "", "at least one of user or group must be specified")));
    }
    Ok(UserInfo { name, uid: meta::str_at(&spec, &["uid"]).into(), groups, ..Default::default() })
}

async fn access(state: &State, user: &UserInfo, wanted: &Attributes) -> Result<Value, Status> {
    let (allowed, reason) = match authorize::decide(state, user, wanted).await? {
        Decision::Allow(reason) => (true, reason),
        Decision::NoOpinion(reason) => (false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(status)
}

async fn rules_review(state: &State, call: &Call, review: &Value) -> Result<Value, Status> {
    let namespace = meta::str_at(review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    state.policy.refresh(&state.store).await?;
    let (rules, problems) = state.policy.first_rules_for(&call.user, namespace, RULES_BYTES_MAX);
    let (paths, resources): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|r| !r.non_resource_urls.is_empty());
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !problems.is_empty()});
    if !problems.is_empty() {
        status["evaluationError"] = json!(problems.join(", "));
    }
    Ok(status)
}

async fn token_review(state: &State, review: &Value) -> Result<Value, Status> {
    let token = meta::str_at(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> =
        meta::list_at(review, &["spec", "audiences"]).iter().filter_map(Value::as_str).map(String::from).collect();
    let asked = if asked.is_empty() { default_audiences(state) } else { asked };
    Ok(match user_of_token(state, token).await? {
        Some((user, audiences)) => {
            let shared: Vec<&String> = asked.iter().filter(|a| audiences.contains(a)).collect();
            if shared.is_empty() {
                let error = format!(
                    "[invalid bearer token, token audiences {audiences:?} is invalid for the target audiences {asked:?}]"
                );
                json!({"user": {}, "error": error})
            } else {
                json!({"authenticated": true, "user": user.to_value(), "audiences": shared})
            }
        }
        None => json!({"user": {}, "error": refusal(state, token)}),
    })
}

/// Why a token that someone asks about is not good.
fn refusal(state: &State, token: &str) -> String {
    let why = match state.config.tokens.verify(token, Timestamp::now().as_second()) {
        _ if !state.config.tokens.is_mine(token) => return "invalid bearer token".into(),
        // Well signed and in time: what it stands for is gone.
        Ok(_) => "service account token has been invalidated".to_string(),
        Err(error) => error.to_string(),
    };
    format!("[invalid bearer token, {why}]")
}
