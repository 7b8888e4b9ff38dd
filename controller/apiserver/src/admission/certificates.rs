//! Who may have certificates approved and issued: a right on the signer, beside the one on the request. And when a verdict was given.
//!
//! Source: Kubernetes documentation, "Certificates and Certificate Signing Requests", "Authorization"; "Admission Controllers", CertificateApproval,
//! CertificateSigning, CertificateSubjectRestriction.

use super::{Admission, Operation};
use crate::auth::authorize;
use crate::auth::rbac::{Attributes, Decision};
use crate::auth::user::MASTERS;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::Status;
use x509_parser::prelude::FromDer as _;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(admission: &Admission<'_>) -> bool {
    admission.call.kind.is(GROUP, "CertificateSigningRequest")
}

/// Gives each condition that is new, or has changed its status, its times.
pub fn stamp(admission: &Admission<'_>, object: &mut Value, now: Timestamp) {
    let sub = admission.call.info.subresource.as_str();
    if !is_request(admission) || admission.operation != Operation::Update || !matches!(sub, "approval" | "status") {
        return;
    }
    let before = admission.old.map(|old| meta::list_at(old, &["status", "conditions"]).to_vec()).unwrap_or_default();
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|c| c.is_object()) {
        let same = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        let was = before.iter().find(same);
        for key in ["lastUpdateTime", "lastTransitionTime"] {
            if meta::str_at(condition, &[key]).is_empty() {
                let kept = was.and_then(|w| w.get(key)).filter(|t| !t.is_null());
                condition[key] = kept.cloned().unwrap_or_else(|| json!(meta::format_time(now)));
            }
        }
    }
}

/// Refuses a verdict or a certificate from somebody without the right on the signer, and a request for what nobody may ask for.
pub async fn check(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    if !is_request(admission) {
        return Ok(());
    }
    let signer = meta::str_at(admission.old.unwrap_or(object), &["spec", "signerName"]).to_string();
    let part = |object: &Value, key: &str| meta::at(object, &["status", key]).cloned().unwrap_or_default();
    let old = admission.old.cloned().unwrap_or_default();
    let changed = |key: &str| part(object, key) != part(&old, key);
    match (admission.operation, admission.call.info.subresource.as_str()) {
        (Operation::Create, "") if signer == CLIENT_SIGNER && asks_for_masters(object) => {
            let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
            Err(admission.forbidden(meta::name(object), &why))
        }
        (Operation::Update, "approval") => require(admission, object, "approve", &signer).await,
        (Operation::Update, "status") if changed("certificate") || changed("conditions") => {
            require(admission, object, "sign", &signer).await
        }
        _ => Ok(()),
    }
}

async fn require(admission: &Admission<'_>, object: &Value, verb: &str, signer: &str) -> Result<(), Status> {
    // The right may be on one signer or on all of a domain.
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    for name in [Some(signer.to_string()), domain].into_iter().flatten() {
        let wanted = Attributes {
            verb: verb.into(),
            group: GROUP.into(),
            version: "v1".into(),
            resource: "signers".into(),
            name,
            ..Default::default()
        };
        if let Decision::Allow(_) = authorize::decide(admission.state, &admission.call.user, &wanted).await? {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(admission.forbidden(meta::name(object), &why))
}

/// Whether the certificate would make its holder a master.
fn asks_for_masters(object: &Value) -> bool {
    let pem = skiff_api::base64::decode(meta::str_at(object, &["spec", "request"])).unwrap_or_default();
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let Ok((_, request)) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents) else {
        return false;
    };
    let subject = &request.certification_request_info.subject;
    subject.iter_organization().any(|organization| organization.as_str() == Ok(MASTERS))
}
