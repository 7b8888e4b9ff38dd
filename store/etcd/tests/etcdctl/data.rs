//! Keys, transactions, compaction, watches, leases, locks and elections on one member.

use crate::support::{Begin, Dir, Member, Test, holds, same, until};
use anyhow::{Context as _, ensure};
use skiff_etcd::Settings;

pub const TESTS: &[Test] = &[
    ("get with every flag", || Box::pin(get())),
    ("put with every flag", || Box::pin(put())),
    ("del with every flag", || Box::pin(del())),
    ("txn", || Box::pin(txn())),
    ("compaction", || Box::pin(compaction())),
    ("watch", || Box::pin(watch())),
    ("watch, interactive", || Box::pin(watch_interactive())),
    ("lease", || Box::pin(lease())),
    ("lock", || Box::pin(lock())),
    ("elect", || Box::pin(elect())),
    ("limits", || Box::pin(limits())),
    ("mirror and check", || Box::pin(check())),
];

async fn get() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "9"), ("d", "0")] {
        same(&m.ctl(&format!("put {key} {value}")).await?, "OK\n")?;
    }
    let table = [
        ("get a", "a\n3\n"),
        ("get a c", "a\n3\nb\n9\n"),
        ("get b --rev=3", "b\n1\n"),
        ("get a --print-value-only", "3\n"),
        ("get a --prefix --keys-only", "a\n\n"),
        ("get c --from-key", "c\n2\nd\n0\n"),
        ("get a --from-key --limit=2", "a\n3\nb\n9\n"),
        ("get a --from-key --order=DESCEND --limit=1", "d\n0\n"),
        ("get a --from-key --sort-by=VALUE --keys-only", "d\n\nc\n\na\n\nb\n\n"),
        ("get a --from-key --sort-by=MODIFY --order=DESCEND --limit=2", "d\n0\nb\n9\n"),
        ("get a --from-key --sort-by=CREATE --limit=1", "a\n3\n"),
        ("get a --from-key --sort-by=VERSION --order=DESCEND --limit=1", "b\n9\n"),
        ("get a --from-key --sort-by=KEY --order=ASCEND --limit=1", "a\n3\n"),
        ("get a --consistency=s", "a\n3\n"),
        ("get none", ""),
    ];
    for (args, expected) in table {
        same(&m.ctl(args).await?, expected).with_context(|| args.to_owned())?;
    }
    same(&m.ctl_with(&["get", "", "--prefix", "--keys-only"], "").await?, "a\n\nb\n\nc\n\nd\n\n")?;
    holds(&m.ctl("get a --from-key --limit=2 -w json").await?, r#""more":true,"count":4"#)?;
    holds(&m.ctl("get b -w json").await?, r#""create_revision":3,"mod_revision":5,"version":2"#)?;
    holds(&m.fails("get a --rev=99").await?, "etcdserver: mvcc: required revision is a future revision")?;
    m.stop().await;
    Ok(())
}

async fn put() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    same(&m.ctl("put a 1 --prev-kv").await?, "OK\n")?;
    same(&m.ctl("put a 2 --prev-kv").await?, "OK\na\n1\n")?;
    same(&m.ctl_with(&["put", "stdin"], "from a pipe").await?, "OK\n")?;
    same(&m.ctl("get stdin --print-value-only").await?, "from a pipe\n")?;
    let granted = m.ctl("lease grant 60").await?;
    let lease = granted.split_whitespace().nth(1).context("no lease id")?.to_owned();
    m.ctl(&format!("put a 3 --lease={lease}")).await?;
    same(&m.ctl("put a --ignore-value").await?, "OK\n")?;
    same(&m.ctl("get a --print-value-only").await?, "3\n")?;
    m.ctl(&format!("put a 4 --lease={lease}")).await?;
    m.ctl("put a 5 --ignore-lease").await?;
    holds(&m.ctl(&format!("lease timetolive {lease} --keys")).await?, "attached keys([a])")?;
    m.ctl("put a 6").await?;
    holds(&m.ctl(&format!("lease timetolive {lease} --keys")).await?, "attached keys([])")?;
    holds(&m.fails("put none --ignore-value").await?, "etcdserver: key not found")?;
    holds(&m.fails("put none x --lease=123").await?, "etcdserver: requested lease not found")?;
    m.stop().await;
    Ok(())
}

async fn del() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    for key in ["a", "b1", "b2", "c", "d", "e"] {
        m.ctl(&format!("put {key} v{key}")).await?;
    }
    let table = [
        ("del none", "0\n"),
        ("del a --prev-kv", "1\na\nva\n"),
        ("del b --prefix", "2\n"),
        ("del c d", "1\n"),
        ("del d --from-key", "2\n"),
    ];
    for (args, expected) in table {
        same(&m.ctl(args).await?, expected).with_context(|| args.to_owned())?;
    }
    same(&m.ctl("get a --from-key").await?, "")?;
    m.stop().await;
    Ok(())
}

