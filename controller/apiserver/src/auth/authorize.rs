//! May this user do this? Masters may do anything, nodes what their pods need, everybody what roles grant.

use super::node_rules;
use super::rbac::{Attributes, Decision};
use super::user::{MASTERS, UserInfo};
use crate::http::request::RequestInfo;
use crate::state::State;
use skiff_api::status::Status;

impl From<&RequestInfo> for Attributes {
    fn from(info: &RequestInfo) -> Self {
        if !info.is_resource {
            return Attributes { verb: info.verb.clone(), path: Some(info.path.clone()), ..Default::default() };
        }
        Attributes {
            verb: info.verb.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: None,
            fields: info.fields.clone(),
        }
    }
}

/// The decision, on what is committed.
pub async fn decide(state: &State, user: &UserInfo, wanted: &Attributes) -> Result<Decision, Status> {
    if user.is_in(MASTERS) {
        return Ok(Decision::Allow(String::new()));
    }
    let mut reason = String::new();
    if let Some(node) = user.node() {
        match node_rules::decide(state, node, wanted).await? {
            Ok(()) => return Ok(Decision::Allow(String::new())),
            Err(why) => reason = why,
        }
    }
    let mut decision = state.policy.decide(user, wanted);
    if !matches!(decision, Decision::Allow(_)) {
        state.policy.refresh(&state.store).await?;
        decision = state.policy.decide(user, wanted);
    }
    Ok(match decision {
        Decision::NoOpinion(why) if why.is_empty() => Decision::NoOpinion(reason),
        Decision::NoOpinion(why) if !reason.is_empty() => Decision::NoOpinion(format!("{reason}, {why}")),
        decision => decision,
    })
}

/// Lets a request pass, or says no as the reference server does.
pub async fn require(state: &State, user: &UserInfo, wanted: &Attributes) -> Result<(), Status> {
    match decide(state, user, wanted).await? {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(reason) => {
            let mut why = wanted.denial(&user.name);
            if !reason.is_empty() {
                why.push_str(": ");
                why.push_str(&reason);
            }
            let mut status = Status::forbidden(&wanted.group, &wanted.resource, &wanted.name, &why);
            if wanted.path.is_some() {
                status.details = Some(Default::default());
            }
            Err(status)
        }
    }
}
