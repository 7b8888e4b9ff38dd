//! Endpoints of Services: which pods answer for a name, in EndpointSlices (100 to a slice) and in the older Endpoints.
//!
//! A pod counts while it is Ready and its node is heard of. Silence alone never takes a Service's last endpoints away: where every
//! ready pod is on a silent node, they stay, because a cut-off control plane must not end a service that works.

use crate::Controller;
use crate::action::{Action, Context, Plan, value};
use crate::owned::owner_reference;
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_api::view::{Change, Key, Resource, View};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "endpoints", keys, all, plan, refused: crate::untold };

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const LEGACY_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const SLICE_MAX: usize = 100;
/// When what led to the last change happened: those who measure how long rules take to follow read it.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

fn slices() -> Resource {
    Resource::new("discovery.k8s.io", "v1", "endpointslices")
}

fn legacy() -> Resource {
    Resource::new("", "v1", "endpoints")
}

fn all(view: &View) -> Vec<Key> {
    view.services.iter().map(|(k, _)| k.clone()).collect()
}

fn selects(service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) else {
        return false;
    };
    selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    let namespace = &change.key.namespace;
    match change.resource.plural.as_str() {
        "services" => vec![change.key.clone()],
        "pods" => {
            let now = view.pods.get(&change.key).and_then(|p| p.metadata.labels.as_ref());
            let fits = |s: &Service| selects(s, now) || selects(s, change.labels_before.as_ref());
            view.services.namespace(namespace).filter(|(_, s)| fits(s)).map(|(k, _)| k.clone()).collect()
        }
        "endpointslices" => {
            let owners = [&change.before, &change.after].into_iter().flatten().flat_map(|i| &i.owners);
            let mut keys: Vec<_> =
                owners.filter(|o| o.kind == "Service").map(|o| Key::new(namespace, &o.name)).collect();
            keys.dedup();
            keys
        }
        "endpoints" => vec![change.key.clone()],
        "nodes" => {
            let mut keys = Vec::new();
            for (_, pod) in view.pods_on(&change.key.name) {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let labels = pod.metadata.labels.as_ref();
                keys.extend(
                    view.services.namespace(namespace).filter(|(_, s)| selects(s, labels)).map(|(k, _)| k.clone()),
                );
            }
            keys.sort();
            keys.dedup();
            keys
        }
        _ => Vec::new(),
    }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let existing: Vec<_> = (c.view.endpoint_slices.namespace(&key.namespace))
        .filter(|(_, s)| {
            let labels = s.metadata.labels.as_ref();
            labels.and_then(|l| l.get(SERVICE_LABEL)) == Some(&key.name)
                && labels.and_then(|l| l.get(MANAGED_BY)).map(String::as_str) == Some(MANAGER)
        })
        .map(|(_, s)| s.clone())
        .collect();
    let service = c.view.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none());
    let Some(service) = service else {
        for slice in &existing {
            plan.push(delete(slices(), &slice.metadata));
        }
        if let Some(old) = c.view.endpoints.get(key).filter(|e| is_ours(e)) {
            plan.push(delete(legacy(), &old.metadata));
        }
        return plan;
    };
    let spec = service.spec.clone().unwrap_or_default();
    let has_selector = spec.selector.as_ref().is_some_and(|s| !s.is_empty());
    if !has_selector || spec.type_.as_deref() == Some("ExternalName") {
        return plan;
    }
    let chosen = choose(c, service);
    slices_for(service, &chosen, &existing, &mut plan);
    legacy_for(c, key, service, &chosen, &mut plan);
    plan
}

fn delete(resource: Resource, meta: &ObjectMeta) -> Action {
    Action::Delete {
        resource,
        key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: None,
        propagation: None,
        grace_seconds: None,
    }
}

