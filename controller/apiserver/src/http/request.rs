//! From method, path and query to what is asked for.
//!
//! Resource paths are `/api/v1/...` and `/apis/GROUP/VERSION/...`, then `namespaces/NS/`, the resource, a name, a
//! subresource and (for proxies) a rest. Everything else is a path of its own, such as `/healthz`.

use skiff_api::status::Status;

/// The query of a request, in order; keys may repeat.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|p| !p.is_empty());
        let decode = |t: &str| percent_decode(&t.replace('+', " "));
        Query(pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect())
    }

    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Query(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// As [`Query::get`], with an empty text for what is not there.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    pub fn all<'q>(&'q self, key: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn set(&mut self, key: &str, value: &str) {
        self.0.retain(|(k, _)| k != key);
        self.0.push((key.into(), value.into()));
    }

    /// A switch as upstream reads it: present and not `false` or `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A whole number; the error is worded as Go's parser does, which is what clients know.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                let in_range = text.strip_prefix(['-', '+']).unwrap_or(text).bytes().all(|b| b.is_ascii_digit());
                let problem = if in_range { "value out of range" } else { "invalid syntax" };
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {problem}"))
            }),
        }
    }
}

pub fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let byte = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is asked for, in the terms that authorization is written in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method.
    pub verb: String,
    pub is_resource: bool,
    pub path: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows a proxy's path.
    pub rest: String,
}

impl RequestInfo {
    pub fn parse(method: &str, path: &str, query: &Query) -> Self {
        let mut info = RequestInfo { verb: method.to_ascii_lowercase(), path: path.into(), ..Default::default() };
        let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty()).map(percent_decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = version.to_string();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = group.to_string();
                info.version = version.to_string();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        // The old form /api/v1/watch/...
        let (watch_prefix, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            rest => (false, rest),
        };
        let rest = match rest {
            ["namespaces", ns, rest @ ..] => {
                info.namespace = ns.to_string();
                match rest {
                    // `status` and `finalize` are parts of the namespace itself, not resources in it.
                    [] | ["status" | "finalize", ..] => {
                        ["namespaces", ns].iter().chain(rest).copied().collect::<Vec<_>>()
                    }
                    rest => rest.to_vec(),
                }
            }
            rest => rest.to_vec(),
        };
        info.resource = rest[0].to_string();
        info.name = rest.get(1).unwrap_or(&"").to_string();
        info.subresource = rest.get(2).unwrap_or(&"").to_string();
        if rest.len() > 3 {
            info.rest = rest[3..].join("/");
            if path.ends_with('/') {
                info.rest.push('/');
            }
        }
        info.verb = match method {
            "POST" => "create",
            "GET" | "HEAD" => "get",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            other => return RequestInfo { verb: other.to_ascii_lowercase(), ..info },
        }
        .into();
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if watch_prefix || query.flag("watch") { "watch" } else { "list" }.into();
        }
        if watch_prefix && info.verb == "get" {
            info.verb = "watch".into();
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".into();
        }
        // A list of one name is authorized by that name.
        if info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            let selector = query.text("fieldSelector");
            if let Some(name) = selector.strip_prefix("metadata.name=").filter(|n| !n.contains([',', '=', '!'])) {
                info.name = name.to_string();
            }
        }
        info
    }

    /// The name that the path itself gives; a name that came from a field selector is not one.
    pub fn path_name(&self) -> &str {
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") { "" } else { &self.name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_requests() {
        let check = |request: &str, expect: &str| {
            let (method, url) = request.split_once(' ').unwrap();
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let i = RequestInfo::parse(method, path, &Query::parse(query));
            let found = format!(
                "{} {}|{}|{}|{}|{}|{}|{}",
                i.verb, i.group, i.version, i.namespace, i.resource, i.name, i.subresource, i.rest
            );
            assert_eq!(found, expect, "{request}");
        };
        check("GET /api/v1/pods", "list |v1||pods|||");
        check("GET /api/v1/namespaces/a/pods?watch=1", "watch |v1|a|pods|||");
        check("GET /api/v1/namespaces/a/pods?watch=false", "list |v1|a|pods|||");
        check("GET /api/v1/namespaces/a", "get |v1|a|namespaces|a||");
        check("PUT /api/v1/namespaces/a/finalize", "update |v1|a|namespaces|a|finalize|");
        check("GET /api/v1/namespaces", "list |v1||namespaces|||");
        check("POST /apis/apps/v1/namespaces/a/deployments", "create apps|v1|a|deployments|||");
        check("PATCH /apis/apps/v1/namespaces/a/deployments/d/scale", "patch apps|v1|a|deployments|d|scale|");
        check("DELETE /api/v1/namespaces/a/pods", "deletecollection |v1|a|pods|||");
        check("GET /api/v1/namespaces/a/services/s/proxy/x/y/", "get |v1|a|services|s|proxy|x/y/");
        check("GET /api/v1/nodes?fieldSelector=metadata.name%3Dn", "list |v1||nodes|n||");
        check("GET /healthz", "get ||||||");
        check("GET /apis/apps/v1", "get ||||||");
    }
}
