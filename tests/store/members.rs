//! Clusters that grow, shrink, move and restart under a load of puts, none of which may be lost.

use crate::support::*;
use anyhow::{Context as _, ensure};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("one grows to three and five and shrinks again under load", || Box::pin(grow_and_shrink())),
    ("a learner is added, started and promoted with etcdctl", || Box::pin(learner())),
    ("all voters are replaced at once under load", || Box::pin(replaced())),
    ("what would leave no majority is refused", || Box::pin(no_majority())),
    ("a rolling restart waits for no election", || Box::pin(rolling_restart())),
    ("a member comes back at another address", || Box::pin(moved())),
];

/// The members that vote.
async fn voters(endpoint: &str) -> anyhow::Result<usize> {
    let list = ctl(endpoint, &["member", "list"]).await?;
    Ok(list.lines().filter(|line| line.contains(", started, ") && line.ends_with(", false")).count())
}

async fn grow_and_shrink() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let mut servers = vec![Plan::new(&dir, "m1", &[])?.start().await?];
    let load = Load::begin(&[servers[0].endpoint()]);
    load.more(50).await?;
    for number in 2..=5 {
        let name = format!("m{number}");
        let plan = if number % 2 == 0 {
            Plan::joining(&dir, &name, &servers[0])?
        } else {
            // The other way: announced by etcdctl first.
            let plan = Plan::joining(&dir, &name, &servers[0])?;
            let urls = format!("--peer-urls=http://{}", plan.peer);
            holds(&ctl(servers[0].endpoint(), &["member", "add", &name, &urls]).await?, &["added to cluster"])?;
            plan
        };
        servers.push(plan.start().await?);
        let endpoint = servers[0].endpoint().to_owned();
        until("the new one votes", || async { Ok(voters(&endpoint).await? == number) }).await?;
        load.aim(&servers.iter().map(Server::endpoint).collect::<Vec<_>>());
        load.more(50).await?;
    }
    // Five: two may go at once.
    let mut servers = leader_first(servers).await?;
    let gone = [servers.remove(0).kill().await?, servers.remove(0).kill().await?];
    load.aim(&servers.iter().map(Server::endpoint).collect::<Vec<_>>());
    load.more(50).await?;
    for plan in gone {
        servers.push(plan.start().await?);
    }
    // Smaller by one at a time, whoever leads first among those that go. One that is removed says so and ends.
    while servers.len() > 1 {
        servers = leader_first(servers).await?;
        let mut leaves = servers.remove(0);
        let id = leaves.id().await?;
        load.aim(&servers.iter().map(Server::endpoint).collect::<Vec<_>>());
        holds(&ctl(servers[0].endpoint(), &["member", "remove", &id]).await?, &["removed from cluster"])?;
        let status = leaves.ends().await?;
        ensure!(!status.success(), "{status}");
        holds(&leaves.said(), &["removed"])?;
        ensure!(voters(servers[0].endpoint()).await? == servers.len());
        load.more(50).await?;
    }
    let count = load.check(&[servers[0].endpoint()]).await?;
    ensure!(count >= 500, "{count}");
    Ok(())
}

async fn learner() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let servers = start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?;
    let load = Load::begin(&[servers[0].endpoint()]);
    let plan = Plan::joining(&dir, "d", &servers[1])?;
    let urls = format!("--peer-urls=http://{}", plan.peer);
    let said = ctl(servers[0].endpoint(), &["member", "add", "d", "--learner", &urls]).await?;
    let id = said.split_whitespace().nth(1).context("no id")?.to_owned();
    let early = ctl_fails(servers[0].endpoint(), &["member", "promote", &id]).await?;
    holds(&early, &["can only promote a learner member which is in sync with leader"])?;
    let added = plan.start().await?;
    holds(&ctl(added.endpoint(), &["endpoint", "status"]).await?, &["false, true"])?;
    until("it is promoted", || async { Ok(ctl(added.endpoint(), &["member", "promote", &id]).await.is_ok()) }).await?;
    ensure!(voters(added.endpoint()).await? == 4);
    load.more(20).await?;
    load.check(&[servers[2].endpoint(), added.endpoint()]).await?;
    Ok(())
}

/// Starts a learner beside these.
async fn add_learner(dir: &Dir, name: &str, beside: &Server) -> anyhow::Result<Server> {
    let plan = Plan::joining(dir, name, beside)?;
    let urls = format!("--peer-urls=http://{}", plan.peer);
    ctl(beside.endpoint(), &["member", "add", name, "--learner", &urls]).await?;
    plan.start().await
}

