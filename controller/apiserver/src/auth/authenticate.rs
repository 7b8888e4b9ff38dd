//! From credentials to a user: client certificates, and bearer tokens of four kinds.

use super::jwt;
use super::user::{AUTHENTICATED, UserInfo};
use crate::state::{Fresh, State};
use crate::storage::keys;
use base64::Engine;
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

/// The subprotocol by which browsers send a token: `base64url.bearer.authorization.k8s.io.TOKEN`.
const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Who sent this request. `certificate` is the user of a client certificate that TLS has verified.
pub async fn authenticate(
    state: &State,
    headers: &HeaderMap,
    certificate: Option<&UserInfo>,
) -> Result<UserInfo, Status> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    match bearer(headers) {
        Some(token) => {
            let (user, audiences) = user_of_token(state, &token).await?.ok_or_else(Status::unauthorized)?;
            // A token that was made for somebody else is no key here, however well signed.
            let ours = default_audiences(state);
            match audiences.iter().any(|audience| ours.contains(audience)) {
                true => Ok(user),
                false => Err(Status::unauthorized()),
            }
        }
        None if state.config.anonymous => Ok(UserInfo::anonymous()),
        None => Err(Status::unauthorized()),
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        return (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim().to_string());
    }
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|p| p.trim().strip_prefix(WEBSOCKET_TOKEN))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

/// The user of a token, with the audiences that the token is for; None when no one knows it.
pub async fn user_of_token(state: &State, token: &str) -> Result<Option<(UserInfo, Vec<String>)>, Status> {
    if let Some(user) = state.token_file.user(token) {
        return Ok(Some((user.clone(), default_audiences(state))));
    }
    if state.config.tokens.is_mine(token) {
        return account_of_token(state, token).await;
    }
    let bootstrap = bootstrap_user(state, token).await?;
    Ok(bootstrap.map(|user| (user, default_audiences(state))))
}

/// What tokens are for when they do not say.
pub fn default_audiences(state: &State) -> Vec<String> {
    match state.config.audiences.is_empty() {
        true => vec![state.config.tokens.issuer().to_string()],
        false => state.config.audiences.clone(),
    }
}

/// A service account token is good while its account, and the pod or secret it is bound to, are the same as then.
async fn account_of_token(state: &State, token: &str) -> Result<Option<(UserInfo, Vec<String>)>, Status> {
    let claims = match state.config.tokens.verify(token, Timestamp::now().as_second()) {
        Ok(claims) => claims,
        Err(
            jwt::TokenError::Malformed
            | jwt::TokenError::Signature
            | jwt::TokenError::Claim(_)
            | jwt::TokenError::Expired,
        ) => {
            return Ok(None);
        }
    };
    let private = |path: &[&str]| {
        let mut full = vec!["kubernetes.io"];
        full.extend(path);
        meta::str_at(&claims, &full).to_string()
    };
    let namespace = private(&["namespace"]);
    let (name, uid) = (private(&["serviceaccount", "name"]), private(&["serviceaccount", "uid"]));
    if namespace.is_empty() || name.is_empty() {
        return Ok(None);
    }
    let account = keys::object_of("", "serviceaccounts", &namespace, &name);
    if !is_same(state, &account, &uid).await? {
        return Ok(None);
    }
    for (claim, resource) in [("pod", "pods"), ("secret", "secrets")] {
        let (bound, bound_uid) = (private(&[claim, "name"]), private(&[claim, "uid"]));
        if !bound.is_empty() && !is_same(state, &keys::object_of("", resource, &namespace, &bound), &bound_uid).await? {
            return Ok(None);
        }
    }
    let mut user = UserInfo::service_account(&namespace, &name, &uid);
    let mut extra = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    let id = meta::str_at(&claims, &["jti"]);
    extra("credential-id", if id.is_empty() { String::new() } else { format!("JTI={id}") });
    extra("pod-name", private(&["pod", "name"]));
    extra("pod-uid", private(&["pod", "uid"]));
    extra("node-name", private(&["node", "name"]));
    extra("node-uid", private(&["node", "uid"]));
    let audiences = match claims.get("aud") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(String::from).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => default_audiences(state),
    };
    Ok(Some((user, audiences)))
}

async fn is_same(state: &State, key: &str, uid: &str) -> Result<bool, Status> {
    let mut found = state.read_key(key, Fresh::Local).await?;
    if found.is_none() {
        found = state.read_key(key, Fresh::Linearizable).await?;
    }
    Ok(found.is_some_and(|f| meta::uid(&f.decode()) == uid))
}

/// Tokens of the form `abcdef.0123456789abcdef`, kept in secrets of `kube-system` until they expire.
async fn bootstrap_user(state: &State, token: &str) -> Result<Option<UserInfo>, Status> {
    let Some((id, secret)) = token.split_once('.') else { return Ok(None) };
    let fits = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !fits(id, 6) || !fits(secret, 16) {
        return Ok(None);
    }
    let key = keys::object_of("", "secrets", "kube-system", &format!("bootstrap-token-{id}"));
    let Some(found) = state.read_key(&key, Fresh::Linearizable).await? else { return Ok(None) };
    let object = found.decode();
    let data = |name: &str| {
        let encoded = meta::str_at(&object, &["data", name]);
        let bytes = skiff_api::base64::decode(encoded).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let expired = is_over(&object, Timestamp::now());
    let usable = meta::str_at(&object, &["type"]) == "bootstrap.kubernetes.io/token"
        && data("token-id") == id
        && same_text(&data("token-secret"), secret)
        && data("usage-bootstrap-authentication") == "true"
        && !expired
        && !meta::is_being_deleted(&object);
    if !usable {
        return Ok(None);
    }
    let mut user = UserInfo::new(format!("system:bootstrap:{id}"), ["system:bootstrappers"]);
    let more = data("auth-extra-groups");
    user.groups
        .extend(more.split(',').map(str::trim).filter(|g| g.starts_with("system:bootstrappers:")).map(String::from));
    user.groups.push(AUTHENTICATED.into());
    Ok(Some(user))
}

/// Whether a bootstrap token has ended. One that says when, in words that nobody can read, has.
fn is_over(secret: &Value, now: Timestamp) -> bool {
    let Some(said) = meta::at(secret, &["data", "expiration"]).filter(|said| !said.is_null()) else { return false };
    let bytes = skiff_api::base64::decode(said.as_str().unwrap_or("?"));
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_deref() {
        Some("") => false,
        Some(text) => text.parse::<Timestamp>().map_or(true, |until| until <= now),
        None => true,
    }
}

/// Compares in time that does not depend on where the texts differ.
fn same_text(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// The user in a client certificate: the common name, with organizations as groups.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    let mut user = UserInfo::new(name, []);
    user.groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(String::from).collect();
    user.groups.push(AUTHENTICATED.into());
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_end_that_nobody_can_read_is_past() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let encode = |text: &str| json!(base64::engine::general_purpose::STANDARD.encode(text));
        for (expiration, expect) in [
            (Value::Null, false),
            (encode(""), false),
            (encode("2026-01-01T00:00:01Z"), false),
            (encode("2026-01-01T00:00:00Z"), true),
            (encode("tomorrow"), true),
            (encode("2026-01-01"), true),
            (encode("99999999999999999999"), true),
            (json!("***"), true),
            (json!(7), true),
        ] {
            assert_eq!(is_over(&json!({"data": {"expiration": expiration}}), now), expect, "{expiration}");
        }
    }
}
