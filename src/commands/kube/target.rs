//! Which cluster and which namespace a verb speaks to, and how its requests are written.

use crate::client::Api;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Options that every verb has.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Cluster {
    /// The kubeconfig [default: $KUBECONFIG, then the local cluster's, then ~/.kube/config]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The namespace [default: the kubeconfig's, or "default"]
    #[arg(short, long)]
    pub namespace: Option<String>,
}

impl Cluster {
    /// The API, with the namespace that was asked for.
    pub fn api(&self) -> anyhow::Result<Api> {
        let mut api = match &self.kubeconfig {
            Some(path) => Api::from_kubeconfig(path)?,
            None => Api::from_environment()?,
        };
        if let Some(namespace) = &self.namespace {
            api.namespace.clone_from(namespace);
        }
        Ok(api)
    }
}

/// A query string from pairs; pairs with an empty value are left out. Empty, or with its `?`.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs.iter().filter(|(_, v)| !v.is_empty()) {
        text.push(if text.is_empty() { '?' } else { '&' });
        let _ = write!(text, "{key}={}", encode(value));
    }
    text
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, section 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// `true`, or nothing, which [`query`] leaves out.
pub fn flag(on: bool) -> &'static str {
    if on { "true" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let check = |pairs: &[(&str, &str)], expect: &str| assert_eq!(query(pairs), expect);
        check(&[], "");
        check(&[("watch", ""), ("limit", "")], "");
        check(
            &[("labelSelector", "a=b,c in (d)"), ("watch", "true")],
            "?labelSelector=a%3Db%2Cc%20in%20%28d%29&watch=true",
        );
        check(&[("command", "ä/~")], "?command=%C3%A4%2F~");
    }
}
