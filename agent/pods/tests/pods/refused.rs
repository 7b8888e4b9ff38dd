//! What a pod asks for and must not get, and what it gets in its own namespaces.

use libtest_mimic::Failed;
use serde_json::json;

use super::fixture::{IMAGE, Test, equal, with};

pub const TESTS: &[Test] = &[
    ("refused::the_hosts_parameters", the_hosts_parameters),
    ("refused::what_nobody_would_give", what_nobody_would_give),
    ("refused::more_processes_than_a_pod_may_have", more_processes_than_a_pod_may_have),
];

fn the_hosts_parameters() -> Result<(), Failed> {
    with(async |node| {
        let file = "/proc/sys/kernel/printk_ratelimit_burst";
        let before = std::fs::read_to_string(file)?;
        let spec = |name: &str, script: &str| {
            json!({"spec": {"restartPolicy": "Never", "securityContext": {"sysctls": [{"name": name, "value": "11"}]},
                "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script]}]}})
        };
        // The node's administrator allows kernel.*: it is still the host's.
        node.apply("host", spec("kernel.printk_ratelimit_burst", "true"));
        node.until_phase("host", "Failed").await?;
        equal(node.status("host").reason.as_deref(), Some("SysctlForbidden"))?;
        node.happened("SysctlForbidden", "kernel.printk_ratelimit_burst")?;
        equal(std::fs::read_to_string(file)?, before)?;
        let show = "cat /proc/sys/net/ipv4/tcp_fin_timeout /proc/sys/net/ipv4/ip_unprivileged_port_start";
        node.apply("own", spec("net/ipv4/tcp_fin_timeout", show));
        node.until_phase("own", "Succeeded").await?;
        equal(node.log("own", "main", false).await?.as_str(), "11\n0\n")?;
        node.apply("set", spec("net.ipv4.ip_unprivileged_port_start", show));
        node.until_phase("set", "Succeeded").await?;
        let log = node.log("set", "main", false).await?;
        equal(log.ends_with("\n11\n"), true)
    })
}

fn what_nobody_would_give() -> Result<(), Failed> {
    with(async |node| {
        let pod = |spec: serde_json::Value, container: serde_json::Value| {
            let mut spec = spec;
            let main = json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", "sleep 100"], "securityContext": container});
            spec["containers"] = json!([main]);
            json!({ "spec": spec })
        };
        node.apply("users", pod(json!({"hostUsers": false}), json!({})));
        node.apply(
            "claim",
            pod(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]}), json!({})),
        );
        node.apply("armor", pod(json!({}), json!({"appArmorProfile": {"type": "RuntimeDefault"}})));
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"}});
        node.apply("local", pod(json!({}), local));
        node.until("a sandbox fails", |news| news.events.iter().any(|event| event.name == "users")).await?;
        node.happened("FailedCreatePodSandBox", "hostUsers: false")?;
        node.until("a mount fails", |news| news.events.iter().any(|event| event.name == "claim")).await?;
        node.happened("FailedMount", "of a kind that this node cannot provide")?;
        node.until_phase("armor", "Failed").await?;
        equal(node.status("armor").reason.as_deref(), Some("AppArmor"))?;
        node.until("the container is refused", |news| {
            let list =
                news.statuses.get("local").and_then(|status| status.container_statuses.clone()).unwrap_or_default();
            list.iter().any(|status| {
                let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
                waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CreateContainerError"))
            })
        })
        .await
    })
}

fn more_processes_than_a_pod_may_have() -> Result<(), Failed> {
    with(async |node| {
        // The fixture's nodes give a pod 200.
        let script = "i=0; while [ $i -lt 300 ]; do sleep 100 & i=$((i+1)); done 2>/dev/null; echo all";
        node.apply(
            "many",
            json!({"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script]}]}}),
        );
        node.until("many ended", |news| {
            let phase = news.statuses.get("many").and_then(|status| status.phase.clone());
            matches!(phase.as_deref(), Some("Failed" | "Succeeded"))
        })
        .await?;
        // A shell that cannot fork gives up.
        equal(node.log("many", "main", false).await?.contains("all"), false)
    })
}
