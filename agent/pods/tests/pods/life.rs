//! Pods from a level to their end.

use std::sync::Arc;

use libtest_mimic::Failed;
use serde_json::json;

use super::fixture::{IMAGE, Test, UNLUCKY, equal, ready, with};

pub const TESTS: &[Test] = &[
    ("life::everything_at_once", everything_at_once),
    ("life::a_job_succeeds_and_fails", a_job_succeeds_and_fails),
    ("life::crashes_back_off", crashes_back_off),
    ("life::missing_things_are_named_and_waited_for", missing_things_are_named_and_waited_for),
    ("life::liveness_restarts_and_readiness_follows", liveness_restarts_and_readiness_follows),
    ("life::hooks_and_grace", hooks_and_grace),
    ("life::a_sidecar_outlives_the_rest", a_sidecar_outlives_the_rest),
    ("life::the_agent_comes_back", the_agent_comes_back),
    ("life::a_lost_sandbox_is_made_again", a_lost_sandbox_is_made_again),
    ("life::a_bug_that_one_pod_meets_is_that_pods_failure", a_bug_that_one_pod_meets),
];

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", script]})
}

fn everything_at_once() -> Result<(), Failed> {
    with(async |node| {
        node.change(|desired| {
            let key = |name: &str| ("default".to_owned(), name.to_owned());
            let map = json!({"metadata": {"name": "cm"}, "data": {"color": "blue", "size": "9"}});
            let secret = json!({"metadata": {"name": "s"}, "data": {"pw": "c2VjcmV0"}});
            let root = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}});
            desired.config_maps.insert(key("cm"), Arc::new(serde_json::from_value(map).unwrap()));
            desired.config_maps.insert(key("kube-root-ca.crt"), Arc::new(serde_json::from_value(root).unwrap()));
            desired.secrets.insert(key("s"), Arc::new(serde_json::from_value(secret).unwrap()));
        });
        let token = json!({"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}});
        let script = "cat /data/from-init; echo $COLOR $PW $POD_IP $NODE $CPU $ALL_size; cat /cm/color; echo; cat /token/token; echo; cat /token/ca.crt; echo; \
                      cat /token/namespace; echo; cat /one; echo; cat /etc/hostname; cat /etc/resolv.conf; id -G; touch /data/mine; \
                      echo the end > /dev/termination-log; touch /tmp/ready; sleep 1000";
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        node.apply(
            "all",
            json!({"metadata": {"labels": {"app": "x"}}, "spec": {
                "securityContext": {"fsGroup": 4444},
                "initContainers": [{"name": "init", "image": IMAGE, "command": ["sh", "-c", "echo made by init > /data/from-init"],
                    "volumeMounts": [mount("data", "/data")]}],
                "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script],
                    "env": [
                        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "color"}}},
                        {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                    "envFrom": [{"prefix": "ALL_", "configMapRef": {"name": "cm"}}],
                    "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1},
                    "volumeMounts": [mount("data", "/data"), mount("cm", "/cm"), mount("token", "/token"),
                        {"name": "cm", "mountPath": "/one", "subPath": "size"}]}],
                "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}, {"name": "cm", "configMap": {"name": "cm"}}, token]}}),
        );
        node.until_ready("all").await?;
        let status = node.status("all");
        equal(status.phase.as_deref(), Some("Running"))?;
        equal(status.pod_ip.as_deref(), Some("127.0.0.9"))?;
        equal(status.init_container_statuses.iter().flatten().map(|s| s.ready).collect::<Vec<_>>(), vec![true])?;
        let log = node.log("all", "main", false).await?;
        let expect = "made by init\nblue secret 127.0.0.9 node-1 2 9\nblue\ntoken-of-default\nCA\ndefault\n9\nall\nnameserver 10.43.0.10\n\
                      search default.svc.cluster.local svc.cluster.local cluster.local";
        if !log.starts_with(expect) || !log.contains("4444") {
            return Err(format!("the log is {log}").into());
        }
        for (reason, part) in
            [("Pulled", "already present"), ("Created", "main"), ("Started", "main"), ("Started", "init")]
        {
            node.happened(reason, part)?;
        }
        // A changed ConfigMap reaches the running container.
        node.change(|desired| {
            let map = json!({"metadata": {"name": "cm"}, "data": {"color": "red", "size": "9"}});
            desired.config_maps.insert(("default".into(), "cm".into()), Arc::new(serde_json::from_value(map).unwrap()));
        });
        let file = node.dir.join("pods/uid-all/volumes/cm/color");
        let mut looks = 0;
        while std::fs::read_to_string(&file)? != "red" {
            looks += 1;
            if looks > 1000 {
                return Err("the volume did not follow its ConfigMap".into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        node.apply("all", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}, "spec": status_spec(node, "all")}));
        node.until("all is gone", |news| news.gone.contains(&"all".to_owned())).await?;
        node.happened("Killing", "Stopping container main")?;
        let ended = node
            .status("all")
            .container_statuses
            .and_then(|list| list[0].state.clone())
            .and_then(|state| state.terminated);
        equal(ended.as_ref().and_then(|ended| ended.message.as_deref()), Some("the end\n"))?;
        equal(std::fs::read_dir(node.dir.join("pods"))?.count(), 0)?;
        equal(std::fs::read_dir(node.dir.join("logs"))?.count(), 0)?;
        equal(node.runtime.recover().await?.len(), 0)
    })
}

