//! What a pod's status says: a function of the pod, what is known of it, the status before, and the time.
//!
//! Phases, conditions, reasons and their words are those that people and tools know from the kubelet. A condition keeps
//! the time of its last change as long as its value stays.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::fields::Situation;
use crate::observed::{ContainerObserved, Exit, Observed, Sandbox, Stage, container_id};
use crate::plan::{initialized, is_sidecar, restarts};
use crate::resources::qos_class;
use crate::traits::PodIdentity;
use crate::translate::identity;

/// Conditions that are ours; all others of the object are kept as they are.
const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A time of the API.
pub fn time(ms: u64) -> Time {
    // The API's times have seconds only.
    Time(Timestamp::from_second((ms / 1000) as i64).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The whole status. `before`: the last one that was reported.
pub fn status(pod: &Pod, observed: &Observed, situation: &Situation, before: &PodStatus, now_ms: u64) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let id = identity(pod);
    let unseen = ContainerObserved::default();
    let ready_to_start = matches!(observed.sandbox, Sandbox::Ready { .. });
    let init_done = initialized(spec, observed);
    // The kubelet's word for every container of such a pod until it is made, not only for those that wait for others.
    let has_init = spec.init_containers.iter().flatten().next().is_some();
    let list = |containers: &[Container], init: bool| -> Vec<ContainerStatus> {
        let each = |container: &Container| {
            let seen = observed.containers.get(&container.name).unwrap_or(&unseen);
            let again = |code: i32| match (init, is_sidecar(container)) {
                (true, true) => true,
                (true, false) => code != 0 && restarts(spec, 1),
                (false, _) => restarts(spec, code),
            } && observed.end.is_none()
                && pod.metadata.deletion_timestamp.is_none();
            container_status(&id, container, seen, &again, has_init, init)
        };
        containers.iter().map(each).collect()
    };
    let containers = list(&spec.containers, false);
    let init_containers = list(spec.init_containers.as_deref().unwrap_or_default(), true);
    let phase = phase(spec, observed, pod, &containers);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        host_ip: situation.host_ips.first().cloned(),
        host_ips: Some(situation.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: situation.pod_ips.first().cloned(),
        pod_ips: Some(situation.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect())
            .filter(|ips: &Vec<PodIP>| !ips.is_empty()),
        start_time: Some(time(observed.start_ms)),
        qos_class: Some(qos_class(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    };
    if let Some(end) = &observed.end {
        status.reason = Some(end.reason.clone()).filter(|reason| !reason.is_empty());
        status.message = Some(end.message.clone()).filter(|message| !message.is_empty() && status.reason.is_some());
    }
    let over = matches!(phase, "Succeeded" | "Failed");
    let conditions = Conditions { pod, before, now_ms, over, phase };
    status.conditions = Some(conditions.all(spec, ready_to_start, init_done, &init_containers, &containers));
    // A pod that was over before anything began has no containers to tell of: its own reason is what tools show.
    let begun = observed.end.is_none() || !observed.containers.is_empty();
    status.container_statuses = Some(containers).filter(|_| begun);
    let init_containers = if begun { init_containers } else { Vec::new() };
    status.init_container_statuses = Some(init_containers).filter(|list| !list.is_empty());
    status
}

fn phase(spec: &PodSpec, observed: &Observed, pod: &Pod, containers: &[ContainerStatus]) -> &'static str {
    if let Some(end) = &observed.end {
        return if end.failed { "Failed" } else { "Succeeded" };
    }
    let all_ended = spec
        .containers
        .iter()
        .all(|container| observed.containers.get(&container.name).is_some_and(|seen| seen.exit().is_some()));
    if all_ended
        && pod.metadata.deletion_timestamp.is_some()
        && matches!(observed.sandbox, Sandbox::None | Sandbox::TearingDown)
    {
        let failed = observed.containers.values().filter_map(ContainerObserved::exit).any(|exit| exit.code != 0);
        return if failed { "Failed" } else { "Succeeded" };
    }
    let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
    let never_ran = |status: &ContainerStatus| {
        state(status).waiting.is_some() && status.last_state.as_ref().is_none_or(|last| last.terminated.is_none())
    };
    if !initialized(spec, observed) || containers.is_empty() || containers.iter().any(never_ran) {
        "Pending"
    } else {
        "Running"
    }
}

fn container_status(
    id: &PodIdentity,
    container: &Container,
    seen: &ContainerObserved,
    again: &dyn Fn(i32) -> bool,
    has_init: bool,
    init: bool,
) -> ContainerStatus {
    let waiting = |reason: &str, message: &str| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()).filter(|text| !text.is_empty()),
        }),
        ..ContainerState::default()
    };
    let uid = &id.uid;
    let creating = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut last = seen.last.as_ref();
    let (state, ran) = match &seen.stage {
        Stage::Waiting { reason, .. } if reason.is_empty() => (waiting(creating, ""), false),
        Stage::Waiting { reason, message, .. } => (waiting(reason, message), false),
        Stage::Starting => (waiting(creating, ""), false),
        Stage::Running { started_ms, .. } => {
            let running = ContainerStateRunning { started_at: Some(time(*started_ms)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, true)
        }
        Stage::Exited(exit) if again(exit.code) && seen.backoff.wait_ms > 0 => {
            last = Some(exit);
            let wait = std::time::Duration::from_millis(seen.backoff.wait_ms);
            let pod = format!("{}_{}({})", id.name, id.namespace, id.uid);
            let message = format!("back-off {} restarting failed container={} pod={pod}", short(wait), container.name);
            (waiting("CrashLoopBackOff", &message), true)
        }
        Stage::Exited(exit) => (terminated(uid, exit), true),
    };
    let known = ran || seen.last.is_some();
    let attempt_id = format!("skiff://{uid}/{}", container_id(&container.name, seen.attempt));
    let running = matches!(seen.stage, Stage::Running { .. });
    // An ordinary init container is ready when it has done its work, and not before.
    let ordinary_init = init && !is_sidecar(container);
    let completed_init = ordinary_init && seen.exit().is_some_and(|exit| exit.code == 0);
    let mounts = container.volume_mounts.iter().flatten().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| {
            let wanted = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
            if wanted { "Enabled" } else { "Disabled" }.to_owned()
        }),
        ..VolumeMountStatus::default()
    });
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: seen.image_ref.clone(),
        container_id: known.then_some(attempt_id),
        ready: completed_init || (running && seen.ready && !ordinary_init),
        started: Some(running && seen.started),
        restart_count: seen.restarts as i32,
        state: Some(state),
        last_state: Some(last.map(|exit| terminated(uid, exit)).unwrap_or_default()),
        resources: container.resources.clone().filter(|_| running),
        allocated_resources: container
            .resources
            .as_ref()
            .and_then(|wanted| wanted.requests.clone())
            .filter(|_| running),
        volume_mounts: Some(mounts.collect()).filter(|list: &Vec<_>| !list.is_empty()),
        ..ContainerStatus::default()
    }
}

