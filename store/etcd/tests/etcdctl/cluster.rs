//! Three members that begin together; endpoints, snapshots, alarms, and what an offline tool makes of the data.

use crate::support::{Begin, Dir, Member, Test, ctl, holds, same, until};
use anyhow::{Context as _, ensure};
use skiff_store::{Peer, RestoreOptions};
use std::net::TcpListener;

pub const TESTS: &[Test] = &[
    ("three members agree", || Box::pin(three())),
    ("snapshot save, status and restore", || Box::pin(snapshot())),
    ("recovery from a lost majority", || Box::pin(recovery())),
    ("a lease outlives its leader", || Box::pin(lease_and_leader())),
];

/// Three members of a new group.
async fn together(dir: &Dir) -> anyhow::Result<Vec<Member>> {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let listeners: Vec<_> = NAMES.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut initial = Vec::new();
    for (name, listener) in NAMES.iter().zip(&listeners) {
        initial.push(Peer { name: (*name).to_owned(), addr: listener.local_addr()?.to_string() });
    }
    let starts = NAMES.iter().zip(listeners).map(|(name, listener)| {
        let begin = Begin { initial: initial.clone(), listener: Some(listener), ..Default::default() };
        let dir = dir.sub(name);
        tokio::spawn(async move { Member::start(&dir, name, begin).await })
    });
    let mut members = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        members.push(start.await??);
    }
    Ok(members)
}

async fn three() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let members = together(&dir).await?;
    let all = members.iter().map(|m| m.endpoint.as_str()).collect::<Vec<_>>().join(",");
    for (i, member) in members.iter().enumerate() {
        same(&member.ctl(&format!("put k{i} v{i}")).await?, "OK\n")?;
        for other in &members {
            same(&other.ctl(&format!("get k{i} --print-value-only")).await?, &format!("v{i}\n"))?;
        }
    }
    let status = ctl(&all, &["endpoint", "status"], "").await?;
    ensure!(status.lines().count() == 3 && status.matches(", true, false,").count() == 1, "{status}");
    holds(&ctl(&members[0].endpoint, &["endpoint", "status", "--cluster"], "").await?, &members[2].endpoint)?;
    ctl(&all, &["endpoint", "health"], "").await?;
    let hashes = ctl(&all, &["endpoint", "hashkv"], "").await?;
    let of_state: std::collections::HashSet<_> = hashes.lines().filter_map(|l| l.split(", ").nth(1)).collect();
    ensure!(of_state.len() == 1, "{hashes}");
    holds(&ctl(&all, &["defrag"], "").await?, "Finished defragmenting")?;
    same(&ctl(&all, &["alarm", "list"], "").await?, "")?;
    same(&ctl(&all, &["alarm", "disarm"], "").await?, "")?;
    // The leader goes; the others go on.
    let leader = members[0].store.leadership().borrow().leader;
    let (gone, rest): (Vec<_>, Vec<_>) = members.into_iter().partition(|m| Some(m.store.id()) == leader);
    for member in gone {
        member.stop().await;
    }
    same(&rest[0].ctl("put after 1").await?, "OK\n")?;
    same(&rest[1].ctl("get after --print-value-only").await?, "1\n")?;
    for member in rest {
        member.stop().await;
    }
    Ok(())
}

