//! A server's own certificate, made anew at half of its life, for the same key: it holds the authority. Connections that are open go on, those between the servers' stores
//! too; new ones show the new certificate.

use super::Shared;
use skiff_identity::Subject;
use std::sync::Arc;
use std::time::Duration;

/// It is looked at least this often, so that a clock that is set does not matter for long.
const LOOK: Duration = Duration::from_secs(3600);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Runs as long as the process. `subject`: whom the certificate is for.
pub async fn run(shared: Arc<Shared>, subject: Subject) {
    loop {
        tokio::time::sleep(shared.own.pair().renewal_in().clamp(LOOK_AGAIN, LOOK)).await;
        let _turn = shared.authority.turn();
        if !shared.own.pair().renewal_due() {
            continue;
        }
        match renew(&shared, &subject) {
            Ok(()) => tracing::info!("this server's certificate was renewed"),
            Err(e) => tracing::error!("this server's certificate could not be renewed, trying again: {e:#}"),
        }
        if let Err(e) = super::files_for_people(&shared) {
            tracing::error!("the administrator's kubeconfig could not be renewed: {e:#}");
        }
    }
}

/// For who has the [turn](super::authority::Authority::turn). The store first: what is due is judged by what the API shows.
pub fn renew(shared: &Shared, subject: &Subject) -> anyhow::Result<()> {
    let pair = shared.authority.ca().issue_for(subject, &shared.own.pair().key)?;
    shared.peer_tls.replace(&super::peer_pem(&shared.authority.bundle(), pair.clone()))?;
    Ok(shared.own.replace(pair)?)
}
