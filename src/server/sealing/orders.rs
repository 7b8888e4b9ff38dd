//! What an administrator asks of the sealing keys over the API: how it stands, a new key, and that an old one be forgotten.

use super::records::{self, Plan, Records};
use super::{Shared, plan_txn};
use serde::{Deserialize, Serialize};
use skiff_api::status::Status;
use skiff_apiserver::store_status;
use skiff_identity::sealing::{KeyId, SealingKey, sealed_with};
use skiff_store::{KeyRange, Op, RangeRequest};
use std::collections::BTreeMap;

/// The paths below which it is asked: a `GET` of [`PATH`], a `POST` to one of the others.
pub const PATH: &str = "/skiff/sealing";
pub const ROTATE: &str = "/skiff/sealing/rotate";
/// The key's id follows.
pub const FORGET: &str = "/skiff/sealing/forget/";

/// How sealing stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The key that seals, or is about to; None: no server has said yet which.
    pub key: Option<KeyId>,
    /// Every server seals with it, and everything is sealed with it.
    pub complete: bool,
    pub servers: Vec<Server>,
    /// How many objects are sealed with which key.
    pub sealed: BTreeMap<String, usize>,
    /// Objects that should be sealed and lie in the clear.
    pub clear: usize,
    /// The prefixes of the store below which this server seals.
    pub prefixes: Vec<String>,
}

/// What one server has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    pub name: String,
    pub keys: Vec<KeyId>,
    /// None: it seals nothing, or has not said.
    pub seals_with: Option<KeyId>,
}

/// Answers a request, which was authorized.
///
/// # Errors
/// What the order needs is not there, or the store cannot be reached.
pub async fn answer(shared: &Shared, method: &str, path: &str) -> Result<serde_json::Value, Status> {
    match (method, path) {
        ("get", PATH) => {}
        ("post", ROTATE) => rotate(shared).await?,
        ("post", path) if path.starts_with(FORGET) => {
            let id = path
                .trim_start_matches(FORGET)
                .parse()
                .map_err(|e: skiff_identity::Error| Status::bad_request(e.to_string()))?;
            forget(shared, id).await?;
        }
        _ => return Err(Status::failure(404, "NotFound", "there is nothing at this path, or not by this method")),
    }
    let report = report(shared).await?;
    serde_json::to_value(report).map_err(Status::internal_error)
}

async fn read(shared: &Shared) -> Result<Records, Status> {
    shared.store.barrier().await.map_err(store_status)?;
    records::read(&shared.store).await.map_err(store_status)
}

async fn report(shared: &Shared) -> Result<Report, Status> {
    let records = read(shared).await?;
    let server = |member: skiff_store::Member| {
        let held = records.servers.get(&member.id).cloned().unwrap_or_default();
        Server { name: member.name, keys: held.keys, seals_with: held.seals_with }
    };
    let servers: Vec<_> = shared.store.members().into_iter().map(server).collect();
    let Sealed { sealed, clear } = sealed(shared).await.map_err(store_status)?;
    let prefixes = shared.objects.sealing().prefixes().to_vec();
    let plan = records.plan.as_ref();
    let key = plan.map(|plan| plan.key);
    let complete = plan.is_some_and(|plan| plan.in_use && is_rewritten(shared, plan))
        && servers.iter().all(|server| server.seals_with == key);
    Ok(Report { key, complete, servers, sealed, clear, prefixes })
}

/// What is sealed with which key below the prefixes that this server seals, and how much is not.
#[derive(Debug, Default)]
pub struct Sealed {
    pub sealed: BTreeMap<String, usize>,
    pub clear: usize,
}

pub async fn sealed(shared: &Shared) -> Result<Sealed, skiff_store::Error> {
    let mut found = Sealed::default();
    for prefix in shared.objects.sealing().prefixes() {
        let range = KeyRange::prefix(prefix.as_bytes().to_vec());
        for kv in shared.store.range(RangeRequest { range, ..Default::default() }).await?.kvs {
            match sealed_with(&kv.value) {
                Some(id) => *found.sealed.entry(id.to_string()).or_default() += 1,
                None => found.clear += 1,
            }
        }
    }
    Ok(found)
}

fn is_rewritten(shared: &Shared, plan: &Plan) -> bool {
    shared.objects.sealing().prefixes().iter().all(|prefix| plan.rewritten.contains(prefix))
}

/// The plan, if nothing is under way.
fn at_rest<'r>(shared: &Shared, records: &'r Records) -> Result<&'r Plan, Status> {
    match &records.plan {
        Some(plan) if plan.in_use && is_rewritten(shared, plan) => Ok(plan),
        _ => Err(Status::failure(
            409,
            "Conflict",
            "another exchange of keys is under way: every server must have the new key and seal with it first; see `skiff sealing status`",
        )),
    }
}

async fn rotate(shared: &Shared) -> Result<(), Status> {
    let records = read(shared).await?;
    let plan = at_rest(shared, &records)?;
    let key = SealingKey::generate().map_err(Status::internal_error)?;
    let next = Plan { key: key.id, in_use: false, rewritten: Vec::new(), ..plan.clone() };
    // On the disk before anybody hears of it.
    shared.sealing.change(|keys| keys.add(key)).map_err(Status::internal_error)?;
    // And with the plan: that there is a server who has the key. Without one it would count as lost.
    let held = super::held(shared, &records).map_err(Status::internal_error)?;
    write(shared, &next, &records, Some(held)).await
}

async fn forget(shared: &Shared, id: KeyId) -> Result<(), Status> {
    let records = read(shared).await?;
    let plan = at_rest(shared, &records)?;
    if plan.key == id {
        let message = format!("the key {id} is in use; make another one first (`skiff sealing rotate`)");
        return Err(Status::failure(409, "Conflict", message));
    }
    if !records.servers.values().any(|held| held.keys.contains(&id)) {
        return Err(Status::failure(404, "NotFound", format!("no server has a key {id}")));
    }
    let mut next = plan.clone();
    next.forgotten.push(id);
    write(shared, &next, &records, None).await
}

async fn write(shared: &Shared, plan: &Plan, records: &Records, also: Option<Op>) -> Result<(), Status> {
    let mut txn = plan_txn(plan, records, None).map_err(Status::internal_error)?;
    txn.success.extend(also);
    let done = shared.store.txn(txn).await.map_err(store_status)?;
    match done.succeeded {
        true => Ok(()),
        false => {
            Err(Status::failure(409, "Conflict", "somebody else gave an order in the same moment; look, and try again"))
        }
    }
}
