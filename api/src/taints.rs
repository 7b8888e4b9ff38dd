//! Taints keep pods away from nodes, tolerations let them stay: whether one bears the other, for whoever asks (placing a pod, moving one away).

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether a toleration bears a taint (Kubernetes API reference, `Toleration`): an empty effect means every effect, an empty key with `Exists` every key.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |s: &'_ Option<String>| s.clone().filter(|s| !s.is_empty());
    if set(&toleration.effect).is_some_and(|e| e != taint.effect) {
        return false;
    }
    let exists = toleration.operator.as_deref() == Some("Exists");
    match set(&toleration.key) {
        None => exists,
        Some(key) if key != taint.key => false,
        Some(_) => {
            exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_bears_what() {
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| {
            let text = |t: &str| Some(t.to_owned());
            Toleration {
                key: text(key),
                operator: text(operator),
                value: text(value),
                effect: text(effect),
                ..Default::default()
            }
        };
        let taint =
            Taint { key: "k".into(), value: Some("v".into()), effect: "NoExecute".into(), ..Default::default() };
        let check = |t: Toleration, expect| assert_eq!(tolerates(&t, &taint), expect, "{t:?}");
        check(toleration("k", "Equal", "v", "NoExecute"), true);
        check(toleration("k", "Equal", "w", "NoExecute"), false);
        check(toleration("k", "Equal", "v", "NoSchedule"), false);
        check(toleration("k", "Exists", "", ""), true);
        check(toleration("", "Exists", "", ""), true);
        check(toleration("", "Equal", "v", ""), false);
        check(toleration("l", "Exists", "", ""), false);
        check(Toleration { value: Some("v".into()), key: Some("k".into()), ..Default::default() }, true);
    }
}
