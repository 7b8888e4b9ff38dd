//! Agents' reports, made into writes through the API: each as the node that reports it.
//!
//! What comes over a node's stream runs as the user `system:node:NAME`, through the same authorizer and admission as a request of that node over HTTPS: nothing
//! here decides what a node may do. Only joining is the server's own act: it has checked a token before there is a node to act as.

use super::{Shared, authority, images, members};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::kinds::{self, Kind};
use skiff_api::status::Status;
use skiff_api::view::Key;
use skiff_apiserver::{ApiServer, Client, DeleteOptions, NODE_KEY_HASH, PatchType, UserInfo};
use skiff_fleet::{Upstream, UpstreamError, Welcome};
use skiff_identity::{Role, Subject, Token};
use skiff_proto::fleet as pb;
use std::future::Future;
use std::sync::Arc;

/// Attempts at a write that somebody else's write came before.
const ATTEMPTS: usize = 10;

#[derive(Clone)]
pub struct ApiUpstream {
    shared: Arc<Shared>,
    api: ApiServer,
    desk: authority::Desk,
}

type Answer<T> = BoxFuture<'static, Result<T, UpstreamError>>;

fn failed(status: Status) -> UpstreamError {
    match status.code() {
        400..=499 if status.code() != 409 && status.code() != 429 => UpstreamError::Refused(status.message),
        _ => UpstreamError::Unavailable(status.message),
    }
}

fn kind(plural: &str) -> Result<Arc<Kind>, UpstreamError> {
    kinds::by_resource("", "v1", plural).ok_or_else(|| UpstreamError::Refused(format!("{plural} are not served")))
}

fn parse(json: &[u8]) -> Result<Value, UpstreamError> {
    serde_json::from_slice(json).map_err(|e| UpstreamError::Refused(format!("not JSON: {e}")))
}

impl ApiUpstream {
    pub fn new(shared: Arc<Shared>, api: ApiServer, desk: authority::Desk) -> Self {
        ApiUpstream { shared, api, desk }
    }

    /// The API as a node sees it.
    fn node(&self, name: &str) -> Client {
        let user = UserInfo::new(format!("system:node:{name}"), ["system:nodes", "system:authenticated"]);
        self.api.client(user).with_manager("skiff-agent")
    }

    /// The API as this server sees it, for taking in who shows a token.
    fn registrar(&self) -> Client {
        self.api.client(UserInfo::apiserver()).with_manager("skiff-server")
    }

    fn run<T: Send + 'static, F: Future<Output = Result<T, UpstreamError>> + Send + 'static>(
        &self,
        work: impl FnOnce(ApiUpstream) -> F,
    ) -> Answer<T> {
        Box::pin(work(self.clone()))
    }

    /// Reads an object, lets `change` work on its status, and writes it if it changed; again if somebody else wrote meanwhile. Nothing happens
    /// to an object that is gone.
    async fn change_status(
        client: &Client,
        kind: &Kind,
        key: &Key,
        change: impl Fn(&Value) -> Option<Value>,
    ) -> Result<(), UpstreamError> {
        for _ in 0..ATTEMPTS {
            let Some(mut object) = client.find(kind, &key.namespace, &key.name).await.map_err(failed)? else {
                return Ok(());
            };
            let Some(status) = change(&object) else { return Ok(()) };
            if object["status"] == status {
                return Ok(());
            }
            object["status"] = status;
            match client.update_status(kind, &key.namespace, object).await {
                Err(status) if status.code() == 409 => continue,
                other => return other.map(drop).map_err(failed),
            }
        }
        Err(UpstreamError::Unavailable(format!("the status of {key} keeps changing")))
    }

