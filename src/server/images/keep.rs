//! Brings this server's copies in step with the catalogue: on every change of it, and now and then, because a server that had an image may
//! not have answered.

use super::catalogue::{self, PREFIX};
use crate::agent::wire;
use crate::server::Shared;
use crate::transfer;
use skiff_fleet::UpstreamError;
use skiff_proto::fleet as pb;
use skiff_runtime::ImageRecord;
use skiff_store::{KeyRange, WatchRequest, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Without news, the copies are looked at this often.
const LOOK: Duration = Duration::from_secs(30);
/// How long an import waits for the other servers to have the image too.
const EVERYWHERE_MAX: Duration = Duration::from_secs(20);
const EVERYWHERE_LOOK: Duration = Duration::from_millis(20);
/// A server that takes longer to say what it holds does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What is to be done for the copies to match the catalogue.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    fetch: Vec<String>,
    drop: Vec<String>,
}

/// `held`: name to identity of what is here.
fn plan(catalogue: &[pb::ImageRecord], held: &BTreeMap<String, String>) -> Plan {
    let named: BTreeSet<_> = catalogue.iter().map(|r| r.reference.as_str()).collect();
    let missing = catalogue.iter().filter(|r| held.get(&r.reference) != Some(&r.digest));
    Plan {
        fetch: missing.map(|r| r.reference.clone()).collect(),
        drop: held.keys().filter(|name| !named.contains(name.as_str())).cloned().collect(),
    }
}

fn held(images: &[ImageRecord]) -> BTreeMap<String, String> {
    images.iter().flat_map(|i| i.names.iter().map(|name| (name.clone(), i.id.to_string()))).collect()
}

/// Runs until `stop`.
pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    tokio::select! { () = follow(&shared) => {}, () = stop.cancelled() => {} }
}

async fn follow(shared: &Arc<Shared>) {
    loop {
        let range = KeyRange::prefix(PREFIX);
        match shared.store.watch(WatchRequest { range, ..Default::default() }).await {
            Ok(watcher) => follow_one(shared, watcher).await,
            Err(e) => tracing::debug!("watching the catalogue of images: {e}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Follows the catalogue until the watch ends.
async fn follow_one(shared: &Arc<Shared>, mut watcher: Watcher) {
    loop {
        match bring_in_step(shared).await {
            Ok(()) => {}
            Err(e) => tracing::debug!("{e}"),
        }
        let next_look = tokio::time::Instant::now() + LOOK;
        loop {
            match tokio::time::timeout_at(next_look, watcher.next()).await {
                // Only how far the watch has come.
                Ok(Ok(batch)) if batch.events.is_empty() => continue,
                Ok(Ok(_)) | Err(_) => break,
                Ok(Err(_)) => return,
            }
        }
    }
}

async fn bring_in_step(shared: &Arc<Shared>) -> Result<(), UpstreamError> {
    // An image that is being imported has its names here before they are in the catalogue: nothing is dropped meanwhile.
    let alone = shared.images.entering.try_write();
    let held = held(&shared.images.store.list());
    let catalogue = catalogue::all(&shared.store).await?;
    let mut plan = plan(&catalogue, &held);
    if alone.is_err() {
        plan.drop.clear();
    }
    for name in &plan.drop {
        if let Err(e) = shared.images.store.remove(name) {
            tracing::warn!("dropping the image {name}: {e}");
        }
    }
    drop(alone);
    fetch(shared, &catalogue, &plan.fetch).await;
    if plan != Plan::default() {
        let store = shared.images.store.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || store.collect()).await {
            tracing::warn!("freeing what no image refers to: {e}");
        }
    }
    Ok(())
}

/// Fetches each image from the first server that holds it as the catalogue means it.
async fn fetch(shared: &Arc<Shared>, catalogue: &[pb::ImageRecord], names: &[String]) {
    for record in catalogue.iter().filter(|r| names.contains(&r.reference)) {
        for (server, channel) in others(shared) {
            if held_by(channel.clone(), &record.reference).await.ok().flatten().as_ref() != Some(&record.digest) {
                continue;
            }
            match transfer::fetch(&shared.images.store, channel, &record.reference).await {
                Ok(_) => break,
                Err(e) => tracing::warn!(server, "taking the image {} from another server: {e:#}", record.reference),
            }
        }
    }
}

/// The identity of the image that a server holds under `name`; an error if it does not answer.
async fn held_by(channel: Channel, name: &str) -> Result<Option<String>, tonic::Status> {
    let request = pb::ImageRequest { reference: name.to_owned() };
    let mut client = wire::client(channel);
    let answer = tokio::time::timeout(ANSWER_MAX, client.images(request)).await;
    let answer = answer.map_err(|_| tonic::Status::deadline_exceeded("no answer"))??;
    Ok(answer.into_inner().images.into_iter().next().map(|r| r.digest))
}

fn others(shared: &Arc<Shared>) -> Vec<(String, Channel)> {
    let members = shared.store.members().into_iter().filter(|m| m.id != shared.store.id() && !m.client_addr.is_empty());
    members
        .filter_map(|m| {
            let channel = wire::trusting(&m.client_addr, shared.authority.trust(), Some(&shared.own)).ok()?;
            Some((m.name, channel))
        })
        .collect()
}

/// Waits until the other servers that answer hold these images.
pub async fn everywhere(shared: &Arc<Shared>, records: &[pb::ImageRecord]) {
    let all = others(shared).into_iter().map(|(server, channel)| async move {
        let arrived = tokio::time::timeout(EVERYWHERE_MAX, arrived(channel, records)).await;
        if !matches!(arrived, Ok(Ok(()))) {
            tracing::warn!(server, "this server does not hold a new image yet; it fetches it when it answers again");
        }
    });
    futures_util::future::join_all(all).await;
}

/// Waits until a server holds these images; an error if it does not answer.
async fn arrived(channel: Channel, records: &[pb::ImageRecord]) -> Result<(), tonic::Status> {
    for record in records {
        while held_by(channel.clone(), &record.reference).await?.as_ref() != Some(&record.digest) {
            tokio::time::sleep(EVERYWHERE_LOOK).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_follow_the_catalogue() {
        let record = |name: &str, digest: &str| pb::ImageRecord {
            reference: name.into(),
            digest: digest.into(),
            ..Default::default()
        };
        let check = |catalogue: &[(&str, &str)], have: &[(&str, &str)], fetch: &[&str], drop: &[&str]| {
            let catalogue: Vec<_> = catalogue.iter().map(|(n, d)| record(n, d)).collect();
            let have = have.iter().map(|(n, d)| (n.to_string(), d.to_string())).collect();
            let strings = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
            assert_eq!(plan(&catalogue, &have), Plan { fetch: strings(fetch), drop: strings(drop) });
        };
        check(&[], &[], &[], &[]);
        check(&[("a", "1")], &[], &["a"], &[]);
        check(&[("a", "1")], &[("a", "1")], &[], &[]);
        check(&[("a", "2")], &[("a", "1")], &["a"], &[]);
        check(&[("b", "1")], &[("a", "1")], &["b"], &["a"]);
    }
}
