//! The rows themselves. A new built-in kind is a row here, plus its files of defaults and validation.

use super::{Kind, Subresource, storage_version_hash};

/// Verbs of a kind with everything.
const ALL: &str = "create,delete,deletecollection,get,list,patch,update,watch";
/// Reading and writing below an object.
const RW: &str = "get,patch,update";
const PROXY: &str = "create,delete,get,patch,update";

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|t| !t.is_empty()).map(str::to_string).collect()
}

/// A namespaced, stored kind with all verbs; `plural` is `kind` in lower case with an `s` until told otherwise.
fn row(group: &str, version: &str, kind: &str) -> Kind {
    let singular = kind.to_lowercase();
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        plural: plural_of(&singular),
        singular,
        namespaced: true,
        verbs: list(ALL),
        storage_version_hash: storage_version_hash(group, version, kind),
        ..Kind::default()
    }
}

fn plural_of(singular: &str) -> String {
    if let Some(stem) = singular.strip_suffix("y") {
        return format!("{stem}ies");
    }
    if singular.ends_with("ss") {
        format!("{singular}es")
    } else if singular.ends_with('s') {
        singular.into()
    } else {
        format!("{singular}s")
    }
}

/// A kind that is only answered, never stored.
fn review(group: &str, version: &str, kind: &str) -> Kind {
    Kind { verbs: list("create"), storage_version_hash: String::new(), namespaced: false, ..row(group, version, kind) }
}

impl Kind {
    fn cluster(self) -> Self {
        Kind { namespaced: false, ..self }
    }
    fn short(self, names: &str) -> Self {
        Kind { short_names: list(names), ..self }
    }
    fn categories(self, names: &str) -> Self {
        Kind { categories: list(names), ..self }
    }
    /// A subresource that speaks the kind itself.
    fn sub(mut self, name: &str, verbs: &str) -> Self {
        let kind = self.kind.clone();
        self.subresources.push(Subresource { name: name.into(), kind, verbs: list(verbs), ..Subresource::default() });
        self
    }
    /// A subresource that speaks another kind.
    fn sub_of(mut self, name: &str, group: &str, version: &str, kind: &str, verbs: &str) -> Self {
        let (group, version) = if group == self.group && version == self.version { ("", "") } else { (group, version) };
        self.subresources.push(Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs: list(verbs),
        });
        self
    }
    fn status(self) -> Self {
        self.sub("status", RW)
    }
    fn scale(self) -> Self {
        self.sub_of("scale", "autoscaling", "v1", "Scale", RW)
    }
}

pub(super) fn rows() -> Vec<Kind> {
    let mut all = core();
    // The group of the most used kinds stands first, as clients that ask for a bare name expect.
    let (apps, others): (Vec<Kind>, Vec<Kind>) = workloads().into_iter().partition(|kind| kind.group == "apps");
    all.extend(apps);
    all.extend(reviews());
    all.extend(others);
    all.extend(cluster_and_network());
    for kind in &mut all {
        kind.subresources.sort_by(|a, b| a.name.cmp(&b.name));
    }
    // Discovery shows the core group first, then groups in the order of the rows; resources by name.
    let mut order: Vec<(String, String)> = Vec::new();
    for kind in &all {
        let key = (kind.group.clone(), kind.version.clone());
        if !order.contains(&key) {
            order.push(key);
        }
    }
    all.sort_by_cached_key(|k| {
        let group = order.iter().position(|(g, v)| *g == k.group && *v == k.version);
        (group, k.plural.clone())
    });
    all
}