/// `10s`, `1m20s`.
fn short(wait: std::time::Duration) -> String {
    match (wait.as_secs() / 60, wait.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

fn terminated(uid: &str, exit: &Exit) -> ContainerState {
    let ended = ContainerStateTerminated {
        container_id: Some(format!("skiff://{uid}/{}", exit.id)),
        exit_code: exit.code,
        signal: Some(exit.signal).filter(|signal| *signal != 0),
        reason: Some(exit.reason.clone()),
        message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
        started_at: Some(time(exit.started_ms)),
        finished_at: Some(time(exit.finished_ms)),
    };
    ContainerState { terminated: Some(ended), ..ContainerState::default() }
}

struct Conditions<'a> {
    pod: &'a Pod,
    before: &'a PodStatus,
    now_ms: u64,
    over: bool,
    phase: &'static str,
}

impl Conditions<'_> {
    fn all(
        &self,
        spec: &PodSpec,
        ready_to_start: bool,
        init_done: bool,
        init: &[ContainerStatus],
        containers: &[ContainerStatus],
    ) -> Vec<PodCondition> {
        let unready: Vec<&str> =
            containers.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let sidecars: Vec<&str> = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| is_sidecar(container))
            .filter(|container| init.iter().any(|status| status.name == container.name && !status.ready))
            .map(|container| container.name.as_str())
            .collect();
        let unready: Vec<&str> = sidecars.into_iter().chain(unready).collect();
        let gates: Vec<&str> = spec
            .readiness_gates
            .iter()
            .flatten()
            .map(|gate| gate.condition_type.as_str())
            .filter(|gate| !self.others().any(|condition| condition.type_ == *gate && condition.status == "True"))
            .collect();
        let containers_ready = match (self.over, unready.is_empty()) {
            (true, _) => Err(self.over_reason()),
            (false, true) => Ok(()),
            (false, false) => {
                Err(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
            }
        };
        let ready = match (&containers_ready, gates.is_empty()) {
            (Err(why), _) => Err(why.clone()),
            (Ok(()), true) => Ok(()),
            (Ok(()), false) => Err((
                "ReadinessGatesNotReady",
                gates
                    .iter()
                    .map(|gate| format!("the status of pod readiness gate {gate:?} is not \"True\""))
                    .collect::<Vec<_>>()
                    .join(", "),
            )),
        };
        let incomplete: Vec<&str> =
            init.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let initialized = match (init_done, self.phase) {
            (true, _) => Ok(()),
            (false, "Succeeded") => Ok(()),
            (false, _) => Err((
                "ContainersNotInitialized",
                format!("containers with incomplete status: [{}]", incomplete.join(" ")),
            )),
        };
        let mut all = vec![
            self.condition(OWN[0], if ready_to_start { Ok(()) } else { Err(("", String::new())) }),
            self.condition(OWN[1], initialized),
            self.condition(OWN[2], ready),
            self.condition(OWN[3], containers_ready),
            self.condition(OWN[4], Ok(())),
        ];
        all.extend(self.others().cloned());
        all
    }

    fn over_reason(&self) -> (&'static str, String) {
        if self.phase == "Succeeded" { ("PodCompleted", String::new()) } else { ("PodFailed", String::new()) }
    }

    /// Conditions that somebody else writes.
    fn others(&self) -> impl Iterator<Item = &PodCondition> {
        let written = self.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        written.into_iter().flatten().filter(|condition| !OWN.contains(&condition.type_.as_str()))
    }

    fn condition(&self, kind: &str, holds: Result<(), (&str, String)>) -> PodCondition {
        let value = if holds.is_ok() { "True" } else { "False" };
        let find = |status: &PodStatus| {
            status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == value).cloned()
        };
        // After a restart of the agent, what the object says counts.
        let kept = find(self.before).or_else(|| self.pod.status.as_ref().and_then(find));
        let (reason, message) = holds.err().unwrap_or_default();
        PodCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            last_transition_time: kept.and_then(|kept| kept.last_transition_time).or(Some(time(self.now_ms))),
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            message: Some(message).filter(|message| !message.is_empty()),
            observed_generation: self.pod.metadata.generation,
            ..PodCondition::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refused_pod_says_why_and_nothing_else() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}}))
        .unwrap();
        let end = crate::observed::End { failed: true, reason: "SysctlForbidden".into(), message: "no".into() };
        let observed = Observed { end: Some(end), ..Observed::default() };
        let status = status(&pod, &observed, &Situation::default(), &PodStatus::default(), 0);
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SysctlForbidden")));
        assert_eq!((status.container_statuses, status.init_container_statuses), (None, None));
    }

    #[test]
    fn while_init_containers_run() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}}))
        .unwrap();
        let check = |stages: &[(&str, Stage)], expect: &[(&str, bool, &str)], message: &str| {
            let containers = stages.iter().map(|(name, stage)| {
                let seen = ContainerObserved { stage: stage.clone(), started: true, ready: true, ..Default::default() };
                (name.to_string(), seen)
            });
            let sandbox = Sandbox::Ready { ip: None };
            let observed = Observed { sandbox, containers: containers.collect(), ..Observed::default() };
            let status = status(&pod, &observed, &Situation::default(), &PodStatus::default(), 0);
            let all = [status.init_container_statuses, status.container_statuses].into_iter().flatten().flatten();
            let got: Vec<(String, bool, String)> = all
                .map(|status| {
                    let waiting = status.state.and_then(|state| state.waiting).and_then(|waiting| waiting.reason);
                    (status.name, status.ready, waiting.unwrap_or_default())
                })
                .collect();
            let expect: Vec<_> =
                expect.iter().map(|(name, ready, why)| (name.to_string(), *ready, why.to_string())).collect();
            assert_eq!(got, expect);
            let initialized =
                status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Initialized");
            assert_eq!(initialized.and_then(|condition| condition.message).unwrap_or_default(), message);
        };
        let running = || Stage::Running { started_ms: 0, killing: false };
        let done = || Stage::Exited(Exit::default());
        check(
            &[],
            &[("i", false, "PodInitializing"), ("side", false, "PodInitializing"), ("a", false, "PodInitializing")],
            "containers with incomplete status: [i side]",
        );
        check(
            &[("i", running())],
            &[("i", false, ""), ("side", false, "PodInitializing"), ("a", false, "PodInitializing")],
            "containers with incomplete status: [i side]",
        );
        check(
            &[("i", done()), ("side", running())],
            &[("i", true, ""), ("side", true, ""), ("a", false, "PodInitializing")],
            "",
        );
    }
}
