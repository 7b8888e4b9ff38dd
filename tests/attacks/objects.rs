//! Objects that hurt: made by somebody who may make them.

use crate::holder::{secret, token};
use crate::local::{Local, block_on, until};
use crate::pods;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skiff::commands::cluster::is_ready;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Numbers from the ends of their range, in every place where time is counted; then an ordinary Deployment, which must come and go as ever.
pub fn huge_numbers(local: &Local) -> anyhow::Result<()> {
    let api = local.cluster()?.api;
    block_on(async {
        let mut huge = pods::deployment("huge", 1);
        huge["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(i64::MAX);
        huge["spec"]["template"]["spec"]["tolerations"] =
            json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": i64::MAX}]);
        api.post(DEPLOYMENTS, &huge).await?;
        until("the huge one is Ready", || async {
            let pods = pods::labelled(&api, "huge").await?;
            Ok(pods.len() == 1 && pods.iter().all(is_ready))
        })
        .await?;
        let none = json!({"spec": {"replicas": 0}});
        api.patch(&format!("{DEPLOYMENTS}/huge"), "application/merge-patch+json", &none).await?;
        until("its pod is told to end", || async {
            let pods = pods::labelled(&api, "huge").await?;
            Ok(pods.iter().all(|p| p.pointer("/metadata/deletionTimestamp").is_some()))
        })
        .await?;
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "late"}, "involvedObject": {"namespace": "default"},
            "lastTimestamp": "9999-12-31T23:59:59Z", "reason": "Late"});
        api.post("/api/v1/namespaces/default/events", &event).await?;
        // In requests: each is refused, or taken as a number as large as there is; none ends what it is asked of.
        let pods_of = pods::labelled(&api, "huge").await?;
        let pod = pods_of.first().map(|p| crate::local::text_of(p, "/metadata/name").to_owned()).unwrap_or_default();
        for number in [
            "9223372036854775807",
            "-9223372036854775808",
            "99999999999999999999",
            "9223372036854775808",
            "1e300",
            "-1",
        ] {
            for query in [
                format!("{}/{pod}/log?sinceSeconds={number}", pods::PODS),
                format!("{}/{pod}/log?tailLines={number}", pods::PODS),
                format!("{}/{pod}/log?limitBytes={number}", pods::PODS),
                format!("{}?limit={number}", pods::PODS),
                format!("{}?resourceVersion={number}", pods::PODS),
                format!("{}?timeoutSeconds={number}", pods::PODS),
            ] {
                if let Err(error) = api.get(&query).await {
                    let code = error.downcast_ref::<skiff::client::ApiError>().map_or(0, |said| said.code);
                    ensure!((400..500).contains(&code) || code == 504, "{query}: {error:#}");
                }
            }
            let watch = format!("{}?watch=1&timeoutSeconds={number}", pods::PODS);
            // It may go on; it must begin, or be refused.
            let begun =
                tokio::time::timeout(std::time::Duration::from_secs(5), api.stream(&watch, "application/json")).await;
            ensure!(begun.is_ok(), "{watch}: no answer");
            let options = format!("{}/no-such-pod?gracePeriodSeconds={number}", pods::PODS);
            ensure!(api.delete(&options, &json!({})).await.is_err(), "{options}");
        }
        for grace in [json!(i64::MAX), json!(i64::MIN)] {
            let dry = format!("{}/{pod}?dryRun=All", pods::PODS);
            let _ = api.delete(&dry, &json!({"gracePeriodSeconds": grace})).await;
        }
        api.post(DEPLOYMENTS, &pods::deployment("after", 2)).await?;
        until("an ordinary Deployment is Ready", || async {
            let pods = pods::labelled(&api, "after").await?;
            Ok(pods.len() == 2 && pods.iter().all(is_ready))
        })
        .await?;
        let metrics = api.get("/metrics").await?;
        let metrics = metrics.as_str().unwrap_or_default();
        ensure!(metrics.contains("# TYPE skiff_panics_total"), "panics are counted");
        ensure!(!metrics.contains("skiff_panics_total{"), "something panicked: {metrics}");
        for pod in pods::labelled(&api, "huge").await? {
            let name = crate::local::text_of(&pod, "/metadata/name");
            api.delete(&format!("{}/{name}", pods::PODS), &json!({"gracePeriodSeconds": 0})).await?;
        }
        pods::remove(&api, "huge", &[&format!("{DEPLOYMENTS}/huge")]).await?;
        pods::remove(&api, "after", &[&format!("{DEPLOYMENTS}/after")]).await
    })
}

