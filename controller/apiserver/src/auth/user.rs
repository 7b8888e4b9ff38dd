//! Who is asking.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The member of `system:masters` may do anything, whatever the roles say.
pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
pub const NODES: &str = "system:nodes";
/// The group of the servers' own certificates.
pub const SERVERS: &str = "system:skiff-servers";
pub const NODE_USER_PREFIX: &str = "system:node:";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// An authenticated user, or the anonymous one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new<'a>(name: impl Into<String>, groups: impl IntoIterator<Item = &'a str>) -> Self {
        UserInfo { name: name.into(), groups: groups.into_iter().map(String::from).collect(), ..Default::default() }
    }

    pub fn anonymous() -> Self {
        UserInfo::new(ANONYMOUS, [UNAUTHENTICATED])
    }

    /// A user of the control plane itself, such as `system:kube-scheduler`.
    pub fn system(name: &str) -> Self {
        UserInfo::new(name, [AUTHENTICATED])
    }

    /// The control plane's own hand: may do anything.
    pub fn apiserver() -> Self {
        UserInfo::new("system:apiserver", [MASTERS, AUTHENTICATED])
    }

    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let group = format!("{SERVICE_ACCOUNTS}:{namespace}");
        let mut user = UserInfo::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            [SERVICE_ACCOUNTS, &group, AUTHENTICATED],
        );
        user.uid = uid.to_string();
        user
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is, when it is one.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_USER_PREFIX).filter(|n| !n.is_empty() && self.is_in(NODES))
    }

    /// As `status.userInfo` of a review; empty fields are left out.
    pub fn to_value(&self) -> Value {
        let mut out = serde_json::Map::new();
        if !self.name.is_empty() {
            out.insert("username".into(), json!(self.name));
        }
        if !self.uid.is_empty() {
            out.insert("uid".into(), json!(self.uid));
        }
        if !self.groups.is_empty() {
            out.insert("groups".into(), json!(self.groups));
        }
        if !self.extra.is_empty() {
            out.insert("extra".into(), json!(self.extra));
        }
        Value::Object(out)
    }
}
