//! What an administrator asks of the sealing keys over the API: how it stands, a new key, and that an old one be forgotten.

use super::records::{self, Plan, Records};
use super::rewrite::{self, Sealed};
use super::{Shared, plan_txn};
use serde::{Deserialize, Serialize};
use skiff_api::status::Status;
use skiff_apiserver::store_status;
use skiff_identity::sealing::{KeyId, SealingKey};
use skiff_store::Op;
use std::collections::BTreeMap;

/// The paths below which it is asked: a `GET` of [`PATH`], a `POST` to one of the others.
pub const PATH: &str = "/skiff/sealing";
pub const ROTATE: &str = "/skiff/sealing/rotate";
/// The key's id follows.
pub const FORGET: &str = "/skiff/sealing/forget/";
/// The key's id follows.
pub const DROP: &str = "/skiff/sealing/drop/";

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
    /// The prefixes of the store below which a server seals.
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
    /// The prefixes below which it seals.
    pub prefixes: Vec<String>,
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
        ("post", path) if path.starts_with(DROP) => {
            let id = path
                .trim_start_matches(DROP)
                .parse()
                .map_err(|e: skiff_identity::Error| Status::bad_request(e.to_string()))?;
            give_up(shared, id).await?;
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
        Server { name: member.name, keys: held.keys, seals_with: held.seals_with, prefixes: held.prefixes }
    };
    let servers: Vec<_> = shared.store.members().into_iter().map(server).collect();
    let prefixes = records.prefixes(shared.objects.sealing().prefixes());
    let Sealed { sealed, clear } = rewrite::count(&shared.store, &prefixes).await.map_err(store_status)?;
    let plan = records.plan.as_ref();
    let key = plan.map(|plan| plan.key);
    let only = sealed.keys().all(|id| Some(*id) == key);
    let complete = plan.is_some_and(|plan| plan.in_use && plan.covers(&prefixes))
        && servers.iter().all(|server| server.seals_with == key)
        && (only && clear == 0);
    let sealed = sealed.into_iter().map(|(id, count)| (id.to_string(), count)).collect();
    Ok(Report { key, complete, servers, sealed, clear, prefixes })
}

/// The plan, if nothing is under way.
fn at_rest<'r>(shared: &Shared, records: &'r Records) -> Result<&'r Plan, Status> {
    match &records.plan {
        Some(plan) if plan.in_use && plan.covers(&records.prefixes(shared.objects.sealing().prefixes())) => Ok(plan),
        _ => Err(Status::failure(
            409,
            "Conflict",
            "another exchange of keys is under way: every server must have the new key and seal with it, and everything must be sealed with it; see `skiff sealing \
             status` and the log of the server that leads",
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
    let count = rewrite::count(&shared.store, &[]).await.map_err(store_status)?.sealed.remove(&id).unwrap_or(0);
    if count > 0 {
        // It is looked through again, and whoever asks later finds it done.
        let again = Plan { rewritten: Vec::new(), ..plan.clone() };
        write(shared, &again, &records, None).await?;
        let message =
            format!("{count} values in the store are sealed with the key {id}; they are sealed anew now, try again");
        return Err(Status::failure(409, "Conflict", message));
    }
    let mut next = plan.clone();
    next.forgotten.push(id);
    write(shared, &next, &records, None).await
}

/// Deletes what does not open, where no server can open it.
async fn give_up(shared: &Shared, id: KeyId) -> Result<(), Status> {
    let records = read(shared).await?;
    let holds = records.servers.values().any(|held| held.keys.contains(&id));
    if holds && !shared.sealing.ring.keys().holds(id) {
        let message = format!("another server has the key {id}, and this one is about to be given it; try again");
        return Err(Status::failure(409, "Conflict", message));
    }
    let dropped = rewrite::drop_unopened(shared, id).await.map_err(store_status)?;
    match dropped {
        0 => Err(Status::failure(404, "NotFound", format!("nothing is sealed with the key {id} that does not open"))),
        _ => Ok(()),
    }
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
