//! Somebody who has taken a node: its disk, its certificate and its key. They have what runs on it; they must get no more.

use crate::holder::{refused, secret, stolen, with_node};
use crate::local::{Local, block_on, text_of, until};
use crate::pods;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skiff::agent::wire;
use skiff::commands::cluster::is_ready;
use skiff_proto::fleet as pb;
use skiff_proto::fleet::from_agent::Message as Up;
use skiff_proto::fleet::to_agent::Message as Down;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn token_request(pod: &Value) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1",
        "name": text_of(pod, "/metadata/name"), "uid": text_of(pod, "/metadata/uid")}}})
}

/// What `a1` asks over HTTPS.
pub fn requests(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    let thief = with_node(local, "a1")?;
    block_on(async {
        secret(&admin, "used-here", "one").await?;
        secret(&admin, "used-there", "two").await?;
        for (name, node, secret) in [("here", "a1", "used-here"), ("there", "a2", "used-there")] {
            let mut pod = pods::web(name, node);
            pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": secret}}]);
            pods::start(&admin, &pod).await?;
        }
        let pod = async |name: &str| admin.get(&format!("{}/{name}", pods::PODS)).await;
        let (here, there) = (pod("here").await?, pod("there").await?);

        // Its own.
        thief.get("/api/v1/nodes/a1").await?;
        thief.get(&format!("{SECRETS}/used-here")).await?;
        thief.get(&format!("{}/here", pods::PODS)).await?;
        let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
        thief.post(tokens, &token_request(&here)).await?;

        // Others'.
        refused("a Secret of another node's pod", thief.get(&format!("{SECRETS}/used-there")).await, 403)?;
        refused("all Secrets", thief.get("/api/v1/secrets").await, 403)?;
        refused("all Secrets of a namespace", thief.get(SECRETS).await, 403)?;
        refused("every pod", thief.get("/api/v1/pods").await, 403)?;
        refused("a token of another node's pod", thief.post(tokens, &token_request(&there)).await, 403)?;
        let unbound = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        refused("a token that is bound to nothing", thief.post(tokens, &unbound).await, 403)?;
        let end = json!({"gracePeriodSeconds": 0});
        refused("deleting another node's pod", thief.delete(&format!("{}/there", pods::PODS), &end).await, 403)?;
        let merge = "application/merge-patch+json";
        let failed = json!({"status": {"phase": "Failed"}});
        refused("another's status", thief.patch(&format!("{}/there/status", pods::PODS), merge, &failed).await, 403)?;
        let labels = json!({"metadata": {"labels": {"app": "stolen"}}});
        let relabelled = thief.patch(&format!("{}/here/status", pods::PODS), merge, &labels).await;
        ensure!(
            relabelled.is_err() || text_of(&pod("here").await?, "/metadata/labels/app") == "here",
            "a pod's labels through its status"
        );
        for (what, change) in [
            ("its taints", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})),
            (
                "a label that others trust",
                json!({"metadata": {"labels": {"node-restriction.kubernetes.io/zone": "safe"}}}),
            ),
            ("its identity", json!({"metadata": {"annotations": {"skiff.dev/node-key-hash": "0".repeat(64)}}})),
            ("no identity", json!({"metadata": {"annotations": {"skiff.dev/node-key-hash": null}}})),
            ("a role", json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}})),
        ] {
            refused(what, thief.patch("/api/v1/nodes/a1", merge, &change).await, 403)?;
        }
        refused(
            "another node",
            thief.patch("/api/v1/nodes/a2", merge, &json!({"metadata": {"labels": {"a": "b"}}})).await,
            403,
        )?;
        refused("deleting a node", thief.delete("/api/v1/nodes/a2", &json!({})).await, 403)?;
        let lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a2"}, "spec": {}});
        refused(
            "another's lease",
            thief.post("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await,
            403,
        )?;
        let leader = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/skiff-leader";
        refused(
            "the leader's lease",
            thief.patch(leader, merge, &json!({"spec": {"holderIdentity": "a1"}})).await,
            403,
        )?;
        // A mirror carries its own Node as owner; without it, it is refused before anything else is looked at.
        let own = thief.get("/api/v1/nodes/a1").await?;
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "a1", "uid": text_of(&own, "/metadata/uid"), "controller": true}]);
        let mirror = |more: Value| {
            let mut spec = json!({"nodeName": "a1", "containers": [{"name": "c", "image": "x"}]});
            more.as_object().into_iter().flatten().for_each(|(field, value)| spec[field] = value.clone());
            json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {"name": "mirror-a1", "ownerReferences": owner,
                "annotations": {"kubernetes.io/config.mirror": "x"}}})
        };
        let volume = |source: Value| {
            let mut volume = json!({"name": "v"});
            source.as_object().into_iter().flatten().for_each(|(kind, value)| volume[kind] = value.clone());
            json!({"volumes": [volume]})
        };
        for (what, more) in [
            ("a Secret", volume(json!({"secret": {"secretName": "used-there"}}))),
            ("a ConfigMap", volume(json!({"configMap": {"name": "kube-root-ca.crt"}}))),
            ("a claim", volume(json!({"persistentVolumeClaim": {"claimName": "c"}}))),
            ("an account", json!({"serviceAccountName": "default"})),
            ("another node", json!({"nodeName": "a2"})),
        ] {
            refused(&format!("a mirror pod that names {what}"), thief.post(pods::PODS, &mirror(more)).await, 403)?;
        }
        let mut orphan = mirror(json!({}));
        orphan["metadata"]["ownerReferences"] = json!([]);
        refused("a mirror pod without its Node as owner", thief.post(pods::PODS, &orphan).await, 403)?;
        let mut plain = mirror(json!({}));
        plain["metadata"]["annotations"] = json!({});
        refused("a pod that is no mirror", thief.post(pods::PODS, &plain).await, 403)?;
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mine"},
            "subjects": [{"kind": "User", "name": "system:node:a1", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
        refused("rights", thief.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &role).await, 403)?;
        for name in ["here", "there"] {
            let secret = format!("{SECRETS}/used-{name}");
            pods::remove(&admin, name, &[&format!("{}/{name}", pods::PODS), &secret]).await?;
        }
        Ok(())
    })
}

