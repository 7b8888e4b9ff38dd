//! `get` and `list`: stored bytes found, filtered, and handed on as they are.

use crate::call::{Answer, Call, List};
use crate::state::{Fresh, State, store_status, too_large_version};
use crate::storage::continue_token::ContinueToken;
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::storage::objects::Error as ObjectsError;
use crate::verbs::selection::Selection;
use jiff::Timestamp;
use serde_json::json;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_store::{Error as StoreError, KeyRange, KeyValue, RangeRequest, RangeResponse, Revision};

/// Pairs read at once where a selector may leave many out.
const CHUNK: usize = 500;

/// The `resourceVersion` of a request: a number, or nothing.
pub fn parse_version(text: &str) -> Result<Option<Revision>, Status> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            let error = FieldError::invalid(
                "resourceVersion",
                text,
                format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
            );
            Status::bad_request(format!("invalid resource version {text:?}: {error}"))
        }),
    }
}

pub async fn get(state: &State, call: &Call) -> Result<Answer, Status> {
    let fresh = freshness(state, call.query.text("resourceVersion")).await?;
    let object = state.must_read(&call.kind, call.namespace(), call.name(), fresh).await?;
    Ok(Answer::ok(&call.kind, object))
}

/// What a version in a get or list asks of the read; waits until this member has reached it.
async fn freshness(state: &State, version: &str) -> Result<Fresh, Status> {
    match parse_version(version)? {
        None => Ok(Fresh::Linearizable),
        Some(0) => Ok(Fresh::Local),
        Some(version) => {
            reach(state, version).await?;
            Ok(Fresh::Local)
        }
    }
}

/// Waits up to three seconds for a revision, as the reference server does.
pub async fn reach(state: &State, version: Revision) -> Result<(), Status> {
    if state.store.revision() >= version {
        return Ok(());
    }
    let waited = tokio::time::timeout(std::time::Duration::from_secs(3), state.store.store().wait_for(version)).await;
    match waited {
        Ok(done) => done.map_err(store_status),
        Err(_) => Err(too_large_version(version, state.store.revision())),
    }
}

