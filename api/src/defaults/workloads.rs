//! Defaults of the kinds that make pods.

use super::{each, empty, or, pod, storage, text, with};
use serde_json::{Map, Value, json};

/// Annotation of daemon sets.
pub(crate) const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) fn deployment(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        pod::template(spec);
        or(spec, "replicas", 1);
        or(spec, "strategy", empty());
        with(spec, "strategy", |strategy| {
            or(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                or(strategy, "rollingUpdate", empty());
                with(strategy, "rollingUpdate", |update| {
                    or(update, "maxUnavailable", "25%");
                    or(update, "maxSurge", "25%");
                });
            }
        });
        or(spec, "revisionHistoryLimit", 10);
        or(spec, "progressDeadlineSeconds", 600);
    });
}

pub(super) fn replica_set(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        pod::template(spec);
        or(spec, "replicas", 1);
    });
}

pub(super) fn stateful_set(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        pod::template(spec);
        or(spec, "podManagementPolicy", "OrderedReady");
        or(spec, "updateStrategy", empty());
        with(spec, "updateStrategy", |strategy| {
            or(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                or(strategy, "rollingUpdate", empty());
                with(strategy, "rollingUpdate", |update| or(update, "partition", 0));
            }
        });
        or(spec, "persistentVolumeClaimRetentionPolicy", empty());
        with(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            or(policy, "whenDeleted", "Retain");
            or(policy, "whenScaled", "Retain");
        });
        or(spec, "replicas", 1);
        or(spec, "revisionHistoryLimit", 10);
        each(spec, "volumeClaimTemplates", |claim| {
            or(claim, "apiVersion", "v1");
            or(claim, "kind", "PersistentVolumeClaim");
            storage::claim(claim);
        });
    });
}

pub(super) fn daemon_set(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        pod::template(spec);
        or(spec, "updateStrategy", empty());
        with(spec, "updateStrategy", |strategy| {
            or(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                or(strategy, "rollingUpdate", empty());
                with(strategy, "rollingUpdate", |update| {
                    or(update, "maxUnavailable", 1);
                    or(update, "maxSurge", 0);
                });
            }
        });
        or(spec, "revisionHistoryLimit", 10);
    });
    // Counts changes of the template, in the form of an older API; the strategy counts on.
    with(map, "metadata", |meta| {
        or(meta, "annotations", empty());
        with(meta, "annotations", |annotations| or(annotations, TEMPLATE_GENERATION, "0"));
    });
}

/// A replication controller takes selector and labels from its template.
pub(super) fn replication_controller(map: &mut Map<String, Value>) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    with(map, "spec", |spec| {
        pod::template(spec);
        or(spec, "replicas", 1);
        if let Some(labels) = labels.clone() {
            or(spec, "selector", labels);
        }
    });
    labels_from_template(map, labels);
}

fn labels_from_template(map: &mut Map<String, Value>, labels: Option<Value>) {
    if let Some(labels) = labels {
        with(map, "metadata", |meta| or(meta, "labels", labels));
    }
}

pub(super) fn job(map: &mut Map<String, Value>) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    with(map, "spec", |spec| {
        pod::template(spec);
        if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
            spec.insert("completions".into(), 1.into());
        }
        or(spec, "parallelism", 1);
        // With a limit for each index, there is none for all of them.
        let limit = if spec.contains_key("backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
        or(spec, "backoffLimit", limit);
        or(spec, "completionMode", "NonIndexed");
        or(spec, "suspend", false);
        or(spec, "manualSelector", false);
        let replace = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        or(spec, "podReplacementPolicy", replace);
        with(spec, "podFailurePolicy", |policy| {
            each(policy, "rules", |rule| each(rule, "onPodConditions", |c| or_unless_empty(c, "status", "True")));
        });
    });
    labels_from_template(map, labels);
}

/// As [`or`], for a string that a typed form always carries.
fn or_unless_empty(map: &mut Map<String, Value>, key: &str, value: &str) {
    if text(map, key).is_empty() {
        map.insert(key.to_string(), json!(value));
    }
}

pub(super) fn cron_job(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        with(spec, "jobTemplate", |template| {
            with(template, "spec", |job| {
                pod::template(job);
                with(job, "podFailurePolicy", |policy| {
                    each(policy, "rules", |rule| {
                        each(rule, "onPodConditions", |c| or_unless_empty(c, "status", "True"))
                    });
                });
            });
        });
        or(spec, "concurrencyPolicy", "Allow");
        or(spec, "suspend", false);
        or(spec, "successfulJobsHistoryLimit", 3);
        or(spec, "failedJobsHistoryLimit", 1);
    });
}
