//! The objects that the words of a command line mean: `pods`, `pod web-1`, `pod/web-1 svc/web`, `pods,services`.

use super::discovery::{Discovery, Resource};
use crate::client::Api;
use anyhow::{Context as _, bail};
use serde_json::Value;

/// A kind, and a name in it unless the whole collection is meant.
pub type Meant<'d> = (&'d Resource, Option<String>);

/// Reads the words. None at all is an error: nobody means everything.
pub fn meant<'d>(discovery: &'d Discovery, words: &[String]) -> anyhow::Result<Vec<Meant<'d>>> {
    let Some(first) = words.first() else {
        bail!("you must say which resource; for example: pods, deployment/web, or svc web");
    };
    if words.iter().any(|w| w.contains('/')) {
        let one = |word: &String| {
            let (kind, name) =
                word.split_once('/').filter(|(k, n)| !k.is_empty() && !n.is_empty()).with_context(|| {
                    format!("{word:?} stands beside a TYPE/NAME, so it must be written as TYPE/NAME too")
                })?;
            anyhow::Ok((discovery.find(kind)?, Some(name.to_owned())))
        };
        return words.iter().map(one).collect();
    }
    let mut kinds = Vec::new();
    for word in first.split(',').filter(|w| !w.is_empty()) {
        kinds.extend(discovery.kinds(word)?);
    }
    if words.len() == 1 {
        return Ok(kinds.into_iter().map(|k| (k, None)).collect());
    }
    Ok(kinds.into_iter().flat_map(|k| words[1..].iter().map(move |n| (k, Some(n.clone())))).collect())
}

/// Words that must mean one object by its name.
pub fn one<'d>(discovery: &'d Discovery, words: &[String]) -> anyhow::Result<(&'d Resource, String)> {
    match meant(discovery, words)?.as_slice() {
        [(kind, Some(name))] => Ok((*kind, name.clone())),
        [(_, None)] => bail!("say which one: TYPE/NAME or TYPE NAME"),
        _ => bail!("one object at a time"),
    }
}

/// The pod that `POD` or `TYPE/NAME` means: a workload or Service stands for the first of its pods that runs.
pub async fn pod(api: &Api, word: &str) -> anyhow::Result<String> {
    let Some((kind, name)) = word.split_once('/') else { return Ok(word.to_owned()) };
    let discovery = Discovery::load(api).await?;
    let resource = discovery.find(kind)?;
    if resource.kind == "Pod" {
        return Ok(name.to_owned());
    }
    let object = api.get(&resource.path(Some(&api.namespace), name)).await?;
    let selector = selector_of(&object).with_context(|| format!("{word} selects no pods"))?;
    let pods = discovery.find("pods")?.path(Some(&api.namespace), "");
    let list = api.get(&format!("{pods}{}", super::target::query(&[("labelSelector", &selector)]))).await?;
    let mut found: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    found.sort_by_key(|p| p["status"]["phase"] != "Running");
    let first = found.first().and_then(|p| p["metadata"]["name"].as_str());
    Ok(first.with_context(|| format!("{word} has no pods"))?.to_owned())
}

/// The label selector of a workload or Service, as a query.
fn selector_of(object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    let labels = selector["matchLabels"].as_object().or_else(|| selector.as_object())?;
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::discovery::tests::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn words() {
        let discovery = sample();
        let check = |words: &[&str], expect: Result<&[&str], &str>| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            let found = meant(&discovery, &words);
            let found = found.map_err(|e| e.to_string()).map(|list| {
                list.iter().map(|(r, n)| format!("{} {}", r.plural, n.as_deref().unwrap_or("*"))).collect::<Vec<_>>()
            });
            let expect = expect.map(|e| e.iter().map(ToString::to_string).collect()).map_err(String::from);
            assert_eq!(found, expect);
        };
        check(&["po"], Ok(&["pods *"]));
        check(&["po,no"], Ok(&["pods *", "nodes *"]));
        check(&["pod", "a", "b"], Ok(&["pods a", "pods b"]));
        check(&["pod/a", "deploy/b"], Ok(&["pods a", "deployments b"]));
        check(&["all"], Ok(&["pods *", "deployments *"]));
        check(&["pod/a", "b"], Err("\"b\" stands beside a TYPE/NAME, so it must be written as TYPE/NAME too"));
        check(&["ship"], Err("the server doesn't have a resource type \"ship\""));
    }

    #[test]
    fn selectors() {
        let check = |object: Value, expect: Option<&str>| assert_eq!(selector_of(&object).as_deref(), expect);
        check(json!({"spec": {"selector": {"matchLabels": {"a": "b", "c": "d"}}}}), Some("a=b,c=d"));
        check(json!({"spec": {"selector": {"app": "web"}}}), Some("app=web"));
        check(json!({"spec": {}}), None);
    }
}