/// A pod behind a Service, and what is said of it.
struct Chosen {
    pod: Arc<Pod>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

fn choose(c: &Context<'_>, service: &Service) -> Vec<Chosen> {
    let publish_all = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let candidates: Vec<_> = (c.view.pods.namespace(namespace))
        .filter(|(_, p)| selects(service, p.metadata.labels.as_ref()) && pods::ip(p).is_some() && !pods::is_finished(p))
        .map(|(_, p)| p.clone())
        .collect();
    let lost = |p: &Pod| pods::node(p).is_some_and(|n| c.liveness.lost_since(n).is_some());
    // Its node's silence made it unready, or would: by itself it was fine.
    let silenced = |p: &Pod| lost(p) && (pods::is_ready(p) || pods::unready_reason(p) == Some(super::nodes::NODE_LOST));
    let healthy = |p: &Arc<Pod>| pods::is_ready(p) && !lost(p) && !pods::is_deleting(p);
    let keep_silenced = !candidates.iter().any(healthy);
    candidates
        .into_iter()
        .map(|pod| {
            let serving = (pods::is_ready(&pod) && !lost(&pod)) || (keep_silenced && silenced(&pod));
            let terminating = pods::is_deleting(&pod);
            Chosen { ready: publish_all || (serving && !terminating), serving, terminating, pod }
        })
        .collect()
}

/// The port number that a Service's port means on one pod.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            ports
                .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|p| p.container_port)
        }
    }
}

/// (name, protocol, number, application protocol): pods with equal ports share a slice.
type Ports = Vec<(Option<String>, String, i32, Option<String>)>;

fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    let resolve = |p: &ServicePort| {
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
        target_port(p, pod).map(|n| (p.name.clone(), protocol, n, p.app_protocol.clone()))
    };
    ports.into_iter().flatten().filter_map(resolve).collect()
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// When the pod last became ready or stopped being so.
fn changed_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready")?.last_transition_time.as_ref().map(|t| t.0)
}

/// When the earliest of the changes that are written now happened; with none known, the annotation goes.
fn set_trigger(meta: &mut ObjectMeta, at: Option<Timestamp>) {
    let mut annotations = meta.annotations.take().unwrap_or_default();
    match at {
        Some(at) => annotations.insert(TRIGGER.into(), skiff_api::meta::format_time(at)),
        None => annotations.remove(TRIGGER),
    };
    meta.annotations = Some(annotations).filter(|a| !a.is_empty());
}

fn made_at(service: &Service) -> Option<Timestamp> {
    service.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// The name under which DNS lists the pod itself.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then_some(name)
}

fn endpoint(service: &Service, chosen: &Chosen) -> Endpoint {
    Endpoint {
        addresses: vec![pods::ip(&chosen.pod).unwrap_or_default().to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(chosen.ready),
            serving: Some(chosen.serving),
            terminating: Some(chosen.terminating),
        }),
        hostname: hostname(service, &chosen.pod),
        node_name: pods::node(&chosen.pod).map(str::to_owned),
        target_ref: Some(reference(&chosen.pod)),
        ..Default::default()
    }
}

/// What a slice says: ports and endpoints; both None in the one slice of a Service without pods.
type Content = (Option<Vec<EndpointPort>>, Option<Vec<Endpoint>>);

fn slices_for(service: &Service, chosen: &[Chosen], existing: &[Arc<EndpointSlice>], plan: &mut Plan) {
    let mut groups: BTreeMap<Ports, Vec<&Chosen>> = BTreeMap::new();
    for one in chosen {
        groups.entry(ports_of(service, &one.pod)).or_default().push(one);
    }
    let mut wanted: Vec<Content> = Vec::new();
    for (ports, members) in groups {
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(name, protocol, port, app)| EndpointPort {
                name: Some(name.unwrap_or_default()),
                protocol: Some(protocol),
                port: Some(port),
                app_protocol: app,
            })
            .collect();
        for part in members.chunks(SLICE_MAX) {
            wanted.push((Some(ports.clone()), Some(part.iter().map(|o| endpoint(service, o)).collect())));
        }
    }
    if wanted.is_empty() {
        wanted.push((None, None));
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let known: Vec<&Endpoint> = existing.iter().flat_map(|s| s.endpoints.iter().flatten()).collect();
    let news = chosen.iter().filter(|one| !known.contains(&&endpoint(service, one)));
    let is_new = existing.is_empty().then(|| made_at(service)).flatten();
    let trigger = news.filter_map(|one| changed_at(&one.pod)).chain(is_new).min();
    // A slice that already has the right ports is changed rather than replaced.
    let mut free: Vec<_> = existing.iter().collect();
    let mut rest = Vec::new();
    for (ports, endpoints) in wanted {
        match free.iter().position(|s| s.ports == ports) {
            Some(i) => update_slice(free.remove(i), ports, endpoints, &labels, trigger, plan),
            None => rest.push((ports, endpoints)),
        }
    }
    for (ports, endpoints) in rest {
        match free.pop() {
            Some(slice) => update_slice(slice, ports, endpoints, &labels, trigger, plan),
            None => plan.push(create_slice(service, ports, endpoints, &labels, trigger)),
        }
    }
    for slice in free {
        plan.push(delete(slices(), &slice.metadata));
    }
}

