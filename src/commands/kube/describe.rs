//! `skiff describe`: one object told in full, with what happened to it.
//!
//! A kind that people look at often has a page of its own; any other is its own fields, written out.

mod page;
mod pages;

use super::discovery::{Discovery, Resource};
use super::names::meant;
use super::output::say;
use super::target::{Cluster, query};
use crate::client::Api;
use anyhow::bail;
use page::Page;
use serde_json::Value;
use std::process::ExitCode;

/// Show objects in full, with their events
#[derive(clap::Args, Debug)]
pub struct Options {
    /// TYPE, TYPE NAME..., or TYPE/NAME...
    #[arg(required = true)]
    resources: Vec<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    #[command(flatten)]
    cluster: Cluster,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = options.cluster.api()?;
    let discovery = Discovery::load(&api).await?;
    let mut texts = Vec::new();
    for (resource, name) in meant(&discovery, &options.resources)? {
        let path = resource.path(Some(&api.namespace), name.as_deref().unwrap_or_default());
        if name.is_some() {
            texts.push(text(&api, resource, &api.get(&path).await?).await?);
            continue;
        }
        let list = api.get(&format!("{path}{}", query(&[("labelSelector", &options.selector)]))).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            texts.push(text(&api, resource, item).await?);
        }
    }
    if texts.is_empty() {
        bail!("no resources found in {} namespace", api.namespace);
    }
    say(&texts.join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn text(api: &Api, resource: &Resource, object: &Value) -> anyhow::Result<String> {
    let mut page = Page::default();
    page.head(object);
    match resource.kind.as_str() {
        "Pod" => pages::pod(&mut page, object),
        "Node" => pages::node(&mut page, object, &pods_of(api, object).await?),
        "Deployment" | "ReplicaSet" => pages::workload(&mut page, object),
        "Service" => pages::service(&mut page, object, &slices_of(api, object).await?),
        "Secret" => pages::secret(&mut page, object),
        _ => page.rest(object),
    }
    page.events(&events_of(api, object).await?);
    Ok(page.text())
}

fn items(mut list: Value) -> Vec<Value> {
    list["items"].as_array_mut().map(std::mem::take).unwrap_or_default()
}

async fn pods_of(api: &Api, node: &Value) -> anyhow::Result<Vec<Value>> {
    let fields = format!("spec.nodeName={}", node["metadata"]["name"].as_str().unwrap_or_default());
    Ok(items(api.get(&format!("/api/v1/pods{}", query(&[("fieldSelector", &fields)]))).await?))
}

async fn slices_of(api: &Api, service: &Value) -> anyhow::Result<Vec<Value>> {
    let metadata = &service["metadata"];
    let labels = format!("kubernetes.io/service-name={}", metadata["name"].as_str().unwrap_or_default());
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices{}",
        query(&[("labelSelector", &labels)])
    );
    Ok(items(api.get(&path).await?))
}

/// The events about an object, the oldest first. A cluster-wide object's are in `default`.
async fn events_of(api: &Api, object: &Value) -> anyhow::Result<Vec<Value>> {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let name = metadata["name"].as_str().unwrap_or_default();
    let fields = format!("involvedObject.name={name}");
    let path = format!("/api/v1/namespaces/{namespace}/events{}", query(&[("fieldSelector", &fields)]));
    let mut events = items(api.get(&path).await?);
    // A node's events may carry its name in place of its uid.
    events.retain(|e| {
        let about = &e["involvedObject"];
        about["uid"] == metadata["uid"] || about["uid"] == metadata["name"]
    });
    events.sort_by_key(|e| e["lastTimestamp"].as_str().unwrap_or_default().to_owned());
    Ok(events)
}