/// The specification that is wanted now.
fn status_spec(node: &super::fixture::Node, name: &str) -> serde_json::Value {
    let desired = node.desired.borrow();
    let pod = desired.pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
    json!(pod.and_then(|pod| pod.spec.clone()))
}

fn a_job_succeeds_and_fails() -> Result<(), Failed> {
    with(async |node| {
        node.apply("good", json!({"spec": {"restartPolicy": "Never", "containers": [sh("echo done")]}}));
        node.apply("bad", json!({"spec": {"restartPolicy": "Never", "containers": [sh("exit 3")]}}));
        node.apply("late", json!({"spec": {"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 0, "containers": [sh("sleep 100")]}}));
        node.until_phase("good", "Succeeded").await?;
        node.until_phase("bad", "Failed").await?;
        let code = node
            .status("bad")
            .container_statuses
            .and_then(|list| list[0].state.clone()?.terminated)
            .map(|ended| (ended.exit_code, ended.reason));
        equal(code, Some((3, Some("Error".into()))))?;
        equal(node.log("good", "", false).await?.as_str(), "done\n")?;
        node.until_phase("late", "Failed").await?;
        equal(node.status("late").reason.as_deref(), Some("DeadlineExceeded"))
    })
}

fn crashes_back_off() -> Result<(), Failed> {
    with(async |node| {
        node.apply("crash", json!({"spec": {"containers": [sh("echo attempt; exit 1")]}}));
        node.until("a back-off shows", |news| {
            let status =
                news.statuses.get("crash").and_then(|status| status.container_statuses.clone()).unwrap_or_default();
            status.iter().any(|status| {
                let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
                let waiting = waiting.map(|waiting| (waiting.reason.as_deref(), waiting.message.as_deref()));
                let Some((Some("CrashLoopBackOff"), Some(message))) = waiting else { return false };
                let words = "back-off 10s restarting failed container=main pod=crash_default(";
                message.starts_with(words) && status.restart_count == 1
            })
        })
        .await?;
        node.happened("BackOff", "Back-off restarting failed container main")?;
        equal(node.log("crash", "main", true).await?.as_str(), "attempt\n")
    })
}

fn missing_things_are_named_and_waited_for() -> Result<(), Failed> {
    with(async |node| {
        let mut container = sh("echo $A; sleep 100");
        container["env"] = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]);
        node.apply("env", json!({"spec": {"containers": [container]}}));
        node.apply("image", json!({"spec": {"containers": [{"name": "main", "image": "127.0.0.1:1/none:v1"}]}}));
        node.apply(
            "never",
            json!({"spec": {"containers": [{"name": "main", "image": "none", "imagePullPolicy": "Never"}]}}),
        );
        node.apply("name", json!({"spec": {"containers": [{"name": "main", "image": "Bad Name"}]}}));
        node.apply("command", json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": IMAGE, "command": ["nothing"]}]}}));
        let waits = async |name: &str, reason: &str| {
            node.until(&format!("{name} waits for {reason}"), |news| {
                let status =
                    news.statuses.get(name).and_then(|status| status.container_statuses.clone()).unwrap_or_default();
                status.iter().any(|status| {
                    status
                        .state
                        .as_ref()
                        .and_then(|state| state.waiting.as_ref())
                        .and_then(|waiting| waiting.reason.as_deref())
                        == Some(reason)
                })
            })
            .await
        };
        waits("env", "CreateContainerConfigError").await?;
        waits("image", "ErrImagePull").await?;
        waits("image", "ImagePullBackOff").await?;
        waits("never", "ErrImageNeverPull").await?;
        waits("name", "InvalidImageName").await?;
        node.happened("ErrImageNeverPull", "is not present with pull policy of Never")?;
        node.happened("InspectFailed", "Failed to apply default image tag \"Bad Name\"")?;
        let asked = node.happened("Pulling", "Bad Name");
        equal(asked.is_err(), true)?;
        node.until_phase("command", "Failed").await?;
        let ended = node.status("command").container_statuses.and_then(|list| list[0].state.clone()?.terminated);
        equal(ended.map(|ended| (ended.exit_code, ended.reason)), Some((128, Some("StartError".into()))))?;
        node.happened("Failed", "configmap \"late\" not found")?;
        node.change(|desired| {
            let map = json!({"metadata": {"name": "late"}, "data": {"a": "here"}});
            desired
                .config_maps
                .insert(("default".into(), "late".into()), Arc::new(serde_json::from_value(map).unwrap()));
        });
        node.until_ready("env").await?;
        equal(node.log("env", "main", false).await?.as_str(), "here\n")
    })
}

fn liveness_restarts_and_readiness_follows() -> Result<(), Failed> {
    with(async |node| {
        let server = json!({"name": "main", "image": IMAGE, "command": ["/bin/skiff-echo", "8080", "/tmp/healthy"],
            "ports": [{"name": "web", "containerPort": 8080}],
            "lifecycle": {"postStart": {"exec": {"command": ["touch", "/tmp/healthy"]}}},
            "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["sh", "-c", "! ls /tmp/dead"]}, "periodSeconds": 1, "failureThreshold": 1}});
        node.apply("web", json!({"spec": {"terminationGracePeriodSeconds": 1, "containers": [server]}}));
        node.until_ready("web").await?;
        let run = async |node: &super::fixture::Node, words: &[&str]| -> Result<(), Failed> {
            let visible =
                node.pods.as_ref().and_then(|pods| pods.streams().get("default", "web")).ok_or("not visible")?;
            let container = visible.containers[0].1.running.clone().ok_or("not running")?;
            let args = words.iter().map(|word| word.to_string()).collect();
            let spec = skiff_runtime::ExecSpec { container, args, ..Default::default() };
            visible.made.ok_or("no sandbox")?.exec(spec, false).await?.wait().await?;
            Ok(())
        };
        run(node, &["rm", "/tmp/healthy"]).await?;
        node.until("web is not ready", |news| news.statuses.get("web").is_some_and(|status| !ready(status))).await?;
        node.happened("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")?;
        run(node, &["touch", "/tmp/healthy"]).await?;
        node.until_ready("web").await?;
        run(node, &["touch", "/tmp/dead"]).await?;
        node.until("web restarted", |news| {
            news.statuses.get("web").is_some_and(|status| {
                status.container_statuses.as_ref().is_some_and(|list| list[0].restart_count == 1) && ready(status)
            })
        })
        .await?;
        node.happened("Killing", "Container main failed liveness probe, will be restarted")
    })
}

fn hooks_and_grace() -> Result<(), Failed> {
    with(async |node| {
        let mut container = sh("trap 'echo asked; exit 0' TERM; touch /tmp/up; while true; do sleep 0.05; done");
        container["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1"]}}});
        container["readinessProbe"] = json!({"exec": {"command": ["cat", "/tmp/up"]}});
        let spec = json!({"containers": [container]});
        node.apply("polite", json!({"spec": spec}));
        node.until_ready("polite").await?;
        let path = node
            .pods
            .as_ref()
            .and_then(|pods| pods.streams().get("default", "polite"))
            .and_then(|pod| pod.containers[0].1.log.clone());
        let log = std::fs::File::open(path.ok_or("no log")?)?;
        node.change(|desired| {
            desired.hold.insert("uid-polite".into());
        });
        node.apply("polite", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 20}, "spec": spec}));
        // Held: it stays ready, and only the end of the hold lets it stop.
        equal(ready(&node.status("polite")), true)?;
        node.change(|desired| {
            desired.hold.remove("uid-polite");
        });
        node.until("polite is gone", |news| news.gone.contains(&"polite".to_owned())).await?;
        let text = std::io::read_to_string(log)?;
        let words: Vec<&str> = text.lines().filter_map(|line| line.rsplit(' ').next()).collect();
        equal(words, vec!["hook", "asked"])?;
        equal(node.status("polite").phase.as_deref(), Some("Succeeded"))
    })
}

