//! Two of three members are gone for good: one command makes a cluster of the third, which grows to three again.

use crate::support::*;
use anyhow::ensure;

pub const TESTS: &[Test] = &[("a lost quorum is recovered from", || Box::pin(recover()))];

async fn recover() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let servers = start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?;
    let endpoints: Vec<_> = servers.iter().map(|s| s.endpoint().to_owned()).collect();
    let load = Load::begin(&endpoints.iter().map(String::as_str).collect::<Vec<_>>());
    load.more(200).await?;
    // Cut off in the midst of it. The machine that is left is the one with the longest log of those that were compared; with all logs at
    // hand, that is told by `verify`.
    let mut plans = Vec::new();
    for server in servers {
        plans.push(server.kill().await?);
    }
    let mut longest = (0, 0);
    for (at, plan) in plans.iter().enumerate() {
        let said = store(&["verify", &plan.data.display().to_string()]).await?;
        let last =
            said.lines().find_map(|l| l.strip_prefix("log")?.split(" to ").nth(1)?.split(';').next()?.parse().ok());
        longest = longest.max((last.unwrap_or(0u64), at));
    }
    let kept = plans.swap_remove(longest.1);
    for plan in &plans {
        std::fs::remove_dir_all(&plan.data)?;
    }
    let data = kept.data.display().to_string();
    // Asked first: whoever does not say yes changes nothing.
    let refused = store_with(&["recover", &data], "no\n").await?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    holds(&refused.err, &["nothing was changed"])?;
    let said = store_with(&["recover", &data], "yes\n").await?;
    ensure!(said.status.success(), "{said:?}");
    holds(
        &said.out,
        &["This will", "keep the directory as it is as", &plans[0].peer, &plans[1].peer, "--join", "done"],
    )?;
    ensure!(dir.sub(&format!("{}.before-recovery-1", kept.name)).exists(), "what was there is kept");
    // The old list of members in its options does no harm: the data says who it is.
    let one = kept.start().await?;
    ensure!(ctl(one.endpoint(), &["member", "list"]).await?.lines().count() == 1);
    load.aim(&[one.endpoint()]);
    load.more(100).await?;
    // Three again, under load: empty directories at the old addresses.
    let mut servers = vec![one];
    for plan in &plans {
        let seed = servers[0].plan.peer.clone();
        let plan = Plan { more: vec!["--join".into(), seed], ..plan.clone() };
        servers.push(plan.start().await?);
    }
    let first = servers[0].endpoint().to_owned();
    until("all three vote", || async {
        let list = ctl(&first, &["member", "list"]).await?;
        Ok(list.matches(", false").count() == 3)
    })
    .await?;
    let endpoints: Vec<_> = servers.iter().map(Server::endpoint).collect();
    load.aim(&endpoints);
    load.more(100).await?;
    let count = load.check(&endpoints).await?;
    ensure!(count >= 400, "{count}");
    // Any one of them may go now.
    let servers = leader_first(servers).await?;
    let mut servers = servers.into_iter();
    if let Some(leader) = servers.next() {
        leader.kill().await?;
    }
    let left: Vec<_> = servers.collect();
    for server in &left {
        ctl(server.endpoint(), &["put", &format!("after/{}", server.plan.name), "1"]).await?;
    }
    Ok(())
}
