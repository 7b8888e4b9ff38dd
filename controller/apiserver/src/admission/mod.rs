//! What the cluster says to a write that is allowed and well formed: rules that look beyond the object itself.
//!
//! Two rounds, as in the reference server: [`Admission::mutate`] may complete the object, [`Admission::validate`] only
//! refuses. Each rule has its file.

mod certificates;
mod classes;
mod grants;
mod limits;
mod namespace;
pub mod node;
mod pod;
mod pod_security;
pub mod quota;

use crate::call::Call;
use crate::state::State;
use serde_json::Value;
use skiff_api::status::Status;

pub use namespace::namespace_of_new;
pub use node::NODE_KEY_HASH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// One write on its way.
pub struct Admission<'a> {
    pub state: &'a State,
    pub call: &'a mut Call,
    pub operation: Operation,
    /// The object as it is, for all but creations.
    pub old: Option<&'a Value>,
}

impl Admission<'_> {
    /// Completes the object, or refuses it.
    pub async fn mutate(&mut self, object: &mut Value) -> Result<(), Status> {
        let main = self.call.info.subresource.is_empty();
        let creates = self.operation == Operation::Create;
        namespace::label(self, object);
        limits::fill(self, object).await?;
        certificates::stamp(self, object, jiff::Timestamp::now());
        if main && self.call.kind.is("", "Pod") {
            if creates {
                pod::service_account(self, object).await?;
                pod::priority(self, object).await?;
            }
            pod::default_tolerations(object);
            if creates {
                classes::runtime_class(self, object).await?;
            }
        }
        if main && creates && self.call.kind.is("", "Node") {
            node::taint_until_ready(object);
        }
        if creates {
            classes::default_class(self, object).await?;
            self.note_requester(object);
        }
        Ok(())
    }

    /// Refuses what may not be. For deletions `object` is null.
    pub async fn validate(&mut self, object: &Value) -> Result<(), Status> {
        namespace::refuse_immortal(self)?;
        node::restrict(self, object).await?;
        limits::check(self, object).await?;
        pod_security::check(self, object).await?;
        classes::one_default_priority(self, object).await?;
        certificates::check(self, object).await?;
        grants::refuse_escalation(self, object).await
    }

    /// A certificate is asked for in the name of whoever asks, whatever the request says.
    fn note_requester(&self, object: &mut Value) {
        if !self.call.kind.is("certificates.k8s.io", "CertificateSigningRequest") || !object["spec"].is_object() {
            return;
        }
        let user = self.call.user.to_value();
        for key in ["username", "uid", "groups", "extra"] {
            match user.get(key).filter(|v| !v.is_null()) {
                Some(value) => object["spec"][key] = value.clone(),
                None => drop(object["spec"].as_object_mut().and_then(|spec| spec.shift_remove(key))),
            }
        }
    }

    /// The refusal of this write.
    pub fn forbidden(&self, name: &str, why: &str) -> Status {
        Status::forbidden(&self.call.kind.group, &self.call.kind.plural, name, why)
    }
}