async fn txn() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    m.ctl("put a 1").await?;
    let table = [
        ("value(\"a\") = \"1\"\n\nput b 2\nget a\n\nget none\n\n", "SUCCESS\n\nOK\n\na\n1\n"),
        ("value(\"a\") > \"5\"\n\nput b 3\n\nget b\ndel none\n\n", "FAILURE\n\nb\n2\n\n0\n"),
        ("version(\"a\") = \"1\"\nmod(\"a\") = \"2\"\ncreate(\"a\") < \"3\"\n\nput a 2\n\n\n", "SUCCESS\n\nOK\n"),
        ("version(\"none\") = \"0\"\n\ndel a\n\n\n", "SUCCESS\n\n1\n"),
    ];
    for (input, expected) in table {
        same(&m.ctl_with(&["txn"], input).await?, expected).with_context(|| input.to_owned())?;
    }
    let twice = m.ctl_with(&["txn"], "\nput a 1\nput a 2\n\n\n").await;
    holds(&twice.err().context("it should fail")?.to_string(), "etcdserver: duplicate key given in txn request")?;
    m.stop().await;
    Ok(())
}

async fn compaction() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    for i in 1..6 {
        m.ctl(&format!("put k {i}")).await?;
    }
    same(&m.ctl("compaction 4").await?, "compacted revision 4\n")?;
    same(&m.ctl("get k --rev=4 --print-value-only").await?, "3\n")?;
    holds(&m.fails("get k --rev=3").await?, "etcdserver: mvcc: required revision has been compacted")?;
    holds(&m.fails("compaction 4").await?, "etcdserver: mvcc: required revision has been compacted")?;
    holds(&m.fails("compaction 99").await?, "etcdserver: mvcc: required revision is a future revision")?;
    same(&m.ctl("compaction 6 --physical").await?, "compacted revision 6\n")?;
    holds(&m.fails("watch k --rev=2").await?, "etcdserver: mvcc: required revision has been compacted")?;
    m.stop().await;
    Ok(())
}

async fn watch() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    m.ctl("put a 1").await?;
    m.ctl("put b 1").await?;
    m.ctl("del a").await?;
    let mut past = m.begin("watch a --rev=1")?;
    past.expect(&["PUT", "a", "1", "DELETE", "a", ""]).await?;
    let mut prefix = m.begin("watch a --prefix --rev=2 --prev-kv")?;
    prefix.expect(&["PUT", "a", "1", "DELETE", "a", "1", "a", ""]).await?;
    m.ctl("put aa 1").await?;
    m.ctl("put aa 2").await?;
    prefix.expect(&["PUT", "aa", "1", "PUT", "aa", "1", "aa", "2"]).await?;
    let mut range = m.begin("watch b d --rev=1")?;
    range.expect(&["PUT", "b", "1"]).await?;
    m.ctl("put c 1").await?;
    range.expect(&["PUT", "c", "1"]).await?;
    for running in [past, prefix, range] {
        running.interrupt().await?;
    }
    m.stop().await;
    Ok(())
}

async fn watch_interactive() -> anyhow::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    let mut watch = m.begin("watch -i")?;
    let mut input = watch.input.take().context("no input")?;
    input.write_all(b"watch x --rev=1\nwatch y --rev=1\nprogress\n").await?;
    m.ctl("put x 1").await?;
    m.ctl("put y 2").await?;
    let mut lines = Vec::new();
    while lines.iter().filter(|l| *l == "PUT").count() < 2
        || lines.last().is_some_and(|l: &String| l != "1" && l != "2")
    {
        lines.push(watch.line().await?);
    }
    lines.retain(|l| !l.starts_with("progress notify"));
    ensure!(lines == ["PUT", "x", "1", "PUT", "y", "2"], "{lines:?}");
    watch.interrupt().await?;
    m.stop().await;
    Ok(())
}

