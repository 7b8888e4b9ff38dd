//! Members: added, promoted, updated, removed; the leadership moved.

use crate::support::{Begin, Dir, Member, Test, holds, same, until};
use anyhow::{Context as _, ensure};
use std::net::TcpListener;

pub const TESTS: &[Test] = &[
    ("members come and go", || Box::pin(members())),
    ("a learner is promoted", || Box::pin(learner())),
    ("the last member stays", || Box::pin(last())),
];

/// The id in etcdctl's words about a member.
fn id(said: &str) -> anyhow::Result<String> {
    Ok(said.split_whitespace().nth(1).context("no member id")?.to_owned())
}

async fn members() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let one = Member::alone(&dir).await?;
    one.ctl("put before 1").await?;
    // Added first, by its address, as operators of etcd do; started afterwards.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let said = one.ctl(&format!("member add two --peer-urls=http://{addr}")).await?;
    holds(&said, "added to cluster")?;
    let second = id(&said)?;
    holds(&one.ctl("member list").await?, &format!("{second}, unstarted"))?;
    same(&one.ctl("put still 1").await?, "OK\n").context("a member that never starts costs no majority")?;
    let begin = Begin { join: vec![one.peer.clone()], listener: Some(listener), ..Default::default() };
    let two = Member::start(&dir.sub("two"), "two", begin).await?;
    ensure!(format!("{:x}", two.store.id()) == second, "it is the member that was added");
    let begin = Begin { join: vec![one.peer.clone()], ..Default::default() };
    let three = Member::start(&dir.sub("three"), "three", begin).await?;
    until("all three vote", || async {
        Ok(three.ctl("member list").await?.matches("started, ").count() == 3
            && !three.ctl("member list").await?.contains("true"))
    })
    .await?;
    same(&three.ctl("get before --print-value-only").await?, "1\n")?;
    same(&two.ctl("put through two").await?, "OK\n")?;
    same(&three.ctl("get through --print-value-only").await?, "two\n")?;
    holds(
        &one.fails(&format!("member add again --peer-urls=http://{addr}")).await?,
        "etcdserver: Peer URLs already exists",
    )?;
    holds(&one.fails("member add bad --peer-urls=http://nowhere").await?, "URL")?;
    // Moved, from the leader only.
    let leader = one.store.leadership().borrow().leader.context("no leader")?;
    let led = [&one, &two, &three].into_iter().find(|m| m.store.id() == leader).context("no leader")?;
    let other = [&one, &two, &three].into_iter().find(|m| m.store.id() != leader).context("no other")?;
    holds(&led.ctl(&format!("move-leader {:x}", other.store.id())).await?, "Leadership transferred")?;
    until("the other leads", || async { Ok(one.store.leadership().borrow().leader == Some(other.store.id())) }).await?;
    // Removed: the leader of all.
    let rest: Vec<_> = [&one, &two, &three].into_iter().filter(|m| m.store.id() != other.store.id()).collect();
    holds(&rest[0].ctl(&format!("member remove {:x}", other.store.id())).await?, "removed from cluster")?;
    until("two are left", || async { Ok(rest[1].ctl("member list").await?.lines().count() == 2) }).await?;
    same(&rest[1].ctl("put after 1").await?, "OK\n")?;
    holds(&rest[0].fails("member remove 123").await?, "etcdserver: member not found")?;
    for member in [one, two, three] {
        member.stop().await;
    }
    Ok(())
}

async fn learner() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let one = Member::alone(&dir).await?;
    one.ctl("put before 1").await?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let said = one.ctl(&format!("member add two --peer-urls=http://{addr} --learner")).await?;
    let second = id(&said)?;
    holds(
        &one.fails(&format!("member promote {second}")).await?,
        "etcdserver: can only promote a learner member which is in sync with leader",
    )?;
    let begin = Begin { join: vec![one.peer.clone()], listener: Some(listener), ..Default::default() };
    let two = Member::start(&dir.sub("two"), "two", begin).await?;
    same(&two.ctl("get before --print-value-only").await?, "1\n")?;
    holds(&one.ctl("member list").await?, ", true")?;
    until("the learner has caught up", || async { Ok(one.ctl(&format!("member promote {second}")).await.is_ok()) })
        .await?;
    ensure!(!one.ctl("member list").await?.contains(", true"));
    holds(&one.fails(&format!("member promote {second}")).await?, "etcdserver: can only promote a learner member")?;
    let said = one.ctl(&format!("member update {second} --peer-urls=http://127.0.0.1:1")).await?;
    holds(&said, "updated in cluster")?;
    holds(&one.ctl("member list").await?, "http://127.0.0.1:1,")?;
    for member in [one, two] {
        member.store.stop().await;
    }
    Ok(())
}

async fn last() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let one = Member::alone(&dir).await?;
    let refused = one.fails(&format!("member remove {:x}", one.store.id())).await?;
    holds(&refused, "etcdserver: re-configuration failed due to not enough started members")?;
    one.stop().await;
    Ok(())
}
