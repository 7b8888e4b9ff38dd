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
use std::sync::{Arc, PoisonError, RwLock};
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
}

impl Authority {
    pub fn load(files: &Files, leaf_life: jiff::SignedDuration) -> anyhow::Result<Authority> {
        let pair = files.ca()?;
        let (trust, bundle) = (Trust::new(&pair.certificate)?, watch::Sender::new(pair.certificate.clone()));
        let issuing = RwLock::new(Arc::new(Ca::load(pair)?.with_leaf_life(leaf_life)));
        Ok(Authority { trust, issuing, leaf_life, bundle })
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

    /// Takes up a step: the files first, then whom this server trusts, then by which key it issues.
    fn take_up(&self, shared: &Shared, rotation: &Rotation) -> anyhow::Result<()> {
        let bundle = rotation.bundle();
        let key = match rotation.issuing_key() {
            Some(key) => key.to_owned(),
            // It is this server's already.
            None => shared.files.ca()?.key,
        };
        let pair = Pair { certificate: bundle.clone(), key };
        let ca = Ca::load(pair.clone())?.with_leaf_life(self.leaf_life);
        anyhow::ensure!(
            ca.certificate() == rotation.issuer(),
            "ca.key on this server is not the key of the authority that issues at the step {:?}",
            rotation.step.word()
        );
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
    let authority = &shared.authority;
    let step = read(&shared.objects, STEP).await?.map(|json| serde_json::from_slice::<Rotation>(&json)).transpose()?;
    if let Some(rotation) = &step
        && (rotation.bundle() != authority.bundle() || rotation.issuer() != authority.ca().certificate())
    {
        authority.take_up(shared, rotation)?;
        super::files_for_people(shared)?;
    }
    if skiff_identity::issuer_hash(&shared.own.pair().certificate) != authority.ca().hash().ok() {
        renew::renew(shared, subject)?;
        super::files_for_people(shared)?;
    }
    report(shared).await
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