async fn lease() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    let id = |said: &str| said.split_whitespace().nth(1).map(str::to_owned).context("no lease id");
    let said = m.ctl("lease grant 120").await?;
    holds(&said, "granted with TTL(120s)")?;
    let long = id(&said)?;
    m.ctl(&format!("put held v --lease={long}")).await?;
    same(&m.ctl("lease list").await?, &format!("found 1 leases\n{long}\n"))?;
    let time = m.ctl(&format!("lease timetolive {long} --keys")).await?;
    holds(&time, "granted with TTL(120s), remaining(1")?;
    holds(&time, "attached keys([held])")?;
    holds(&m.ctl(&format!("lease keep-alive --once {long}")).await?, "keepalived with TTL(120)")?;
    let mut alive = m.begin(&format!("lease keep-alive {long}"))?;
    holds(&alive.line().await?, "keepalived with TTL(120)")?;
    alive.interrupt().await?;
    holds(&m.ctl(&format!("lease revoke {long}")).await?, "revoked")?;
    same(&m.ctl("get held").await?, "")?;
    holds(&m.fails(&format!("lease revoke {long}")).await?, "etcdserver: requested lease not found")?;
    holds(&m.ctl(&format!("lease timetolive {long}")).await?, "already expired")?;
    // One that nobody renews takes its keys along.
    let short = id(&m.ctl("lease grant 1").await?)?;
    m.ctl(&format!("put brief v --lease={short}")).await?;
    until("the lease ends by itself", || async { Ok(m.ctl("get brief").await?.is_empty()) }).await?;
    m.stop().await;
    Ok(())
}

async fn lock() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    holds(&m.ctl("lock once echo held").await?, "held")?;
    let mut first = m.begin("lock name")?;
    let key = first.line().await?;
    ensure!(key.starts_with("name/"), "{key}");
    let mut second = m.begin("lock name")?;
    until("the second waits", || async {
        Ok(m.ctl("get name/ --prefix --keys-only").await?.matches("name/").count() == 2)
    })
    .await?;
    first.interrupt().await?;
    let next = second.line().await?;
    ensure!(next.starts_with("name/") && next != key, "{next}");
    second.interrupt().await?;
    until("the lock is free", || async { Ok(m.ctl("get name/ --prefix").await?.is_empty()) }).await?;
    m.stop().await;
    Ok(())
}

async fn elect() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    let mut first = m.begin("elect office one")?;
    ensure!(first.line().await?.starts_with("office/"));
    same(&first.line().await?, "one")?;
    let mut observer = m.begin("elect office --listen")?;
    ensure!(observer.line().await?.starts_with("office/"));
    same(&observer.line().await?, "one")?;
    let mut second = m.begin("elect office two")?;
    until("the second waits", || async {
        Ok(m.ctl("get office/ --prefix --keys-only").await?.matches("office/").count() == 2)
    })
    .await?;
    first.interrupt().await?;
    ensure!(second.line().await?.starts_with("office/"));
    same(&second.line().await?, "two")?;
    ensure!(observer.line().await?.starts_with("office/"));
    same(&observer.line().await?, "two")?;
    second.interrupt().await?;
    m.stop().await;
    Ok(())
}

async fn limits() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let settings = Settings { request_bytes_max: 4096, ..Default::default() };
    let begin = Begin { settings, quota_bytes: 8 << 10, ..Default::default() };
    let m = Member::start(&dir.sub("one"), "one", begin).await?;
    let large = "x".repeat(5000);
    holds(&m.fails(&format!("put a {large}")).await?, "etcdserver: request is too large")?;
    let operations: String = (0..129).map(|i| format!("put k{i} v\n")).collect();
    let many = m.ctl_with(&["txn"], &format!("\n{operations}\n\n")).await;
    holds(&many.err().context("too many")?.to_string(), "etcdserver: too many operations in txn request")?;
    // Full: deletes and compaction free it again.
    let value = "y".repeat(3000);
    for key in ["a", "b"] {
        m.ctl(&format!("put {key} {value}")).await?;
    }
    holds(&m.fails(&format!("put c {value}")).await?, "etcdserver: mvcc: database space exceeded")?;
    holds(&m.ctl("alarm list").await?, "alarm:NOSPACE")?;
    holds(&m.fails("put d 1").await?, "etcdserver: mvcc: database space exceeded")?;
    same(&m.ctl("del a").await?, "1\n")?;
    let revision = m.store.revision();
    m.ctl(&format!("compaction {revision} --physical")).await?;
    holds(&m.ctl("alarm disarm").await?, "alarm:NOSPACE")?;
    same(&m.ctl("alarm list").await?, "")?;
    same(&m.ctl("put d 1").await?, "OK\n")?;
    m.stop().await;
    Ok(())
}

async fn check() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    holds(&m.ctl("check datascale --load=s").await?, "PASS")?;
    m.ctl("put mirrored/a 1").await?;
    let to = Member::start(&dir.sub("two"), "two", Begin::default()).await?;
    let mirror = m.begin(&format!("make-mirror --prefix mirrored/ {}", to.endpoint))?;
    until("the key is mirrored", || async { Ok(!to.ctl("get mirrored/a").await?.is_empty()) }).await?;
    m.ctl("put mirrored/b 2").await?;
    until("the next is, too", || async { Ok(!to.ctl("get mirrored/b").await?.is_empty()) }).await?;
    mirror.interrupt().await?;
    to.stop().await;
    m.stop().await;
    Ok(())
}
