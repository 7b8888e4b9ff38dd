//! What a new pod gets from the cluster: its service account and token, tolerations, priority.

use super::Admission;
use crate::rules::random_suffix;
use crate::state::Fresh;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::status::Status;

/// Where a pod's token is mounted.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// A little over an hour: the kubelet's rotation works on the hour.
const TOKEN_SECONDS: i64 = 3607;

/// The account of the pod must be there; its token is mounted unless pod or account say no.
pub async fn service_account(admission: &mut Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    if meta::annotation(pod, MIRROR).is_some() {
        return Ok(());
    }
    let name = meta::name(pod).to_string();
    let account_name = match meta::str_at(pod, &["spec", "serviceAccountName"]) {
        "" => "default".to_string(),
        name => name.to_string(),
    };
    if !pod["spec"].is_object() {
        return Ok(());
    }
    pod["spec"]["serviceAccountName"] = json!(account_name);
    pod["spec"]["serviceAccount"] = json!(account_name);
    let namespace = admission.call.namespace().to_string();
    let Some(kind) = kinds::by_resource("", "v1", "serviceaccounts") else { return Ok(()) };
    let mut account = admission.state.read(&kind, &namespace, &account_name, Fresh::Local).await?;
    if account.is_none() {
        account = admission.state.read(&kind, &namespace, &account_name, Fresh::Linearizable).await?;
    }
    let Some(account) = account else {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        return Err(admission.forbidden(&name, &why));
    };
    let account = account.decode();
    check_secrets(admission, pod, &account)?;
    let says = |object: &Value, path: &[&str]| meta::at(object, path).and_then(Value::as_bool);
    let automount = says(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| says(&account, &["automountServiceAccountToken"]))
        .unwrap_or(true);
    if automount {
        mount_token(pod);
    }
    let pull = meta::list_at(&account, &["imagePullSecrets"]);
    if meta::list_at(pod, &["spec", "imagePullSecrets"]).is_empty() && !pull.is_empty() {
        pod["spec"]["imagePullSecrets"] = json!(pull);
    }
    Ok(())
}

/// An account may say that its pods mount only the secrets it lists.
fn check_secrets(admission: &Admission<'_>, pod: &Value, account: &Value) -> Result<(), Status> {
    if meta::annotation(account, "kubernetes.io/enforce-mountable-secrets") != Some("true") {
        return Ok(());
    }
    let listed: Vec<&str> = meta::list_at(account, &["secrets"]).iter().map(|s| meta::str_at(s, &["name"])).collect();
    for volume in meta::list_at(pod, &["spec", "volumes"]) {
        let secret = meta::str_at(volume, &["secret", "secretName"]);
        if !secret.is_empty() && !listed.contains(&secret) {
            let why = format!(
                "volume with secret.secretName={secret:?} is not allowed because service account {} does not reference that secret",
                meta::name(account)
            );
            return Err(admission.forbidden(meta::name(pod), &why));
        }
    }
    Ok(())
}

/// Adds the volume with token, CA and namespace, and mounts it where nothing is mounted yet.
fn mount_token(pod: &mut Value) {
    let volumes = meta::list_at(pod, &["spec", "volumes"]).to_vec();
    let own = volumes
        .iter()
        .map(|v| meta::str_at(v, &["name"]))
        .find(|n| n.starts_with("kube-api-access-"))
        .map(String::from);
    let name = own.clone().unwrap_or_else(|| format!("kube-api-access-{}", random_suffix()));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mounts = meta::list_at(container, &["volumeMounts"]);
            if mounts.iter().any(|m| meta::str_at(m, &["mountPath"]) == TOKEN_PATH) {
                continue;
            }
            needed = true;
            let mut mounts = mounts.to_vec();
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            container["volumeMounts"] = Value::Array(mounts);
        }
    }
    if !needed || own.is_some() {
        return;
    }
    let mut volumes = volumes;
    volumes.push(json!({"name": name, "projected": {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ],
        "defaultMode": 420,
    }}));
    pod["spec"]["volumes"] = Value::Array(volumes);
}

/// A pod stays on a lost node for five minutes unless it says otherwise.
pub fn default_tolerations(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    let mut tolerations = meta::list_at(pod, &["spec", "tolerations"]).to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = tolerations.iter().any(|t| {
            let (its_key, effect) = (meta::str_at(t, &["key"]), meta::str_at(t, &["effect"]));
            (its_key == key || its_key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !covered {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    if !tolerations.is_empty() {
        pod["spec"]["tolerations"] = Value::Array(tolerations);
    }
}

/// The priority that the pod's class stands for; a pod may not make up its own.
pub async fn priority(admission: &mut Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let class = meta::str_at(pod, &["spec", "priorityClassName"]).to_string();
    let of_class = |class: &Value| {
        let policy = match meta::str_at(class, &["preemptionPolicy"]) {
            "" => "PreemptLowerPriority",
            policy => policy,
        };
        (meta::i64_at(class, &["value"]).unwrap_or(0), policy.to_string())
    };
    let (value, policy) = match class.as_str() {
        "" => match super::classes::default_priority(admission.state).await? {
            Some(default) => {
                pod["spec"]["priorityClassName"] = json!(meta::name(&default));
                of_class(&default)
            }
            None => (0, "PreemptLowerPriority".to_string()),
        },
        "system-node-critical" => (2_000_001_000, "PreemptLowerPriority".to_string()),
        "system-cluster-critical" => (2_000_000_000, "PreemptLowerPriority".to_string()),
        name => {
            let key = crate::storage::keys::object_of("scheduling.k8s.io", "priorityclasses", "", name);
            let Some(found) = admission.state.read_key(&key, Fresh::Linearizable).await? else {
                let why = format!("no PriorityClass with name {name} was found");
                return Err(admission.forbidden(meta::name(pod), &why));
            };
            of_class(&found.decode())
        }
    };
    if let Some(given) = meta::i64_at(pod, &["spec", "priority"])
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed \
             {value} from the given PriorityClass name"
        );
        return Err(admission.forbidden(meta::name(pod), &why));
    }
    pod["spec"]["priority"] = json!(value);
    if meta::at(pod, &["spec", "preemptionPolicy"]).is_none() {
        pod["spec"]["preemptionPolicy"] = json!(policy);
    }
    Ok(())
}