async fn snapshot() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let m = Member::alone(&dir).await?;
    for i in 0..20 {
        m.ctl(&format!("put k{} {i}", i % 7)).await?;
    }
    let file = dir.sub("saved.db");
    holds(&m.ctl(&format!("snapshot save {}", file.display())).await?, "Snapshot saved")?;
    m.ctl("put k0 later").await?;
    let status = skiff_store::snapshot_status(&file)?;
    ensure!((status.keys, status.revision) == (7, 21), "{status:?}");
    m.stop().await;
    // Two members with other addresses, from one file.
    let names = ["x", "y"];
    let listeners: Vec<_> = names.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut initial = Vec::new();
    for (name, listener) in names.iter().zip(&listeners) {
        initial.push(Peer { name: (*name).to_owned(), addr: listener.local_addr()?.to_string() });
    }
    let mut starts = Vec::new();
    for (peer, listener) in initial.iter().zip(listeners) {
        let options = RestoreOptions {
            data_dir: dir.sub(&peer.name),
            initial: initial.clone(),
            initial_token: "restored".into(),
            peer_addr: peer.addr.clone(),
            revision_bump: 1000,
        };
        skiff_store::restore(&file, &options)?;
        ensure!(skiff_store::restore(&file, &options).is_err(), "a directory with data is left alone");
        let (dir, name) = (dir.sub(&peer.name), peer.name.clone());
        let begin = Begin { listener: Some(listener), ..Default::default() };
        starts.push(tokio::spawn(async move { Member::start(&dir, &name, begin).await }));
    }
    let mut members = Vec::new();
    for start in starts {
        members.push(start.await??);
    }
    same(&members[1].ctl("get k0 --print-value-only").await?, "14\n")?;
    holds(&members[0].ctl("get k0 -w json").await?, r#""revision":1021"#)?;
    holds(&members[0].fails("get k0 --rev=21").await?, "has been compacted")?;
    same(&members[0].ctl("put k0 new").await?, "OK\n")?;
    for member in members {
        member.stop().await;
    }
    // A flipped bit is found.
    let mut bytes = std::fs::read(&file)?;
    bytes[100] ^= 1;
    std::fs::write(&file, bytes)?;
    ensure!(skiff_store::snapshot_status(&file).is_err());
    Ok(())
}

async fn recovery() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let members = together(&dir).await?;
    members[0].ctl("put kept 1").await?;
    for member in &members {
        member.ctl("get kept").await?;
    }
    let revision = members[0].store.revision();
    for member in members {
        member.stop().await;
    }
    let data = dir.sub("one");
    until("the files are whole", || async { Ok(skiff_store::verify(&data).is_ok()) }).await?;
    let plan = skiff_store::recover(&data, None, false)?;
    ensure!(plan.lost.len() == 2 && plan.report.revision == revision && !plan.backup.exists(), "{plan:?}");
    let done = skiff_store::recover(&data, None, true)?;
    ensure!(done.backup.exists());
    let report = skiff_store::verify(&data)?;
    ensure!(report.revision == revision && report.hash == plan.report.hash, "{report:?}");
    let one = Member::start(&data, "one", Begin::default()).await?;
    same(&one.ctl("get kept --print-value-only").await?, "1\n")?;
    same(&one.ctl("put more 1").await?, "OK\n")?;
    ensure!(one.ctl("member list").await?.lines().count() == 1);
    let begin = Begin { join: vec![one.peer.clone()], ..Default::default() };
    let two = Member::start(&dir.sub("two-again"), "two", begin).await?;
    same(&two.ctl("get more --print-value-only").await?, "1\n")?;
    two.stop().await;
    one.store.stop().await;
    Ok(())
}

async fn lease_and_leader() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let members = together(&dir).await?;
    let said = members[0].ctl("lease grant 60").await?;
    let lease = said.split_whitespace().nth(1).context("no lease id")?.to_owned();
    members[1].ctl(&format!("put held v --lease={lease}")).await?;
    for member in &members {
        holds(&member.ctl(&format!("lease keep-alive --once {lease}")).await?, "keepalived with TTL(60)")?;
        holds(&member.ctl(&format!("lease timetolive {lease}")).await?, "granted with TTL(60s)")?;
    }
    let leader = members[0].store.leadership().borrow().leader;
    let (gone, rest): (Vec<_>, Vec<_>) = members.into_iter().partition(|m| Some(m.store.id()) == leader);
    for member in gone {
        member.stop().await;
    }
    holds(&rest[0].ctl(&format!("lease timetolive {lease} --keys")).await?, "attached keys([held])")?;
    holds(&rest[1].ctl(&format!("lease revoke {lease}")).await?, "revoked")?;
    same(&rest[0].ctl("get held").await?, "")?;
    for member in rest {
        member.stop().await;
    }
    Ok(())
}