    async fn do_join(self, request: pb::JoinRequest) -> Result<pb::JoinAnswer, UpstreamError> {
        let refused = |why: &dyn std::fmt::Display| UpstreamError::Refused(why.to_string());
        if request.token.is_empty() {
            return self.renew(request).await;
        }
        let token: Token = request.token.parse().map_err(|e| refused(&e))?;
        if !self.shared.admits.load(std::sync::atomic::Ordering::Acquire) {
            return Err(UpstreamError::Unavailable("this server is starting".into()));
        }
        self.check_token(&token).await?;
        let shared = &self.shared;
        let mut answer = pb::JoinAnswer {
            ca: shared.authority.bundle(),
            servers: shared.servers(),
            cluster_cidr: shared.options.cluster_cidr.clone(),
            service_cidr: shared.options.service_cidr.clone(),
            ..Default::default()
        };
        match token.role {
            Role::Agent => {
                self.claim_name(&request).await?;
                let subject = Subject::Node { name: request.name };
                answer.certificate =
                    shared.authority.ca().sign_request(&subject, &request.signing_request).map_err(|e| refused(&e))?;
            }
            Role::Server => {
                answer.ca_key = shared.authority.ca().pair().key.clone();
                answer.token_key = shared.files.token_key().map_err(|e| refused(&e))?;
                answer.sealing_keys = shared.sealing.ring.keys().text();
                answer.peers = shared.store.members().into_iter().map(|m| m.peer_addr).collect();
            }
        }
        Ok(answer)
    }

    /// A certificate for a node that has joined already, whatever became of the one it has: for the key that its Node names, with which the request is signed. Whoever
    /// else asks gets nothing that they could use.
    async fn renew(&self, request: pb::JoinRequest) -> Result<pb::JoinAnswer, UpstreamError> {
        let refused = |why: &dyn std::fmt::Display| UpstreamError::Refused(why.to_string());
        let hash = skiff_identity::request_key_hash(&request.signing_request).map_err(|e| refused(&e))?;
        let node = self.registrar().find(&*kind("nodes")?, "", &request.name).await.map_err(failed)?;
        let named = node.as_ref().and_then(|n| n["metadata"]["annotations"][NODE_KEY_HASH].as_str());
        if named != Some(hash.as_str()) {
            return Err(UpstreamError::Refused(format!(
                "the cluster has no node {:?} with this key; join it with a token (skiff token create)",
                request.name
            )));
        }
        let subject = Subject::Node { name: request.name };
        let certificate =
            self.shared.authority.ca().sign_request(&subject, &request.signing_request).map_err(|e| refused(&e))?;
        Ok(pb::JoinAnswer {
            ca: self.shared.authority.bundle(),
            certificate,
            servers: self.shared.servers(),
            ..Default::default()
        })
    }

