//! Role-based access: who may do what, decided by a pure function over the roles and bindings of the cluster.
//!
//! A [`Policy`] is an index of the RBAC objects, fed one object at a time. It answers three questions: may this request pass
//! ([`Policy::decide`]), what may this user do ([`Policy::rules_for`]), and does one set of rules cover another
//! ([`uncovered`], the check that keeps people from granting what they do not have).
//!
//! Source of the rules: Kubernetes documentation, "Using RBAC Authorization".

use super::user::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_api::selector::FieldSelector;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What a request wants, in the terms that rules are written in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Set for a request that is not for a resource, such as `/healthz`; the fields above but `verb` are empty then.
    pub path: Option<String>,
    /// What a list or watch demands of fields; roles do not look at it, the node's rules do.
    pub fields: FieldSelector,
}

impl Attributes {
    /// `pods` or `pods/log`.
    pub fn combined_resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            sub => format!("{}/{sub}", self.resource),
        }
    }

    /// What the denied user is told, as the reference server words it.
    pub fn denial(&self, user: &str) -> String {
        match &self.path {
            Some(path) => format!("User {user:?} cannot {} path {path:?}", self.verb),
            None => {
                let scope = match self.namespace.as_str() {
                    "" => "at the cluster scope".to_string(),
                    ns => format!("in the namespace {ns:?}"),
                };
                let resource = self.combined_resource();
                format!(
                    "User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}",
                    self.verb, self.group
                )
            }
        }
    }
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    #[serde(default)]
    pub verbs: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(default, rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

fn has_resource(list: &[String], resource: &str, subresource: &str) -> bool {
    list.iter().any(|rule| {
        if rule == "*" {
            return true;
        }
        match rule.split_once('/') {
            Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
            Some((res, sub)) => res == resource && sub == subresource,
            None => subresource.is_empty() && rule == resource,
        }
    })
}

fn has_path(list: &[String], path: &str) -> bool {
    list.iter().any(|rule| rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix)))
}

impl Rule {
    pub fn allows(&self, wanted: &Attributes) -> bool {
        if !has(&self.verbs, &wanted.verb) {
            return false;
        }
        match &wanted.path {
            Some(path) => has_path(&self.non_resource_urls, path),
            None => {
                has(&self.api_groups, &wanted.group)
                    && has_resource(&self.resources, &wanted.resource, &wanted.subresource)
                    && (self.resource_names.is_empty() || self.resource_names.contains(&wanted.name))
            }
        }
    }

    /// How many rules [`Rule::break_down`] gives.
    fn rights(&self) -> usize {
        let each = [self.api_groups.len(), self.resources.len(), self.resource_names.len().max(1)];
        let resources = each.into_iter().fold(1usize, usize::saturating_mul);
        self.verbs.len().saturating_mul(resources.saturating_add(self.non_resource_urls.len()))
    }