fn update_slice(
    slice: &Arc<EndpointSlice>,
    ports: Option<Vec<EndpointPort>>,
    endpoints: Option<Vec<Endpoint>>,
    labels: &BTreeMap<String, String>,
    trigger: Option<Timestamp>,
    plan: &mut Plan,
) {
    if slice.ports == ports && slice.endpoints == endpoints && slice.metadata.labels.as_ref() == Some(labels) {
        return;
    }
    let mut changed = (**slice).clone();
    changed.ports = ports;
    changed.endpoints = endpoints;
    changed.metadata.labels = Some(labels.clone());
    set_trigger(&mut changed.metadata, trigger);
    plan.push(Action::Update { resource: slices(), object: value(&changed), subresource: None });
}

fn create_slice(
    service: &Service,
    ports: Option<Vec<EndpointPort>>,
    endpoints: Option<Vec<Endpoint>>,
    labels: &BTreeMap<String, String>,
    trigger: Option<Timestamp>,
) -> Action {
    let mut slice = EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner_reference("v1", "Service", &service.metadata)]),
            ..Default::default()
        },
        address_type: "IPv4".into(),
        endpoints,
        ports,
    };
    set_trigger(&mut slice.metadata, trigger);
    Action::Create { resource: slices(), object: value(&slice), announce: None }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().is_some_and(|l| l.contains_key(LEGACY_MANAGED_BY))
}

fn legacy_for(c: &Context<'_>, key: &Key, service: &Service, chosen: &[Chosen], plan: &mut Plan) {
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for one in chosen.iter().filter(|o| !o.terminating) {
        let ports = ports_of(service, &one.pod);
        let address = EndpointAddress {
            ip: pods::ip(&one.pod).unwrap_or_default().to_owned(),
            hostname: hostname(service, &one.pod),
            node_name: pods::node(&one.pod).map(str::to_owned),
            target_ref: Some(reference(&one.pod)),
        };
        let group = groups.entry(ports).or_default();
        if one.ready { group.0.push(address) } else { group.1.push(address) }
    }
    let list = |v: Vec<EndpointAddress>| Some(v).filter(|v| !v.is_empty());
    let subsets: Vec<_> = groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: Some(
                ports
                    .into_iter()
                    .map(|(name, protocol, port, app_protocol)| LegacyPort {
                        name,
                        protocol: Some(protocol),
                        port,
                        app_protocol,
                    })
                    .collect(),
            ),
        })
        .collect();
    let subsets = Some(subsets).filter(|s| !s.is_empty());
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(LEGACY_MANAGED_BY.into(), "endpoint-controller".into());
    let old = c.view.endpoints.get(key);
    let addresses = |e: &'_ Endpoints| -> Vec<(bool, EndpointAddress)> {
        let of = |ready, list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|a| (ready, a.clone())).collect::<Vec<_>>()
        };
        let subsets = e.subsets.iter().flatten();
        subsets.flat_map(|s| [of(true, &s.addresses), of(false, &s.not_ready_addresses)].concat()).collect()
    };
    let known = old.map(|old| addresses(old)).unwrap_or_default();
    let is_known = |one: &Chosen| {
        let uid = &one.pod.metadata.uid;
        known.iter().any(|(ready, a)| *ready == one.ready && a.target_ref.as_ref().is_some_and(|t| t.uid == *uid))
    };
    let news = chosen.iter().filter(|one| !one.terminating && !is_known(one));
    let is_new = old.is_none().then(|| made_at(service)).flatten();
    let trigger = news.filter_map(|one| changed_at(&one.pod)).chain(is_new).min();
    match old {
        // Somebody keeps them by hand.
        Some(old) if !is_ours(old) => {}
        Some(old) if old.subsets == subsets && old.metadata.labels.as_ref() == Some(&labels) => {}
        Some(old) => {
            let mut changed = (**old).clone();
            changed.subsets = subsets;
            changed.metadata.labels = Some(labels);
            set_trigger(&mut changed.metadata, trigger);
            plan.push(Action::Update { resource: legacy(), object: value(&changed), subresource: None });
        }
        None => {
            let mut metadata = ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: Some(labels),
                ..Default::default()
            };
            set_trigger(&mut metadata, trigger);
            let object = value(&Endpoints { metadata, subsets });
            plan.push(Action::Create { resource: legacy(), object, announce: None });
        }
    }
}