/// What `a1` says on its stream to the servers: forged reports about a pod of `a2`.
pub fn session(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let admin = &cluster.api;
    let own = skiff_identity::Own::new(stolen(local, "a1")?)?;
    block_on(async {
        pods::start(admin, &pods::web("target", "a2")).await?;
        let target = admin.get(&format!("{}/target", pods::PODS)).await?;
        let uid = text_of(&target, "/metadata/uid").to_owned();
        let channel = wire::channel(&format!("127.0.0.1:{}", cluster.host.port()), &admin.ca, Some(&own))?;
        let mut client = wire::client(channel);
        let say = |message: Up| pb::FromAgent { message: Some(message) };

        // Calls that only an administrator makes, and an answer to a call that nobody made to it.
        let denied = |what: &str, code: Option<tonic::Code>| {
            ensure!(code == Some(tonic::Code::PermissionDenied), "{what}: {code:?}");
            Ok(())
        };
        denied(
            "put_image",
            client.put_image(tokio_stream::iter([pb::ImageChunk::default()])).await.err().map(|s| s.code()),
        )?;
        let pull = pb::PullRequest { reference: "example.com/x:1".into(), ..Default::default() };
        denied("pull_image", client.pull_image(pull).await.err().map(|s| s.code()))?;
        let remove = pb::ImageRequest { reference: skiff::workload::image::NAME.into() };
        denied("remove_image", client.remove_image(remove).await.err().map(|s| s.code()))?;
        for id in ["a2/0/0", "a1/0/0", ""] {
            let answer = client.attach(tokio_stream::iter([pb::Frame { id: id.into(), ..Default::default() }])).await;
            let code = answer.err().map(|s| s.code());
            ensure!(code == Some(tonic::Code::NotFound), "an answer to the call {id:?}: {code:?}");
        }
        // An event in another's name is a word that a node may say, as upstream: it must not become more than that.
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "forged"}, "reason": "Forged",
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "target"}, "source": {"component": "scheduler", "host": "a2"}});
        with_node(local, "a1")?.post("/api/v1/namespaces/default/events", &event).await?;
        admin.delete("/api/v1/namespaces/default/events/forged", &json!({})).await?;

        // In another's name.
        let register = |node: &str| {
            // Without labels: those that it has stay.
            let node_json = json!({"metadata": {"name": node}, "status": {}}).to_string().into();
            say(Up::Register(pb::Register { node: node.into(), node_json, ..Default::default() }))
        };
        let other = client.session(tokio_stream::iter([register("a2")])).await;
        let heard = match other {
            Err(status) => Err(status),
            Ok(answer) => answer.into_inner().message().await,
        };
        ensure!(heard.as_ref().is_err_and(|s| s.code() == tonic::Code::PermissionDenied), "as another node: {heard:?}");

        // In its own, about another's pod; the token last, whose answer says that the others were heard.
        let (namespace, name) = ("default".to_owned(), "target".to_owned());
        let status_json = json!({"phase": "Failed", "podIP": "10.42.9.9"}).to_string().into();
        let reports = vec![
            register("a1"),
            say(Up::PodStatus(pb::PodStatus {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid.clone(),
                status_json,
            })),
            say(Up::PodGone(pb::PodGone { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() })),
            say(Up::Token(pb::TokenRequest {
                id: 7,
                namespace,
                service_account: "default".into(),
                expiration_seconds: 600,
                pod: name,
                pod_uid: uid.clone(),
                ..Default::default()
            })),
        ];
        let (send, receive) = tokio::sync::mpsc::channel(8);
        for report in reports {
            send.send(report).await?;
        }
        let mut answers = client.session(tokio_stream::wrappers::ReceiverStream::new(receive)).await?.into_inner();
        let answer = loop {
            let message = tokio::time::timeout(std::time::Duration::from_secs(20), answers.message()).await??;
            match message.context("the session ended before the token was answered")?.message {
                Some(Down::Token(answer)) if answer.id == 7 => break answer,
                _ => {}
            }
        };
        ensure!(answer.token.is_empty() && !answer.error.is_empty(), "a token of another node's pod: {answer:?}");
        let now = admin.get(&format!("{}/target", pods::PODS)).await?;
        ensure!(
            text_of(&now, "/metadata/uid") == uid && now.pointer("/metadata/deletionTimestamp").is_none(),
            "it is gone: {now}"
        );
        ensure!(
            text_of(&now, "/status/phase") == "Running" && text_of(&now, "/status/podIP") != "10.42.9.9",
            "its status is forged: {now}"
        );
        pods::remove(admin, "target", &[&format!("{}/target", pods::PODS)]).await
    })
}

