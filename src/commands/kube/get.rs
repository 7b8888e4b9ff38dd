//! `skiff get`: what is there, as the server's tables or as objects; with `-w`, what becomes of it.

use super::discovery::{Discovery, Resource};
use super::is_missing;
use super::names::{Meant, meant};
use super::output::{self, Format, Table, TableOptions, say};
use super::target::{Cluster, query};
use crate::client::{Api, ApiError};
use anyhow::{Context as _, bail};
use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use std::process::ExitCode;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Objects a request; the server hands out the rest with a token.
const PAGE: &str = "500";

/// Show objects
#[derive(clap::Args, Debug)]
pub struct Options {
    /// TYPE, TYPE NAME..., TYPE/NAME..., or TYPE,TYPE
    #[arg(required = true)]
    resources: Vec<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels (a=b, a!=b, a in (b,c), a, !a)
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Only objects with these fields (metadata.name=x)
    #[arg(long, default_value = "")]
    field_selector: String,
    /// wide, yaml, json, name, or jsonpath=TEMPLATE
    #[arg(short, long, default_value = "")]
    output: Format,
    /// Then show every change
    #[arg(short, long)]
    watch: bool,
    /// Show every change, not what is there now
    #[arg(long)]
    watch_only: bool,
    /// A table without its head
    #[arg(long)]
    no_headers: bool,
    /// A column with the labels
    #[arg(long)]
    show_labels: bool,
    /// A name that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// Keep metadata.managedFields in YAML and JSON
    #[arg(long)]
    show_managed_fields: bool,
    #[command(flatten)]
    cluster: Cluster,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = options.cluster.api()?;
    let discovery = Discovery::load(&api).await?;
    let all = meant(&discovery, &options.resources)?;
    if options.watch || options.watch_only {
        let [one] = all.as_slice() else { bail!("one TYPE, or one object, can be watched at a time") };
        return watch(&api, &options, one).await;
    }
    match &options.output {
        Format::Table { .. } => tables(&api, &options, &all).await,
        _ => objects(&api, &options, &all).await,
    }
}

impl Options {
    fn namespace<'a>(&'a self, api: &'a Api) -> Option<&'a str> {
        (!self.all_namespaces).then_some(api.namespace.as_str())
    }

    fn table(&self, resource: &Resource, prefixed: bool) -> Table {
        Table::new(TableOptions {
            wide: self.output == Format::Table { wide: true },
            namespaces: self.all_namespaces && resource.namespaced,
            labels: self.show_labels,
            no_headers: self.no_headers,
            prefix: if prefixed { format!("{}/", resource.qualified()) } else { String::new() },
        })
    }

    /// A page of a collection, or one object, in the form `accept`.
    async fn page(&self, api: &Api, (resource, name): &Meant<'_>, accept: &str, from: &str) -> anyhow::Result<Value> {
        let path = resource.path(self.namespace(api), name.as_deref().unwrap_or_default());
        let pairs = [
            ("labelSelector", self.selector.as_str()),
            ("fieldSelector", &self.field_selector),
            ("limit", PAGE),
            ("continue", from),
        ];
        let query = if name.is_some() { String::new() } else { query(&pairs) };
        api.get_as(&format!("{path}{query}"), accept).await
    }
}

/// Where the next page begins; empty at the end.
fn next(page: &Value) -> String {
    page["metadata"]["continue"].as_str().unwrap_or_default().to_owned()
}

