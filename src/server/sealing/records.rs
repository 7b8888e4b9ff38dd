//! What the servers tell each other of their sealing keys, in the store beside the objects. No key lies there: only names of keys, and keys on their way
//! to one server, sealed so that only that server opens them, once (`skiff_identity::handover`).

use serde::{Deserialize, Serialize};
use skiff_identity::handover::Given;
use skiff_identity::sealing::{KeyId, SealingKeys};
use skiff_store::{Error, KeyRange, MemberId, RangeRequest, Revision, Store};
use std::collections::{BTreeMap, BTreeSet};

/// Before every record.
pub const PREFIX: &str = "/skiff/sealing/";
pub const PLAN: &str = "/skiff/sealing/plan";
const SERVERS: &str = "/skiff/sealing/servers/";
const GIVEN: &str = "/skiff/sealing/given/";

/// Where the cluster is going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The key that is to seal what is written.
    pub key: KeyId,
    /// Every server has it, so it may be used.
    pub in_use: bool,
    /// The prefixes below which everything is sealed with it.
    pub rewritten: Vec<String>,
    /// Keys that every server is to forget.
    pub forgotten: Vec<KeyId>,
}

impl Plan {
    /// Everything below these prefixes is sealed with the key.
    pub fn covers(&self, prefixes: &[String]) -> bool {
        prefixes.iter().all(|prefix| self.rewritten.contains(prefix))
    }
}

/// What one server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub keys: Vec<KeyId>,
    /// The key with which it seals; None: it seals nothing yet.
    pub seals_with: Option<KeyId>,
    /// The prefixes below which it seals.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// The public key to which it can be given a key that it lacks.
    pub asks: Option<Vec<u8>>,
}

impl Held {
    pub fn of(keys: &SealingKeys, prefixes: &[String], asks: Option<Vec<u8>>) -> Held {
        Held { keys: keys.ids().collect(), seals_with: keys.current, prefixes: prefixes.to_vec(), asks }
    }
}

/// Everything that is written, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    pub plan: Option<Plan>,
    /// The plan's revision; 0 while there is none.
    pub plan_revision: Revision,
    pub servers: BTreeMap<MemberId, Held>,
    /// To whom which key was given.
    pub given: BTreeMap<(MemberId, KeyId), Given>,
}

impl Records {
    /// The prefixes below which any server seals; `own`: those of the server that asks, which may not have said so yet.
    pub fn prefixes(&self, own: &[String]) -> Vec<String> {
        let named = self.servers.values().flat_map(|held| &held.prefixes).chain(own);
        named.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

pub fn server_key(member: MemberId) -> String {
    format!("{SERVERS}{member:x}")
}

pub fn given_key(member: MemberId, id: KeyId) -> String {
    format!("{GIVEN}{member:x}/{id}")
}

/// Reads the records as this server has them, which may be a moment old.
pub async fn read(store: &Store) -> Result<Records, Error> {
    let request = RangeRequest { range: KeyRange::prefix(PREFIX), serializable: true, ..Default::default() };
    let found = store.range(request).await?;
    let mut records = Records::default();
    for kv in &found.kvs {
        let Ok(key) = std::str::from_utf8(&kv.key) else { continue };
        if key == PLAN {
            records.plan = parse(key, &kv.value);
            records.plan_revision = kv.mod_revision;
        } else if let Some(member) = key.strip_prefix(SERVERS) {
            let record = MemberId::from_str_radix(member, 16).ok().zip(parse(key, &kv.value));
            records.servers.extend(record);
        } else if let Some((member, id)) = key.strip_prefix(GIVEN).and_then(|rest| rest.split_once('/')) {
            let named = MemberId::from_str_radix(member, 16).ok().zip(id.parse().ok());
            records.given.extend(named.zip(parse(key, &kv.value)));
        }
    }
    Ok(records)
}

fn parse<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|e| tracing::error!("{key} in the store is not what a server of this version writes: {e}"))
        .ok()
}
