//! What the server serves, by its aggregated discovery: two requests, and every word that a person may use for a kind.

use super::target::encode;
use crate::client::Api;
use anyhow::{anyhow, bail};
use serde_json::Value;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A kind as the server offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub namespaced: bool,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn api_version(&self) -> String {
        skiff_api::kinds::api_version(&self.group, &self.version)
    }

    /// `deployment.apps`, as results and names are written.
    pub fn qualified(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.group.is_empty() { kind } else { format!("{kind}.{}", self.group) }
    }

    /// The path of the collection (`name` empty) or of an object; `namespace` None for all namespaces.
    pub fn path(&self, namespace: Option<&str>, name: &str) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let mut path = format!("{root}/{}", self.version);
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path = format!("{path}/namespaces/{}", encode(namespace));
        }
        path = format!("{path}/{}", self.plural);
        if name.is_empty() { path } else { format!("{path}/{}", encode(name)) }
    }
}

/// Every kind, the core group first.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    resources: Vec<Resource>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn read(document: &Value) -> Vec<Resource> {
    let mut all = Vec::new();
    for group in document["items"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                all.push(Resource {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    namespaced: resource["scope"] == "Namespaced",
                    short_names: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    verbs: texts(&resource["verbs"]),
                });
            }
        }
    }
    all
}

impl Discovery {
    pub async fn load(api: &Api) -> anyhow::Result<Discovery> {
        let (core, groups) = tokio::join!(api.get_as("/api", AGGREGATED), api.get_as("/apis", AGGREGATED));
        let mut resources = read(&core?);
        resources.extend(read(&groups?));
        Ok(Discovery { resources })
    }

    /// The kind that a word means: `pods`, `pod`, `po`, `Pod`, `deployments.apps`, `deployments.v1.apps`. The core group wins.
    pub fn find(&self, word: &str) -> anyhow::Result<&Resource> {
        let lower = word.to_lowercase();
        let (name, rest) = lower.split_once('.').unwrap_or((&lower, ""));
        let means = |r: &&Resource| {
            let versioned = if r.group.is_empty() { r.version.clone() } else { format!("{}.{}", r.version, r.group) };
            let named = r.plural == name
                || r.singular == name
                || r.kind.to_lowercase() == name
                || r.short_names.iter().any(|s| s == name);
            named && (rest.is_empty() || r.group == rest || versioned == rest)
        };
        let found = self.resources.iter().find(means);
        found.ok_or_else(|| anyhow!("the server doesn't have a resource type {word:?}"))
    }

    /// The kinds that a word of a command line means: one kind, or all of a category such as `all`.
    pub fn kinds(&self, word: &str) -> anyhow::Result<Vec<&Resource>> {
        let of_category: Vec<&Resource> =
            self.resources.iter().filter(|r| r.categories.iter().any(|c| c == word)).collect();
        if of_category.is_empty() { Ok(vec![self.find(word)?]) } else { Ok(of_category) }
    }

    /// The kind of a document.
    pub fn of_object(&self, object: &Value) -> anyhow::Result<&Resource> {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        if version.is_empty() || kind.is_empty() {
            let missing = if version.is_empty() { "apiVersion" } else { "kind" };
            bail!("{missing} is not set");
        }
        let found = self.resources.iter().find(|r| r.kind == kind && r.api_version() == version);
        found.ok_or_else(|| {
            let other = self.resources.iter().find(|r| r.kind.eq_ignore_ascii_case(&kind));
            let hint = other.map(|r| format!(" (did you mean kind {:?} in version {:?}?)", r.kind, r.api_version()));
            anyhow!("no matches for kind {kind:?} in version {version:?}{}", hint.unwrap_or_default())
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub fn sample() -> Discovery {
        let resource = |plural: &str, kind: &str, short: &str, scope: &str, category: &str| {
            json!({"resource": plural, "singularResource": kind.to_lowercase(), "responseKind": {"kind": kind},
                "scope": scope, "shortNames": [short], "categories": [category], "verbs": ["get", "list"]})
        };
        let core = json!({"items": [{"metadata": {}, "versions": [{"version": "v1", "resources": [
            resource("pods", "Pod", "po", "Namespaced", "all"),
            resource("nodes", "Node", "no", "Cluster", "-")]}]}]});
        let groups = json!({"items": [{"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
            resource("deployments", "Deployment", "deploy", "Namespaced", "all")]}]}]});
        let mut resources = read(&core);
        resources.extend(read(&groups));
        Discovery { resources }
    }

    #[test]
    fn words_and_paths() {
        let all = sample();
        let check = |word: &str, expect: Option<&str>| {
            assert_eq!(all.find(word).ok().map(|r| r.path(Some("shop"), "x")).as_deref(), expect, "{word}");
        };
        for word in ["po", "pod", "pods", "Pod", "pods.v1"] {
            check(word, Some("/api/v1/namespaces/shop/pods/x"));
        }
        for word in ["deploy", "deployments.apps", "deployment.v1.apps"] {
            check(word, Some("/apis/apps/v1/namespaces/shop/deployments/x"));
        }
        check("node", Some("/api/v1/nodes/x"));
        check("deployments.batch", None);
        check("ships", None);
        assert_eq!(all.kinds("all").unwrap().len(), 2);
    }

    #[test]
    fn kinds_of_documents() {
        let all = sample();
        let check = |object: Value, expect: &str| {
            let found = all.of_object(&object).map_or_else(|e| e.to_string(), Resource::qualified);
            assert_eq!(found, expect);
        };
        check(json!({"apiVersion": "apps/v1", "kind": "Deployment"}), "deployment.apps");
        check(json!({"kind": "Pod"}), "apiVersion is not set");
        check(
            json!({"apiVersion": "v1", "kind": "deployment"}),
            "no matches for kind \"deployment\" in version \"v1\" (did you mean kind \"Deployment\" in version \"apps/v1\"?)",
        );
        check(json!({"apiVersion": "v1", "kind": "Ship"}), "no matches for kind \"Ship\" in version \"v1\"");
    }
}
