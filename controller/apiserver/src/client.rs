//! The API from inside the process: for controllers, the scheduler and the agents' side.
//!
//! Every call takes the same way as one from outside: authorize, decode, default, admit, validate, compare-and-swap. Only HTTP
//! and TLS are left out.

use crate::auth::authorize;
use crate::auth::rbac::Attributes;
use crate::auth::user::UserInfo;
use crate::call::{Answer, Body, Call};
use crate::dispatch::{self, Asked};
use crate::http::request::{Query, RequestInfo};
use crate::state::State;
use crate::storage::encode::Stored;
use crate::verbs::delete::{DeleteOptions, options_body};
use crate::verbs::watch::{Notice, WatchStream};
use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::Kind;
use skiff_api::status::Status;
use skiff_store::{Revision, Term};
use std::sync::Arc;

/// A user's hand on the API. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) state: Arc<State>,
    user: UserInfo,
    agent: String,
    fence: Option<Term>,
}

/// Objects and the revision of the store at which they were read.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    pub items: Vec<Value>,
    pub revision: Revision,
}

/// The ways to say what should change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply; `force` takes over fields that others own.
    Apply {
        force: bool,
    },
}

impl PatchType {
    fn media(self) -> &'static str {
        match self {
            PatchType::Json => crate::verbs::patch::JSON,
            PatchType::Merge => crate::verbs::patch::MERGE,
            PatchType::Strategic => crate::verbs::patch::STRATEGIC,
            PatchType::Apply { .. } => crate::verbs::patch::APPLY,
        }
    }
}

/// Which objects to list or watch; all of a kind by default.
#[derive(Clone, Debug, Default)]
pub struct Select {
    /// Empty for all namespaces.
    pub namespace: String,
    /// As in a query: `app=web,tier!=cache`.
    pub labels: String,
    /// As in a query: `spec.nodeName=n1`.
    pub fields: String,
}

impl Select {
    pub fn all() -> Self {
        Select::default()
    }

    pub fn namespace(namespace: &str) -> Self {
        Select { namespace: namespace.into(), ..Default::default() }
    }

    pub fn fields(fields: &str) -> Self {
        Select { fields: fields.into(), ..Default::default() }
    }

    pub fn labels(namespace: &str, labels: &str) -> Self {
        Select { namespace: namespace.into(), labels: labels.into(), ..Default::default() }
    }
}

impl Client {
    pub(crate) fn new(state: Arc<State>, user: UserInfo) -> Self {
        let agent = user.name.rsplit(':').next().unwrap_or_default().to_string();
        Client { state, user, agent, fence: None }
    }

    /// The same client, whose writes are refused once `term` is over: for work that only the leader may do.
    pub fn fenced(&self, term: Term) -> Self {
        Client { fence: Some(term), ..self.clone() }
    }

    /// The name under which fields are recorded as this client's.
    pub fn with_manager(&self, manager: &str) -> Self {
        Client { agent: manager.into(), ..self.clone() }
    }

    pub fn user(&self) -> &UserInfo {
        &self.user
    }

    /// The store's revision as this server knows it.
    pub fn revision(&self) -> Revision {
        self.state.store.revision()
    }

    #[allow(clippy::too_many_arguments, reason = "each is a part of the request")]
    async fn run(
        &self,
        kind: &Kind,
        verb: &str,
        namespace: &str,
        name: &str,
        sub: &str,
        query: Query,
        body: Body,
    ) -> Result<Answer, Status> {
        let mut info = RequestInfo {
            verb: verb.into(),
            is_resource: true,
            path: String::new(),
            group: kind.group.clone(),
            version: kind.version.clone(),
            namespace: if kind.namespaced { namespace.into() } else { String::new() },
            resource: kind.plural.clone(),
            name: name.into(),
            subresource: sub.into(),
            ..Default::default()
        };
        info.select(&query);
        authorize::require(&self.state, &self.user, &Attributes::from(&info)).await?;
        let (user, agent, fence) = (self.user.clone(), self.agent.clone(), self.fence);
        let mut call: Call = dispatch::call(Asked { user, info, query, body, agent, fence })?;
        dispatch::answer(&self.state, &mut call).await
    }

    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Status> {
        value(self.run(kind, "get", namespace, name, "", Query::default(), Body::Empty).await?)
    }

