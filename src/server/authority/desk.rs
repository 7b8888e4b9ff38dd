//! Where an administrator asks for the next step. Any server answers: each knows the step from the store, the servers' reports from there too, and where the nodes stand from
//! their heartbeats.

use super::plan::{Rotation, Step, waiting};
use super::{Authority, REPORTS, STEP};
use skiff_api::view::Key;
use skiff_apiserver::Objects;
use skiff_fleet::{Beats, SharedView, UpstreamError};
use skiff_identity::Ca;
use skiff_proto::fleet as pb;
use skiff_store::{Compare, Op, RangeRequest, Txn};
use std::sync::Arc;

/// The ConfigMap by which pods know whom to trust.
const CA_MAP: &str = "kube-root-ca.crt";

#[derive(Clone)]
pub struct Desk {
    pub store: Objects,
    pub view: SharedView,
    pub beats: Arc<Beats>,
}

fn refused(why: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Refused(why.to_string())
}

fn failed(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Unavailable(format!("asking the store: {error}"))
}

impl Desk {
    /// Takes the step that is named, or none; says where the exchange stands then. Asked again for the step that it is at, nothing happens: a command may have been cut off.
    /// `current`: the authority on this server.
    pub async fn ask(&self, wanted: &str, current: &Authority) -> Result<pb::Rotation, UpstreamError> {
        let (there, revision) = self.step().await?;
        let now = match (Step::from_word(wanted), there) {
            (None, there) if wanted.is_empty() => there,
            (None, _) => return Err(refused(format!("{wanted:?} is no step: there are trust, issue and finish"))),
            (Some(step), Some(there)) if there.step == step && step != Step::Finish => Some(there),
            (Some(Step::Finish), Some(there)) if there.step == Step::Finish => Some(there),
            (Some(Step::Trust), None) => Some(self.write(begin(current.ca().certificate())?, revision).await?),
            (Some(Step::Trust), Some(there)) if there.step == Step::Finish => {
                self.check_taken_up(&there).await?;
                Some(self.write(begin(&there.new)?, revision).await?)
            }
            (Some(_), None) => {
                return Err(refused("no exchange of the authority was begun; `skiff ca rotate` begins one"));
            }
            (Some(step), Some(there)) => {
                let next = there.next(step).ok_or_else(|| {
                    refused(format!(
                        "the exchange is at the step {:?}, which {:?} does not follow",
                        there.step.word(),
                        step.word()
                    ))
                })?;
                self.check_taken_up(&there).await?;
                Some(self.write(next, revision).await?)
            }
        };
        let Some(now) = now else { return Ok(pb::Rotation { bundle: current.bundle(), ..Default::default() }) };
        let (old, new) = now.names();
        let waiting = self.waiting(&now).await?;
        Ok(pb::Rotation { step: now.step.word().into(), old, new, waiting, bundle: now.bundle() })
    }

    /// Where the exchange stands, and the revision of that.
    async fn step(&self) -> Result<(Option<Rotation>, u64), UpstreamError> {
        let request = RangeRequest { range: skiff_store::KeyRange::key(STEP), ..Default::default() };
        let found = self.store.range(request).await.map_err(failed)?.kvs.into_iter().next();
        let Some(found) = found else { return Ok((None, 0)) };
        let rotation =
            serde_json::from_slice(&found.value).map_err(|e| refused(format!("{STEP} in the store: {e}")))?;
        Ok((Some(rotation), found.mod_revision))
    }

    /// Writes the next step, unless another command came before.
    async fn write(&self, next: Rotation, revision: u64) -> Result<Rotation, UpstreamError> {
        let json = serde_json::to_vec(&next).map_err(refused)?;
        let txn = Txn { compare: vec![Compare::mod_revision(STEP, revision)], ..Txn::of(Op::put(STEP, json)) };
        let answer = self.store.txn(txn).await.map_err(failed)?;
        match answer.succeeded {
            true => {
                tracing::info!(step = next.step.word(), "the exchange of the cluster's authority goes on");
                Ok(next)
            }
            false => Err(refused("somebody else has just taken a step of the exchange; look at `skiff ca status`")),
        }
    }

    async fn check_taken_up(&self, there: &Rotation) -> Result<(), UpstreamError> {
        let waiting = self.waiting(there).await?;
        match waiting.is_empty() {
            true => Ok(()),
            false => Err(refused(format!(
                "the step {:?} is not taken up by everybody yet; it is waited for {}",
                there.step.word(),
                waiting.join(", ")
            ))),
        }
    }

    async fn waiting(&self, there: &Rotation) -> Result<Vec<String>, UpstreamError> {
        let request = RangeRequest { range: skiff_store::KeyRange::prefix(REPORTS), ..Default::default() };
        let reports = self.store.range(request).await.map_err(failed)?.kvs;
        let report = |id| {
            let key = format!("{REPORTS}{id:x}");
            let found = reports.iter().find(|kv| kv.key == key.as_bytes());
            found.map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
        };
        let servers: Vec<_> = self.store.store().members().into_iter().map(|m| (m.name, report(m.id))).collect();
        let view = self.view.read();
        let stances = self.beats.stances();
        let nodes: Vec<_> = view.nodes.iter().map(|(k, _)| (k.name.clone(), stances.get(&k.name).cloned())).collect();
        let namespaces = view.namespaces.iter().filter(|(_, n)| n.metadata.deletion_timestamp.is_none());
        let maps: Vec<_> = namespaces
            .map(|(namespace, _)| {
                let map = view.config_maps.get(&Key::new(&namespace.name, CA_MAP));
                let ca = map.and_then(|m| m.data.as_ref()).and_then(|d| d.get("ca.crt")).cloned();
                (namespace.name.clone(), ca)
            })
            .collect();
        Ok(waiting(&there.stance(), &servers, &nodes, &there.bundle(), &maps))
    }
}

/// A new authority to take the place of `old`: the certificate of the one that issues, and nothing beside it.
pub(super) fn begin(old: &str) -> Result<Rotation, UpstreamError> {
    let new = Ca::generate().map_err(refused)?;
    let pair = new.pair().clone();
    Ok(Rotation { step: Step::Trust, old: old.to_owned(), new: pair.certificate, new_key: Some(pair.key) })
}
