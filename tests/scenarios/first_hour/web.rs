//! nginx with its configuration and pages in config maps behind a node port, and redis with a password from a Secret.

use super::{Visitors, node_port, page, software};
use crate::kubectl::Kubectl;
use crate::local::{Local, wait_until};
use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader};

pub fn nginx_and_redis(local: &Local) -> anyhow::Result<()> {
    software::images(local)?;
    let k = Kubectl::newest(local, "first-hour")?;
    k.run("create namespace first-hour")?;
    local.file("index.html", "<h1>hello</h1>\n")?;
    k.says("create configmap site --from-file=index.html", &["configmap/site created"])?;
    k.says("create secret generic redis --from-literal=password=s3cret", &["secret/redis created"])?;
    local.file("web.yaml", include_str!("web.yaml"))?;
    k.says("apply -f web.yaml", &["deployment.apps/web created", "poddisruptionbudget.policy/web created"])?;
    k.says("rollout status deployment/web --timeout=60s", &["successfully rolled out"])?;
    k.says("rollout status deployment/redis --timeout=60s", &["successfully rolled out"])?;
    site(&k).context("the site")?;
    redis(&k).context("redis")?;
    upkeep(&k).context("upkeep")?;
    k.says("delete -f web.yaml --timeout=60s", &["deployment.apps \"web\" deleted"])?;
    k.says("delete namespace first-hour --timeout=60s", &["namespace \"first-hour\" deleted"])?;
    Ok(())
}

/// Everything from which a page is asked for: both nodes' ports, inside by name, a forwarded port.
fn site(k: &Kubectl) -> anyhow::Result<()> {
    for node in ["a1", "a2"] {
        let body = page(node_port(k, "web", node)?, "/")?;
        ensure!(body == "<h1>hello</h1>\n", "{node} answers {body:?}");
    }
    for name in ["web", "web.first-hour", "web.first-hour.svc.cluster.local"] {
        let said = k.run(&format!("exec deploy/web -- curl -fsS http://{name}/"))?;
        ensure!(said == "<h1>hello</h1>\n", "{name} answers {said:?}");
    }
    let mut forward = k.spawn("port-forward service/web :80")?;
    let mut said = String::new();
    BufReader::new(forward.0.stdout.as_mut().context("an output")?).read_line(&mut said)?;
    let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).context(said.clone())?;
    ensure!(page(address.parse()?, "/healthz")? == "well\n", "the forwarded port");
    drop(forward);
    // Every request is a line of some pod's log; those of the probes are not.
    let logs = k.run("logs -l app=web --tail=-1 --prefix")?;
    ensure!(logs.contains("\"GET / HTTP/1.0\" 200") && logs.contains("curl/"), "{logs}");
    ensure!(!logs.contains("healthz"), "{logs}");

    // A file goes in, is served, and comes out again.
    let pod = k.run("get pod -l app=web -o jsonpath={.items[0].metadata.name}")?;
    std::fs::create_dir_all(k.local.dir.join("pages/deep"))?;
    k.local.file("pages/deep/one.txt", "one\n")?;
    k.run(&format!("cp pages {pod}:/srv/files/"))?;
    let said = k.run(&format!("exec {pod} -- curl -fsS http://localhost/files/pages/deep/one.txt"))?;
    ensure!(said == "one\n", "{said:?}");
    k.run(&format!("cp {pod}:/srv/files back"))?;
    ensure!(std::fs::read_to_string(k.local.dir.join("back/pages/deep/one.txt"))? == "one\n", "what came back");
    ensure!(std::fs::read_to_string(k.local.dir.join("back/started"))? == "started\n", "the postStart hook");
    Ok(())
}

/// Commands to `redis-cli` in a pod of its own, by the Service's name. They are its input: `kubectl run -i` of a program that ends before it is attached to
/// shows what it said twice, on every cluster.
fn cli(k: &Kubectl, password: &str, commands: &str) -> anyhow::Result<String> {
    let run = "run cli --rm -i --quiet --restart=Never --image=scenarios.local/redis:1 --command --";
    k.pipe(&format!("{run} redis-cli -h redis -a {password} --no-auth-warning"), commands)
}

