//! Commands that go on while something else is done: a watch, a log that is followed, a terminal, `proxy`.

use crate::kubectl::Kubectl;
use crate::local::PATIENCE;
use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

pub fn all(k: &Kubectl) -> anyhow::Result<()> {
    watch(k).context("get -w")?;
    wait(k).context("wait")?;
    follow(k).context("logs -f")?;
    proxy(k).context("proxy")
}

/// The lines of a command, as they come.
fn lines(out: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    receive
}

/// Takes lines until one holds the text; that line.
fn await_line(lines: &Receiver<String>, wanted: &str) -> anyhow::Result<String> {
    let (begun, mut seen) = (Instant::now(), Vec::new());
    loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            Ok(line) if line.contains(wanted) => return Ok(line),
            Ok(line) => seen.push(line),
            Err(RecvTimeoutError::Timeout) => anyhow::bail!("no {wanted:?} in {seen:?}"),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("it ended without {wanted:?}, after {seen:?}"),
        }
    }
}

/// Each change is a line as soon as it happens.
fn watch(k: &Kubectl) -> anyhow::Result<()> {
    let mut running = k.spawn("get configmaps --watch --output-watch-events --field-selector=metadata.name=watched")?;
    let out = lines(running.0.stdout.take().context("an output")?);
    k.run("create configmap watched --from-literal=a=b")?;
    await_line(&out, "ADDED")?;
    k.run("patch configmap watched -p '{\"data\":{\"c\":\"d\"}}'")?;
    await_line(&out, "MODIFIED")?;
    k.run("delete configmap watched")?;
    await_line(&out, "DELETED").map(drop)
}

/// `wait` begins before that for which it waits.
fn wait(k: &Kubectl) -> anyhow::Result<()> {
    k.run("run waited --image=scenarios.local/busybox:1 --overrides '{\"spec\":{\"terminationGracePeriodSeconds\":0}}' -- sleep 10000")?;
    k.run("wait pod/waited --for=condition=Ready --timeout=60s")?;
    let labelled = k.spawn("wait pod/waited --for=jsonpath='{.metadata.labels.colour}'=green --timeout=60s")?;
    let gone = k.spawn("wait pod/waited --for=delete --timeout=60s")?;
    k.run("label pod waited colour=green")?;
    let code = labelled.code()?;
    ensure!(code == Some(0), "waiting for a label ended with {code:?}");
    k.run("delete pod waited --wait=false")?;
    let code = gone.code()?;
    ensure!(code == Some(0), "waiting for the deletion ended with {code:?}");
    Ok(())
}

/// Several containers of several pods in one stream; it ends with the last of them.
fn follow(k: &Kubectl) -> anyhow::Result<()> {
    for name in ["talks-1", "talks-2"] {
        let script = "until [ -e /tmp/go ]; do echo here; sleep 0.1; done; echo end";
        k.run(&format!(
            "run {name} --image=scenarios.local/busybox:1 --labels=app=talks --restart=Never --command -- sh -c '{script}'"
        ))?;
    }
    k.run("wait pod -l app=talks --for=condition=Ready --timeout=60s")?;
    let mut running = k.spawn("logs -f -l app=talks --prefix --tail=1")?;
    let out = lines(running.0.stdout.take().context("an output")?);
    for name in ["talks-1", "talks-2"] {
        await_line(&out, &format!("[pod/{name}/{name}] here"))?;
    }
    for name in ["talks-1", "talks-2"] {
        k.run(&format!("exec {name} -- touch /tmp/go"))?;
        await_line(&out, &format!("[pod/{name}/{name}] end"))?;
    }
    let code = running.code()?;
    ensure!(code == Some(0), "following ended with {code:?}");
    k.run("delete pod -l app=talks --now").map(drop)
}

/// The API on a port of this machine, for curl and for browsers.
fn proxy(k: &Kubectl) -> anyhow::Result<()> {
    let mut running = k.spawn("proxy --port=0")?;
    let out = lines(running.0.stdout.take().context("an output")?);
    let line = await_line(&out, "Starting to serve on ")?;
    let address: std::net::SocketAddr = line.rsplit(' ').next().context("an address")?.parse()?;
    let said = crate::first_hour::request(address, "GET", "/api/v1/namespaces/day", "Host: localhost\r\n")?;
    ensure!(said.status == 200 && said.body.contains("\"name\":\"day\""), "{}\n{}", said.head, said.body);
    Ok(())
}
