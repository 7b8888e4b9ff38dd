//! The RBAC objects of the store as a [`Policy`], kept up to date by a watch.
//!
//! The copy may be some milliseconds behind. A yes is given on it; before a no, what was committed is read in.

use super::rbac::{Attributes, Decision, Policy, PolicyKind, RoleRef, Rule};
use super::user::{MASTERS, UserInfo};
use crate::state::{State, store_status};
use crate::storage::keys;
use skiff_api::status::Status;
use skiff_store::{EventKind, RangeRequest, Revision, Store, WatchRequest};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

const GROUP: &str = "rbac.authorization.k8s.io";
const RETRY_AFTER: Duration = Duration::from_millis(200);

#[derive(Clone, Default)]
pub struct PolicyCache {
    inner: Arc<RwLock<Known>>,
}

#[derive(Default)]
struct Known {
    policy: Policy,
    /// Everything up to here is taken in.
    revision: Revision,
}

fn root() -> String {
    format!("{}{GROUP}/", keys::ROOT)
}

impl PolicyCache {
    fn take(&self, key: &[u8], value: Option<&[u8]>) {
        let root = root();
        let Some(rest) = key.strip_prefix(root.as_bytes()).and_then(|r| std::str::from_utf8(r).ok()) else { return };
        let Some((resource, id)) = rest.split_once('/') else { return };
        let (namespace, name) = match resource {
            "roles" | "rolebindings" => id.split_once('/').unwrap_or(("", id)),
            _ => ("", id),
        };
        let kind = if resource.ends_with("bindings") { PolicyKind::Binding } else { PolicyKind::Role };
        let object = value.and_then(|v| serde_json::from_slice(v).ok());
        let mut known = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        known.policy.update(kind, namespace, name, object.as_ref());
    }

    /// Reads all RBAC objects anew.
    pub async fn load(&self, store: &Store) -> Result<Revision, Status> {
        let request = RangeRequest { range: keys::range(&root()), ..Default::default() };
        let response = store.range(request).await.map_err(store_status)?;
        let fresh = PolicyCache::default();
        response.kvs.iter().for_each(|kv| fresh.take(&kv.key, Some(&kv.value)));
        let mut fresh = std::mem::take(&mut *fresh.inner.write().unwrap_or_else(PoisonError::into_inner));
        fresh.revision = response.revision;
        let mut known = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if fresh.revision >= known.revision {
            *known = fresh;
        }
        Ok(response.revision)
    }

    /// Takes in what was committed since; cheap when nothing was.
    pub async fn refresh(&self, state: &State) -> Result<(), Status> {
        if self.inner.read().unwrap_or_else(PoisonError::into_inner).revision < state.store.revision() {
            self.load(&state.store).await?;
        }
        Ok(())
    }

    /// Follows the store until it stops.
    pub async fn follow(self, store: Store) {
        loop {
            if let Ok(from) = self.load(&store).await {
                let request = WatchRequest { range: keys::range(&root()), start_revision: from + 1 };
                if let Ok(mut watcher) = store.watch(request).await {
                    while let Ok(batch) = watcher.next().await {
                        for event in &batch.events {
                            let value = (event.kind == EventKind::Put).then_some(&event.kv.value[..]);
                            self.take(&event.kv.key, value);
                        }
                        let mut known = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                        known.revision = known.revision.max(batch.revision);
                    }
                }
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    fn with<T>(&self, f: impl FnOnce(&Policy) -> T) -> T {
        f(&self.inner.read().unwrap_or_else(PoisonError::into_inner).policy)
    }

    pub fn decide(&self, user: &UserInfo, wanted: &Attributes) -> Decision {
        self.with(|p| p.decide(user, wanted))
    }

    pub fn allows(&self, user: &UserInfo, wanted: &Attributes) -> bool {
        user.is_in(MASTERS) || matches!(self.decide(user, wanted), Decision::Allow(_))
    }

    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        self.with(|p| p.rules_for(user, namespace))
    }

    pub fn rules_of_role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<Vec<Rule>>> {
        self.with(|p| p.rules_of_role(role, namespace))
    }
}
