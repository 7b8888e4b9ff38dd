//! Scenarios: some nodes, some pods, and where they go.

use super::*;
use serde_json::{Value, json};
use skiff_api::view::Resource;

fn node(name: &str, cpu: &str, extra: Value) -> Value {
    let mut node = json!({"metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {}, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
    if let Some(spec) = extra.as_object() {
        node["spec"] = json!(spec);
    }
    node
}

fn pod(name: &str, cpu: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "a"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn view(nodes: &[Value], pods: &[Value]) -> View {
    let mut view = View::default();
    for (resource, objects) in [("nodes", nodes), ("pods", pods)] {
        for object in objects {
            let meta = &object["metadata"];
            let key =
                Key::new(meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default());
            view.apply(&Resource::new("", "v1", resource), &key, Some(object.to_string().as_bytes())).unwrap();
        }
    }
    view
}

/// Where each pod goes; a message where it goes nowhere.
fn place(nodes: &[Value], pods: &[Value]) -> Vec<String> {
    let decisions = Scheduler::default().place(&view(nodes, pods), &mut || 1);
    decisions
        .into_iter()
        .map(|d| match d {
            Decision::Bind { node, .. } => node,
            Decision::Unschedulable { message, .. } | Decision::Failed { message, .. } => message,
        })
        .collect()
}

fn three() -> [Value; 3] {
    ["n1", "n2", "n3"].map(|n| node(n, "4", json!({})))
}

#[test]
fn siblings_spread_over_the_nodes() {
    let pods: Vec<_> = (0..6).map(|i| pod(&format!("p{i}"), "100m", json!({}))).collect();
    assert_eq!(place(&three(), &pods), ["n1", "n2", "n3", "n1", "n2", "n3"]);
}

#[test]
fn round_robin_goes_around_and_random_does_as_the_numbers_say() {
    let robin: Vec<_> = (0..4).map(|i| pod(&format!("p{i}"), "1", json!({"schedulerName": ROUND_ROBIN}))).collect();
    assert_eq!(place(&three(), &robin), ["n1", "n2", "n3", "n1"]);
    let random: Vec<_> = (0..2).map(|i| pod(&format!("p{i}"), "1", json!({"schedulerName": RANDOM}))).collect();
    assert_eq!(place(&three(), &random), ["n2", "n2"]);
}

#[test]
fn a_pod_that_fits_nowhere_is_told_why() {
    let nodes = [
        node("n1", "1", json!({})),
        node("n2", "4", json!({"unschedulable": true})),
        node("n3", "4", json!({"taints": [{"key": "k", "effect": "NoSchedule"}]})),
    ];
    let busy = pod("busy", "900m", json!({"nodeName": "n1"}));
    let message = &place(&nodes, &[busy, pod("p", "500m", json!({}))])[0];
    assert_eq!(
        message,
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. \
         no new claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
         2 Preemption is not helpful for scheduling."
    );
}

#[test]
fn labels_taints_and_ports_decide() {
    let check =
        |spec: Value, expect: &str| assert_eq!(place(&three(), &[pod("p", "1", spec.clone())]), [expect], "{spec}");
    check(json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}}), "n2");
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1", "n2"]}]}]}}});
    check(json!({"affinity": affinity}), "n3");
    let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    let there = ["n1", "n2"].map(|n| pod(n, "1", json!({"nodeName": n})));
    assert_eq!(place(&three(), &[there[0].clone(), there[1].clone(), pod("p", "1", anti)]), ["n3"]);
    let port = |name: &str| {
        pod(name, "1", json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}))
    };
    let four: Vec<_> = (0..4).map(|i| port(&format!("p{i}"))).collect();
    let placed = place(&three(), &four);
    assert_eq!(placed[..3], ["n1", "n2", "n3"]);
    assert!(placed[3].starts_with("0/3 nodes are available: 3 node(s) didn't have free ports"), "{}", placed[3]);
}

/// Pods of one round see each other: what was placed a moment ago counts as there.
#[test]
fn pods_that_come_together_keep_apart_and_spread() {
    let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    let four: Vec<_> = (0..4).map(|i| pod(&format!("p{i}"), "100m", anti.clone())).collect();
    let placed = place(&three(), &four);
    assert_eq!(placed[..3], ["n1", "n2", "n3"]);
    assert!(placed[3].contains("3 node(s) didn't match pod anti-affinity rules"), "{}", placed[3]);

    let check = |what: &str, constraint: Value, count: usize, expect: usize| {
        let mut spread = json!({"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1,
            "labelSelector": {"matchLabels": {"app": "a"}}});
        constraint.as_object().unwrap().iter().for_each(|(k, v)| spread[k] = v.clone());
        let zones = [("n1", "a"), ("n2", "b")].map(|(name, zone)| {
            let mut node = node(name, "4", json!({}));
            node["metadata"]["labels"]["zone"] = zone.into();
            node
        });
        let spec = json!({"topologySpreadConstraints": [spread]});
        let pods: Vec<_> = (0..count).map(|i| pod(&format!("p{i}"), "100m", spec.clone())).collect();
        let placed = place(&zones, &pods);
        assert_eq!(placed.iter().filter(|p| p.len() == 2).count(), expect, "{what}: {placed:?}");
    };
    check("two zones, any number", json!({}), 5, 5);
    check("a third zone is wanted and is not there", json!({"minDomains": 3}), 4, 2);
    check("two are wanted, two are there", json!({"minDomains": 2}), 4, 4);
    check("the missing zone counts as empty, with a skew of two", json!({"minDomains": 3, "maxSkew": 2}), 6, 4);
    let others = json!({"labelSelector": {"matchLabels": {"app": "b"}}, "minDomains": 3});
    check("who is not counted is not too many", others, 4, 4);
}

/// A pod whose decision panics keeps nobody else from a node.
#[test]
fn one_pod_that_cannot_be_decided_holds_up_no_other() {
    let pods = [pod("a", "1", json!({"schedulerName": RANDOM})), pod("b", "1", json!({}))];
    let decisions = Scheduler::default().place(&view(&three(), &pods), &mut || panic!("no numbers today"));
    assert!(matches!(&decisions[0], Decision::Failed { uid, .. } if uid == "a"), "{decisions:?}");
    assert!(matches!(&decisions[1], Decision::Bind { uid, .. } if uid == "b"), "{decisions:?}");
}