fn a_sidecar_outlives_the_rest() -> Result<(), Failed> {
    with(async |node| {
        let side = json!({"name": "side", "image": IMAGE, "restartPolicy": "Always", "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.05; done"]});
        node.apply(
            "job",
            json!({"spec": {"restartPolicy": "Never", "initContainers": [side], "containers": [sh("echo work")]}}),
        );
        node.until_phase("job", "Succeeded").await?;
        node.until("the sidecar ended last", |news| {
            let status =
                news.statuses.get("job").and_then(|status| status.init_container_statuses.clone()).unwrap_or_default();
            status.iter().all(|status| status.state.as_ref().is_some_and(|state| state.terminated.is_some()))
        })
        .await
    })
}

fn the_agent_comes_back() -> Result<(), Failed> {
    with(async |node| {
        for name in ["stays", "ends", "unwanted"] {
            node.apply(
                name,
                json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [sh("echo $$; sleep 1000")]}}),
            );
            node.until_ready(name).await?;
        }
        let visible =
            node.pods.as_ref().and_then(|pods| pods.streams().get("default", "stays")).ok_or("not visible")?;
        let made = visible.made.clone().ok_or("no sandbox")?;
        let pid = made.container("main-0").map(|state| state.pid);
        let ends = node
            .pods
            .as_ref()
            .and_then(|pods| pods.streams().get("default", "ends"))
            .and_then(|pod| pod.made)
            .ok_or("no sandbox")?;
        node.stop_agent();
        ends.signal("main-0", libc::SIGKILL, true).await?;
        ends.wait_exit("main-0").await?;
        node.change(|desired| {
            desired.synced = false;
            desired.pods.clear();
        });
        node.news.lock().unwrap().statuses.clear();
        node.start_agent().await?;
        node.until("the one that ended is restarted", |news| {
            news.statuses.get("ends").is_some_and(|status| {
                status.container_statuses.as_ref().is_some_and(|list| list[0].restart_count == 1) && ready(status)
            })
        })
        .await?;
        for name in ["stays", "ends"] {
            node.apply(
                name,
                json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [sh("echo $$; sleep 1000")]}}),
            );
        }
        node.change(|desired| desired.synced = true);
        node.until("the unwanted one is gone", |news| news.gone == ["unwanted"]).await?;
        let visible =
            node.pods.as_ref().and_then(|pods| pods.streams().get("default", "stays")).ok_or("not visible")?;
        equal(visible.made.and_then(|made| made.container("main-0")).map(|state| state.pid), pid)
    })
}

