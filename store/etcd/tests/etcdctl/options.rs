//! What else etcdctl has: formats, options that change what is asked for, and the commands about users.

use crate::support::{Begin, Dir, Member, Test, ctl, holds, same, until, version};
use anyhow::{Context as _, ensure};
use skiff_etcd::Settings;
use std::net::TcpListener;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("formats", || Box::pin(formats())),
    ("txn with every compare, and interactive", || Box::pin(txn())),
    ("watch runs a command", || Box::pin(watch_runs())),
    ("watch tells its progress", || Box::pin(watch_progress())),
    ("count-only and del of a range", || Box::pin(newer())),
    ("mirrors with other prefixes", || Box::pin(mirror())),
    ("users and roles", || Box::pin(users())),
    ("the whole cluster, and endpoints that are dead", || Box::pin(cluster())),
    ("leases that are gone", || Box::pin(leases())),
    ("check perf", || Box::pin(perf())),
];

/// Whether the client is 3.4, which lacks some options.
fn is_old() -> bool {
    version().is_some_and(|v| v.contains("3.4."))
}

async fn formats() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    m.ctl("put key v").await?;
    same(&m.ctl("--hex get key").await?, "\\x6b\\x65\\x79\n\\x76\n")?;
    for part in ["\"CreateRevision\" : 2", "\"Version\" : 1", "\"Lease\" : 0", "\"Count\" : 1"] {
        holds(&m.ctl("get key -w fields").await?, part)?;
    }
    holds(&m.ctl("get key -w protobuf").await?, "key")?;
    holds(&m.ctl("put key w --prev-kv -w json").await?, r#""prev_kv":{"key":"a2V5""#)?;
    holds(&m.ctl("del key --prev-kv -w json").await?, r#""deleted":1,"prev_kvs":["#)?;
    let id = format!("{:x}", m.store.id());
    for (args, part) in [
        ("member list -w table", id.as_str()),
        ("member list -w json", r#""name":"one""#),
        ("member list -w fields", "\"PeerURL\""),
        ("endpoint status -w table", "| IS LEADER |"),
        ("endpoint status -w json", r#""version":"3.5."#),
        ("endpoint status -w fields", "\"RaftIndex\""),
        ("endpoint health -w json", r#""health":true"#),
        ("endpoint hashkv -w json", r#""hash":"#),
        ("endpoint hashkv --rev=2", ", "),
    ] {
        holds(&m.ctl(args).await?, part).with_context(|| args.to_owned())?;
    }
    let with_one = m.ctl("endpoint hashkv --rev=2").await?;
    m.ctl("put later 1").await?;
    same(&m.ctl("endpoint hashkv --rev=2").await?, &with_one)?;
    ensure!(m.ctl("endpoint hashkv").await? != with_one);
    holds(&m.fails("endpoint hashkv --rev=99").await?, "required revision is a future revision")?;
    m.stop().await;
    Ok(())
}

async fn txn() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    let said = m.ctl("lease grant 60").await?;
    let lease = said.split_whitespace().nth(1).context("no lease id")?.to_owned();
    m.ctl(&format!("put a 1 --lease={lease}")).await?;
    m.ctl("put b 1").await?;
    for (compares, expected) in [
        ("version(\"a\") > \"0\"\n", "SUCCESS"),
        ("version(\"a\") < \"1\"\n", "FAILURE"),
        ("mod(\"a\") < \"3\"\nmod(\"b\") > \"2\"\n", "SUCCESS"),
        ("create(\"none\") = \"0\"\n", "SUCCESS"),
        ("value(\"a\") < \"2\"\n", "SUCCESS"),
        ("value(\"none\") = \"\"\n", "FAILURE"),
        ("", "SUCCESS"),
    ] {
        holds(&m.ctl_with(&["txn"], &format!("{compares}\nget a\n\nget b\n\n")).await?, expected)
            .with_context(|| compares.to_owned())?;
    }
    // Options inside of a transaction.
    let input = format!("\nput c 1 --lease={lease}\nget a --from-key --limit=2\ndel b --prev-kv\n\n\n");
    let said = m.ctl_with(&["txn"], &input).await?;
    for part in ["SUCCESS", "OK", "a\n1\nb\n1", "1\nb\n1"] {
        holds(&said, part)?;
    }
    holds(&m.ctl(&format!("lease timetolive {lease} --keys")).await?, "attached keys([a c])")?;
    let said = m.ctl_with(&["txn", "-i"], "mod(\"a\") > \"0\"\n\nput d 1\n\n\n").await?;
    for part in ["compares:", "success requests", "failure requests", "SUCCESS", "OK"] {
        holds(&said, part)?;
    }
    same(&m.ctl("get d --print-value-only").await?, "1\n")?;
    m.stop().await;
    Ok(())
}

async fn watch_runs() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    m.ctl("put a 1").await?;
    let mut watch = m.begin("watch a --rev=1 -- printenv ETCD_WATCH_KEY ETCD_WATCH_VALUE ETCD_WATCH_EVENT_TYPE")?;
    watch.expect(&["PUT", "a", "1", "\"a\"", "\"1\"", "\"PUT\""]).await?;
    m.ctl("del a").await?;
    watch.expect(&["DELETE", "a", "", "\"a\"", "\"\"", "\"DELETE\""]).await?;
    watch.interrupt().await?;
    m.stop().await;
    Ok(())
}

async fn watch_progress() -> anyhow::Result<()> {
    if is_old() {
        return Ok(());
    }
    let dir = Dir::new()?;
    let settings = Settings { progress_every: Duration::from_millis(100), ..Default::default() };
    let m = Member::start(&dir.sub("one"), "one", Begin { settings, ..Default::default() }).await?;
    let mut watch = m.begin("watch quiet --progress-notify")?;
    same(&watch.line().await?, "progress notify: 1")?;
    m.ctl("put other 1").await?;
    while watch.line().await? != "progress notify: 2" {}
    watch.interrupt().await?;
    m.stop().await;
    Ok(())
}

async fn newer() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    for key in ["a", "b", "c", "d"] {
        m.ctl(&format!("put {key} 1")).await?;
    }
    if !is_old() {
        holds(&m.ctl("get a --prefix --count-only -w fields").await?, "\"Count\" : 1")?;
        holds(&m.ctl("get a --from-key --count-only -w fields").await?, "\"Count\" : 4")?;
        same(&m.ctl("del a c --range").await?, "2\n")?;
        same(&m.ctl("get a --from-key --keys-only").await?, "c\n\nd\n\n")?;
        holds(&m.ctl("auth status").await?, "Authentication Status: false")?;
    }
    m.stop().await;
    Ok(())
}

async fn mirror() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let from = Member::alone(&dir).await?;
    let to = Member::start(&dir.sub("two"), "two", Begin::default()).await?;
    for key in ["in/a", "in/b", "out"] {
        from.ctl(&format!("put {key} 1")).await?;
    }
    let moved = from.begin(&format!("make-mirror --prefix in/ --dest-prefix copy/ {}", to.endpoint))?;
    let bare = from.begin(&format!("make-mirror --prefix in/ --no-dest-prefix {}", to.endpoint))?;
    until("both are there", || async {
        Ok(to.ctl_with(&["get", "", "--prefix", "--keys-only"], "").await? == "a\n\nb\n\ncopy/a\n\ncopy/b\n\n")
    })
    .await?;
    from.ctl("del in/a").await?;
    until("what is deleted goes there, too", || async { Ok(to.ctl("get copy/a").await?.is_empty()) }).await?;
    moved.interrupt().await?;
    bare.interrupt().await?;
    from.stop().await;
    to.stop().await;
    Ok(())
}

async fn users() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    same(&m.ctl("user list").await?, "")?;
    same(&m.ctl("role list").await?, "")?;
    same(&m.ctl("auth disable").await?, "Authentication Disabled\n")?;
    for (args, expected) in [
        ("auth enable", "etcdserver: root user does not exist"),
        ("user add u:p", "keeps no users and roles; clients prove themselves by certificate"),
        ("user get u", "etcdserver: user name not found"),
        ("user delete u", "etcdserver: user name not found"),
        ("user grant-role u r", "etcdserver: user name not found"),
        ("user revoke-role u r", "etcdserver: user name not found"),
        ("role add r", "keeps no users and roles"),
        ("role get r", "etcdserver: role name not found"),
        ("role delete r", "etcdserver: role name not found"),
        ("role grant-permission r readwrite k", "etcdserver: role name not found"),
        ("role revoke-permission r k", "etcdserver: role name not found"),
    ] {
        holds(&m.fails(args).await?, expected).with_context(|| args.to_owned())?;
    }
    let changed = m.ctl_with(&["user", "passwd", "u", "--interactive=false"], "new\n").await;
    holds(&changed.err().context("it should fail")?.to_string(), "etcdserver: user name not found")?;
    // As with etcd, whoever gives a password that is not asked for is served.
    m.ctl("--user=u:p put a 1").await?;
    m.stop().await;
    Ok(())
}

