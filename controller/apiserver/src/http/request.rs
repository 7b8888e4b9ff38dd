//! From method, path and query to what is asked for.
//!
//! Resource paths are `/api/v1/...` and `/apis/GROUP/VERSION/...`, then `namespaces/NS/`, the resource, a name, a
//! subresource and (for proxies) a rest. Everything else is a path of its own, such as `/healthz`.

use skiff_api::selector::FieldSelector;
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
    /// What a list or watch demands of fields; nothing where it cannot be read (whoever answers refuses it then).
    pub fields: FieldSelector,
}

/// Whether a part of a path can be (a part of) a name: Kubernetes documentation, "Path Segment Names".
fn is_segment(part: &str) -> bool {
    !matches!(part, "." | "..") && !part.contains(['/', '%']) && !part.chars().any(char::is_control)
}

impl RequestInfo {
    /// Reads a request once, for authorization and for whoever answers it.
    ///
    /// The path is decoded before it is split, and empty parts count for nothing, so that one path has one meaning. What has none is
    /// refused: parts that are no names, methods that make no verb, a rest where nothing takes one.
    pub fn parse(method: &str, path: &str, query: &Query) -> Result<Self, Status> {
        let decoded = percent_decode(path);
        let parts: Vec<&str> = decoded.split('/').filter(|p| !p.is_empty()).collect();
        let mut canonical = format!("/{}", parts.join("/"));
        if decoded.ends_with('/') && !parts.is_empty() {
            canonical.push('/');
        }
        let mut info = RequestInfo { verb: method.to_ascii_lowercase(), path: canonical, ..Default::default() };
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
            _ => return Ok(info),
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
            if decoded.ends_with('/') {
                info.rest.push('/');
            }
        }
        if [&info.namespace, &info.resource, &info.name, &info.subresource].into_iter().any(|part| !is_segment(part)) {
            return Err(Status::bad_request(format!("the path {path:?} has a part that cannot be a name")));
        }
        let below_a_watch = watch_prefix && !info.subresource.is_empty();
        if below_a_watch || !info.rest.is_empty() && info.subresource != "proxy" {
            return Err(Status::no_such_resource());
        }
        let named = !info.name.is_empty();
        // Verbs are made from methods here and nowhere else: a method called LIST is no list.
        info.verb = match (method, watch_prefix) {
            ("GET" | "HEAD", true) => "watch",
            ("GET" | "HEAD", false) if named => "get",
            ("GET" | "HEAD", false) if query.flag("watch") => "watch",
            ("GET" | "HEAD", false) => "list",
            ("POST", false) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", false) if named => "delete",
            ("DELETE", false) => "deletecollection",
            _ => return Err(Status::method_not_supported(&info.group, &info.resource, &method.to_ascii_lowercase())),
        }
        .into();
        info.select(query);
        Ok(info)
    }

    /// Takes in what the selector of a list or watch demands: one that demands a name is authorized by that name.
    ///
    /// A deletion of many is not: it has no name, whatever it selects (Kubernetes documentation, "Referring to resources").
    pub fn select(&mut self, query: &Query) {
        if !self.is_of_many() {
            return;
        }
        self.fields = FieldSelector::read(query.text("fieldSelector")).unwrap_or_default();
        if self.name.is_empty()
            && matches!(self.verb.as_str(), "list" | "watch")
            && let Some(name) = self.fields.required("metadata.name").filter(|name| is_segment(name))
        {
            self.name = name.to_string();
        }
    }

    fn is_of_many(&self) -> bool {
        matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
    }

    /// The name that the path itself gives; a name that came from a field selector is not one.
    pub fn path_name(&self) -> &str {
        if self.is_of_many() { "" } else { &self.name }
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
            let i = RequestInfo::parse(method, path, &Query::parse(query)).unwrap();
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
        check("GET /api/v1/nodes?fieldSelector=spec.unschedulable!%3Dtrue,metadata.name%3D%3Dn", "list |v1||nodes|n||");
        check("DELETE /api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dp", "deletecollection |v1|a|pods|||");
        check("GET /api/v1/watch/namespaces/a/secrets/x", "watch |v1|a|secrets|x||");
        check("GET /api/v1/namespaces/a/secrets/x?watch=1", "get |v1|a|secrets|x||");
        check("POST /api/v1/namespaces/a/secrets?watch=1", "create |v1|a|secrets|||");
        check("HEAD //api/v1//namespaces/a/secrets/x/", "get |v1|a|secrets|x||");
        check("GET /api/v1/namespaces/a%2Fsecrets%2Fx", "get |v1|a|secrets|x||");
        check("GET /healthz", "get ||||||");
        check("GET /apis/apps/v1", "get ||||||");
    }

    #[test]
    fn what_has_no_one_meaning_is_refused() {
        for (request, code) in [
            ("LIST /api/v1/namespaces/a/secrets/x", 405),
            ("WATCH /api/v1/namespaces/a/secrets/x", 405),
            ("get /api/v1/namespaces/a/secrets/x", 405),
            ("POST /api/v1/watch/namespaces/a/secrets", 405),
            ("DELETE /api/v1/watch/namespaces/a/secrets/x", 405),
            ("GET /api/v1/namespaces/a/secrets/..", 400),
            ("GET /api/v1/namespaces/%2E%2E/secrets", 400),
            ("GET /api/v1/namespaces/a/secrets/x%00", 400),
            ("GET /api/v1/namespaces/a/secrets/%2525", 400),
            ("GET /api/v1/namespaces/a/pods/x/log/more", 404),
            ("GET /api/v1/watch/namespaces/a/pods/x/log", 404),
        ] {
            let (method, path) = request.split_once(' ').unwrap();
            let found = RequestInfo::parse(method, path, &Query::default()).map_err(|s| s.code());
            assert_eq!(found.err(), Some(code), "{request}");
        }
        let paths =
            [("//metrics", "/metrics"), ("/%6Detrics", "/metrics"), ("/", "/"), ("/openapi//v3/", "/openapi/v3/")];
        for (path, expect) in paths {
            assert_eq!(RequestInfo::parse("GET", path, &Query::default()).unwrap().path, expect);
        }
    }
}
