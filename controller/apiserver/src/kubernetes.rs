//! The Service by which pods find the API: `default/kubernetes`, at the first address of the range, with the servers behind it.

use crate::client::{Client, PatchType};
use crate::state::State;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::status::Status;

/// Makes the Service, its Endpoints and its EndpointSlice, or brings the latter two up to date.
pub async fn ensure(state: &State, client: &Client) -> Result<(), Status> {
    let (Some(services), Some(endpoints), Some(slices)) = (
        kinds::by_resource("", "v1", "services"),
        kinds::by_resource("", "v1", "endpoints"),
        kinds::by_resource("discovery.k8s.io", "v1", "endpointslices"),
    ) else {
        return Ok(());
    };
    let port = state.config.endpoints.first().map_or(6443, |e| e.port());
    if client.find(&services, "default", "kubernetes").await?.is_none() {
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
            Err(status) if status.reason == "AlreadyExists" => {}
            other => {
                other?;
            }
        }
    }
    if state.config.endpoints.is_empty() {
        return Ok(());
    }
    let mut addresses: Vec<String> = state.config.endpoints.iter().map(|e| e.ip().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    let subset: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let object = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": subset, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    client.patch(&endpoints, "default", "kubernetes", "", PatchType::Apply { force: true }, &object).await?;
    let endpoint = |ip: &String| json!({"addresses": [ip], "conditions": {"ready": true}});
    let object = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    client.patch(&slices, "default", "kubernetes", "", PatchType::Apply { force: true }, &object).await?;
    Ok(())
}