fn core() -> Vec<Kind> {
    let kind = |name| row("", "v1", name);
    vec![
        Kind { storage_version_hash: String::new(), verbs: list("create"), ..kind("Binding") },
        Kind {
            plural: "componentstatuses".into(),
            storage_version_hash: String::new(),
            verbs: list("get,list"),
            ..kind("ComponentStatus")
        }
        .cluster()
        .short("cs"),
        kind("ConfigMap").short("cm"),
        kind("Endpoints").short("ep"),
        kind("Event").short("ev"),
        kind("LimitRange").short("limits"),
        Kind { verbs: list("create,delete,get,list,patch,update,watch"), ..kind("Namespace") }
            .cluster()
            .short("ns")
            .status()
            .sub("finalize", "update"),
        kind("Node").cluster().short("no").status().sub_of("proxy", "", "v1", "NodeProxyOptions", PROXY),
        kind("Pod")
            .short("po")
            .categories("all")
            .status()
            .sub_of("attach", "", "v1", "PodAttachOptions", "create,get")
            .sub_of("binding", "", "v1", "Binding", "create")
            .sub("ephemeralcontainers", RW)
            .sub_of("eviction", "policy", "v1", "Eviction", "create")
            .sub_of("exec", "", "v1", "PodExecOptions", "create,get")
            .sub("log", "get")
            .sub_of("portforward", "", "v1", "PodPortForwardOptions", "create,get")
            .sub_of("proxy", "", "v1", "PodProxyOptions", PROXY)
            .sub("resize", RW),
        kind("PersistentVolume").cluster().short("pv").status(),
        kind("PersistentVolumeClaim").short("pvc").status(),
        kind("PodTemplate"),
        kind("ReplicationController").short("rc").categories("all").status().scale(),
        kind("ResourceQuota").short("quota").status(),
        kind("Secret"),
        kind("Service").short("svc").categories("all").status().sub_of("proxy", "", "v1", "ServiceProxyOptions", PROXY),
        kind("ServiceAccount").short("sa").sub_of("token", "authentication.k8s.io", "v1", "TokenRequest", "create"),
    ]
}

fn reviews() -> Vec<Kind> {
    let (authn, authz) = ("authentication.k8s.io", "authorization.k8s.io");
    vec![
        Kind {
            stored_as: Some(("".into(), "events".into())),
            storage_version_hash: storage_version_hash("", "v1", "Event"),
            ..row("events.k8s.io", "v1", "Event")
        }
        .short("ev"),
        review(authn, "v1", "SelfSubjectReview"),
        review(authn, "v1", "TokenReview"),
        Kind { namespaced: true, ..review(authz, "v1", "LocalSubjectAccessReview") },
        review(authz, "v1", "SelfSubjectAccessReview"),
        review(authz, "v1", "SelfSubjectRulesReview"),
        review(authz, "v1", "SubjectAccessReview"),
    ]
}

fn workloads() -> Vec<Kind> {
    let apps = |name| row("apps", "v1", name);
    let batch = |name| row("batch", "v1", name);
    vec![
        apps("ControllerRevision"),
        apps("DaemonSet").short("ds").categories("all").status(),
        apps("StatefulSet").short("sts").categories("all").status().scale(),
        apps("Deployment").short("deploy").categories("all").status().scale(),
        apps("ReplicaSet").short("rs").categories("all").status().scale(),
        row("autoscaling", "v2", "HorizontalPodAutoscaler").short("hpa").categories("all").status(),
        // The same objects in their older form (`skiff_api::autoscaling`).
        Kind {
            stored_as: Some(("autoscaling".into(), "horizontalpodautoscalers".into())),
            storage_version_hash: storage_version_hash("autoscaling", "v2", "HorizontalPodAutoscaler"),
            ..row("autoscaling", "v1", "HorizontalPodAutoscaler").short("hpa").categories("all").status()
        },
        batch("CronJob").short("cj").categories("all").status(),
        batch("Job").categories("all").status(),
    ]
}

fn cluster_and_network() -> Vec<Kind> {
    let rbac = |name| row("rbac.authorization.k8s.io", "v1", name);
    let network = |name| row("networking.k8s.io", "v1", name);
    let storage = |name| row("storage.k8s.io", "v1", name);
    vec![
        row("certificates.k8s.io", "v1", "CertificateSigningRequest")
            .cluster()
            .short("csr")
            .status()
            .sub("approval", RW),
        network("IngressClass").cluster(),
        network("Ingress").short("ing").status(),
        network("NetworkPolicy").short("netpol"),
        row("policy", "v1", "PodDisruptionBudget").short("pdb").status(),
        rbac("ClusterRole").cluster(),
        rbac("ClusterRoleBinding").cluster(),
        rbac("Role"),
        rbac("RoleBinding"),
        storage("CSIDriver").cluster(),
        storage("CSINode").cluster(),
        storage("CSIStorageCapacity"),
        storage("StorageClass").cluster().short("sc"),
        storage("VolumeAttachment").cluster().status(),
        storage("VolumeAttributesClass").cluster().short("vac"),
        row("scheduling.k8s.io", "v1", "PriorityClass").cluster().short("pc"),
        row("coordination.k8s.io", "v1", "Lease"),
        row("node.k8s.io", "v1", "RuntimeClass").cluster(),
        row("discovery.k8s.io", "v1", "EndpointSlice"),
    ]
}
