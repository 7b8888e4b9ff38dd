//! Addresses and ports of Services, taken and given back in the same transaction that writes the Service.
//!
//! Each taken address or port is a key of its own below `/registry/ranges/`, whose value names the owner. A write that takes
//! one is conditional on the key's absence, so two servers can never hand out the same address, and nothing has to be
//! repaired afterwards.

use crate::config::{Cidr, Config};
use crate::state::{Fresh, State};
use serde_json::{Value, json};
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{Kind, meta};
use std::net::Ipv4Addr;

const ADDRESSES: &str = "/registry/ranges/serviceips/";
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// How many random draws before the range is searched from its start.
const DRAWS_MAX: usize = 32;

/// Keys that a write takes (with the owner that they name) and gives back.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Claims {
    pub take: Vec<(String, String)>,
    pub release: Vec<String>,
}

fn address_key(ip: &str) -> String {
    format!("{ADDRESSES}{ip}")
}

fn port_key(port: i64) -> String {
    format!("{PORTS}{port}")
}

/// What a Service holds.
fn held(service: &Value) -> Vec<String> {
    let mut keys: Vec<String> = meta::list_at(service, &["spec", "clusterIPs"])
        .iter()
        .filter_map(Value::as_str)
        .filter(|ip| ip.parse::<Ipv4Addr>().is_ok())
        .map(address_key)
        .collect();
    let ports = meta::list_at(service, &["spec", "ports"]).iter().filter_map(|p| meta::i64_at(p, &["nodePort"]));
    let health = meta::i64_at(service, &["spec", "healthCheckNodePort"]);
    for port in ports.chain(health).filter(|p| *p != 0) {
        let key = port_key(port);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// What goes back when an object is deleted.
pub fn release(kind: &Kind, object: &Value) -> Claims {
    if !kind.is("", "Service") {
        return Claims::default();
    }
    Claims { take: Vec::new(), release: held(object) }
}

/// Completes a Service with the addresses and ports it needs; nothing for other kinds.
pub async fn claim(state: &State, kind: &Kind, new: &mut Value, old: Option<&Value>) -> Result<Claims, Status> {
    if !kind.is("", "Service") {
        return Ok(Claims::default());
    }
    let before = old.map(held).unwrap_or_default();
    let owner = format!("{}/{}", meta::namespace(new), meta::name(new));
    let name = meta::name(new).to_string();
    let refuse = |error: FieldError| Status::invalid("", "Service", &name, &[error]);
    let service_type = meta::str_at(new, &["spec", "type"]).to_string();
    set_families(new, &service_type);
    if service_type != "ExternalName" {
        assign_address(state, new, old, &before).await?.map_or(Ok(()), |error| Err(refuse(error)))?;
    }
    let wants_ports = service_type == "NodePort"
        || service_type == "LoadBalancer"
            && meta::at(new, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&json!(false));
    assign_ports(state, new, &before, wants_ports).await?.map_or(Ok(()), |error| Err(refuse(error)))?;
    let after = held(new);
    let take = after.iter().filter(|k| !before.contains(k)).map(|k| (k.clone(), owner.clone())).collect();
    let release = before.into_iter().filter(|k| !after.contains(k)).collect();
    Ok(Claims { take, release })
}

/// The address families of a Service in a cluster that has IPv4 only.
fn set_families(service: &mut Value, service_type: &str) {
    if service_type == "ExternalName" {
        return;
    }
    let headless = meta::str_at(service, &["spec", "clusterIP"]) == "None";
    let selectorless = meta::map_at(service, &["spec", "selector"]).is_none_or(|s| s.is_empty());
    let spec = &mut service["spec"];
    let policy = match headless && selectorless && spec.get("ipFamilies").is_none() {
        true => "RequireDualStack",
        false => "SingleStack",
    };
    if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
        spec["ipFamilyPolicy"] = json!(policy);
    }
    if spec.get("ipFamilies").is_none_or(|f| f.as_array().is_none_or(Vec::is_empty)) {
        let both = spec["ipFamilyPolicy"] == "RequireDualStack" && headless && selectorless;
        spec["ipFamilies"] = if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
    }
}

/// The refusal of a wish, where the Service had one that cannot be met.
type Refusal = Option<FieldError>;

async fn assign_address(
    state: &State,
    new: &mut Value,
    old: Option<&Value>,
    before: &[String],
) -> Result<Refusal, Status> {
    let mut wanted = meta::str_at(new, &["spec", "clusterIP"]).to_string();
    if wanted.is_empty()
        && let Some(old) = old
        && meta::str_at(old, &["spec", "type"]) != "ExternalName"
    {
        wanted = meta::str_at(old, &["spec", "clusterIP"]).to_string();
    }
    if wanted.is_empty() {
        let Some(free) = free_address(state).await? else {
            return Err(Status::internal_error(format!(
                "failed to allocate a serviceIP: range {} is full",
                state.config.service_cidr
            )));
        };
        wanted = free.to_string();
    } else if wanted != "None" && !before.contains(&address_key(&wanted)) {
        let fail = |why: &str| {
            let detail = format!("failed to allocate IP {wanted}: {why}");
            Ok(Some(FieldError::invalid("spec.clusterIPs", json!([wanted]), detail)))
        };
        let inside = wanted.parse().ok().and_then(|ip| state.config.service_cidr.offset(ip));
        let cidr = state.config.service_cidr;
        if inside.is_none() {
            return fail("the provided network does not match the current range");
        }
        if inside.is_none_or(|o| o == 0 || o == cidr.size() - 1) {
            return fail(&format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {cidr}"
            ));
        }
        if state.read_key(&address_key(&wanted), Fresh::Linearizable).await?.is_some() {
            return fail("provided IP is already allocated");
        }
    }
    new["spec"]["clusterIP"] = json!(wanted);
    new["spec"]["clusterIPs"] = json!([wanted]);
    Ok(None)
}

