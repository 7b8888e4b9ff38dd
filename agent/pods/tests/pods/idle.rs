//! An agent that has nothing to do does nothing, also after odd states; and what fails again and again is told once, with
//! a count.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::json;

use super::fixture::{IMAGE, Test, equal, with};

pub const TESTS: &[Test] = &[
    ("idle::odd_states_cost_nothing", odd_states_cost_nothing),
    ("idle::a_missing_object_is_one_event", a_missing_object_is_one_event),
];

/// CPU time that this thread has used. The agent of a test runs on the test's own thread and nowhere else.
fn cpu() -> Duration {
    // SAFETY: rusage is plain data for which zeros are valid, and it outlives the call.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut used);
        used
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    of(used.ru_utime) + of(used.ru_stime)
}

fn odd_states_cost_nothing() -> Result<(), Failed> {
    with(async |node| {
        // Its token wants to be renewed four fifths of a second after it was got, when the pod is long over.
        let token = json!({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 1}}]}});
        let main = json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", "exit 0"],
            "volumeMounts": [{"name": "t", "mountPath": "/t"}]});
        node.apply("job", json!({"spec": {"restartPolicy": "Never", "volumes": [token], "containers": [main]}}));
        node.until_phase("job", "Succeeded").await?;
        let held = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0,
                "finalizers": ["a.example/b"]},
            "spec": {"containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", "sleep 100"]}]}});
        node.apply("held", held.clone());
        // The same after it has ended.
        let mut ended = held;
        ended["status"] = json!({"phase": "Succeeded"});
        node.apply("ended", ended);
        for name in ["held", "ended"] {
            node.until(&format!("{name} is gone"), |news| news.gone.contains(&name.to_owned())).await?;
        }
        let before = cpu();
        let window = Duration::from_millis(1_500);
        tokio::time::sleep(window).await;
        let used = cpu() - before;
        if used > window / 50 {
            return Err(format!("an idle agent used {used:?} of {window:?}").into());
        }
        let count = |name: &str| node.news.lock().unwrap().gone.iter().filter(|gone| *gone == name).count();
        equal((count("held"), count("ended")), (1, 1))?;
        // Once its object is gone, a new pod of the same name and identity is run again.
        node.change(|desired| desired.pods.retain(|pod| pod.metadata.name.as_deref() != Some("held")));
        let alive = json!({"spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", "sleep 100"]}]}});
        node.apply("other", alive.clone());
        node.until_ready("other").await?;
        node.apply("held", alive);
        node.until_ready("held").await
    })
}

fn a_missing_object_is_one_event() -> Result<(), Failed> {
    with(async |node| {
        let volume = json!({"name": "v", "configMap": {"name": "late"}});
        let main = json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", "sleep 100"]});
        node.apply("waits", json!({"spec": {"volumes": [volume], "containers": [main]}}));
        let mounts = |news: &super::fixture::News| {
            let all = news.events.iter().filter(|event| event.reason == "FailedMount");
            all.map(|event| (event.series.clone(), event.count, event.last_ms)).collect::<Vec<_>>()
        };
        node.until("three attempts", |news| mounts(news).len() >= 3).await?;
        let seen = mounts(&node.news.lock().unwrap());
        equal(seen.iter().map(|(_, count, _)| *count).take(3).collect(), vec![1, 2, 3])?;
        equal(seen.iter().all(|(series, ..)| *series == seen[0].0), true)?;
        let gaps: Vec<u64> = seen.windows(2).map(|pair| pair[1].2 - pair[0].2).collect();
        if gaps[0] < 450 || gaps[1] < 950 {
            return Err(format!("attempts must be ever further apart, not {gaps:?} ms").into());
        }
        let map = json!({"metadata": {"name": "late"}, "data": {"a": "here"}});
        node.change(|desired| {
            let map = std::sync::Arc::new(serde_json::from_value(map).unwrap());
            desired.config_maps.insert(("default".into(), "late".into()), map);
        });
        node.until_ready("waits").await
    })
}