    async fn check_token(&self, token: &Token) -> Result<(), UpstreamError> {
        let name = format!("bootstrap-token-{}", token.id);
        let found = self.registrar().find(&*kind("secrets")?, "kube-system", &name).await.map_err(failed)?;
        let decode = |secret: &Value, field: &str| {
            let text = secret["data"][field].as_str().unwrap_or_default();
            let bytes = skiff_api::base64::decode(text).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let wrong = || UpstreamError::Refused("the token is not known here; `skiff token create` makes one".into());
        let secret = found.ok_or_else(wrong)?;
        let group = format!("system:bootstrappers:skiff:{}", token.role.as_str());
        if !token.has_secret(&decode(&secret, "token-secret")) || decode(&secret, "auth-extra-groups") != group {
            return Err(wrong());
        }
        match lifetime(&decode(&secret, "expiration"), Timestamp::now()) {
            Lifetime::Good => Ok(()),
            Lifetime::Over => {
                Err(UpstreamError::Refused("the token has expired; `skiff token create` makes a new one".into()))
            }
            Lifetime::Unreadable => Err(UpstreamError::Refused(format!(
                "the token's expiration in the Secret {name} of kube-system is no time that can be read, so that it counts as expired; \
                 `skiff token create` makes a new one"
            ))),
        }
    }

    /// A node's name belongs to the key that claimed it first, until the Node is deleted.
    async fn claim_name(&self, request: &pb::JoinRequest) -> Result<(), UpstreamError> {
        let refused = |e: &dyn std::fmt::Display| UpstreamError::Refused(e.to_string());
        let hash = skiff_identity::request_key_hash(&request.signing_request).map_err(|e| refused(&e))?;
        let nodes = kind("nodes")?;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": request.name,
            "annotations": {NODE_KEY_HASH: hash}, "labels": {"kubernetes.io/hostname": request.name}}});
        match self.registrar().create(&nodes, "", node).await {
            Ok(_) => return Ok(()),
            Err(status) if status.reason == "AlreadyExists" => {}
            Err(status) => return Err(failed(status)),
        }
        let there = self.registrar().get(&nodes, "", &request.name).await.map_err(failed)?;
        match there["metadata"]["annotations"][NODE_KEY_HASH].as_str() {
            Some(owner) if owner != hash => Err(UpstreamError::Refused(format!(
                "the name {:?} belongs to another machine; choose another --node-name, or delete that node first (kubectl delete node {})",
                request.name, request.name
            ))),
            Some(_) => Ok(()),
            None => {
                let patch = json!({"metadata": {"annotations": {NODE_KEY_HASH: hash}}});
                self.registrar()
                    .patch(&nodes, "", &request.name, "", PatchType::Merge, &patch)
                    .await
                    .map(drop)
                    .map_err(failed)
            }
        }
    }

    async fn do_register(self, node: String, object: Vec<u8>) -> Result<(), UpstreamError> {
        let (nodes, mut wanted) = (kind("nodes")?, parse(&object)?);
        let client = self.node(&node);
        let status = wanted["status"].take();
        // Joining makes the Node; who is not there any more was removed.
        if client.find(&nodes, "", &node).await.map_err(failed)?.is_none() {
            return Err(UpstreamError::Refused(skiff_fleet::removed(&node)));
        }
        // Null would mean that every label goes.
        if wanted["metadata"]["labels"].is_object() {
            let labels = json!({"metadata": {"labels": wanted["metadata"]["labels"]}});
            client.patch(&nodes, "", &node, "", PatchType::Merge, &labels).await.map_err(failed)?;
        }
        self.do_node_status(node, status).await
    }

    async fn do_node_status(self, node: String, status: Value) -> Result<(), UpstreamError> {
        let merge = |object: &Value| {
            let mut merged = object["status"].clone();
            if !merged.is_object() {
                merged = json!({});
            }
            for (field, value) in status.as_object().into_iter().flatten() {
                merged[field] = value.clone();
            }
            keep_transition_times(&object["status"]["conditions"], &mut merged["conditions"]);
            Some(merged)
        };
        let client = self.node(&node);
        Self::change_status(&client, &*kind("nodes")?, &Key::new("", node), merge).await
    }

    async fn do_pod_status(self, node: String, report: pb::PodStatus) -> Result<(), UpstreamError> {
        let status = parse(&report.status_json)?;
        let (key, uid) = (Key::new(&report.namespace, &report.name), report.uid.clone());
        let merge = |object: &Value| {
            let same = object["metadata"]["uid"] == uid.as_str() && object["spec"]["nodeName"] == node.as_str();
            same.then(|| {
                let mut merged = status.clone();
                // What others say of the pod stays: the scheduler's condition above all.
                let said: Vec<_> =
                    merged["conditions"].as_array().into_iter().flatten().map(|c| c["type"].clone()).collect();
                let others: Vec<_> = object["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|c| !said.contains(&c["type"]))
                    .cloned()
                    .collect();
                if let Some(conditions) = merged["conditions"].as_array_mut() {
                    conditions.extend(others);
                }
                for field in ["qosClass", "startTime"] {
                    if merged[field].is_null() && !object["status"][field].is_null() {
                        merged[field] = object["status"][field].clone();
                    }
                }
                if let Some(fields) = merged.as_object_mut() {
                    fields.retain(|_, v| !v.is_null());
                }
                merged
            })
        };
        Self::change_status(&self.node(&node), &*kind("pods")?, &key, merge).await
    }

    async fn do_pod_gone(self, node: String, pod: pb::PodGone) -> Result<(), UpstreamError> {
        let options = DeleteOptions { grace_seconds: Some(0), uid: Some(pod.uid.clone()), ..Default::default() };
        match self.node(&node).delete(&*kind("pods")?, &pod.namespace, &pod.name, &options).await {
            Err(status) if matches!(status.code(), 404 | 409) => Ok(()),
            other => other.map(drop).map_err(failed),
        }
    }

    /// Writes an event, or raises the count of the one that the agent has told before. News that cannot be told is not worth a retry.
    async fn do_event(self, node: String, event: pb::Event) -> Result<(), UpstreamError> {
        let client = self.node(&node);
        let events = kind("events")?;
        let namespace = if event.pod.is_empty() { "default" } else { event.namespace.as_str() };
        let object = event_object(&node, &event, Timestamp::now());
        let name = skiff_api::meta::name(&object).to_owned();
        if event.count > 1 {
            let patch = json!({"count": object["count"], "lastTimestamp": object["lastTimestamp"], "message": object["message"]});
            match client.patch(&events, namespace, &name, "", PatchType::Merge, &patch).await {
                // Its time was over: it begins anew, with its count.
                Err(status) if status.code() == 404 => {}
                _ => return Ok(()),
            }
        }
        if let Err(status) = client.create(&events, namespace, object).await {
            tracing::debug!(node, "an event was not written: {}", status.message);
        }
        Ok(())
    }

    async fn do_token(self, node: String, request: pb::TokenRequest) -> Result<(String, i64), UpstreamError> {
        let audiences: Vec<_> = Some(request.audience).filter(|a| !a.is_empty()).into_iter().collect();
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": audiences,
            "expirationSeconds": request.expiration_seconds.max(600),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": request.pod, "uid": request.pod_uid},
        }});
        let answer =
            self.node(&node).token(&request.namespace, &request.service_account, body).await.map_err(failed)?;
        let token = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
        let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        Ok((token, expires.map_or(0, |t| t.as_second())))
    }
}