    /// None when the object is not there.
    pub async fn find(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        match self.get(kind, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.code() == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub async fn list(&self, kind: &Kind, select: &Select) -> Result<Listed, Status> {
        let query = Query::of(&[("labelSelector", &select.labels), ("fieldSelector", &select.fields)]);
        match self.run(kind, "list", &select.namespace, "", "", query, Body::Empty).await? {
            Answer::List(list) => {
                Ok(Listed { items: list.items.iter().map(|i| typed(kind, i)).collect(), revision: list.revision })
            }
            _ => Err(Status::internal_error("a list did not answer with a list")),
        }
    }

    /// Changes after `from`; with `from` 0, first what is there (as additions), then changes, without a gap.
    pub async fn watch(&self, kind: &Kind, select: &Select, from: Revision) -> Result<WatchStream, Status> {
        let version = from.to_string();
        let query = Query::of(&[
            ("labelSelector", &select.labels),
            ("fieldSelector", &select.fields),
            ("resourceVersion", if from == 0 { "" } else { &version }),
            ("allowWatchBookmarks", "true"),
        ]);
        match self.run(kind, "watch", &select.namespace, "", "", query, Body::Empty).await? {
            Answer::Watch(stream) => Ok(*stream),
            _ => Err(Status::internal_error("a watch did not answer with a stream")),
        }
    }

    pub async fn create(&self, kind: &Kind, namespace: &str, object: Value) -> Result<Value, Status> {
        value(self.run(kind, "create", namespace, "", "", Query::default(), Body::Value(object)).await?)
    }

    /// Replaces an object; with a resourceVersion in it, only while it is that version.
    pub async fn update(&self, kind: &Kind, namespace: &str, object: Value) -> Result<Value, Status> {
        let name = skiff_api::meta::name(&object).to_string();
        value(self.run(kind, "update", namespace, &name, "", Query::default(), Body::Value(object)).await?)
    }

    /// Replaces the status of an object.
    pub async fn update_status(&self, kind: &Kind, namespace: &str, object: Value) -> Result<Value, Status> {
        let name = skiff_api::meta::name(&object).to_string();
        value(self.run(kind, "update", namespace, &name, "status", Query::default(), Body::Value(object)).await?)
    }

    /// `subresource` is empty, or for example `status`.
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        how: PatchType,
        patch: &Value,
    ) -> Result<Value, Status> {
        let mut query = Query::default();
        if let PatchType::Apply { force } = how {
            query.set("fieldManager", &self.agent);
            query.set("force", if force { "true" } else { "false" });
        }
        let body = Body::Raw { bytes: Bytes::from(patch.to_string()), media: how.media().into() };
        value(self.run(kind, "patch", namespace, name, subresource, query, body).await?)
    }

    /// What is left of the object (when its deletion takes time), or a Status of success.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Value, Status> {
        value(self.run(kind, "delete", namespace, name, "", Query::default(), options_body(options)).await?)
    }

    pub async fn delete_collection(&self, kind: &Kind, select: &Select, options: &DeleteOptions) -> Result<(), Status> {
        let query = Query::of(&[("labelSelector", &select.labels), ("fieldSelector", &select.fields)]);
        self.run(kind, "deletecollection", &select.namespace, "", "", query, options_body(options)).await.map(|_| ())
    }

    /// Assigns a pod to a node. `uid` guards against another pod of the same name; empty for none.
    pub async fn bind(&self, namespace: &str, pod: &str, uid: &str, node: &str) -> Result<(), Status> {
        let kind = builtin("", "pods")?;
        let mut binding = json!({
            "kind": "Binding", "apiVersion": "v1",
            "metadata": {"name": pod, "namespace": namespace},
            "target": {"kind": "Node", "name": node},
        });
        if !uid.is_empty() {
            binding["metadata"]["uid"] = json!(uid);
        }
        self.run(&kind, "create", namespace, pod, "binding", Query::default(), Body::Value(binding)).await.map(|_| ())
    }

    /// Deletes a pod, if its disruption budgets allow it.
    pub async fn evict(&self, namespace: &str, pod: &str, options: &DeleteOptions) -> Result<(), Status> {
        let kind = builtin("", "pods")?;
        let Body::Value(delete) = options_body(options) else { return Ok(()) };
        let eviction = json!({
            "kind": "Eviction", "apiVersion": "policy/v1",
            "metadata": {"name": pod, "namespace": namespace},
            "deleteOptions": delete,
        });
        self.run(&kind, "create", namespace, pod, "eviction", Query::default(), Body::Value(eviction)).await.map(|_| ())
    }

    /// Removes the `kubernetes` finalizer of a namespace that is empty.
    pub async fn finalize_namespace(&self, namespace: Value) -> Result<Value, Status> {
        let kind = builtin("", "namespaces")?;
        let name = skiff_api::meta::name(&namespace).to_string();
        value(self.run(&kind, "update", "", &name, "finalize", Query::default(), Body::Value(namespace)).await?)
    }

    /// A token for a service account, as its `token` path gives it.
    pub async fn token(&self, namespace: &str, account: &str, request: Value) -> Result<Value, Status> {
        let kind = builtin("", "serviceaccounts")?;
        value(self.run(&kind, "create", namespace, account, "token", Query::default(), Body::Value(request)).await?)
    }
}

fn builtin(group: &str, resource: &str) -> Result<Arc<Kind>, Status> {
    skiff_api::kinds::by_resource(group, "v1", resource).ok_or_else(Status::no_such_resource)
}

fn value(answer: Answer) -> Result<Value, Status> {
    match answer {
        Answer::Object { kind, object, .. } => Ok(typed(&kind, &object)),
        Answer::Value { value, .. } => Ok(value),
        Answer::List(_) | Answer::Watch(_) => Err(Status::internal_error("one object was expected")),
    }
}

/// Objects from inside always say their kind.
fn typed(kind: &Kind, object: &Stored) -> Value {
    let mut value = object.decode();
    value["kind"] = json!(kind.kind);
    value["apiVersion"] = json!(kind.api_version());
    value
}

/// A notice as controllers want it.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a failure ends the watch; boxing it would only clutter")]
pub enum Event {
    Added(Value),
    Modified(Value),
    Deleted(Value),
    /// Everything up to this revision has been told.
    Bookmark(Revision),
    /// The watch is over: list again.
    Failed(Status),
}

/// The next event of a watch, decoded; None when the watch is over.
pub async fn next_event(stream: &mut WatchStream) -> Option<Event> {
    use crate::verbs::watch::Change;
    let notice = stream.next().await?;
    Some(match notice {
        Notice::Change { change, object } => {
            let value = typed(&stream.kind, &object);
            match change {
                Change::Added => Event::Added(value),
                Change::Modified => Event::Modified(value),
                Change::Deleted => Event::Deleted(value),
            }
        }
        Notice::Bookmark { revision, .. } => Event::Bookmark(revision),
        Notice::Error(status) => Event::Failed(status),
    })
}