async fn replaced() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let old = start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?;
    let load = Load::begin(&old.iter().map(Server::endpoint).collect::<Vec<_>>());
    let mut new = Vec::new();
    for name in ["d", "e", "f"] {
        new.push(add_learner(&dir, name, &old[0]).await?);
        load.more(20).await?;
    }
    let at = new[0].endpoint().to_owned();
    // Half of them first: names and ids are both understood.
    let id = new[0].id().await?;
    let vote = format!("--vote=a,b,{id}");
    until("d has caught up and takes c's place", || async {
        Ok(store(&["members", "--endpoint", &at, &vote]).await.is_ok())
    })
    .await?;
    load.aim(&[old[0].endpoint(), &at]);
    load.more(50).await?;
    until("e and f have caught up", || async {
        Ok(store(&["members", "--endpoint", &at, "--vote=d,e,f"]).await.is_ok())
    })
    .await?;
    let said = store(&["members", "--endpoint", &at]).await?;
    ensure!(said.lines().count() == 4 && said.matches("leader").count() == 1, "{said}");
    ensure!(said.matches("voter").count() == 2 && said.matches("learner").count() == 0, "{said}");
    load.aim(&new.iter().map(Server::endpoint).collect::<Vec<_>>());
    load.more(50).await?;
    for mut leaves in old {
        ensure!(!leaves.ends().await?.success());
        holds(&leaves.said(), &["removed"])?;
    }
    // The new ones are a group of three by themselves.
    let mut new = leader_first(new).await?;
    new.remove(0).kill().await?;
    load.aim(&new.iter().map(Server::endpoint).collect::<Vec<_>>());
    load.more(50).await?;
    load.check(&new.iter().map(Server::endpoint).collect::<Vec<_>>()).await?;
    Ok(())
}

async fn no_majority() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let mut servers = leader_first(start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?).await?;
    let names = store(&["members", "--endpoint", servers[0].endpoint()]).await?;
    let dead = servers.pop().context("three")?;
    let (leader, other, dead_id) = (servers[0].id().await?, servers[1].id().await?, dead.id().await?);
    dead.kill().await?;
    let at = servers[0].endpoint();
    let vote = |ids: &[&str]| format!("--vote={}", ids.join(","));
    let refused = store_fails(&["members", "--endpoint", at, "--vote=nobody"]).await?;
    holds(&refused, &["no member is called \"nobody\"", &leader])?;
    let refused = store_fails(&["members", "--endpoint", at, &vote(&[&leader, &dead_id])]).await?;
    holds(&refused, &["of the 2 voters that there would be 1 answer"])?;
    let refused = ctl_fails(at, &["member", "remove", &other]).await?;
    holds(&refused, &["not enough started members"])?;
    // Nothing has changed; and the dead one may go.
    ensure!(store(&["members", "--endpoint", at]).await? == names);
    ctl(at, &["member", "remove", &dead_id]).await?;
    ctl(at, &["put", "a", "b"]).await?;
    Ok(())
}

async fn rolling_restart() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let mut servers = start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?;
    let endpoints: Vec<_> = servers.iter().map(|s| s.endpoint().to_owned()).collect();
    let load = Load::begin(&endpoints.iter().map(String::as_str).collect::<Vec<_>>());
    let mut gaps = Vec::new();
    for _ in 0..5 {
        servers = leader_first(servers).await?;
        load.more(50).await?;
        let begun = Instant::now();
        let plan = servers.remove(0).terminate().await?;
        load.more(20).await?;
        gaps.push(load.longest_gap(begun));
        servers.push(plan.start().await?);
    }
    load.check(&endpoints.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    gaps.sort_unstable();
    // An election begins after 500 ms of silence at the earliest. One restart in five may be slow because the machine is.
    ensure!(gaps[3] < Duration::from_millis(500), "the longest times without an acknowledgement: {gaps:?}");
    Ok(())
}

async fn moved() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let mut servers = start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?;
    let id = servers[0].id().await?;
    let plan = servers.remove(0).terminate().await?;
    let load = Load::begin(&[servers[0].endpoint(), servers[1].endpoint()]);
    load.more(50).await?;
    // The data says who it is; only the addresses are others. The list of the beginning would not name the new one.
    let plan = Plan { client: free()?, peer: free()?, more: Vec::new(), ..plan };
    let back = plan.start().await?;
    ensure!(back.id().await? == id, "the same member");
    until("the others know where it is", || async {
        let list = ctl(servers[0].endpoint(), &["member", "list"]).await?;
        Ok(list.contains(&plan.peer) && list.contains(&plan.client))
    })
    .await?;
    // It is a full member there: with it, one of the others may go.
    let gone = servers.remove(0).kill().await?;
    load.aim(&[servers[0].endpoint(), back.endpoint()]);
    load.more(50).await?;
    // All of them elsewhere, one after the other.
    servers.push(back);
    servers.push(gone.start().await?);
    for _ in 0..3 {
        let plan = servers.remove(0).terminate().await?;
        let plan = Plan { client: free()?, peer: free()?, more: Vec::new(), ..plan };
        servers.push(plan.start().await?);
        load.aim(&servers.iter().map(Server::endpoint).collect::<Vec<_>>());
        load.more(20).await?;
    }
    load.check(&servers.iter().map(Server::endpoint).collect::<Vec<_>>()).await?;
    Ok(())
}