async fn cluster() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let one = Member::alone(&dir).await?;
    let begin = Begin { join: vec![one.peer.clone()], ..Default::default() };
    let two = Member::start(&dir.sub("two"), "two", begin).await?;
    one.ctl("endpoint health --cluster").await?;
    for args in ["endpoint status --cluster", "defrag --cluster"] {
        let said = one.ctl(args).await?;
        holds(&said, &one.endpoint).and_then(|()| holds(&said, &two.endpoint)).with_context(|| args.to_owned())?;
    }
    until("both have the same", || async {
        let said = two.ctl("endpoint hashkv --cluster").await?;
        let hashes: std::collections::HashSet<_> = said.lines().filter_map(|l| l.split(", ").nth(1)).collect();
        Ok(said.lines().count() == 2 && hashes.len() == 1)
    })
    .await?;
    // A dead endpoint among them is passed over, and named where each is asked.
    let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let some = format!("{dead},{}", two.endpoint);
    same(&ctl(&some, &["--command-timeout=10s", "put", "a", "1"], "").await?, "OK\n")?;
    same(&ctl(&some, &["--command-timeout=10s", "get", "a", "--print-value-only"], "").await?, "1\n")?;
    let health = ctl(&some, &["--command-timeout=2s", "--dial-timeout=1s", "endpoint", "health"], "").await;
    holds(&health.err().context("one is dead")?.to_string(), &format!("{dead} is unhealthy"))?;
    // From one that does not lead.
    let leader = one.store.leadership().borrow().leader.context("no leader")?;
    let (led, other) = if leader == one.store.id() { (&one, &two) } else { (&two, &one) };
    until("it votes", || async { Ok(led.ctl("member list").await?.matches(", false").count() == 2) }).await?;
    holds(&other.fails(&format!("move-leader {:x}", other.store.id())).await?, "no leader endpoint")?;
    holds(&led.fails("move-leader 123").await?, "bad leader transferee")?;
    one.stop().await;
    two.store.stop().await;
    Ok(())
}

