//! The Services that every cluster has: `default/kubernetes`, by which pods find the API, at the first address of the range with the servers behind it; and
//! `kube-system/kube-dns`, which charts name as their resolver. That one has no endpoints: each node answers its address itself, before any rule for Services.
//!
//! Whichever server leads keeps the endpoints: they are the members of the store with the API addresses that these told. A server that
//! joins or leaves is seen within [`PERIOD`].

use crate::client::{Client, PatchType, Select};
use crate::server::ApiServer;
use crate::state::State;
use crate::verbs::delete::DeleteOptions;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::status::Status;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How often the members are looked at, where no change of leadership wakes us earlier.
const PERIOD: Duration = Duration::from_secs(1);
/// After this many periods the endpoints are written again, in case somebody took them away.
const REPAIR_PERIODS: u32 = 30;
const SLICES: &str = "kubernetes.io/service-name=kubernetes";

/// Makes the Services where they are missing.
pub async fn ensure_services(state: &State, client: &Client) -> Result<(), Status> {
    ensure_api(state, client).await?;
    match state.config.cluster_dns {
        Some(address) => ensure_dns(client, address).await,
        None => Ok(()),
    }
}

async fn ensure_dns(client: &Client, address: Ipv4Addr) -> Result<(), Status> {
    let Some(services) = kinds::by_resource("", "v1", "services") else { return Ok(()) };
    if client.find(&services, "kube-system", "kube-dns").await?.is_some() {
        return Ok(());
    }
    let service = json!({
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53}],
        },
    });
    match client.create(&services, "kube-system", service).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        // A cluster from before there was this Service may have given its address to another one. DNS works all the same.
        Err(status) if status.reason == "Invalid" => {
            tracing::warn!(%address, "the Service kube-system/kube-dns is not made, delete the one that has its address and start a server again: {}", status.message);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

async fn ensure_api(state: &State, client: &Client) -> Result<(), Status> {
    let Some(services) = kinds::by_resource("", "v1", "services") else { return Ok(()) };
    if client.find(&services, "default", "kubernetes").await?.is_some() {
        return Ok(());
    }
    let port = servers(state).first().map_or(6443, SocketAddr::port);
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": state.config.service_cidr.nth(1).to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
        },
    });
    match client.create(&services, "default", service).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Where pods reach the API of every server: what the members told, or this server's own addresses where they told nothing. Sorted.
fn servers(state: &State) -> Vec<SocketAddr> {
    let members = state.store.store().members();
    let told = members.iter().filter(|m| !m.learner).filter_map(|m| m.client_addr.parse().ok());
    let mut all: Vec<SocketAddr> = told.collect();
    if all.is_empty() {
        all.clone_from(&state.config.endpoints);
    }
    // No pod could reach a server by its loopback address, and Endpoints refuse it.
    all.retain(|address| !address.ip().is_loopback());
    all.sort();
    all.dedup();
    all
}

/// Keeps the endpoints while this server leads, for as long as the store runs.
pub async fn follow(server: ApiServer) {
    let state = &server.state;
    let mut leadership = state.store.store().leadership();
    let mut written: Option<Vec<SocketAddr>> = None;
    let mut age = 0;
    let mut told = String::new();
    loop {
        let leading = leadership.borrow_and_update().clone();
        if leading.is_leader() {
            let wanted = servers(state);
            if written.as_ref() != Some(&wanted) || age >= REPAIR_PERIODS {
                let client = server.client(crate::auth::bootstrap::user()).with_manager("skiff").fenced(leading.term);
                match write(&client, &wanted).await {
                    Ok(()) => (written, age) = (Some(wanted), 0),
                    // The same trouble is told once, not every second.
                    Err(status) if status.message == told => {}
                    Err(status) => {
                        tracing::warn!(%status, "the endpoints of the kubernetes Service could not be written");
                        told = status.message;
                    }
                }
            }
        } else {
            written = None;
        }
        age += 1;
        if let Ok(Err(_)) = tokio::time::timeout(PERIOD, leadership.changed()).await {
            return;
        }
    }
}

async fn write(client: &Client, servers: &[SocketAddr]) -> Result<(), Status> {
    let (Some(endpoints), Some(slices)) =
        (kinds::by_resource("", "v1", "endpoints"), kinds::by_resource("discovery.k8s.io", "v1", "endpointslices"))
    else {
        return Ok(());
    };
    if servers.is_empty() {
        return Ok(());
    }
    let force = PatchType::Apply { force: true };
    client.patch(&endpoints, "default", "kubernetes", "", force, &endpoints_of(servers)).await?;
    let wanted = slices_of(servers);
    for slice in &wanted {
        client.patch(&slices, "default", meta::name(slice), "", force, slice).await?;
    }
    let found = client.list(&slices, &Select::labels("default", SLICES)).await?;
    for slice in found.items.iter().filter(|s| wanted.iter().all(|w| meta::name(w) != meta::name(s))) {
        let options = DeleteOptions::default();
        match client.delete(&slices, "default", meta::name(slice), &options).await {
            Err(status) if status.code() != 404 => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

fn by_port(servers: &[SocketAddr]) -> BTreeMap<u16, Vec<String>> {
    let mut ports: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for server in servers {
        ports.entry(server.port()).or_default().push(server.ip().to_string());
    }
    ports
}

fn port_named(port: u16) -> Value {
    json!([{"name": "https", "port": port, "protocol": "TCP"}])
}

fn endpoints_of(servers: &[SocketAddr]) -> Value {
    let subset = |(port, ips): (u16, Vec<String>)| {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"addresses": addresses, "ports": port_named(port)})
    };
    json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": by_port(servers).into_iter().map(subset).collect::<Vec<_>>(),
    })
}

/// One slice for each port that a server listens on; the first bears the Service's name.
fn slices_of(servers: &[SocketAddr]) -> Vec<Value> {
    let slice = |(index, (port, ips)): (usize, (u16, Vec<String>))| {
        let endpoint = |ip: &String| json!({"addresses": [ip], "conditions": {"ready": true}});
        let name = if index == 0 { "kubernetes".to_string() } else { format!("kubernetes-{port}") };
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": port_named(port),
        })
    };
    by_port(servers).into_iter().enumerate().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_become_endpoints() {
        let check = |servers: &[&str], expect: &[(&str, u64, &[&str])]| {
            let servers: Vec<SocketAddr> = servers.iter().map(|s| s.parse().unwrap()).collect();
            let slices = slices_of(&servers);
            let found = slices.iter().map(|s| {
                let ips = meta::list_at(s, &["endpoints"]).iter().map(|e| e["addresses"][0].as_str().unwrap());
                (meta::name(s), s["ports"][0]["port"].as_u64().unwrap(), ips.collect::<Vec<_>>())
            });
            let expect: Vec<_> = expect.iter().map(|(name, port, ips)| (*name, *port, ips.to_vec())).collect();
            assert_eq!(found.collect::<Vec<_>>(), expect);
            assert_eq!(endpoints_of(&servers)["subsets"].as_array().unwrap().len(), expect.len());
        };
        check(&["10.0.0.1:6443", "10.0.0.2:6443"], &[("kubernetes", 6443, &["10.0.0.1", "10.0.0.2"])]);
        check(
            &["10.0.0.1:6443", "10.0.0.1:7443"],
            &[("kubernetes", 6443, &["10.0.0.1"]), ("kubernetes-7443", 7443, &["10.0.0.1"])],
        );
    }
}
