//! Snapshots: taken over the network, looked at, restored into clusters of other sizes at other addresses.

use crate::support::*;
use anyhow::{Context as _, ensure};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::watch_client::WatchClient;

pub const TESTS: &[Test] = &[
    ("a snapshot of one is restored as three", || Box::pin(one_to_three())),
    ("a snapshot of three is restored as one", || Box::pin(three_to_one())),
    ("what is no snapshot is refused by name", || Box::pin(refused())),
];

/// The number behind a word at a line's begin.
fn number(text: &str, word: &str) -> anyhow::Result<u64> {
    let line = text.lines().find(|line| line.starts_with(word));
    let number = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    number.with_context(|| format!("no {word} in {text}"))
}

/// The values of all keys.
async fn all(endpoint: &str) -> anyhow::Result<String> {
    ctl(endpoint, &["get", "", "--prefix"]).await
}

/// How a watch from a revision ends at once: (the compact revision, the reason).
async fn cancelled_watch(endpoint: &str, revision: i64) -> anyhow::Result<(i64, String)> {
    use pb::watch_request::RequestUnion;
    let create = pb::WatchCreateRequest { key: "k0".into(), start_revision: revision, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream stays open: only the answer ends it.
    let (keep, requests) = tokio::sync::mpsc::channel(1);
    keep.send(request).await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = WatchClient::new(channel(endpoint)?).watch(requests).await?.into_inner();
    loop {
        let answer = tokio::time::timeout(WAIT_MAX, answers.message()).await.context("no answer")??;
        let answer = answer.context("the stream ended")?;
        if answer.canceled {
            return Ok((answer.compact_revision, answer.cancel_reason));
        }
    }
}

async fn one_to_three() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let old = Plan::new(&dir, "old", &[])?.start().await?;
    for i in 0..20 {
        ctl(old.endpoint(), &["put", &format!("k{}", i % 7), &i.to_string()]).await?;
    }
    ctl(old.endpoint(), &["del", "k6"]).await?;
    let granted = ctl(old.endpoint(), &["lease", "grant", "3600"]).await?;
    let lease = granted.split_whitespace().nth(1).context("no lease id")?.to_owned();
    ctl(old.endpoint(), &["put", "held", "v", "--lease", &lease]).await?;
    ctl(old.endpoint(), &["compaction", "5"]).await?;
    let (by_us, by_etcdctl) = (dir.arg("a.db"), dir.arg("b.db"));
    let said = store(&["snapshot", "save", &by_us, "--endpoint", old.endpoint()]).await?;
    holds(&said, &["saved 7 keys at revision 23", &by_us])?;
    holds(&ctl(old.endpoint(), &["snapshot", "save", &by_etcdctl]).await?, &["Snapshot saved"])?;
    let status = store(&["snapshot", "status", &by_us]).await?;
    ensure!(status == store(&["snapshot", "status", &by_etcdctl]).await?, "the same, whoever saved it: {status}");
    holds(&status, &["revision   23 (compacted to 5)", "keys       7", "leases     1", &old.plan.peer])?;
    let before = all(old.endpoint()).await?;
    ctl(old.endpoint(), &["put", "k0", "too late"]).await?;
    let old = old.terminate().await?;
    // Three members, each from the same file.
    let mut plans =
        ["x", "y", "z"].map(|name| Plan::new(&dir, name, &[])).into_iter().collect::<Result<Vec<_>, _>>()?;
    let cluster = initial_cluster(&plans);
    for plan in &mut plans {
        let data = plan.data.display().to_string();
        let restore =
            ["snapshot", "restore", &by_us, "--data-dir", &data, "--name", &plan.name, "--initial-cluster", &cluster];
        let said = store(&restore).await?;
        // It says how to go on.
        let (_, command) = said.trim().split_once("start it: skiff store ").context("no next step")?;
        ensure!(
            command == format!("serve --name {} --data-dir {data} --listen-peer {}", plan.name, plan.peer),
            "{command}"
        );
        holds(&store_fails(&restore).await?, &[&data, "holds a member's data already"])?;
    }
    let servers = start_all(&plans).await?;
    for server in &servers {
        ensure!(all(server.endpoint()).await? == before, "the same keys with the same values");
    }
    let first = servers[0].endpoint();
    ensure!(ctl(first, &["member", "list"]).await?.lines().count() == 3);
    holds(&ctl(first, &["lease", "timetolive", &lease, "--keys"]).await?, &["attached keys([held])"])?;
    ctl(first, &["put", "k0", "new"]).await?;
    holds(&ctl(servers[1].endpoint(), &["get", "k0"]).await?, &["new"])?;
    let bumped = servers[0].metric("skiff_store_compacted_revision").await?;
    ensure!(bumped == 1_000_000_023, "everything before it counts as compacted: {bumped}");
    for revision in [1, 23, 24] {
        let (compacted, reason) = cancelled_watch(first, revision).await?;
        ensure!(compacted as u64 == bumped + 1, "the first revision that can be watched: {compacted}");
        holds(&reason, &["required revision has been compacted"])?;
    }
    holds(&ctl_fails(first, &["watch", "k0", "--rev=23"]).await?, &["required revision has been compacted"])?;
    holds(&ctl_fails(first, &["get", "k0", "--rev=23"]).await?, &["required revision has been compacted"])?;
    // The old cluster, if somebody starts it again, has nothing to do with the new one.
    let old = old.start().await?;
    holds(&ctl(old.endpoint(), &["get", "k0"]).await?, &["too late"])?;
    ensure!(ctl(old.endpoint(), &["member", "list"]).await?.lines().count() == 1);
    Ok(())
}

