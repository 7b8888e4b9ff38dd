//! Rows of the kinds that make or scale pods, and of the budgets that protect them.

use super::cells::{
    NONE, UNSET, age, containers, human_duration, int_or_string, labels, number, selector, since, template_containers,
    text, text_or,
};
use super::{AGE, CONTAINERS, IMAGES, Printer, SELECTOR};
use crate::meta;
use crate::quantity::Quantity;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn core_printer(kind: &str) -> Option<Printer> {
    Some(match kind {
        "ReplicationController" => (REPLICAS, |obj, now| replicas(obj, now, labels(obj, &["spec", "selector"]))),
        "PodTemplate" => (
            &[
                ("Containers", "string", 0, "Names of the containers in the template"),
                ("Images", "string", 0, "Images of the containers in the template"),
                ("Pod Labels", "string", 0, "Labels that pods of the template get"),
            ],
            |obj, _| {
                let [names, images] = containers(obj, &["template", "spec", "containers"]);
                vec![names, images, labels(obj, &["template", "metadata", "labels"])]
            },
        ),
        _ => return None,
    })
}

const REPLICAS: &[super::Spec] = &[
    ("Desired", "integer", 0, "Pods wanted"),
    ("Current", "integer", 0, "Pods there are"),
    ("Ready", "integer", 0, "Pods that are ready"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn replicas(obj: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let [names, images] = template_containers(obj);
    vec![
        number(obj, &["spec", "replicas"]).into(),
        number(obj, &["status", "replicas"]).into(),
        number(obj, &["status", "readyReplicas"]).into(),
        age(obj, now),
        names,
        images,
        selector,
    ]
}

pub(super) fn printer(kind: &str) -> Option<Printer> {
    Some(match kind {
        "Deployment" => (
            &[
                ("Ready", "string", 0, "Pods ready, of those wanted"),
                ("Up-to-date", "integer", 0, "Pods of the newest template"),
                ("Available", "integer", 0, "Pods that have been ready long enough"),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            deployment,
        ),
        "ReplicaSet" => (REPLICAS, |obj, now| replicas(obj, now, selector(obj, &["spec", "selector"]))),
        "StatefulSet" => {
            (&[("Ready", "string", 0, "Pods ready, of those wanted"), AGE, CONTAINERS, IMAGES], |obj, now| {
                let [names, images] = template_containers(obj);
                vec![ready_of_wanted(obj), age(obj, now), names, images]
            })
        }
        "DaemonSet" => (
            &[
                ("Desired", "integer", 0, "Nodes that should run the pod"),
                ("Current", "integer", 0, "Nodes that run it"),
                ("Ready", "integer", 0, "Nodes where it is ready"),
                ("Up-to-date", "integer", 0, "Nodes with the newest template"),
                ("Available", "integer", 0, "Nodes where it has been ready long enough"),
                ("Node Selector", "string", 0, "Labels of the nodes that should run it"),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            daemon_set,
        ),
        "Job" => (
            &[
                ("Status", "string", 0, "State of the job in a word"),
                ("Completions", "string", 0, "Pods that succeeded, of those wanted"),
                ("Duration", "string", 0, "Time from start to completion, or until now"),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            job,
        ),
        "CronJob" => (
            &[
                ("Schedule", "string", 0, "When jobs start, in cron's form"),
                ("Timezone", "string", 0, "Time zone of the schedule"),
                ("Suspend", "boolean", 0, "Whether no job starts for now"),
                ("Active", "integer", 0, "Jobs that run"),
                ("Last Schedule", "string", 0, "Time since a job was last started"),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            cron_job,
        ),
        "PodDisruptionBudget" => (
            &[
                ("Min Available", "string", 0, "Pods that must stay"),
                ("Max Unavailable", "string", 0, "Pods that may be missing"),
                ("Allowed Disruptions", "integer", 0, "Pods that may be evicted now"),
                AGE,
            ],
            |obj, now| {
                vec![
                    int_or_string(obj, &["spec", "minAvailable"], "N/A"),
                    int_or_string(obj, &["spec", "maxUnavailable"], "N/A"),
                    number(obj, &["status", "disruptionsAllowed"]).into(),
                    age(obj, now),
                ]
            },
        ),
        "HorizontalPodAutoscaler" => (
            &[
                ("Reference", "string", 0, "What is scaled"),
                ("Targets", "string", 0, "Metrics: now and wanted"),
                ("MinPods", "string", 0, "Least pods"),
                ("MaxPods", "string", 0, "Most pods"),
                ("Replicas", "string", 0, "Pods now"),
                AGE,
            ],
            autoscaler,
        ),
        "ControllerRevision" => (
            &[("Controller", "string", 0, "Who made the revision"), ("Revision", "string", 0, "Its number"), AGE],
            |obj, now| {
                let owner = meta::controller_of(obj).map(|o| {
                    owner_text(meta::str_at(o, &["apiVersion"]), meta::str_at(o, &["kind"]), meta::str_at(o, &["name"]))
                });
                vec![owner.unwrap_or_else(|| NONE.into()).into(), number(obj, &["revision"]).into(), age(obj, now)]
            },
        ),
        "Scale" => (
            &[("Desired", "integer", 0, "Pods wanted"), ("Available", "integer", 0, "Pods there are"), AGE],
            |obj, now| {
                vec![
                    number(obj, &["spec", "replicas"]).into(),
                    number(obj, &["status", "replicas"]).into(),
                    age(obj, now),
                ]
            },
        ),
        _ => return None,
    })
}

fn owner_text(api_version: &str, kind: &str, name: &str) -> String {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}{dot}{group}/{name}", kind.to_lowercase())
}

fn ready_of_wanted(obj: &Value) -> Value {
    format!("{}/{}", number(obj, &["status", "readyReplicas"]), number(obj, &["spec", "replicas"])).into()
}

fn deployment(obj: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = template_containers(obj);
    vec![
        ready_of_wanted(obj),
        number(obj, &["status", "updatedReplicas"]).into(),
        number(obj, &["status", "availableReplicas"]).into(),
        age(obj, now),
        names,
        images,
        selector(obj, &["spec", "selector"]),
    ]
}

fn daemon_set(obj: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = template_containers(obj);
    let count = |key: &str| Value::from(number(obj, &["status", key]));
    vec![
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        labels(obj, &["spec", "template", "spec", "nodeSelector"]),
        age(obj, now),
        names,
        images,
        selector(obj, &["spec", "selector"]),
    ]
}

fn job(obj: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = template_containers(obj);
    let succeeded = number(obj, &["status", "succeeded"]);
    let completions = match (meta::i64_at(obj, &["spec", "completions"]), number(obj, &["spec", "parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, many) if many > 1 => format!("{succeeded}/1 of {many}"),
        _ => format!("{succeeded}/1"),
    };
    let duration =
        match (meta::time_at(obj, &["status", "startTime"]), meta::time_at(obj, &["status", "completionTime"])) {
            (None, _) => String::new(),
            (Some(start), end) => human_duration(end.unwrap_or(now).duration_since(start).as_secs()),
        };
    vec![
        job_status(obj).into(),
        completions.into(),
        duration.into(),
        age(obj, now),
        names,
        images,
        selector(obj, &["spec", "selector"]),
    ]
}

fn job_status(obj: &Value) -> &'static str {
    let holds = |name: &str| {
        let mut all = meta::list_at(obj, &["status", "conditions"]).iter();
        all.any(|c| meta::str_at(c, &["type"]) == name && meta::str_at(c, &["status"]) == "True")
    };
    for (condition, word) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if holds(condition) {
            return word;
        }
    }
    if meta::is_being_deleted(obj) {
        return "Terminating";
    }
    for condition in ["Suspended", "FailureTarget", "SuccessCriteriaMet"] {
        if holds(condition) {
            return condition;
        }
    }
    "Running"
}

fn cron_job(obj: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(obj, &["spec", "jobTemplate", "spec", "template", "spec", "containers"]);
    let suspend = match meta::at(obj, &["spec", "suspend"]) {
        Some(Value::Bool(true)) => "True",
        Some(Value::Bool(false)) => "False",
        _ => UNSET,
    };
    let last = match meta::time_at(obj, &["status", "lastScheduleTime"]) {
        Some(_) => since(obj, &["status", "lastScheduleTime"], now),
        None => NONE.into(),
    };
    vec![
        text(obj, &["spec", "schedule"]),
        text_or(obj, &["spec", "timeZone"], NONE),
        suspend.into(),
        meta::list_at(obj, &["status", "active"]).len().into(),
        last.into(),
        age(obj, now),
        names,
        images,
        selector(obj, &["spec", "jobTemplate", "spec", "selector"]),
    ]
}

fn autoscaler(obj: &Value, now: Timestamp) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        meta::str_at(obj, &["spec", "scaleTargetRef", "kind"]),
        meta::str_at(obj, &["spec", "scaleTargetRef", "name"])
    );
    let least = meta::i64_at(obj, &["spec", "minReplicas"]).map_or(UNSET.to_string(), |n| n.to_string());
    vec![
        reference.into(),
        metrics(obj).into(),
        least.into(),
        number(obj, &["spec", "maxReplicas"]).into(),
        number(obj, &["status", "currentReplicas"]).into(),
        age(obj, now),
    ]
}

/// `cpu: 20%/80%, ...`: two metrics at most, then how many more.
fn metrics(obj: &Value) -> String {
    let specs = meta::list_at(obj, &["spec", "metrics"]);
    if specs.is_empty() {
        return NONE.into();
    }
    let current = meta::list_at(obj, &["status", "currentMetrics"]);
    let mut shown: Vec<String> = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let (source, name_path): (&str, &[&str]) = match meta::str_at(spec, &["type"]) {
            "Resource" => ("resource", &["resource", "name"]),
            "ContainerResource" => ("containerResource", &["containerResource", "name"]),
            "Pods" => ("pods", &[]),
            "Object" => ("object", &[]),
            "External" => ("external", &[]),
            _ => {
                shown.push("<unknown type>".into());
                continue;
            }
        };
        let now = current.get(i).and_then(|c| c.get(source)).and_then(|c| c.get("current"));
        let target = spec.get(source).and_then(|s| s.get("target")).cloned().unwrap_or_default();
        let percent = |v: Option<&Value>| {
            v.and_then(|v| v.get("averageUtilization")).and_then(Value::as_i64).map(|n| format!("{n}%"))
        };
        let amount = |v: Option<&Value>| {
            let held = v.and_then(|v| v.get("averageValue").or_else(|| v.get("value")));
            held.and_then(Quantity::from_value).map(|q| q.to_string())
        };
        let average = target.get("averageValue").is_some() && matches!(source, "object" | "external");
        let (have, want) = match percent(Some(&target)) {
            Some(want) => (percent(now), want),
            None => (amount(now), amount(Some(&target)).unwrap_or_else(|| "<auto>".into())),
        };
        let have = have.unwrap_or_else(|| "<unknown>".into());
        let name = if name_path.is_empty() { String::new() } else { format!("{}: ", meta::str_at(spec, name_path)) };
        shown.push(format!("{name}{have}/{want}{}", if average { " (avg)" } else { "" }));
    }
    let more = shown.len().saturating_sub(2);
    shown.truncate(2);
    let text = shown.join(", ");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}
