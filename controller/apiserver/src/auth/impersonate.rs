//! Acting as somebody else: what the `Impersonate-*` headers ask for, and whether the user may ask for it.
//!
//! Each part (the name, each group, the UID, each value of an extra field) is a right of its own, so a right that is limited to names of resources is limited to
//! these. Source: Kubernetes documentation, "User impersonation".

use super::authorize;
use super::rbac::Attributes;
use super::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::http::request::percent_decode;
use crate::state::State;
use http::{HeaderMap, HeaderValue};
use skiff_api::status::Status;
use std::collections::BTreeMap;

/// What the headers ask for; without a header, nothing.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// A header that cannot be read is refused: left out, the request would be done as the one who sent it, who has more rights.
    fn read(headers: &HeaderMap) -> Result<Wanted, Status> {
        let text = |name: &str, value: &HeaderValue| {
            let text = std::str::from_utf8(value.as_bytes()).map(String::from);
            text.map_err(|_| Status::bad_request(format!("the header {name} is not UTF-8: send a name in UTF-8")))
        };
        let texts = |name: &str| -> Result<Vec<String>, Status> {
            headers.get_all(name).iter().map(|value| text(name, value)).collect()
        };
        let first = |name: &str| Ok::<_, Status>(texts(name)?.into_iter().next().unwrap_or_default());
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in headers {
            if let Some(field) = key.as_str().strip_prefix("impersonate-extra-") {
                extra.entry(percent_decode(field)).or_default().push(text(key.as_str(), value)?);
            }
        }
        let (name, uid) = (first("impersonate-user")?, first("impersonate-uid")?);
        Ok(Wanted { name, uid, groups: texts("impersonate-group")?, extra })
    }
}

/// Lets a user act as another, where the `impersonate` verb allows it.
pub async fn impersonate(state: &State, user: UserInfo, headers: &HeaderMap) -> Result<UserInfo, Status> {
    let Wanted { name, uid, groups, extra } = Wanted::read(headers)?;
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        let list = groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(", ");
        return Err(Status::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:[]string{{{list}}}, Extra:map[string][]string(nil)}} without \
             impersonating a user name"
        )));
    }
    let mut wanted = Vec::new();
    let attribute = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Default::default()
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => wanted.push(attribute("", "serviceaccounts", "", namespace, account)),
        None => wanted.push(attribute("", "users", "", "", &name)),
    }
    wanted.extend(groups.iter().map(|g| attribute("", "groups", "", "", g)));
    for (key, values) in &extra {
        wanted.extend(values.iter().map(|v| attribute("authentication.k8s.io", "userextras", key, "", v)));
    }
    if !uid.is_empty() {
        wanted.push(attribute("authentication.k8s.io", "uids", "", "", &uid));
    }
    for attributes in &wanted {
        authorize::require(state, &user, attributes).await?;
    }
    let mut other = match account {
        Some((namespace, account)) if groups.is_empty() => UserInfo::service_account(namespace, account, ""),
        _ => UserInfo { name, groups, ..Default::default() },
    };
    other.uid = uid;
    other.extra = extra;
    let implied = if other.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !other.is_in(implied) {
        other.groups.push(implied.into());
    }
    Ok(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let check = |lines: &[(&'static str, &[u8])], expect: Option<Wanted>| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(Wanted::read(&headers).ok(), expect, "{lines:?}");
        };
        check(&[], Some(Wanted::default()));
        check(
            &[("impersonate-user", "jos\u{e9}".as_bytes()), ("impersonate-group", b"a"), ("impersonate-group", b"b")],
            Some(Wanted { name: "jos\u{e9}".into(), groups: vec!["a".into(), "b".into()], ..Default::default() }),
        );
        check(
            &[("impersonate-user", b"u"), ("impersonate-extra-a%2fb", b"1"), ("impersonate-extra-a%2fb", b"2")],
            Some(Wanted {
                name: "u".into(),
                extra: [("a/b".to_string(), vec!["1".to_string(), "2".to_string()])].into(),
                ..Default::default()
            }),
        );
        check(&[("impersonate-user", b"jos\xe9")], None);
        check(&[("impersonate-user", b"u"), ("impersonate-group", b"\xff")], None);
        check(&[("impersonate-user", b"u"), ("impersonate-extra-x", b"\xff")], None);
        check(&[("impersonate-uid", b"\xff")], None);
    }
}
