//! CertificateSigningRequests: what is asked for never changes, and each path writes its own part of the answer: `approval` says whether, `status` gives the
//! certificate.
//!
//! Source: Kubernetes documentation, "Certificates and Certificate Signing Requests".

use crate::meta;
use serde_json::{Value, json};

/// Conditions that only `approval` writes.
pub const VERDICTS: [&str; 2] = ["Approved", "Denied"];

/// Of an approval only the conditions count.
pub(super) fn approval(new: &mut Value, old: &Value) {
    let conditions = meta::at(new, &["status", "conditions"]).cloned();
    super::set_or_remove(new, "spec", old.get("spec").cloned());
    super::set_or_remove(new, "status", old.get("status").cloned());
    if conditions.is_some() || meta::at(old, &["status", "conditions"]).is_some() {
        super::set_member(new, "status", "conditions", conditions);
    }
}

/// Who writes the status gives no verdict and takes none away.
pub(super) fn status(new: &mut Value, old: &Value) {
    let is_verdict = |condition: &Value| VERDICTS.contains(&meta::str_at(condition, &["type"]));
    let mut verdicts = meta::list_at(old, &["status", "conditions"]).iter().filter(|c| is_verdict(c));
    let sent = meta::list_at(new, &["status", "conditions"]).iter();
    // In their places, where they were sent along.
    let mut kept: Vec<Value> = sent
        .filter_map(|condition| if is_verdict(condition) { verdicts.next() } else { Some(condition) })
        .cloned()
        .collect();
    kept.extend(verdicts.cloned());
    if !kept.is_empty() {
        super::set_member(new, "status", "conditions", Some(json!(kept)));
    } else if meta::at(new, &["status", "conditions"]).is_some() {
        super::set_member(new, "status", "conditions", None);
    }
}
