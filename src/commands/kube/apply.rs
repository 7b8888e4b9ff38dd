//! `skiff apply`: files of objects become the cluster's, by server-side apply under the name `skiff`.
//!
//! Three passes, so that a mistake leaves nothing half done: every file is read, every kind is looked up, and (for more than one
//! object) the server tries each without keeping it. Only then is anything written, in the order of the files.

use super::discovery::{Discovery, Resource};
use super::documents::{self, Document};
use super::is_missing;
use super::locate::complaints;
use super::output::say;
use super::target::{Cluster, flag, query};
use crate::client::{Api, ApiError};
use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// Create or change objects from files
#[derive(clap::Args, Debug)]
pub struct Options {
    /// A file, a folder, or - for stdin; may be repeated
    #[arg(short, long = "filename", required = true)]
    filename: Vec<PathBuf>,
    /// Folders with what is below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Refuse to change fields that somebody else set, unless --force-conflicts is given
    #[arg(long)]
    server_side: bool,
    /// With --server-side: take over fields that somebody else set
    #[arg(long, requires = "server_side")]
    force_conflicts: bool,
    /// Who the fields belong to
    #[arg(long, default_value = "skiff")]
    field_manager: String,
    /// "server": say what would happen, and keep nothing
    #[arg(long, default_value = "none", value_parser = ["none", "server"])]
    dry_run: String,
    #[command(flatten)]
    cluster: Cluster,
}

/// A document that is ready to be sent.
struct Ready<'d> {
    document: &'d Document,
    resource: &'d Resource,
    namespace: String,
    name: String,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let documents = documents::read_all(&options.filename, options.recursive)?;
    let api = options.cluster.api()?;
    let discovery = Discovery::load(&api).await?;
    let ready = prepare(&documents, &discovery, &api, options.cluster.namespace.as_deref())?;
    let keep_nothing = options.dry_run == "server";
    if ready.len() > 1 || keep_nothing {
        rehearse(&api, &options, &ready).await?;
    }
    let suffix = if keep_nothing { " (server dry run)" } else { "" };
    for one in &ready {
        let outcome = if keep_nothing { "serverside-applied" } else { write(&api, &options, one).await? };
        say(&format!("{}/{} {outcome}{suffix}\n", one.resource.qualified(), one.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks up each document's kind, name and namespace; all that is wrong is told at once.
fn prepare<'d>(
    documents: &'d [Document],
    discovery: &'d Discovery,
    api: &Api,
    asked: Option<&str>,
) -> anyhow::Result<Vec<Ready<'d>>> {
    let (mut ready, mut wrong) = (Vec::new(), Vec::new());
    for document in documents {
        match prepare_one(document, discovery, &api.namespace, asked) {
            Ok(one) => ready.push(one),
            Err((field, error)) => wrong.push(format!("{}: {error:#}", document.place(field))),
        }
    }
    if wrong.is_empty() { Ok(ready) } else { bail!("{}", wrong.join("\n")) }
}

/// The failure comes with the field that it is about.
fn prepare_one<'d>(
    document: &'d Document,
    discovery: &'d Discovery,
    default: &str,
    asked: Option<&str>,
) -> Result<Ready<'d>, (&'static str, anyhow::Error)> {
    let object = &document.value;
    let resource = discovery.of_object(object).map_err(|e| ("kind", e))?;
    let name = match &object["metadata"]["name"] {
        Value::String(name) if !name.is_empty() => name.clone(),
        Value::Null | Value::String(_) => {
            return Err(("metadata", anyhow!("metadata.name is not set; apply needs a name")));
        }
        // YAML 1.1, which Kubernetes reads, takes y, yes, no, on and off for booleans.
        other => return Err(("metadata.name", anyhow!("metadata.name is {other}, not a text; put it in quotes"))),
    };
    let own = object["metadata"]["namespace"].as_str().filter(|n| !n.is_empty());
    if let (Some(own), Some(asked)) = (own, asked)
        && own != asked
        && resource.namespaced
    {
        let error = anyhow!("metadata.namespace is {own:?}, but --namespace says {asked:?}; leave one of them out");
        return Err(("metadata.namespace", error));
    }
    Ok(Ready { document, resource, namespace: own.unwrap_or(default).to_owned(), name })
}

/// Lets the server check everything without keeping it. What lives in a namespace of this same batch cannot be tried before it is there.
async fn rehearse(api: &Api, options: &Options, ready: &[Ready<'_>]) -> anyhow::Result<()> {
    let made: Vec<&str> = ready.iter().filter(|r| r.resource.kind == "Namespace").map(|r| r.name.as_str()).collect();
    let mut wrong = Vec::new();
    for one in ready {
        if one.resource.namespaced && made.contains(&one.namespace.as_str()) {
            continue;
        }
        if let Err(error) = patch(api, options, one, "All").await {
            wrong.push(format!("{error:#}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}\nnothing was changed", wrong.join("\n")) }
}

async fn patch(api: &Api, options: &Options, one: &Ready<'_>, dry_run: &str) -> anyhow::Result<Value> {
    // Without --server-side, as with kubectl, the file wins over whoever scaled or edited the object meanwhile.
    let force = options.force_conflicts || !options.server_side;
    let pairs = [
        ("fieldManager", options.field_manager.as_str()),
        ("fieldValidation", "Strict"),
        ("force", flag(force)),
        ("dryRun", dry_run),
    ];
    let path = format!("{}{}", one.resource.path(Some(&one.namespace), &one.name), query(&pairs));
    let answer = api.patch(&path, "application/apply-patch+yaml", &one.document.value).await;
    answer.map_err(|error| match error.downcast_ref::<ApiError>() {
        Some(refusal) => {
            let name = format!("{}/{}", one.resource.qualified(), one.name);
            let lines = complaints(&refusal.status)
                .into_iter()
                .map(|(field, words)| format!("{}: {name}: {words}", one.document.place(&field)));
            anyhow!("{}", lines.collect::<Vec<_>>().join("\n"))
        }
        None => error,
    })
}

/// Writes one object; says what that did.
async fn write(api: &Api, options: &Options, one: &Ready<'_>) -> anyhow::Result<&'static str> {
    let before = match api.get(&one.resource.path(Some(&one.namespace), &one.name)).await {
        Ok(object) => Some(object),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}/{}", one.resource.qualified(), one.name)),
    };
    let after = patch(api, options, one, "").await?;
    Ok(match before {
        None => "created",
        Some(before) if before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"] => "unchanged",
        Some(_) => "configured",
    })
}