fn a_lost_sandbox_is_made_again() -> Result<(), Failed> {
    with(async |node| {
        node.apply("lost", json!({"spec": {"containers": [sh("sleep 1000")]}}));
        node.until_ready("lost").await?;
        let visible = node.pods.as_ref().and_then(|pods| pods.streams().get("default", "lost")).ok_or("not visible")?;
        // SAFETY: kill takes no pointers; the helper is ours.
        unsafe { libc::kill(visible.made.ok_or("no sandbox")?.helper_pid()?, libc::SIGKILL) };
        node.until("lost runs again", |news| {
            news.statuses.get("lost").is_some_and(|status| {
                status.container_statuses.as_ref().is_some_and(|list| list[0].restart_count == 1) && ready(status)
            })
        })
        .await?;
        node.happened("SandboxChanged", "re-created")
    })
}

fn a_bug_that_one_pod_meets() -> Result<(), Failed> {
    with(async |node| {
        for name in [UNLUCKY, "beside"] {
            node.apply(name, json!({"spec": {"containers": [sh("sleep 1000")]}}));
        }
        node.until_ready("beside").await?;
        node.until_ready(UNLUCKY).await?;
        node.happened("FailedCreatePodSandBox", "a bug of Skiff in the step \"sandbox\": a bug for the test")
    })
}