fn redis(k: &Kubectl) -> anyhow::Result<()> {
    let said = cli(k, "s3cret", "ping\nset colour green\n")?;
    ensure!(said == "PONG\nOK\n", "the first commands: {said:?}");
    let said = cli(k, "wrong", "get colour\n")?;
    ensure!(said.contains("NOAUTH"), "with another password: {said}");
    let pod = |k: &Kubectl| k.run("get pod -l app=redis -o jsonpath={.items[0].metadata.name}");
    let first = pod(k)?;
    let owner = k.run("exec deploy/redis -- sh -c 'id -u; stat -c %g /data'")?;
    ensure!(owner == "998\n998\n", "{owner}");

    // The process ends; the container is started again in place, with its volume.
    k.run("exec deploy/redis -- sh -c 'kill 1'")?;
    let restarts = "get pod -l app=redis -o jsonpath={.items[0].status.containerStatuses[0].restartCount}";
    k.until(restarts, |count| count == "1")?;
    k.run("wait --for=condition=Ready pod -l app=redis --timeout=60s")?;
    ensure!(pod(k)? == first, "another pod");
    ensure!(k.run("logs deploy/redis --previous")?.contains("User requested shutdown"), "the log before the restart");
    let last =
        k.run(&format!("get pod {first} -o jsonpath={{.status.containerStatuses[0].lastState.terminated.exitCode}}"))?;
    ensure!(last == "0", "the last exit code is {last:?}");
    ensure!(cli(k, "s3cret", "get colour\n")? == "green\n", "the append-only file");

    // The pod goes; another comes, with an empty folder, and with the password that the Secret has now.
    let new = "create secret generic redis --from-literal=password=n3w --dry-run=client -o yaml";
    let secret = k.run(new)?;
    let said = k.pipe("apply -f -", &secret)?;
    ensure!(said.contains("secret/redis configured"), "{said}");
    k.says(&format!("delete pod {first}"), &["deleted"])?;
    k.says("rollout status deployment/redis --timeout=60s", &["successfully rolled out"])?;
    ensure!(pod(k)? != first, "the same pod");
    ensure!(cli(k, "n3w", "get colour\n")? == "\n", "the new pod's folder is not new");
    Ok(())
}

/// What is done to a site that has visitors.
fn upkeep(k: &Kubectl) -> anyhow::Result<()> {
    let to = node_port(k, "web", "a2")?;
    // New pages reach the pods that run.
    k.local.file("index.html", "<h1>again</h1>\n")?;
    let site = k.run("create configmap site --from-file=index.html --dry-run=client -o yaml")?;
    k.pipe("replace -f -", &site)?;
    wait_until(
        "the new page is served",
        || Ok((0..8).all(|_| page(to, "/").is_ok_and(|body| body.contains("again")))),
    )?;

    let visitors = Visitors::come(to, "/");
    k.says("rollout restart deployment/web", &["restarted"])?;
    k.says("rollout status deployment/web --timeout=60s", &["successfully rolled out"])?;
    let answered = visitors.leave(200).context("during rollout restart")?;
    println!("{answered} requests answered during rollout restart");

    let visitors = Visitors::come(to, "/");
    k.says("drain a1 --ignore-daemonsets --delete-emptydir-data --timeout=60s --force", &["node/a1 drained"])?;
    k.says("rollout status deployment/web --timeout=60s", &["successfully rolled out"])?;
    let nodes = k.run("get pods -l app=web -o jsonpath={.items[*].spec.nodeName}")?;
    ensure!(nodes == "a2 a2", "after the drain the pods are on {nodes}");
    let answered = visitors.leave(200).context("during the drain")?;
    println!("{answered} requests answered during the drain");
    k.says("uncordon a1", &["node/a1 uncordoned"])?;

    // A configuration that nginx cannot read: the rollout stops, and the old pods go on.
    k.run("set env deployment/web BROKEN=1")?;
    k.says("rollout status deployment/web --timeout=60s", &["successfully rolled out"])?;
    let broken = "patch deployment web --type=json -p '[{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0/command\",\"value\":[\"nginx\",\"-c\",\"/nowhere.conf\"]}]'";
    k.run(broken)?;
    k.until("get pods -l app=web", |pods| pods.contains("CrashLoopBackOff") || pods.contains("Error"))?;
    let visitors = Visitors::come(to, "/");
    k.refused("rollout status deployment/web --timeout=2s", &["timed out"])?;
    k.says("rollout undo deployment/web", &["rolled back"])?;
    k.says("rollout status deployment/web --timeout=60s", &["successfully rolled out"])?;
    visitors.leave(50).context("during a rollout that fails")?;
    Ok(())
}