async fn tables(api: &Api, options: &Options, all: &[Meant<'_>]) -> anyhow::Result<ExitCode> {
    // `gap`: an empty line is due before the next row, because another table stands above it.
    let (mut printed, mut missing, mut gap) = (false, false, false);
    let many_kinds = all.iter().any(|(r, _)| *r != all[0].0);
    let mut current: Option<(&Resource, Table)> = None;
    for one in all {
        // The rows of objects that were named one by one form one table.
        let mut table = match current.take() {
            Some((resource, table)) if resource == one.0 => table,
            _ => {
                gap = printed;
                options.table(one.0, many_kinds)
            }
        };
        let mut from = String::new();
        loop {
            let page = match options.page(api, one, TABLE, &from).await {
                Ok(page) => page,
                Err(error) if one.1.is_some() && is_missing(&error) => {
                    if !options.ignore_not_found {
                        eprintln!("{}", super::explain(&error));
                        missing = true;
                    }
                    break;
                }
                Err(error) => return Err(error),
            };
            if page["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
                say(if std::mem::take(&mut gap) { "\n" } else { "" })?;
                say(&table.text(&page))?;
                printed = true;
            }
            from = next(&page);
            if from.is_empty() {
                break;
            }
        }
        current = Some((one.0, table));
    }
    if !printed && !missing && !options.ignore_not_found {
        let namespaced = all.iter().any(|(r, _)| r.namespaced) && !options.all_namespaces;
        match namespaced {
            true => eprintln!("No resources found in {} namespace.", api.namespace),
            false => eprintln!("No resources found"),
        }
    }
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn objects(api: &Api, options: &Options, all: &[Meant<'_>]) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    let mut missing = false;
    for one in all {
        let mut from = String::new();
        loop {
            let page = match options.page(api, one, "application/json", &from).await {
                Err(error) if one.1.is_some() && is_missing(&error) => {
                    if !options.ignore_not_found {
                        eprintln!("{}", super::explain(&error));
                        missing = true;
                    }
                    break;
                }
                page => page?,
            };
            from = next(&page);
            let (api_version, kind) = (one.0.api_version(), one.0.kind.clone());
            match page {
                page if one.1.is_some() => found.push((one.0, page)),
                mut page => {
                    for mut item in page["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                        // Items of a list do not say what they are.
                        item["apiVersion"] = api_version.clone().into();
                        item["kind"] = kind.clone().into();
                        found.push((one.0, item));
                    }
                }
            }
            if from.is_empty() {
                break;
            }
        }
    }
    if options.output == Format::Name {
        let name = |(r, o): &(&Resource, Value)| {
            format!("{}/{}\n", r.qualified(), o["metadata"]["name"].as_str().unwrap_or_default())
        };
        say(&found.iter().map(name).collect::<String>())?;
    } else {
        let single = matches!(all, [(_, Some(_))]);
        let mut list: Vec<Value> = found.into_iter().map(|(_, o)| o).collect();
        if !options.show_managed_fields {
            list = list.into_iter().map(output::without_managed_fields).collect();
        }
        let value = if single { list.pop() } else { Some(output::list_of(list)) };
        if let Some(value) = value {
            say(&output::object(&options.output, &value))?;
        }
    }
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Lines of a body, as they come.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    pub fn new(body: Incoming) -> Lines {
        Lines { body, buffer: BytesMut::new() }
    }

    /// The next line without its end; None when the body has ended.
    pub async fn next(&mut self) -> anyhow::Result<Option<bytes::Bytes>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.context("the connection to the server was lost")?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

async fn watch(api: &Api, options: &Options, (resource, name): &Meant<'_>) -> anyhow::Result<ExitCode> {
    let accept = if matches!(options.output, Format::Table { .. }) { TABLE } else { "application/json" };
    let by_name = name.as_ref().map(|n| format!("metadata.name={n}"));
    let fields = by_name.as_deref().unwrap_or(&options.field_selector);
    let path = resource.path(options.namespace(api), "");
    let selectors = [("labelSelector", options.selector.as_str()), ("fieldSelector", fields)];
    let list = api.get_as(&format!("{path}{}", query(&selectors)), accept).await?;
    let mut table = options.table(resource, false);
    if !options.watch_only {
        match accept {
            TABLE => say(&table.text(&list))?,
            _ => {
                for item in list["items"].as_array().into_iter().flatten() {
                    show(options, resource, item)?;
                }
            }
        }
    }
    let mut version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    loop {
        let pairs = [
            selectors[0],
            selectors[1],
            ("watch", "true"),
            ("resourceVersion", &version),
            ("allowWatchBookmarks", "true"),
        ];
        let mut lines = Lines::new(api.stream(&format!("{path}{}", query(&pairs)), accept).await?);
        // A watch ends now and then, by the server's choice; the next one goes on where it ended.
        while let Some(line) = lines.next().await? {
            let event: Value = serde_json::from_slice(&line).context("the server's watch event is not JSON")?;
            let object = &event["object"];
            if event["type"] == "ERROR" {
                let code = object["code"].as_u64().unwrap_or(500) as u16;
                bail!(ApiError { code, status: object.clone() });
            }
            let row = &object["rows"][0]["object"];
            let metadata = if accept == TABLE && row.is_object() { &row["metadata"] } else { &object["metadata"] };
            if let Some(seen) = metadata["resourceVersion"].as_str() {
                version = seen.to_owned();
            }
            if event["type"] == "BOOKMARK" {
                continue;
            }
            match accept {
                TABLE => say(&table.text(object))?,
                _ => show(options, resource, object)?,
            }
        }
    }
}

/// One object of a watch.
fn show(options: &Options, resource: &Resource, item: &Value) -> anyhow::Result<()> {
    if options.output == Format::Name {
        return say(&format!("{}/{}\n", resource.qualified(), item["metadata"]["name"].as_str().unwrap_or_default()));
    }
    let item = if options.show_managed_fields { item.clone() } else { output::without_managed_fields(item.clone()) };
    let text = output::object(&options.output, &item);
    match options.output {
        Format::Yaml => say(&format!("---\n{text}")),
        Format::JsonPath(_) => say(&format!("{text}\n")),
        _ => say(&text),
    }
}