async fn three_to_one() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let old = leader_first(start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?).await?;
    for i in 0..5 {
        ctl(old[0].endpoint(), &["put", &format!("k{i}"), "v"]).await?;
    }
    // From a follower, once it has them all.
    ctl(old[1].endpoint(), &["get", "k4"]).await?;
    let file = dir.arg("saved.db");
    store(&["snapshot", "save", &file, "--endpoint", &format!("http://{}", old[1].endpoint())]).await?;
    let status = store(&["snapshot", "status", &file]).await?;
    ensure!(number(&status, "revision")? == 6 && status.matches("member ").count() == 3, "{status}");
    for server in old {
        server.kill().await?;
    }
    let plan = Plan::new(&dir, "alone", &[])?;
    let data = plan.data.display().to_string();
    store(&["snapshot", "restore", &file, "--data-dir", &data, "--advertise-peer", &plan.peer, "--bump-revision", "7"])
        .await?;
    let alone = plan.start().await?;
    ensure!(ctl(alone.endpoint(), &["get", "k", "--prefix", "--keys-only"]).await?.matches('k').count() == 5);
    holds(&ctl(alone.endpoint(), &["put", "k", "v", "-w", "json"]).await?, &["\"revision\":14"])?;
    ensure!(ctl(alone.endpoint(), &["member", "list"]).await?.lines().count() == 1);
    Ok(())
}

async fn refused() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let server = Plan::new(&dir, "one", &[])?.start().await?;
    for i in 0..50 {
        ctl(server.endpoint(), &["put", &format!("key{i}"), "value"]).await?;
    }
    let (file, data) = (dir.arg("s.db"), dir.arg("restored"));
    store(&["snapshot", "save", &file, "--endpoint", server.endpoint()]).await?;
    let whole = std::fs::read(&file)?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let table = [
        ("flipped.db", flipped, "its checksum is wrong"),
        ("short.db", whole[..whole.len() - 512].to_vec(), "its checksum is wrong"),
        ("torn.db", whole[..whole.len() - 100].to_vec(), "its size"),
        ("other.db", b"something else".to_vec(), "its size"),
        ("empty.db", Vec::new(), "its size"),
    ];
    for (name, bytes, expected) in table {
        let path = dir.arg(name);
        std::fs::write(&path, bytes)?;
        holds(&store_fails(&["snapshot", "status", &path]).await?, &[&path, expected])?;
        holds(&store_fails(&["snapshot", "restore", &path, "--data-dir", &data]).await?, &[&path, expected])?;
        ensure!(!dir.sub("restored").exists(), "nothing is made from it");
    }
    holds(&store_fails(&["snapshot", "status", &dir.arg("none.db")]).await?, &["none.db", "No such file"])?;
    let wrong =
        ["snapshot", "restore", &file, "--data-dir", &data, "--name", "q", "--initial-cluster", "a=127.0.0.1:1"];
    holds(&store_fails(&wrong).await?, &["no member of the initial cluster is called \"q\""])?;
    // Nobody there: told with the address and the cause, and no file is left.
    let (nobody, missing) = (free()?, dir.arg("missing.db"));
    holds(
        &store_fails(&["snapshot", "save", &missing, "--endpoint", &nobody]).await?,
        &[&nobody, "Connection refused"],
    )?;
    let left: Vec<_> = std::fs::read_dir(dir.sub("."))?.filter_map(|e| e.ok()).map(|e| e.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().starts_with("missing")), "{left:?}");
    Ok(())
}