/// Whether a token is still good.
#[derive(Debug, PartialEq)]
enum Lifetime {
    Good,
    Over,
    Unreadable,
}

/// By what its Secret says of its end; nothing (an empty text) is no end.
fn lifetime(expiration: &str, now: Timestamp) -> Lifetime {
    match expiration.parse::<Timestamp>() {
        _ if expiration.is_empty() => Lifetime::Good,
        Ok(at) if at > now => Lifetime::Good,
        Ok(_) => Lifetime::Over,
        Err(_) => Lifetime::Unreadable,
    }
}

/// An agent's event as an object of the API.
fn event_object(node: &str, event: &pb::Event, now: Timestamp) -> Value {
    let time = |ms: i64| {
        let told = Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0);
        skiff_api::meta::format_time(told.unwrap_or(now))
    };
    let about_node = event.pod.is_empty();
    let (about, namespace) =
        if about_node { (node, "default") } else { (event.pod.as_str(), event.namespace.as_str()) };
    let name = Some(event.name.clone()).filter(|name| !name.is_empty());
    let mut involved = json!({
        "kind": if about_node { "Node" } else { "Pod" }, "name": about, "uid": event.uid, "apiVersion": "v1",
        "namespace": if about_node { "" } else { event.namespace.as_str() },
    });
    if !event.field_path.is_empty() {
        involved["fieldPath"] = event.field_path.as_str().into();
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": name.unwrap_or_else(|| format!("{about}.{:x}", now.as_nanosecond())),
            "namespace": namespace,
        },
        "involvedObject": involved,
        "reason": event.reason, "message": event.message, "type": event.r#type,
        "source": {"component": "kubelet", "host": node}, "reportingComponent": "kubelet", "reportingInstance": node,
        "firstTimestamp": time(event.first_unix_ms), "lastTimestamp": time(event.last_unix_ms),
        "count": event.count.max(1),
    })
}

