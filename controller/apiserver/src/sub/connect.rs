//! Streams to containers: logs here; exec, attach and port-forward by their own protocols (`crate::stream`).

use crate::auth::authorize;
use crate::auth::rbac::Attributes;
use crate::call::Call;
use crate::http::request::Query;
use crate::http::respond;
use crate::node::{LogOptions, NodeRequest, Target, channel};
use crate::state::{Fresh, State};
use crate::stream;
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;

pub async fn handle(state: &State, call: Call, parts: &mut Parts) -> Result<Response, Status> {
    match call.info.subresource.as_str() {
        "log" => {
            let answer = log(state, &call).await?;
            if stream::body::is_asked(parts) {
                return stream::body::in_messages(parts, answer, false).await;
            }
            Ok(answer)
        }
        "exec" | "attach" | "portforward" => {
            // However it is asked for, reaching into a container is the right to create such a stream.
            let mut wanted = Attributes::from(&call.info);
            if wanted.verb != "create" {
                wanted.verb = "create".into();
                authorize::require(state, &call.user, &wanted).await?;
            }
            stream::handle(state, &call, parts).await
        }
        _ => Err(Status::method_not_supported(&call.info.group, &call.info.resource, &call.info.verb)),
    }
}

/// The pod of the call and the node that it is on.
pub async fn scheduled_pod(state: &State, call: &Call) -> Result<(Value, String), Status> {
    let pod = state.must_read(&call.kind, call.namespace(), call.name(), Fresh::Linearizable).await?.decode();
    let node = meta::str_at(&pod, &["spec", "nodeName"]).to_string();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let phase = meta::str_at(&pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") && call.info.subresource != "portforward" {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    Ok((pod, node))
}

/// The container that is meant: the one named, the only one, or the annotated default.
pub fn choose_container(call: &Call, pod: &Value) -> Result<String, Status> {
    let name = meta::name(pod);
    let named = call.query.text("container");
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| -> Vec<String> {
        meta::list_at(pod, &["spec", list]).iter().map(|c| meta::str_at(c, &["name"]).to_string()).collect()
    };
    if !named.is_empty() {
        let known = lists.iter().any(|list| names(list).iter().any(|n| n == named));
        return match known {
            true => Ok(named.to_string()),
            false => Err(Status::bad_request(format!("container {named} is not valid for pod {name}"))),
        };
    }
    let default = meta::annotation(pod, "kubectl.kubernetes.io/default-container").unwrap_or_default();
    let containers = names("containers");
    if containers.iter().any(|c| c == default) {
        return Ok(default.to_string());
    }
    match (containers.as_slice(), names("initContainers").as_slice()) {
        ([only], []) => Ok(only.clone()),
        ([], _) => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        (many, inits) => {
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
            if !inits.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

/// What the query asks of the log of the pod `name`.
fn range(query: &Query, name: &str) -> Result<LogOptions, Status> {
    let mut errors = Vec::new();
    let mut positive = |key: &str, least: i64| -> Result<Option<i64>, Status> {
        let value = query.integer(key)?;
        if let Some(value) = value.filter(|v| *v < least) {
            let detail = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(key, value, detail));
        }
        Ok(value)
    };
    let tail = positive("tailLines", 0)?;
    let limit = positive("limitBytes", 1)?;
    let since_seconds = positive("sinceSeconds", 1)?;
    let since_time = since_time(query.text("sinceTime"))?;
    if since_seconds.is_some() && query.has("sinceTime") {
        errors.push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    let stream = match query.text("stream") {
        "" => "All",
        stream => stream,
    };
    if !matches!(stream, "All" | "Stdout" | "Stderr") {
        errors.push(FieldError::not_supported("stream", stream, &["All", "Stderr", "Stdout"]));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", name, &errors));
    }
    // Before there was time, everything is newer.
    let ago = since_seconds
        .map(|s| Timestamp::now().checked_sub(SignedDuration::from_secs(s)).unwrap_or(Timestamp::UNIX_EPOCH));
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: tail.and_then(|t| u64::try_from(t).ok()),
        limit_bytes: limit.and_then(|l| u64::try_from(l).ok()),
        since: since_time.or(ago),
        stream: stream.to_string(),
    })
}

/// A time in RFC 3339, as metav1.Time is in a query; empty and `null` are none.
fn since_time(text: &str) -> Result<Option<Timestamp>, Status> {
    if matches!(text, "" | "null") {
        return Ok(None);
    }
    let layout = "2006-01-02T15:04:05Z07:00";
    let bad =
        |_: jiff::Error| format!("parsing time {text:?} as {layout:?}: it is not a time such as 2026-01-02T03:04:05Z");
    text.parse().map(Some).map_err(|error| Status::bad_request(bad(error)))
}

/// Whether the container has run, as far as the pod's status tells; a container without a status is the node's to judge.
fn check_has_log(pod: &Value, container: &str, previous: bool) -> Result<(), Status> {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| meta::list_at(pod, &["status", list]));
    let Some(found) = all.find(|s| meta::str_at(s, &["name"]) == container) else { return Ok(()) };
    let name = meta::name(pod);
    let ran_before = meta::at(found, &["lastState", "terminated"]).is_some_and(Value::is_object);
    if previous {
        let message = format!("previous terminated container {container:?} in pod {name:?} not found");
        return if ran_before { Ok(()) } else { Err(Status::bad_request(message)) };
    }
    let waiting = meta::at(found, &["state", "waiting"]).is_some_and(Value::is_object);
    if !waiting || ran_before {
        return Ok(());
    }
    let why = match meta::str_at(found, &["state", "waiting", "reason"]) {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        reason => reason,
    };
    Err(Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {why}")))
}

async fn log(state: &State, call: &Call) -> Result<Response, Status> {
    let options = range(&call.query, call.name())?;
    let pod = state.must_read(&call.kind, call.namespace(), call.name(), Fresh::Linearizable).await?.decode();
    let container = choose_container(call, &pod)?;
    let node = meta::str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        // Nothing runs yet, so there is nothing to say.
        let mut empty = Response::default();
        *empty.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(empty);
    }
    check_has_log(&pod, &container, options.previous)?;
    let nodes = crate::storage::keys::object_of("", "nodes", "", node);
    if state.read_key(&nodes, Fresh::Local).await?.is_none() {
        return Err(Status::not_found("", "pods", node));
    }
    let request = NodeRequest::Logs { target: target(&pod, &container), options: options.clone() };
    let stream = state.nodes.open(node, request).await?;
    let frames = futures_util::stream::unfold((stream, options.limit_bytes), |(mut stream, mut left)| async move {
        loop {
            let frame = stream.receive.recv().await?;
            match frame.channel {
                channel::STDOUT | channel::STDERR => {
                    let mut data = frame.data;
                    if let Some(left) = &mut left {
                        let take = (*left).min(data.len() as u64);
                        data.truncate(take as usize);
                        *left -= take;
                        if take == 0 {
                            return None;
                        }
                    }
                    return Some((Ok::<_, std::io::Error>(data), (stream, left)));
                }
                channel::ERROR => {
                    let status: Status = serde_json::from_slice(&frame.data).ok()?;
                    if status.status == "Success" {
                        return None;
                    }
                    return Some((Ok(format!("{}\n", status.message).into()), (stream, Some(0))));
                }
                _ => {}
            }
        }
    });
    Ok(respond::response(200, "text/plain", Body::from_stream(frames)))
}

pub fn target(pod: &Value, container: &str) -> Target {
    Target {
        namespace: meta::namespace(pod).into(),
        pod: meta::name(pod).into(),
        uid: meta::uid(pod).into(),
        container: container.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn any_number_may_be_asked_for() {
        let check = |query: &str, expect: Result<(), &str>| {
            let query = crate::http::request::Query::parse(query);
            let found = range(&query, "p").map(drop).map_err(|status| status.message);
            match expect {
                Ok(()) => assert_eq!(found, Ok(()), "{query:?}"),
                Err(part) => assert!(found.as_ref().is_err_and(|m| m.contains(part)), "{query:?}: {found:?}"),
            }
        };
        for key in ["sinceSeconds", "tailLines", "limitBytes"] {
            check(&format!("{key}=9223372036854775807"), Ok(()));
            check(&format!("{key}=9223372036854775808"), Err("value out of range"));
            check(&format!("{key}=-9223372036854775808"), Err("must be greater than"));
            check(&format!("{key}=x"), Err("invalid syntax"));
        }
        check("tailLines=0", Ok(()));
        check("sinceSeconds=0", Err("sinceSeconds: Invalid value: 0: must be greater than 0"));
        check("limitBytes=0", Err("limitBytes: Invalid value: 0: must be greater than 0"));
        check("sinceTime=0001-01-01T00:00:00Z", Ok(()));
        check("sinceTime=9999-12-30T00:00:00Z", Ok(()));
        check("sinceTime=yesterday", Err("parsing time \"yesterday\""));
    }

    #[test]
    fn a_log_needs_a_container_that_ran() {
        let check = |state: Value, last: Value, previous: bool, expect: Option<&str>| {
            let pod = json!({
                "metadata": {"name": "p"},
                "status": {"containerStatuses": [{"name": "c", "state": state, "lastState": last}]},
            });
            let message = check_has_log(&pod, "c", previous).err().map(|s| s.message);
            assert_eq!(message.as_deref(), expect);
            assert!(check_has_log(&pod, "without a status", previous).is_ok());
        };
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let ended = json!({"terminated": {"exitCode": 1}});
        check(json!({"running": {}}), json!({}), false, None);
        check(ended.clone(), json!({}), false, None);
        check(waiting.clone(), ended.clone(), false, None);
        check(
            waiting.clone(),
            json!({}),
            false,
            Some("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
        );
        check(waiting, ended, true, None);
        check(
            json!({"running": {}}),
            json!({}),
            true,
            Some("previous terminated container \"c\" in pod \"p\" not found"),
        );
    }
}