    /// One verb on one resource (or path) each.
    fn break_down(&self) -> Vec<Rule> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let one = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Default::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(one);
                    } else {
                        let named = |name: &String| Rule { resource_names: vec![name.clone()], ..one.clone() };
                        out.extend(self.resource_names.iter().map(named));
                    }
                }
            }
            for url in &self.non_resource_urls {
                out.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Default::default()
                });
            }
        }
        out
    }

    /// About what the rule takes in an answer.
    fn bytes(&self) -> usize {
        let lists = [&self.verbs, &self.api_groups, &self.resources, &self.resource_names, &self.non_resource_urls];
        lists.into_iter().flatten().map(|word| word.len() + 3).sum::<usize>() + 64
    }

    fn covers_one(&self, one: &Rule) -> bool {
        let all = |have: &[String], want: &[String]| want.iter().all(|w| has(have, w));
        let resource = |want: &String| match want.split_once('/') {
            Some((res, sub)) => has_resource(&self.resources, res, sub),
            None => has_resource(&self.resources, want, ""),
        };
        all(&self.verbs, &one.verbs)
            && all(&self.api_groups, &one.api_groups)
            && one.resources.iter().all(resource)
            && one.non_resource_urls.iter().all(|u| has_path(&self.non_resource_urls, u))
            && (self.resource_names.is_empty()
                || !one.resource_names.is_empty() && one.resource_names.iter().all(|n| self.resource_names.contains(n)))
    }

    /// `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`
    fn compact_text(&self) -> String {
        let list = |l: &[String]| format!("[{}]", l.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "));
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> =
            fields.iter().filter(|(_, l)| !l.is_empty()).map(|(n, l)| format!("{n}:{}", list(l))).collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// The most single rights (a verb on a resource each) that the rules of a role may come to where they must be compared one by one.
const RIGHTS_MAX: usize = 100_000;

/// Rules that stand for more single rights than can be compared.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

/// The parts of `wanted` that `owned` does not cover; empty when all is covered.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Result<Vec<Rule>, TooMany> {
    // A rule that one other covers as a whole, as a cluster-admin's does all, need not be taken apart.
    let open: Vec<&Rule> = wanted.iter().filter(|rule| !owned.iter().any(|o| o.covers_one(rule))).collect();
    let rights = open.iter().fold(0usize, |sum, rule| sum.saturating_add(rule.rights()));
    if rights > RIGHTS_MAX {
        return Err(TooMany);
    }
    let parts = open.into_iter().flat_map(Rule::break_down);
    let missing: Vec<Rule> = parts.filter(|one| !owned.iter().any(|o| o.covers_one(one))).collect();
    Ok(compact(missing))
}

/// Joins rules that differ in their verb only.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        let same = |o: &&mut Rule| {
            o.api_groups == rule.api_groups
                && o.resources == rule.resources
                && o.resource_names == rule.resource_names
                && o.non_resource_urls == rule.non_resource_urls
        };
        match out.iter_mut().find(same) {
            Some(known) if rule.non_resource_urls.is_empty() => {
                known.verbs.extend(rule.verbs.into_iter().filter(|v| !known.verbs.contains(v)).collect::<Vec<_>>());
            }
            _ => out.push(rule),
        }
    }
    out
}

/// The refusal of a grant, as the reference server words it.
pub fn escalation_message(user: &UserInfo, missing: &[Rule]) -> String {
    let lines: BTreeSet<String> = missing.iter().map(Rule::compact_text).collect();
    let groups = user.groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(" ");
    let list = lines.into_iter().collect::<Vec<_>>().join("\n");
    format!(
        "user {:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{list}",
        user.name
    )
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    api_group: String,
    #[serde(default)]
    namespace: String,
}