/// `a1` after its Node was deleted: its certificate lasts for a year, and is nobody's at once. Its own agent says so and does not come back by itself; it does when
/// somebody starts it with a token.
pub fn removed(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let admin = &cluster.api;
    let thief = with_node(local, "a1")?;
    let own = skiff_identity::Own::new(stolen(local, "a1")?)?;
    let log = local.dir.join("a1.log");
    let complaint = "its Node was deleted. To take it in again, start its agent with a token";
    block_on(async {
        thief.get("/api/v1/nodes/a1").await?;
        // Begun while it was good, and idle since.
        let watch = "/api/v1/nodes?watch=true&fieldSelector=metadata.name%3Da1&timeoutSeconds=3600";
        let open = thief.stream(watch, "application/json").await?;
        let ended = tokio::spawn(http_body_util::BodyExt::collect(open));
        admin.delete("/api/v1/nodes/a1", &json!({})).await?;
        until("its certificate is refused", || async { Ok(thief.get("/api/v1/nodes/a1").await.is_err()) }).await?;
        let ended = tokio::time::timeout(crate::local::PATIENCE, ended).await;
        ensure!(ended.is_ok(), "a watch that was open goes on");
        refused("a request", thief.get("/api/v1/nodes/a1").await, 401)?;
        let channel = wire::channel(&format!("127.0.0.1:{}", cluster.host.port()), &admin.ca, Some(&own))?;
        let calls = wire::client(channel).calls(pb::Hello::default()).await;
        ensure!(calls.as_ref().is_err_and(|s| s.code() == tonic::Code::Unauthenticated), "a call: {:?}", calls.err());
        until("its agent says what to do", || async { Ok(std::fs::read_to_string(&log)?.contains(complaint)) }).await?;
        refused("it stays removed", admin.get("/api/v1/nodes/a1").await, 404)?;
        cluster.host.kill("a1", nix::sys::signal::Signal::SIGKILL)?;
        until("it has ended", || async {
            Ok(cluster.host.status()?.nodes.iter().any(|n| n.name == "a1" && n.pid.is_none()))
        })
        .await?;
        cluster.host.restart("a1")?;
        until("it is Ready again", || async { Ok(is_ready(&admin.get("/api/v1/nodes/a1").await?)) }).await?;
        thief.get("/api/v1/nodes/a1").await.map(drop)
    })
}