/// The lowest addresses are drawn last: they are where people put fixed ones (as upstream splits the range).
fn fixed_band(cidr: Cidr) -> u32 {
    (cidr.size() / 16).clamp(16.min(cidr.size() / 2), 256)
}

async fn free_address(state: &State) -> Result<Option<Ipv4Addr>, Status> {
    let cidr = state.config.service_cidr;
    let last = cidr.size() - 2;
    let low = fixed_band(cidr).min(last);
    for _ in 0..DRAWS_MAX {
        let ip = cidr.nth(rand::random_range(low..=last));
        if state.read_key(&address_key(&ip.to_string()), Fresh::Local).await?.is_none() {
            return Ok(Some(ip));
        }
    }
    let taken = state.scan(ADDRESSES).await?;
    let is_taken = |ip: &Ipv4Addr| {
        let key = address_key(&ip.to_string());
        taken.kvs.iter().any(|kv| kv.key == key.as_bytes())
    };
    Ok((low..=last).chain(1..low).map(|offset| cidr.nth(offset)).find(|ip| !is_taken(ip)))
}

async fn assign_ports(state: &State, new: &mut Value, before: &[String], wanted: bool) -> Result<Refusal, Status> {
    let (low, high) = state.config.node_port_range;
    let mut mine: Vec<i64> = Vec::new();
    let mut ports = meta::list_at(new, &["spec", "ports"]).to_vec();
    // Ports that the Service names come first, so that a free one is not drawn from among them.
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = meta::i64_at(port, &["nodePort"]).filter(|n| *n != 0) else { continue };
        if before.contains(&port_key(number)) || mine.contains(&number) {
            mine.push(number);
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        if number < i64::from(low) || number > i64::from(high) {
            let detail = format!("provided port is not in the valid range. The range of valid ports is {low}-{high}");
            return Ok(Some(FieldError::invalid(field, number, detail)));
        }
        if state.read_key(&port_key(number), Fresh::Linearizable).await?.is_some() {
            return Ok(Some(FieldError::invalid(field, number, "provided port is already allocated")));
        }
        mine.push(number);
    }
    if wanted {
        for index in 0..ports.len() {
            if meta::i64_at(&ports[index], &["nodePort"]).unwrap_or(0) != 0 {
                continue;
            }
            // One port number with two protocols gets one node port.
            let twin = ports
                .iter()
                .find(|p| p["port"] == ports[index]["port"] && p["nodePort"].as_i64().is_some_and(|n| n != 0));
            let number = match twin.and_then(|t| t["nodePort"].as_i64()) {
                Some(number) => number,
                None => free_port(&state.config, state, &mine).await?,
            };
            mine.push(number);
            ports[index]["nodePort"] = json!(number);
        }
    }
    if !ports.is_empty() {
        new["spec"]["ports"] = Value::Array(ports);
    }
    let local = meta::str_at(new, &["spec", "externalTrafficPolicy"]) == "Local";
    let balanced = meta::str_at(new, &["spec", "type"]) == "LoadBalancer";
    if local && balanced && meta::i64_at(new, &["spec", "healthCheckNodePort"]).unwrap_or(0) == 0 {
        new["spec"]["healthCheckNodePort"] = json!(free_port(&state.config, state, &mine).await?);
    }
    Ok(None)
}

async fn free_port(config: &Config, state: &State, mine: &[i64]) -> Result<i64, Status> {
    let (low, high) = config.node_port_range;
    for _ in 0..DRAWS_MAX {
        let port = i64::from(rand::random_range(low..=high));
        if !mine.contains(&port) && state.read_key(&port_key(port), Fresh::Local).await?.is_none() {
            return Ok(port);
        }
    }
    let taken = state.scan(PORTS).await?;
    let is_taken = |port: i64| taken.kvs.iter().any(|kv| kv.key == port_key(port).as_bytes());
    let free = (i64::from(low)..=i64::from(high)).find(|p| !mine.contains(p) && !is_taken(*p));
    free.ok_or_else(|| Status::internal_error(format!("failed to allocate a nodePort: range {low}-{high} is full")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_its_addresses_and_ports() {
        let service = json!({"spec": {"clusterIPs": ["10.43.0.9"], "ports": [{"nodePort": 30001}, {"nodePort": 30001}, {"port": 1}]}});
        assert_eq!(
            held(&service),
            ["/registry/ranges/serviceips/10.43.0.9", "/registry/ranges/servicenodeports/30001"]
        );
        assert_eq!(held(&json!({"spec": {"clusterIPs": ["None"]}})), Vec::<String>::new());
    }
}