impl Subject {
    /// How the subject is named in a reason, when it stands for this user.
    fn matches(&self, user: &UserInfo, binding_namespace: &str) -> Option<String> {
        // Validation refuses other groups; what was stored before it did grants nothing.
        let right_group = match self.kind.as_str() {
            "ServiceAccount" => self.api_group.is_empty(),
            _ => matches!(self.api_group.as_str(), "" | "rbac.authorization.k8s.io"),
        };
        match self.kind.as_str() {
            "User" => (right_group && self.name == user.name).then(|| format!("User {:?}", self.name)),
            "Group" => (right_group && user.groups.contains(&self.name)).then(|| format!("Group {:?}", self.name)),
            "ServiceAccount" => {
                let ns = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                let account = user.name.strip_prefix("system:serviceaccount:")?;
                let found = right_group && !ns.is_empty() && account.split_once(':') == Some((ns, &self.name));
                found.then(|| format!("ServiceAccount {:?}", format!("{}/{ns}", self.name)))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct RoleRef {
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
}

#[derive(Clone, Debug)]
struct Binding {
    name: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// What the policy says of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// With the reason: which binding of which role.
    Allow(String),
    /// Nobody allowed it; with what went wrong while looking, such as a role that is not there.
    NoOpinion(String),
}

/// Namespace ("" for cluster-scoped objects), then name.
type Id = (String, String);

/// An index over roles and bindings.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    roles: HashMap<Id, Arc<Vec<Rule>>>,
    bindings: BTreeMap<Id, Arc<Binding>>,
}

/// Which of the four RBAC resources an object belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    Role,
    Binding,
}

impl Policy {
    /// Takes in an object as it is now; None when it was deleted. Objects that cannot be read grant nothing.
    pub fn update(&mut self, kind: PolicyKind, namespace: &str, name: &str, object: Option<&Value>) {
        let id = (namespace.to_string(), name.to_string());
        match (kind, object) {
            (PolicyKind::Role, Some(object)) => {
                self.roles.insert(id, Arc::new(rules_of(object)));
            }
            (PolicyKind::Role, None) => {
                self.roles.remove(&id);
            }
            (PolicyKind::Binding, Some(object)) => {
                let part = |k: &str| object.get(k).cloned().unwrap_or(Value::Null);
                let role = serde_json::from_value(part("roleRef")).unwrap_or_default();
                let subjects = part("subjects").as_array().cloned().unwrap_or_default();
                let subjects = subjects.into_iter().filter_map(|s| serde_json::from_value(s).ok()).collect();
                self.bindings.insert(id, Arc::new(Binding { name: name.to_string(), role, subjects }));
            }
            (PolicyKind::Binding, None) => {
                self.bindings.remove(&id);
            }
        }
    }

    /// The rules of a role, if it exists. `namespace` is that of the binding; a ClusterRole ignores it.
    pub fn rules_of_role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<Vec<Rule>>> {
        let ns = if role.kind == "ClusterRole" { "" } else { namespace };
        self.roles.get(&(ns.to_string(), role.name.clone())).cloned()
    }

    /// Calls `visit` with each rule that the user has in `namespace` (and cluster-wide) until it says stop; the reasons for
    /// what could not be resolved are returned.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&Rule, &dyn Fn() -> String) -> bool,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let scopes = if namespace.is_empty() { vec![""] } else { vec!["", namespace] };
        for scope in scopes {
            let from = (scope.to_string(), String::new());
            for ((ns, _), binding) in self.bindings.range(from..).take_while(|((ns, _), _)| ns == scope) {
                let Some(subject) = binding.subjects.iter().find_map(|s| s.matches(user, ns)) else { continue };
                let Some(rules) = self.rules_of_role(&binding.role, ns) else {
                    let kind = if binding.role.kind == "ClusterRole" { "clusterrole" } else { "role" };
                    problems.push(format!("{kind}.rbac.authorization.k8s.io {:?} not found", binding.role.name));
                    continue;
                };
                let reason = || {
                    let (kind, name) = match ns.as_str() {
                        "" => ("ClusterRoleBinding", binding.name.clone()),
                        ns => ("RoleBinding", format!("{}/{ns}", binding.name)),
                    };
                    format!(
                        "RBAC: allowed by {kind} {name:?} of {} {:?} to {subject}",
                        binding.role.kind, binding.role.name
                    )
                };
                for rule in rules.iter() {
                    if visit(rule, &reason) {
                        return problems;
                    }
                }
            }
        }
        problems
    }

    pub fn decide(&self, user: &UserInfo, wanted: &Attributes) -> Decision {
        let mut allowed = None;
        let problems = self.visit(user, &wanted.namespace, |rule, reason| {
            if rule.allows(wanted) {
                allowed = Some(reason());
            }
            allowed.is_some()
        });
        match allowed {
            Some(reason) => Decision::Allow(reason),
            None if problems.is_empty() => Decision::NoOpinion(String::new()),
            None => Decision::NoOpinion(format!("RBAC: {}", join_problems(&problems))),
        }
    }

    /// All rules that the user has in a namespace, those of the whole cluster first; each role's once, however often it is bound.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        self.first_rules_for(user, namespace, usize::MAX)
    }

