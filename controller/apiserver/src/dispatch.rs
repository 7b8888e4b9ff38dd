//! From a request to the function that answers it.

use crate::auth::user::UserInfo;
use crate::call::{Answer, Body, Call};
use crate::http::request::{Query, RequestInfo};
use crate::state::State;
use crate::storage::forms;
use crate::sub;
use crate::verbs::{create, delete, patch, read, update, watch};
use skiff_api::kinds;
use skiff_api::status::Status;
use skiff_store::Term;

/// The parts of a request that a [`Call`] is made of.
pub struct Asked {
    pub user: UserInfo,
    pub info: RequestInfo,
    pub query: Query,
    pub body: Body,
    pub agent: String,
    pub fence: Option<Term>,
}

/// Whether the path leads to a stream or a proxy, which needs the connection itself.
pub fn is_connect(info: &RequestInfo) -> bool {
    info.is_resource && matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
}

/// The call that a request makes, if its resource and verb are served.
pub fn call(asked: Asked) -> Result<Call, Status> {
    let info = asked.info;
    let kind = kinds::by_resource(&info.group, &info.version, &info.resource).ok_or_else(Status::no_such_resource)?;
    // A namespaced path to a kind of the cluster's scope leads nowhere, except to a namespace itself.
    if !kind.namespaced && !info.namespace.is_empty() && !kind.is("", "Namespace") {
        return Err(Status::no_such_resource());
    }
    let named = !info.path_name().is_empty();
    if kind.namespaced && info.namespace.is_empty() && (named || info.verb == "deletecollection") {
        return Err(Status::no_such_resource());
    }
    let verbs = match info.subresource.as_str() {
        "" => &kind.verbs,
        sub => &kind.subresource(sub).ok_or_else(Status::no_such_resource)?.verbs,
    };
    // Below an object, reading goes by `get` however it is asked for.
    let served = verbs.contains(&info.verb);
    let on_collection = matches!(info.verb.as_str(), "create" | "list" | "deletecollection");
    let misplaced = info.subresource.is_empty() && info.verb != "watch" && named == on_collection;
    if !served || misplaced {
        return Err(Status::method_not_supported(&info.group, &info.resource, &info.verb));
    }
    let Asked { user, query, body, agent, fence, .. } = asked;
    Ok(Call { user, info, kind, query, body, agent, fence, warnings: Vec::new() })
}

/// Answers a call (streams and proxies are answered elsewhere).
pub async fn answer(state: &State, call: &mut Call) -> Result<Answer, Status> {
    if let Some(warning) = skiff_api::warnings::of_kind(&call.kind) {
        call.warn(warning);
    }
    if !call.kind.is_stored() {
        return match call.kind.kind.as_str() {
            "Binding" => sub::binding::handle(state, call).await,
            "ComponentStatus" => sub::components::handle(state, call),
            _ => sub::reviews::handle(state, call).await,
        };
    }
    let answer = answer_stored(state, call).await?;
    // An object is stored in the form in which it was written.
    Ok(match answer {
        Answer::Object { code, kind, object } => {
            let object = forms::as_kind(object, &kind);
            Answer::Object { code, kind, object }
        }
        Answer::List(mut list) => {
            list.items = list.items.into_iter().map(|item| forms::as_kind(item, &list.kind)).collect();
            Answer::List(list)
        }
        other => other,
    })
}

async fn answer_stored(state: &State, call: &mut Call) -> Result<Answer, Status> {
    match (call.info.subresource.as_str(), call.info.verb.as_str()) {
        ("", "create") => create::create(state, call).await,
        ("", "list") => read::list(state, call).await,
        ("", "watch") => {
            state.metrics.watch_began();
            watch::watch(state, call).await
        }
        ("", "delete") => delete::delete(state, call).await,
        ("", "deletecollection") => delete::delete_collection(state, call).await,
        ("scale", _) => sub::scale::handle(state, call).await,
        ("binding", _) => sub::binding::handle(state, call).await,
        ("eviction", _) => sub::eviction::handle(state, call).await,
        ("token", _) => sub::token::handle(state, call).await,
        ("finalize", _) => sub::finalize::handle(state, call).await,
        (_, "get") => read::get(state, call).await,
        (_, "update") => update::update(state, call).await,
        (_, "patch") => patch::patch(state, call).await,
        (_, verb) => Err(Status::method_not_supported(&call.info.group, &call.info.resource, verb)),
    }
}