/// The rules of list options, in the words of the reference server.
pub fn check_options(call: &Call, watch: bool) -> Result<(), Status> {
    let query = &call.query;
    let matching = query.text("resourceVersionMatch");
    let version = query.text("resourceVersion");
    let initial = query.get("sendInitialEvents");
    let mut errors = Vec::new();
    let at = "resourceVersionMatch";
    if watch {
        if initial.is_some() {
            if matching != "NotOlderThan" {
                errors.push(FieldError::forbidden(
                    at,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if !matching.is_empty() && matching != "NotOlderThan" {
                errors.push(FieldError::not_supported(at, matching, &["NotOlderThan"]));
            }
        } else if !matching.is_empty() {
            errors.push(FieldError::forbidden(
                at,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
    } else {
        if !matching.is_empty() {
            if version.is_empty() {
                errors.push(FieldError::forbidden(
                    at,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if query.has("continue") {
                errors.push(FieldError::forbidden(at, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if matching != "Exact" && matching != "NotOlderThan" {
                errors.push(FieldError::not_supported(at, matching, &["Exact", "NotOlderThan", ""]));
            }
            if matching == "Exact" && version == "0" {
                let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(FieldError::forbidden(at, detail));
            }
        }
        if initial.is_some() {
            errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)),
    }
}

pub async fn list(state: &State, call: &Call) -> Result<Answer, Status> {
    check_options(call, false)?;
    let mut limit = call.query.integer("limit")?.and_then(|l| usize::try_from(l).ok()).unwrap_or(0);
    if call.query.text("resourceVersion") == "0" {
        // "Any version" comes in one piece, as from the reference server's cache.
        limit = 0;
    }
    let selection = Selection::parse(call)?;
    let version = parse_version(call.query.text("resourceVersion"))?;
    let token = match call.query.text("continue") {
        "" => None,
        _ if version.is_some_and(|v| v != 0) => {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        text => Some(ContinueToken::decode(text).map_err(Status::bad_request)?),
    };
    let exact = call.query.text("resourceVersionMatch") == "Exact"
        || limit > 0 && call.query.text("resourceVersionMatch").is_empty() && version.is_some_and(|v| v != 0);
    // At which revision to read, and how fresh "latest" has to be.
    let (revision, fresh) = match (&token, version) {
        (Some(token), _) => (token.revision.unwrap_or(0), Fresh::Linearizable),
        (None, Some(v)) if exact && v != 0 => {
            reach(state, v).await?;
            (v, Fresh::Local)
        }
        (None, _) => (0, freshness(state, call.query.text("resourceVersion")).await?),
    };
    let listed = read_list(state, call, &selection, limit, revision, fresh, token).await?;
    Ok(Answer::List(listed))
}

async fn read_list(
    state: &State,
    call: &Call,
    selection: &Selection,
    limit: usize,
    revision: Revision,
    fresh: Fresh,
    token: Option<ContinueToken>,
) -> Result<List, Status> {
    let prefix = keys::scope(&call.kind, call.key_namespace());
    let whole = selection.range(&call.kind, call.key_namespace());
    let mut range = match &token {
        Some(token) => KeyRange { start: format!("{prefix}{}", token.start).into(), end: keys::range(&prefix).end },
        None => whole.clone(),
    };
    if token.as_ref().is_some_and(|token| token.is_old(Timestamp::now())) {
        return Err(too_old(token.as_ref(), &prefix, &range));
    }
    let since = token.as_ref().filter(|token| token.revision.is_some());
    let since = since.map_or_else(|| Timestamp::now().as_second(), |token| token.since);
    let mut items: Vec<Stored> = Vec::new();
    let mut at = revision;
    loop {
        // With a limit and a selector, read on in pieces until the page is full.
        let want = match (limit, selection.is_everything()) {
            (0, _) => 0,
            (limit, true) => limit,
            (limit, false) => limit.max(CHUNK),
        };
        let request = RangeRequest {
            range: range.clone(),
            limit: want,
            revision: at,
            serializable: fresh == Fresh::Local,
            ..Default::default()
        };
        let response = match state.store.range(request).await {
            Err(ObjectsError::Store(StoreError::Compacted { .. })) => {
                return Err(too_old(token.as_ref(), &prefix, &range));
            }
            other => other.map_err(store_status)?,
        };
        if at == 0 {
            at = response.revision;
        }
        let mut last_taken = None;
        for (index, kv) in response.kvs.iter().enumerate() {
            if selection.matches(kv) {
                items.push(Stored::of(kv));
            }
            if limit > 0 && items.len() == limit {
                last_taken = Some(index);
                break;
            }
        }
        match last_taken {
            Some(index) => {
                let left = response.count - index - 1;
                let (next, remaining) = page_end(&response, index, left, &prefix, (at, since), selection);
                return Ok(List { kind: call.kind.clone(), items, revision: at, continue_token: next, remaining });
            }
            None if response.more => {
                let last = response.kvs.last().map(after).unwrap_or_default();
                range.start = last.into();
            }
            None => {
                return Ok(List {
                    kind: call.kind.clone(),
                    items,
                    revision: at,
                    continue_token: String::new(),
                    remaining: None,
                });
            }
        }
    }
}

/// The token and the count for what follows the item at `index`.
fn page_end(
    response: &RangeResponse,
    index: usize,
    left: usize,
    prefix: &str,
    (at, since): (Revision, i64),
    selection: &Selection,
) -> (String, Option<usize>) {
    if left == 0 {
        return (String::new(), None);
    }
    let key = after(&response.kvs[index]);
    let start = String::from_utf8_lossy(key.strip_prefix(prefix.as_bytes()).unwrap_or(&key)).into_owned();
    let token = ContinueToken { revision: Some(at), start, since }.encode();
    (token, selection.is_everything().then_some(left))
}

/// The first key after this one.
fn after(kv: &KeyValue) -> Vec<u8> {
    let mut key = kv.key.to_vec();
    key.push(0);
    key
}

fn too_old(token: Option<&ContinueToken>, prefix: &str, range: &KeyRange) -> Status {
    let Some(_) = token else {
        return Status::expired("The resourceVersion for the provided list is too old.");
    };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    let start =
        String::from_utf8_lossy(range.start.strip_prefix(prefix.as_bytes()).unwrap_or(&range.start)).into_owned();
    status.metadata.insert("continue".into(), json!(ContinueToken { revision: None, start, since: 0 }.encode()));
    status
}