/// Two objects, one with an owner of a kind that nobody serves, one with an owner that is gone: the second goes, and the first is still there then.
pub fn unknown_owners(local: &Local) -> anyhow::Result<()> {
    let api = local.cluster()?.api;
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    block_on(async {
        let map = |name: &str, owner: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [owner]}});
        let unknown = json!({"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "c", "uid": "11111111-1111-1111-1111-111111111111"});
        let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "g", "uid": "22222222-2222-2222-2222-222222222222"});
        api.post(MAPS, &map("of-unknown", unknown)).await?;
        api.post(MAPS, &map("of-gone", gone)).await?;
        until("what had an owner that is gone, is gone", || async {
            Ok(api.get(&format!("{MAPS}/of-gone")).await.is_err())
        })
        .await?;
        api.get(&format!("{MAPS}/of-unknown")).await?;
        api.delete(&format!("{MAPS}/of-unknown"), &json!({})).await.map(drop)
    })
}

/// Texts that nobody would write by chance, put where secrets are: then everything that people look at is searched for them.
pub fn planted(local: &Local) -> anyhow::Result<()> {
    let api = local.cluster()?.api;
    const PLANTED: &str = "planted-7Q2mZk4vX9";
    let join = local.run(&["token", "create"])?.trim().rsplit('.').next().unwrap_or_default().to_owned();
    let account = block_on(async {
        secret(&api, "planted", PLANTED).await?;
        // One that cannot be started, so that there is something to be told about it.
        let mut pod = pods::web("planted", "a1");
        pod["spec"]["containers"][0]["env"] = json!([
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "planted", "key": "value"}}},
            {"name": "MISSING", "valueFrom": {"secretKeyRef": {"name": "planted", "key": "no-such-key"}}}]);
        api.post(pods::PODS, &pod).await?;
        // And one that runs with it, so that it goes all the way down.
        let mut running = pods::web("planted-runs", "a1");
        running["metadata"]["labels"]["app"] = "planted".into();
        let env = running["spec"]["containers"][0]["env"].as_array_mut().context("its environment")?;
        env.push(json!({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "planted", "key": "value"}}}));
        pods::start(&api, &running).await?;
        until("an event tells of it", || async {
            let events = api.get("/api/v1/namespaces/default/events").await?.to_string();
            Ok(events.contains("no-such-key"))
        })
        .await?;
        let token = token(&api, "default", json!({})).await?;
        // Used once, to be refused: it may nothing.
        crate::holder::refused(
            "a use of it",
            crate::holder::with_token(local, "used", &token)?.get("/api/v1/secrets").await,
            403,
        )?;
        anyhow::Ok(token)
    })?;
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, PLANTED);
    let join_encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &join);
    let needles = [PLANTED.to_owned(), encoded, join, join_encoded, account];
    let search = |place: &str, text: &str| -> anyhow::Result<()> {
        let found = needles.iter().find(|needle| text.contains(needle.as_str()));
        ensure!(found.is_none(), "{place} holds the secret {found:?}");
        Ok(())
    };
    let logs = std::process::Command::new("find")
        .arg(&local.dir)
        .args(["-type", "f", "-name", "*.log", "-not", "-path", "*/store/*"])
        .output()?;
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    ensure!(logs.contains("/s1.log") && logs.contains("/a1/logs/"), "the logs are there: {logs}");
    for log in logs.lines() {
        search(log, &String::from_utf8_lossy(&std::fs::read(log)?))?;
    }
    // The store holds them, sealed.
    let written =
        std::process::Command::new("find").arg(local.dir.join("s1/server/store")).args(["-type", "f"]).output()?;
    let written = String::from_utf8_lossy(&written.stdout).into_owned();
    let mut whole = String::new();
    for file in written.lines() {
        whole.push_str(&String::from_utf8_lossy(&std::fs::read(file)?));
    }
    search("the store", &whole)?;
    ensure!(whole.contains("planted-runs"), "what is not sealed is found there");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        search(&format!("the arguments of {}", entry.path().display()), &String::from_utf8_lossy(&arguments))?;
    }
    block_on(async {
        search("an event", &api.get("/api/v1/events").await?.to_string())?;
        search("the metrics", api.get("/metrics").await?.as_str().unwrap_or_default())?;
        pods::remove(
            &api,
            "planted",
            &[
                &format!("{}/planted", pods::PODS),
                &format!("{}/planted-runs", pods::PODS),
                "/api/v1/namespaces/default/secrets/planted",
            ],
        )
        .await
    })
}
