//! The cluster's authority on this server: whom it trusts, by which key it issues, and what follows when one authority takes another's place.
//!
//! ```text
//!   the step, in the store (plan)  ->  every server takes it up (this file): files, trust, own certificate, its report
//!   welcome, beats                 ->  every agent likewise
//!   an administrator's command     ->  the next step, once everybody has reported this one (desk)
//! ```
//!
//! The files come first, and hold all that a start needs: `ca.crt` the certificates that are trusted, `ca.key` the key that issues; of which of them it is can be seen.
//! So a server that crashes anywhere on the way goes on where it was.

mod desk;
mod plan;

pub use desk::Desk;

use super::{Files, Shared, renew};
use plan::Rotation;
use skiff_apiserver::Objects;
use skiff_identity::{Ca, Pair, Subject, Trust};
use skiff_store::{KeyRange, Op, RangeRequest, Txn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// How often it is looked at the step that the cluster is at: a look-up in this member's own memory.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Where the step is kept in the store; outside the API's objects, so that no right to read Secrets reaches it. It holds a key, so it lies sealed.
pub const STEP: &str = "/skiff/authority/step";
/// Below it, what each server reports: where it stands.
const REPORTS: &str = "/skiff/authority/servers/";

/// The authority as it stands on this server.
pub struct Authority {
    trust: Trust,
    issuing: RwLock<Arc<Ca>>,
    leaf_life: jiff::SignedDuration,
    bundle: watch::Sender<String>,
    changing: Mutex<()>,
}

impl Authority {
    pub fn load(files: &Files, leaf_life: jiff::SignedDuration) -> anyhow::Result<Authority> {
        let pair = files.ca()?;
        let (trust, bundle) = (Trust::new(&pair.certificate)?, watch::Sender::new(pair.certificate.clone()));
        let issuing = RwLock::new(Arc::new(Ca::load(pair)?.with_leaf_life(leaf_life)));
        Ok(Authority { trust, issuing, leaf_life, bundle, changing: Mutex::default() })
    }

    /// Who issues now.
    pub fn ca(&self) -> Arc<Ca> {
        self.issuing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom this server trusts.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The certificates of all that are trusted, PEM.
    pub fn bundle(&self) -> String {
        self.bundle.borrow().clone()
    }

    /// The same, and each change of it.
    pub fn bundles(&self) -> watch::Receiver<String> {
        self.bundle.subscribe()
    }

    /// Held by whoever changes what this server trusts or shows, from the first part to the last: a renewal in the midst of a step would put back what the
    /// step has just replaced.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a step: the files first, then whom this server trusts, then by which key it issues.
    fn take_up(&self, shared: &Shared, rotation: &Rotation) -> anyhow::Result<()> {
        let (pair, ca) = held(rotation, shared.files.ca()?.key)?;
        let (bundle, ca) = (pair.certificate.clone(), ca.with_leaf_life(self.leaf_life));
        shared.files.replace_ca(&pair)?;
        self.trust.replace(&bundle)?;
        shared.peer_tls.replace(&super::peer_pem(&bundle, shared.own.pair()))?;
        *self.issuing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ca);
        self.bundle.send_replace(bundle);
        tracing::info!(
            step = rotation.step.word(),
            "this server has taken up a step of the exchange of the cluster's authority"
        );
        Ok(())
    }
}

/// What a server holds that has taken up a step, and by what it issues then. `kept`: the key that it has.
fn held(rotation: &Rotation, kept: String) -> anyhow::Result<(Pair, Ca)> {
    let pair = Pair { certificate: rotation.bundle(), key: rotation.issuing_key().map_or(kept, str::to_owned) };
    let ca = Ca::load(pair.clone())?;
    anyhow::ensure!(
        is_issuer(&ca, rotation),
        "ca.key on this server is not the key of the authority that issues at the step {:?}",
        rotation.step.word()
    );
    Ok((pair, ca))
}

/// Whether an authority is the one that issues at this step. The text around a certificate does not matter.
fn is_issuer(ca: &Ca, rotation: &Rotation) -> bool {
    ca.hash().is_ok_and(|hash| skiff_identity::hash(&rotation.issuer()).is_ok_and(|issuer| issuer == hash))
}

/// What a key of the store holds here, as this member knows it.
async fn read(store: &Objects, key: &str) -> anyhow::Result<Option<bytes::Bytes>> {
    let request = RangeRequest { range: KeyRange::key(key.to_owned()), serializable: true, ..Default::default() };
    Ok(store.range(request).await?.kvs.into_iter().next().map(|kv| kv.value.clone()))
}

/// Keeps this server at the step that the cluster is at. Runs as long as the process.
pub async fn follow(shared: Arc<Shared>, subject: Subject) {
    let mut told = None;
    loop {
        match look(&shared, &subject).await {
            Ok(()) => told = None,
            Err(e) => {
                let problem = format!("{e:#}");
                if told.as_ref() != Some(&problem) {
                    tracing::error!(
                        "this server cannot take up a step of the exchange of the cluster's authority, trying again: {problem}"
                    );
                    told = Some(problem);
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(shared: &Shared, subject: &Subject) -> anyhow::Result<()> {
    let step = read(&shared.objects, STEP).await?.map(|json| serde_json::from_slice::<Rotation>(&json)).transpose()?;
    go_to(shared, subject, step.as_ref())?;
    report(shared).await
}

/// Takes up the step, and has a certificate made of the authority that issues then, where that is not so yet.
fn go_to(shared: &Shared, subject: &Subject, step: Option<&Rotation>) -> anyhow::Result<()> {
    let authority = &shared.authority;
    let _turn = authority.turn();
    if let Some(rotation) = step
        && (rotation.bundle() != authority.bundle() || !is_issuer(&authority.ca(), rotation))
    {
        authority.take_up(shared, rotation)?;
        super::files_for_people(shared)?;
    }
    if skiff_identity::issuer_hash(&shared.own.pair().certificate) != authority.ca().hash().ok() {
        renew::renew(shared, subject)?;
        super::files_for_people(shared)?;
    }
    Ok(())
}

/// Says in the store where this server stands; after what is said is so.
async fn report(shared: &Shared) -> anyhow::Result<()> {
    let stance = skiff_identity::stance(&shared.authority.bundle(), &shared.own.pair().certificate);
    let key = format!("{REPORTS}{:x}", shared.store.id());
    if read(&shared.objects, &key).await?.as_deref() != Some(stance.as_bytes()) {
        shared.store.txn(Txn::of(Op::put(key, stance))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operator's own `ca.crt` may have text around the certificate, or another authority's beside it: the exchange begins and goes on.
    #[test]
    fn what_lies_around_the_certificate_stops_no_exchange() {
        let (ours, other) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let (own, key) = (ours.certificate(), &ours.pair().key);
        for text in [
            own.to_owned(),
            format!("\nIssued for the cluster by its operator\n\n{own}\n\n"),
            format!("{own}{}", other.certificate()),
            format!("{}\n{own}", other.certificate()),
        ] {
            let kept = Ca::load(Pair { certificate: text.clone(), key: key.clone() }).unwrap();
            let begun = desk::begin(kept.certificate()).unwrap();
            let server = Subject::Server { name: "s1".into(), names: Vec::new(), addresses: Vec::new() };
            let mut step = begun.clone();
            let mut key = key.clone();
            for next in [Some(plan::Step::Issue), Some(plan::Step::Finish), None] {
                let (pair, ca) = held(&step, key).unwrap();
                let shown = ca.issue(&server).unwrap().certificate;
                assert_eq!(
                    skiff_identity::stance(&pair.certificate, &shown),
                    step.stance(),
                    "{:?} of {text}",
                    step.step
                );
                key = pair.key;
                if let Some(next) = next {
                    step = step.next(next).unwrap();
                }
            }
            // What an older version began with is all of the file.
            if kept.hash().ok() == skiff_identity::hash(&text).ok() {
                let begun = Rotation { old: text.clone(), ..begun };
                let (pair, ca) = held(&begun, ours.pair().key.clone()).unwrap();
                let shown = ca.issue(&server).unwrap().certificate;
                assert_eq!(skiff_identity::stance(&pair.certificate, &shown), begun.stance(), "{text}");
            }
        }
    }

    #[test]
    fn a_key_of_another_authority_takes_up_no_step() {
        let (ours, other) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let begun = desk::begin(ours.certificate()).unwrap();
        assert!(held(&begun, other.pair().key.clone()).is_err(), "of nobody who is trusted");
        let new = begun.new_key.clone().unwrap();
        assert!(held(&begun, new).is_err(), "of the one that does not issue yet");
    }
}