async fn leases() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    holds(&m.ctl("lease keep-alive 123 --once").await.err().context("it should fail")?.to_string(), "lease not found")?;
    holds(&m.ctl("lease timetolive 123 -w json").await?, r#""ttl":-1"#)?;
    holds(&m.fails("lease grant 99999999999").await?, "too large lease TTL")?;
    let said = m.ctl("lease grant 60 -w json").await?;
    holds(&said, r#""TTL":60"#)?;
    let list = m.ctl("lease list").await?;
    let lease = list.lines().nth(1).context("no lease")?;
    let mut alive = m.begin(&format!("lease keep-alive {lease}"))?;
    holds(&alive.line().await?, "keepalived with TTL(60)")?;
    m.ctl(&format!("lease revoke {lease}")).await?;
    same(&m.ctl("lease list").await?, "found 0 leases\n")?;
    alive.interrupt().await?;
    let mut lock = m.begin("lock brief --ttl=2")?;
    let key = lock.line().await?;
    let held = m.ctl(&format!("get {key} -w json")).await?;
    ensure!(!held.contains(r#""lease":0"#) && held.contains(r#""lease":"#), "{held}");
    // Killed, it cannot give the lock back: its lease does.
    lock.child.kill().await?;
    holds(&m.ctl("lock brief echo mine").await?, "mine")?;
    m.stop().await;
    Ok(())
}

async fn perf() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    // A minute of 150 puts a second. Whether that passes is the machine's affair; that it ends, and takes its keys away, is ours.
    let mut check = m.begin("check perf --load=s --auto-compact --auto-defrag")?;
    let ended =
        tokio::time::timeout(Duration::from_secs(120), check.child.wait()).await.context("it does not end")??;
    ensure!(ended.code().is_some(), "{ended}");
    same(&m.ctl("get /etcdctl-check-perf/ --prefix --keys-only").await?, "")?;
    ensure!(m.store.revision() > 1000, "it put only {} keys", m.store.revision());
    ensure!(m.store.status().compacted > 1, "it compacted");
    m.stop().await;
    Ok(())
}