/// A condition whose status is the same keeps the time of its last transition.
fn keep_transition_times(old: &Value, new: &mut Value) {
    for condition in new.as_array_mut().into_iter().flatten() {
        let before = old.as_array().into_iter().flatten().find(|o| o["type"] == condition["type"]);
        if let Some(before) = before.filter(|o| o["status"] == condition["status"]) {
            condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
    }
}

impl Upstream for ApiUpstream {
    fn join(&self, request: pb::JoinRequest) -> Answer<pb::JoinAnswer> {
        self.run(|u| u.do_join(request))
    }
    fn register(&self, node: String, object: Vec<u8>) -> Answer<()> {
        self.run(|u| u.do_register(node, object))
    }
    fn node_status(&self, node: String, status: Vec<u8>) -> Answer<()> {
        self.run(|u| async move { u.do_node_status(node, parse(&status)?).await })
    }
    fn pod_status(&self, node: String, status: pb::PodStatus) -> Answer<()> {
        self.run(|u| u.do_pod_status(node, status))
    }
    fn pod_gone(&self, node: String, pod: pb::PodGone) -> Answer<()> {
        self.run(|u| u.do_pod_gone(node, pod))
    }
    fn event(&self, node: String, event: pb::Event) -> Answer<()> {
        self.run(|u| u.do_event(node, event))
    }
    fn token(&self, node: String, request: pb::TokenRequest) -> Answer<(String, i64)> {
        self.run(|u| u.do_token(node, request))
    }
    fn welcome(&self) -> Welcome {
        let shared = &self.shared;
        Welcome {
            service_cidr: shared.options.service_cidr.clone(),
            cluster_cidr: shared.options.cluster_cidr.clone(),
            cluster_dns: shared.cluster_dns().to_string(),
            cluster_domain: "cluster.local".into(),
            servers: shared.servers(),
            ca: shared.authority.bundle(),
            issuer: shared.authority.ca().hash().unwrap_or_default(),
        }
    }
    fn image(&self, reference: String) -> Answer<tokio::sync::mpsc::Receiver<pb::ImageChunk>> {
        self.run(|u| async move { u.shared.images.send(reference).map_err(UpstreamError::Refused) })
    }
    fn put_image(&self, chunks: tokio::sync::mpsc::Receiver<pb::ImageChunk>) -> Answer<Vec<pb::ImageRecord>> {
        self.run(|u| async move { images::take(&u.shared, chunks).await })
    }
    fn images(&self, reference: String) -> Answer<Vec<pb::ImageRecord>> {
        self.run(|u| async move { images::list(&u.shared, &reference).await })
    }
    fn pull_image(&self, request: pb::PullRequest) -> Answer<pb::ImageRecord> {
        self.run(|u| async move { images::pull(&u.shared, request).await })
    }
    fn remove_image(&self, reference: String) -> Answer<pb::ImageRecord> {
        self.run(|u| async move { images::remove(&u.shared, &reference).await })
    }
    fn members(&self) -> Answer<pb::MemberList> {
        self.run(|u| async move { members::list(&u.shared.store).await })
    }
    fn rotate_authority(&self, step: String) -> Answer<pb::Rotation> {
        self.run(|u| async move { u.desk.ask(&step, &u.shared.authority).await })
    }
    fn remove_member(&self, name: String) -> Answer<pb::MemberList> {
        self.run(|u| async move { members::remove(&u.shared.store, &name).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_cannot_be_read_is_over() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expect) in [
            ("", Lifetime::Good),
            ("2026-01-01T00:00:01Z", Lifetime::Good),
            ("2026-01-01T00:00:00Z", Lifetime::Over),
            ("2025-01-01T00:00:00Z", Lifetime::Over),
            ("never", Lifetime::Unreadable),
            ("2027-13-45", Lifetime::Unreadable),
            (" ", Lifetime::Unreadable),
        ] {
            assert_eq!(lifetime(text, now), expect, "{text:?}");
        }
    }
}
