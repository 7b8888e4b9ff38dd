//! When it is worth asking again whether certificates are still good: a Node or a server went away, or the authority is another one. What is open by a certificate that is
//! not good any more is ended then; new requests are judged one by one anyway.

use super::Shared;
use super::view::Changes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Servers that were taken out are seen within this.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts such moments in `moments`. Runs as long as the process.
pub async fn count(shared: Arc<Shared>, mut changes: broadcast::Receiver<Changes>, moments: watch::Sender<u64>) {
    let mut bundles = shared.authority.bundles();
    let members = || shared.store.members().into_iter().map(|m| m.id).collect::<Vec<_>>();
    let mut known = members();
    loop {
        let again = tokio::select! {
            news = changes.recv() => match news {
                // An empty list says that everything may have changed.
                Ok(news) => news.is_empty() || news.iter().any(|c| c.gone && c.resource.plural == "nodes"),
                Err(broadcast::error::RecvError::Lagged(_)) => true,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            changed = bundles.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            () = tokio::time::sleep(PERIOD) => {
                let now = members();
                std::mem::replace(&mut known, now) != known
            }
        };
        if again {
            moments.send_modify(|moment| *moment += 1);
        }
    }
}
