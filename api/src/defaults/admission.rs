//! Defaults of webhook configurations and admission policies.

use super::{each, empty, or, with};
use serde_json::{Map, Value};

pub(super) fn registration(kind: &str, map: &mut Map<String, Value>) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => each(map, "webhooks", |hook| {
            webhook(hook);
            if kind == "MutatingWebhookConfiguration" {
                or(hook, "reinvocationPolicy", "Never");
            }
        }),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => with(map, "spec", |spec| {
            or(spec, "failurePolicy", "Fail");
            with(spec, "matchConstraints", match_resources);
        }),
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            with(map, "spec", |spec| with(spec, "matchResources", match_resources));
        }
        _ => {}
    }
}

fn webhook(hook: &mut Map<String, Value>) {
    or(hook, "failurePolicy", "Fail");
    or(hook, "matchPolicy", "Equivalent");
    or(hook, "namespaceSelector", empty());
    or(hook, "objectSelector", empty());
    or(hook, "timeoutSeconds", 10);
    with(hook, "clientConfig", |config| with(config, "service", |service| or(service, "port", 443)));
    each(hook, "rules", |rule| or(rule, "scope", "*"));
}

fn match_resources(resources: &mut Map<String, Value>) {
    or(resources, "matchPolicy", "Equivalent");
    or(resources, "namespaceSelector", empty());
    or(resources, "objectSelector", empty());
    for list in ["resourceRules", "excludeResourceRules"] {
        each(resources, list, |rule| or(rule, "scope", "*"));
    }
}
