//! `skiff delete`: objects by name, label or file; returns when they are gone, unless told otherwise.

use super::discovery::{Discovery, Resource};
use super::get::Lines;
use super::names::meant;
use super::output::say;
use super::target::{Cluster, query};
use super::{documents, is_missing};
use crate::client::Api;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Delete objects
#[derive(clap::Args, Debug)]
pub struct Options {
    /// TYPE NAME..., TYPE/NAME..., or TYPE with -l or --all
    resources: Vec<String>,
    /// The objects of a file, a folder, or - for stdin
    #[arg(short, long, conflicts_with = "resources")]
    filename: Vec<PathBuf>,
    /// Folders with what is below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The objects with these labels
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Seconds that pods get to end [default: the pod's own]
    #[arg(long)]
    grace_period: Option<u32>,
    /// Remove pods from the API at once, with --grace-period=0
    #[arg(long)]
    force: bool,
    /// The same as --grace-period=1
    #[arg(long)]
    now: bool,
    /// What becomes of what the object owns
    #[arg(long, default_value = "background", value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Return when the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
    /// Seconds to wait at most [default: as long as it takes]
    #[arg(long)]
    timeout: Option<u64>,
    /// A name that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    cluster: Cluster,
}

/// An object to delete.
struct Doomed<'d> {
    resource: &'d Resource,
    namespace: String,
    name: String,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    if options.force && options.grace_period.is_some_and(|s| s > 0) {
        bail!("--force and a --grace-period greater than 0 cannot be used together");
    }
    let files = match options.filename.as_slice() {
        [] => Vec::new(),
        paths => documents::read_all(paths, options.recursive)?,
    };
    let api = options.cluster.api()?;
    let discovery = Discovery::load(&api).await?;
    let mut doomed = Vec::new();
    for document in &files {
        let resource = discovery.of_object(&document.value).with_context(|| document.place("kind"))?;
        let text = |field: &str| document.value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let namespace = Some(text("namespace")).filter(|n| !n.is_empty()).unwrap_or_else(|| api.namespace.clone());
        doomed.push(Doomed { resource, namespace, name: text("name") });
    }
    if files.is_empty() {
        for (resource, name) in meant(&discovery, &options.resources)? {
            match name {
                Some(name) => doomed.push(Doomed { resource, namespace: api.namespace.clone(), name }),
                None => doomed.extend(selected(&api, &options, resource).await?),
            }
        }
    }
    let mut missing = false;
    let mut gone = Vec::new();
    for one in &doomed {
        match delete(&api, &options, one).await {
            Ok(uid) => {
                let where_ =
                    if one.resource.namespaced { format!(" from {} namespace", one.namespace) } else { String::new() };
                let how = if options.force { "force deleted" } else { "deleted" };
                say(&format!("{} {:?} {how}{where_}\n", one.resource.qualified(), one.name))?;
                gone.push((one, uid));
            }
            Err(error) if is_missing(&error) => {
                if !options.ignore_not_found {
                    eprintln!("{}", super::explain(&error));
                    missing = true;
                }
            }
            Err(error) => return Err(error),
        }
    }
    if options.wait {
        let waiting = async {
            for (one, uid) in &gone {
                wait_until_gone(&api, one, uid).await?;
            }
            anyhow::Ok(())
        };
        let limit = Duration::from_secs(options.timeout.unwrap_or(u64::from(u32::MAX)));
        tokio::time::timeout(limit, waiting).await.context("timed out waiting until the objects are gone")??;
    }
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The objects of a kind that the labels select.
async fn selected<'d>(api: &Api, options: &Options, resource: &'d Resource) -> anyhow::Result<Vec<Doomed<'d>>> {
    if options.selector.is_empty() && !options.all {
        bail!("say which {}: names, -l SELECTOR, or --all", resource.plural);
    }
    let path = format!("{}{}", resource.path(Some(&api.namespace), ""), query(&[("labelSelector", &options.selector)]));
    let list = api.get(&path).await?;
    let items = list["items"].as_array().into_iter().flatten();
    let one = |item: &Value| Doomed {
        resource,
        namespace: api.namespace.clone(),
        name: item["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
    };
    Ok(items.map(one).collect())
}

/// Deletes; gives the uid of what was there.
async fn delete(api: &Api, options: &Options, one: &Doomed<'_>) -> anyhow::Result<String> {
    let policy = match options.cascade.as_str() {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
    let grace = if options.force { Some(0) } else { options.grace_period.or(options.now.then_some(1)) };
    if let Some(seconds) = grace {
        body["gracePeriodSeconds"] = seconds.into();
    }
    let answer = api.delete(&one.resource.path(Some(&one.namespace), &one.name), &body).await?;
    // The object itself while it ends, or a Status when it is gone.
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    Ok(uid.unwrap_or_default().to_owned())
}

/// Watches the name until the object with this uid is not there.
async fn wait_until_gone(api: &Api, one: &Doomed<'_>, uid: &str) -> anyhow::Result<()> {
    let (path, collection) =
        (one.resource.path(Some(&one.namespace), &one.name), one.resource.path(Some(&one.namespace), ""));
    loop {
        let object = match api.get(&path).await {
            Err(error) if is_missing(&error) => return Ok(()),
            object => object?,
        };
        if object["metadata"]["uid"] != uid {
            return Ok(());
        }
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let fields = format!("metadata.name={}", one.name);
        let pairs = [("watch", "true"), ("fieldSelector", fields.as_str()), ("resourceVersion", version)];
        let mut lines = Lines::new(api.stream(&format!("{collection}{}", query(&pairs)), "application/json").await?);
        while let Some(line) = lines.next().await? {
            let event: Value = serde_json::from_slice(&line).unwrap_or_default();
            if event["type"] == "DELETED" || event["type"] == "ERROR" {
                break;
            }
        }
    }
}