    /// As [`Policy::rules_for`], until the words of the rules come to more than `bytes_max`; then a problem says so.
    pub fn first_rules_for(&self, user: &UserInfo, namespace: &str, bytes_max: usize) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut seen, mut bytes) = (Vec::new(), HashSet::new(), 0usize);
        let mut problems = self.visit(user, namespace, |rule, _| {
            if seen.insert(std::ptr::from_ref(rule)) {
                bytes = bytes.saturating_add(rule.bytes());
                if bytes <= bytes_max {
                    rules.push(rule.clone());
                }
            }
            bytes > bytes_max
        });
        if bytes > bytes_max {
            problems.push(format!("the rules are longer than {bytes_max} bytes; these are the first of them"));
        }
        (rules, problems)
    }
}

fn join_problems(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// The rules in a Role or ClusterRole; one that cannot be read is left out.
pub fn rules_of(object: &Value) -> Vec<Rule> {
    let list = object.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
    list.into_iter().filter_map(|r| serde_json::from_value(r).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["update"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"], "verbs": ["get"]},
        ]});
        policy.update(PolicyKind::Role, "ns", "reader", Some(&role));
        let info = json!({"rules": [{"nonResourceURLs": ["/healthz", "/api/*"], "verbs": ["get"]}]});
        policy.update(PolicyKind::Role, "", "info", Some(&info));
        let bind = |kind: &str, role: &str, subjects: Value| json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects});
        let ann = json!([{"kind": "User", "name": "ann"}, {"kind": "ServiceAccount", "name": "app"}]);
        policy.update(PolicyKind::Binding, "ns", "b", Some(&bind("Role", "reader", ann)));
        let everybody = json!([{"kind": "Group", "name": "system:authenticated"}]);
        policy.update(PolicyKind::Binding, "", "i", Some(&bind("ClusterRole", "info", everybody)));
        policy
    }

    fn wants(text: &str) -> Attributes {
        let words: Vec<&str> = text.split(' ').collect();
        if words[1].starts_with('/') {
            return Attributes { verb: words[0].into(), path: Some(words[1].into()), ..Default::default() };
        }
        let (group, resource) = words[1].split_once(':').unwrap_or(("", words[1]));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (namespace, name) = words.get(2).and_then(|w| w.split_once('/')).unwrap_or_default();
        let owned = |s: &str| s.to_string();
        Attributes {
            verb: owned(words[0]),
            group: owned(group),
            resource: owned(resource),
            subresource: owned(subresource),
            namespace: owned(namespace),
            name: owned(name),
            ..Default::default()
        }
    }

    #[test]
    fn rules_decide() {
        let check = |user: &str, request: &str, expect: bool| {
            let user = UserInfo::new(user, ["system:authenticated"]);
            let decision = policy().decide(&user, &wants(request));
            assert_eq!(matches!(decision, Decision::Allow(_)), expect, "{} {request}: {decision:?}", user.name);
        };
        check("ann", "get pods ns/p", true);
        check("ann", "get pods/log ns/p", true);
        check("ann", "get pods/exec ns/p", false);
        check("ann", "delete pods ns/p", false);
        check("ann", "get pods other/p", false);
        check("ann", "get pods", false);
        check("ann", "update apps:deployments/scale ns/d", true);
        check("ann", "update apps:deployments ns/d", false);
        check("ann", "get secrets ns/s", true);
        check("ann", "get secrets ns/t", false);
        check("ann", "get /healthz", true);
        check("ann", "get /api/v1", true);
        check("ann", "get /metrics", false);
        check("system:serviceaccount:ns:app", "get pods ns/p", true);
        check("system:serviceaccount:other:app", "get pods ns/p", false);
        check("bob", "get pods ns/p", false);
    }

    #[test]
    fn a_subject_is_who_it_says() {
        let check = |subject: Value, user: &str, expect: bool| {
            let mut policy = Policy::default();
            let all = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
            policy.update(PolicyKind::Role, "", "all", Some(&all));
            let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "all"}, "subjects": [subject]});
            policy.update(PolicyKind::Binding, "ns", "b", Some(&binding));
            let decision = policy.decide(&UserInfo::new(user, ["devs"]), &wants("get pods ns/p"));
            assert_eq!(matches!(decision, Decision::Allow(_)), expect, "{subject} {user}");
        };
        let group = "rbac.authorization.k8s.io";
        check(json!({"kind": "User", "apiGroup": group, "name": "ann"}), "ann", true);
        check(json!({"kind": "User", "apiGroup": group, "name": "*"}), "ann", false);
        check(json!({"kind": "User", "apiGroup": "example.com", "name": "ann"}), "ann", false);
        check(json!({"kind": "Group", "apiGroup": group, "name": "devs"}), "ann", true);
        check(json!({"kind": "Group", "apiGroup": group, "name": "*"}), "ann", false);
        check(json!({"kind": "group", "apiGroup": group, "name": "devs"}), "ann", false);
        check(json!({"kind": "ServiceAccount", "name": "app"}), "system:serviceaccount:ns:app", true);
        check(
            json!({"kind": "ServiceAccount", "apiGroup": group, "name": "app"}),
            "system:serviceaccount:ns:app",
            false,
        );
        check(json!({"kind": "ServiceAccount", "name": "*"}), "system:serviceaccount:ns:app", false);
    }

    #[test]
    fn a_named_rule_names_no_creation() {
        let named = Rule {
            verbs: vec!["*".into()],
            api_groups: vec!["".into()],
            resources: vec!["secrets".into()],
            resource_names: vec!["s".into()],
            ..Default::default()
        };
        for (request, expect) in [
            ("get secrets ns/s", true),
            ("create secrets ns/", false),
            ("deletecollection secrets ns/", false),
            ("list secrets ns/", false),
        ] {
            assert_eq!(named.allows(&wants(request)), expect, "{request}");
        }
    }

    #[test]
    fn grants_are_covered_or_named() {
        let rule = |text: &str| {
            let a = wants(text);
            Rule {
                verbs: a.verb.split(',').map(String::from).collect(),
                api_groups: vec![a.group.clone()],
                resources: vec![a.combined_resource()],
                ..Default::default()
            }
        };
        let owned = [rule("get,list pods")];
        assert_eq!(uncovered(&owned, &[rule("get pods")]), Ok(vec![]));
        let missing = uncovered(&owned, &[rule("get,delete pods"), rule("get,list secrets")]).unwrap();
        let user = UserInfo::new("alice", ["devs", "system:authenticated"]);
        let expect = "user \"alice\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not \
                      currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n\
                      {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}";
        assert_eq!(escalation_message(&user, &missing), expect);
    }

    /// Some lists of a thousand words are a billion rights.
    #[test]
    fn rules_are_not_taken_apart_without_end() {
        let words = |letter: char| (0..1000).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        let huge = Rule { verbs: words('v'), api_groups: words('g'), resources: words('r'), ..Default::default() };
        assert_eq!(uncovered(&[], std::slice::from_ref(&huge)), Err(TooMany));
        let all = || vec!["*".to_string()];
        let master = Rule { verbs: all(), api_groups: all(), resources: all(), ..Default::default() };
        assert_eq!(uncovered(&[master], &[huge]), Ok(vec![]));
    }

    /// A role that is bound many times is told once, and what is told has an end.
    #[test]
    fn what_one_may_is_told_in_bounds() {
        let mut policy = Policy::default();
        let long = "p".repeat(1000);
        for role in ["one", "two"] {
            let rules = json!({"rules": [{"apiGroups": [""], "resources": [long], "verbs": ["get"]}]});
            policy.update(PolicyKind::Role, "ns", role, Some(&rules));
            for n in 0..50 {
                let ann =
                    json!({"roleRef": {"kind": "Role", "name": role}, "subjects": [{"kind": "User", "name": "ann"}]});
                policy.update(PolicyKind::Binding, "ns", &format!("{role}{n}"), Some(&ann));
            }
        }
        let ann = UserInfo::new("ann", []);
        let check = |bytes_max: usize, rules: usize, problems: usize| {
            let found = policy.first_rules_for(&ann, "ns", bytes_max);
            assert_eq!((found.0.len(), found.1.len()), (rules, problems), "{bytes_max}");
        };
        check(usize::MAX, 2, 0);
        check(2000, 1, 1);
        check(100, 0, 1);
    }
}
