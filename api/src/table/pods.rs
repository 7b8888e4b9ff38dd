//! The row of a pod: one word for the state of all its containers.

use super::cells::{NONE, age, human_duration, number, text_or};
use super::{AGE, Printer, Spec};
use crate::meta;
use jiff::Timestamp;
use serde_json::Value;

const COLUMNS: [Spec; 8] = [
    ("Ready", "string", 0, "Containers that are ready, of all"),
    ("Status", "string", 0, "State of the pod in a word"),
    ("Restarts", "string", 0, "Restarts of its containers, and when the last one was"),
    AGE,
    ("IP", "string", 1, "Address of the pod"),
    ("Node", "string", 1, "Node that runs the pod"),
    ("Nominated Node", "string", 1, "Node that makes room for the pod"),
    ("Readiness Gates", "string", 1, "Conditions that hold beside readiness, of those required"),
];

pub(super) fn printer(kind: &str) -> Option<Printer> {
    (kind == "Pod").then_some((&COLUMNS as &[Spec], cells as fn(&Value, Timestamp) -> Vec<Value>))
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let state = State::of(pod);
    let mut restarts = state.restarts.count.to_string();
    if let (true, Some(at)) = (state.restarts.count != 0, state.restarts.last) {
        restarts = format!("{restarts} ({} ago)", human_duration(now.duration_since(at).as_secs()));
    }
    vec![
        format!("{}/{}", state.ready, state.total).into(),
        state.word.into(),
        restarts.into(),
        age(pod, now),
        text_or(&Value::Object(first_ip(pod)), &["ip"], NONE),
        text_or(pod, &["spec", "nodeName"], NONE),
        text_or(pod, &["status", "nominatedNodeName"], NONE),
        readiness_gates(pod).into(),
    ]
}

fn first_ip(pod: &Value) -> serde_json::Map<String, Value> {
    let first = meta::list_at(pod, &["status", "podIPs"]).first().and_then(Value::as_object).cloned();
    first.unwrap_or_else(|| {
        serde_json::Map::from_iter([("ip".to_string(), meta::str_at(pod, &["status", "podIP"]).into())])
    })
}

fn readiness_gates(pod: &Value) -> String {
    let gates = meta::list_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return NONE.into();
    }
    let holds = gates.iter().filter(|g| condition_is_true(pod, meta::str_at(g, &["conditionType"]))).count();
    format!("{holds}/{}", gates.len())
}

fn condition_is_true(pod: &Value, name: &str) -> bool {
    let mut all = meta::list_at(pod, &["status", "conditions"]).iter();
    all.any(|c| meta::str_at(c, &["type"]) == name && meta::str_at(c, &["status"]) == "True")
}

#[derive(Default, Clone, Copy)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, &["restartCount"]);
        self.last = self.last.max(meta::time_at(status, &["lastState", "terminated", "finishedAt"]));
    }
}

struct State {
    word: String,
    ready: usize,
    total: usize,
    restarts: Restarts,
}

impl State {
    fn of(pod: &Value) -> State {
        let phase = meta::str_at(pod, &["status", "phase"]);
        let reason = meta::str_at(pod, &["status", "reason"]);
        let mut word = if reason.is_empty() { phase } else { reason }.to_string();
        let gated = |c: &Value| {
            meta::str_at(c, &["type"]) == "PodScheduled" && meta::str_at(c, &["reason"]) == "SchedulingGated"
        };
        if meta::list_at(pod, &["status", "conditions"]).iter().any(gated) {
            word = "SchedulingGated".into();
        }
        let init_specs = meta::list_at(pod, &["spec", "initContainers"]);
        let sidecar = |name: &str| {
            let found = init_specs.iter().find(|c| meta::str_at(c, &["name"]) == name);
            found.is_some_and(|c| meta::str_at(c, &["restartPolicy"]) == "Always")
        };
        let sidecars = init_specs.iter().filter(|c| meta::str_at(c, &["restartPolicy"]) == "Always").count();
        let mut state = State {
            word,
            ready: 0,
            total: meta::list_at(pod, &["spec", "containers"]).len() + sidecars,
            restarts: Restarts::default(),
        };
        let mut of_sidecars = Restarts::default();
        let initializing = state.initialize(pod, init_specs.len(), sidecar, &mut of_sidecars);
        if !initializing || condition_is_true(pod, "Initialized") {
            state.restarts = of_sidecars;
            state.run(pod);
        }
        if meta::is_being_deleted(pod) {
            if reason == "NodeLost" {
                state.word = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                state.word = "Terminating".into();
            }
        }
        state
    }

    /// Looks at the init containers; true when one of them is what the pod waits for.
    fn initialize(
        &mut self,
        pod: &Value,
        count: usize,
        sidecar: impl Fn(&str) -> bool,
        of_sidecars: &mut Restarts,
    ) -> bool {
        for (i, status) in meta::list_at(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
            self.restarts.add(status);
            let restartable = sidecar(meta::str_at(status, &["name"]));
            if restartable {
                of_sidecars.add(status);
            }
            let terminated = meta::at(status, &["state", "terminated"]);
            let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
            if terminated.is_some_and(|t| number(t, &["exitCode"]) == 0) {
                continue;
            }
            if restartable && meta::bool_at(status, &["started"]) {
                self.ready += usize::from(meta::bool_at(status, &["ready"]));
                continue;
            }
            self.word = match terminated {
                Some(t) => format!("Init:{}", ended(t)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{i}/{count}"),
            };
            return true;
        }
        false
    }

    /// Looks at the containers; the first in order that has something to say wins.
    fn run(&mut self, pod: &Value) {
        let mut running = false;
        for status in meta::list_at(pod, &["status", "containerStatuses"]).iter().rev() {
            self.restarts.add(status);
            let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                self.word = waiting.to_string();
            } else if let Some(terminated) = meta::at(status, &["state", "terminated"]) {
                self.word = ended(terminated);
            } else if meta::bool_at(status, &["ready"]) && meta::at(status, &["state", "running"]).is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.word == "Completed" && running {
            self.word = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
}

/// Why a container ended, in a word.
fn ended(terminated: &Value) -> String {
    let (reason, signal) = (meta::str_at(terminated, &["reason"]), number(terminated, &["signal"]));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", number(terminated, &["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let check = |pod: Value, ready: &str, word: &str, restarts: &str| {
            let cells = cells(&pod, now);
            assert_eq!((&cells[0], &cells[1], &cells[2]), (&json!(ready), &json!(word), &json!(restarts)), "{pod}");
        };
        let spec = || json!({"containers": [{"name": "c"}]});
        check(json!({"spec": spec(), "status": {"phase": "Pending"}}), "0/1", "Pending", "0");
        check(
            json!({"spec": spec(), "status": {"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2,
                "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:08:00Z"}}}]}}),
            "1/1",
            "Running",
            "2 (2m ago)",
        );
        check(
            json!({"spec": spec(), "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
            "0/1",
            "CrashLoopBackOff",
            "0",
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec(), "status": {"phase": "Running"}}),
            "0/1",
            "Terminating",
            "0",
        );
        check(
            json!({"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}}),
            "0/1",
            "Init:1/2",
            "0",
        );
        check(
            json!({"spec": spec(), "status": {"phase": "Failed", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 3}}}]}}),
            "0/1",
            "ExitCode:3",
            "0",
        );
    }
}
