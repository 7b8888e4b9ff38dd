//! Requests and limits: from quantities to what the kernel takes, and the class that they put a pod in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_api::quantity::Quantity as Parsed;
use skiff_runtime::Resources;

/// What this node can give, for limits that a container does not set and for OOM scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes.
    pub ephemeral_storage_bytes: i64,
}

type List = BTreeMap<String, Quantity>;

/// A quantity of a list, in units (thousandths for `cpu`).
pub fn amount(list: Option<&List>, name: &str) -> Option<i64> {
    let parsed = Parsed::parse(&list?.get(name)?.0).ok()?;
    Some(if name == "cpu" { parsed.milli_value() } else { parsed.value() })
}

/// Limits and requests of one container; a request that is not set is its limit.
fn of(container: &ResourceRequirements, name: &str) -> (Option<i64>, Option<i64>) {
    let limit = amount(container.limits.as_ref(), name);
    (amount(container.requests.as_ref(), name).or(limit), limit)
}

/// What the kernel is told for a container.
pub fn container_resources(container: &Container) -> Resources {
    let none = ResourceRequirements::default();
    let wanted = container.resources.as_ref().unwrap_or(&none);
    let (cpu_request, cpu_limit) = of(wanted, "cpu");
    let memory = amount(wanted.limits.as_ref(), "memory").unwrap_or(0);
    Resources {
        cpu_shares: shares(cpu_request.unwrap_or(0)),
        cpu_quota_us: cpu_limit.map_or(0, quota_us),
        cpu_period_us: 100_000,
        memory_bytes: memory.max(0) as u64,
        pids: 0,
    }
}

/// What the kernel is told for a whole pod: what its own `resources` say; without them, a weight that is the sum of its
/// containers' requests.
pub fn pod_resources(pod: &Pod) -> Resources {
    let own = pod.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default();
    let (cpu_request, cpu_limit) = of(&own, "cpu");
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let sum = containers
        .filter_map(|container| container.resources.as_ref().and_then(|wanted| of(wanted, "cpu").0))
        .fold(0i64, i64::saturating_add);
    Resources {
        cpu_shares: shares(cpu_request.unwrap_or(sum)),
        cpu_quota_us: cpu_limit.map_or(0, quota_us),
        cpu_period_us: 100_000,
        memory_bytes: amount(own.limits.as_ref(), "memory").unwrap_or(0).max(0) as u64,
        ..Resources::default()
    }
}

/// CPU time in a period of 100 ms; the kernel takes no less than 1 ms.
fn quota_us(millis: i64) -> i64 {
    millis.saturating_mul(100).max(1000)
}

fn shares(millis: i64) -> u64 {
    ((millis.max(0) as u64).saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// `Guaranteed` (all limits set and equal to requests), `BestEffort` (nothing set) or `Burstable`: the Kubernetes
/// documentation on quality of service for pods.
pub fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let set =
        |list: Option<&List>| ["cpu", "memory"].iter().any(|name| amount(list, name).is_some_and(|amount| amount > 0));
    let any =
        containers().filter_map(|c| c.resources.as_ref()).any(|r| set(r.requests.as_ref()) || set(r.limits.as_ref()));
    if !any {
        return "BestEffort";
    }
    let guaranteed = containers().all(|container| {
        container.resources.as_ref().is_some_and(|wanted| {
            ["cpu", "memory"].iter().all(|name| {
                let (request, limit) = of(wanted, name);
                limit.is_some_and(|limit| limit > 0) && request == limit
            })
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// Whom the kernel takes first when memory runs out: the less a container asked for, the sooner.
pub fn oom_score_adj(pod: &Pod, container: &Container, node: NodeCapacity) -> i32 {
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container.resources.as_ref().and_then(|wanted| of(wanted, "memory").0).unwrap_or(0);
            let part = if node.memory_bytes > 0 { 1000 * request / node.memory_bytes } else { 0 };
            (1000 - part).clamp(3, 999) as i32
        }
    }
}

/// The value of a `resourceFieldRef`: divided by the divisor and rounded up; an unset limit is what the node has.
pub fn resource_field(
    container: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    node: NodeCapacity,
) -> Result<String, String> {
    let wanted = container.resources.as_ref();
    let (kind, name) = resource.split_once('.').unwrap_or(("", resource));
    let whole = match name {
        "cpu" => node.cpu_millis,
        "memory" => node.memory_bytes,
        "ephemeral-storage" => node.ephemeral_storage_bytes,
        other if other.starts_with("hugepages-") => 0,
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    let value = match kind {
        "limits" => wanted.and_then(|wanted| amount(wanted.limits.as_ref(), name)).unwrap_or(whole),
        "requests" => wanted.and_then(|wanted| of(wanted, name).0).unwrap_or(0),
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    let divisor =
        match divisor.map(|divisor| Parsed::parse(&divisor.0)).transpose().map_err(|error| error.to_string())? {
            Some(divisor) if !divisor.is_zero() => divisor,
            _ => Parsed::from_units(1, skiff_api::quantity::Format::Decimal),
        };
    let divisor = if name == "cpu" { divisor.milli_value() } else { divisor.value() };
    Ok((value.max(0) as u64).div_ceil(divisor.max(1) as u64).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(resources: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    #[test]
    fn limits_for_the_kernel() {
        let check = |resources: serde_json::Value, shares: u64, quota: i64, memory: u64| {
            let got = container_resources(&container(resources.clone()));
            assert_eq!((got.cpu_shares, got.cpu_quota_us, got.memory_bytes), (shares, quota, memory), "{resources}");
        };
        check(json!({}), 2, 0, 0);
        check(json!({"requests": {"cpu": "250m", "memory": "64Mi"}}), 256, 0, 0);
        check(json!({"limits": {"cpu": "2", "memory": "64Mi"}}), 2048, 200_000, 64 << 20);
        check(json!({"limits": {"cpu": "1m"}}), 2, 1000, 0);
    }

    #[test]
    fn classes() {
        let check = |resources: serde_json::Value, expect: &str| {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
                    .unwrap();
            assert_eq!(qos_class(&pod), expect, "{pod:?}");
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
    }

    #[test]
    fn resource_fields() {
        let node = NodeCapacity { cpu_millis: 4000, memory_bytes: 8 << 30, ephemeral_storage_bytes: 0 };
        let own = container(json!({"limits": {"cpu": "1500m", "memory": "100Mi"}}));
        let check = |container: &Container, resource: &str, divisor: &str, expect: &str| {
            let divisor = Quantity(divisor.into());
            assert_eq!(
                resource_field(container, resource, Some(&divisor), node).unwrap_or_default(),
                expect,
                "{resource}"
            );
        };
        check(&own, "limits.cpu", "1", "2");
        check(&own, "limits.cpu", "1m", "1500");
        check(&own, "requests.memory", "1Mi", "100");
        check(&own, "limits.memory", "0", "104857600");
        check(&container(json!({})), "limits.cpu", "1", "4");
        check(&container(json!({})), "requests.cpu", "1", "0");
        check(&own, "limits.wood", "1", "");
    }
}
