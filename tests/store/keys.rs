//! Members that each have a key of their own: what one may say is said in its own name, and nothing is left of one that was removed.

use crate::certificates::Authority;
use crate::support::*;
use crate::tls::peer_client;
use anyhow::{Context as _, ensure};
use skiff_proto::store as pb;

pub const TESTS: &[Test] = &[
    ("a member speaks in its own name, and a removed one in none", || Box::pin(own_keys())),
    ("members come to be their keys one by one", || Box::pin(one_by_one())),
];

fn tls(dir: &Dir, authority: &Authority, name: &str) -> Vec<String> {
    let [certificate, key] = ["crt", "key"].map(|suffix| dir.arg(&format!("{name}.{suffix}")));
    let flags = ["--peer-cert-file", &certificate, "--peer-key-file", &key, "--peer-trusted-ca-file"];
    flags.map(str::to_owned).into_iter().chain([authority.file(dir)]).collect()
}

async fn own_keys() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let ours = Authority::new(&dir, "ours")?;
    for name in ["a", "b", "c", "new"] {
        ours.issue(&dir, name, &["skiff-store"])?;
    }
    let tls = |name: &str| [tls(&dir, &ours, name), vec!["--peer-own-keys".to_owned()]].concat();
    let mut plans = Plan::together(&dir, &["a", "b", "c"], &[])?;
    for (plan, name) in plans.iter_mut().zip(["a", "b", "c"]) {
        plan.more.extend(tls(name));
    }
    let servers = start_all(&plans).await?;
    let ctl_a = servers[0].endpoint();
    ctl(ctl_a, &["put", "k", "1"]).await?;
    let listed = members_of(ctl_a).await?;
    let id = |name: &str| listed.iter().find(|m| m.name == name).map(|m| m.id).context("a member");
    let (b, c) = (id("b")?, id("c")?);
    let record =
        |id: u64| pb::MemberRecord { id, name: "x".into(), peer_addr: "127.0.0.1:9".into(), ..Default::default() };
    let cluster_id = cluster_of(ctl_a).await?;
    let raft = |from| tokio_stream::iter([pb::RaftMessages { from, cluster_id, ..Default::default() }]);
    let command = |id| {
        let kind = Some(pb::command::Kind::Member(record(id)));
        let command = pb::Command { format: 2, origin: 5, sequence: 5, fence: 0, kind };
        pb::Forwarded { commands: vec![prost::Message::encode_to_vec(&command).into()] }
    };
    let denied = |what: &str, refused: Option<tonic::Status>, why: &str| {
        let told =
            refused.as_ref().is_some_and(|s| s.code() == tonic::Code::PermissionDenied && s.message().contains(why));
        ensure!(told, "{what}: {refused:?}");
        anyhow::Ok(())
    };
    for server in &servers {
        until("each member is known by its key", || async {
            let mut as_c = peer_client(&dir, &ours, "c", &server.plan.peer)?;
            let mut as_new = peer_client(&dir, &ours, "new", &server.plan.peer)?;
            Ok(as_c.messages(raft(b)).await.is_err() && as_new.leases(pb::LeasesRequest::default()).await.is_err())
        })
        .await?;
    }
    // To every member, so to the leader too; only that one takes commands.
    let mut leaders = 0;
    for server in &servers {
        let mut as_c = peer_client(&dir, &ours, "c", &server.plan.peer)?;
        denied("messages", as_c.messages(raft(b)).await.err(), "known by another key")?;
        let update = pb::change_request::Change::Update(record(b));
        denied("change", as_c.change(pb::ChangeRequest { change: Some(update) }).await.err(), "known by another key")?;
        ensure!(as_c.leases(pb::LeasesRequest::default()).await.is_ok());
        match as_c.forward(command(b)).await {
            Ok(answer) => ensure!(!answer.get_ref().accepted, "{} took a command", server.plan.name),
            refused => {
                denied("forward", refused.err(), "known by another key")?;
                denied(
                    "join",
                    as_c.join(pb::JoinRequest { member: Some(record(77)) }).await.err(),
                    "does not speak as",
                )?;
                // Of the authority, with the name, and nobody's.
                let mut as_new = peer_client(&dir, &ours, "new", &server.plan.peer)?;
                denied("forward", as_new.forward(pb::Forwarded::default()).await.err(), "no member of the group")?;
                denied("leases", as_new.leases(pb::LeasesRequest::default()).await.err(), "no member of the group")?;
                leaders += 1;
            }
        }
    }
    ensure!(leaders == 1, "{leaders} took commands");

    ctl(ctl_a, &["member", "remove", &format!("{c:x}")]).await?;
    ctl(ctl_a, &["put", "k", "2"]).await?;
    for server in &servers[..2] {
        until("the removal has arrived", || async { Ok(members_of(server.endpoint()).await?.len() == 2) }).await?;
        let mut as_c = peer_client(&dir, &ours, "c", &server.plan.peer)?;
        let refusals = [
            ("messages", as_c.messages(raft(c)).await.err()),
            ("messages of another", as_c.messages(raft(99)).await.err()),
            ("leases", as_c.leases(pb::LeasesRequest::default()).await.err()),
            ("change", as_c.change(pb::ChangeRequest { change: None }).await.err()),
        ];
        for (route, refused) in refusals {
            denied(route, refused, "was removed")?;
        }
        match as_c.forward(pb::Forwarded::default()).await {
            Ok(answer) => ensure!(!answer.get_ref().accepted),
            refused => {
                denied("forward", refused.err(), "was removed")?;
                denied("join", as_c.join(pb::JoinRequest { member: Some(record(78)) }).await.err(), "was removed")?;
            }
        }
    }
    // It does not come back by its key; with another it joins as anybody does. And the others know each other after a restart.
    let seed = servers[0].plan.peer.clone();
    let mut again = Plan::new(&dir, "again", &["--join", &seed])?;
    again.more.extend(tls("new"));
    let again = again.start().await?;
    holds(&ctl(again.endpoint(), &["get", "k"]).await?, &["2"])?;
    let mut servers = servers;
    let (restarted, plan) = (servers.remove(1), plans[1].clone());
    restarted.terminate().await?;
    let restarted = plan.start().await?;
    holds(&ctl(restarted.endpoint(), &["get", "k"]).await?, &["2"])?;
    Ok(())
}

async fn cluster(endpoint: &str) -> anyhow::Result<skiff_proto::etcd::etcdserverpb::MemberListResponse> {
    use skiff_proto::etcd::etcdserverpb as pb;
    let mut client = pb::cluster_client::ClusterClient::new(channel(endpoint)?);
    Ok(client.member_list(pb::MemberListRequest { linearizable: true }).await?.into_inner())
}

async fn members_of(endpoint: &str) -> anyhow::Result<Vec<skiff_proto::etcd::etcdserverpb::Member>> {
    Ok(cluster(endpoint).await?.members)
}

async fn cluster_of(endpoint: &str) -> anyhow::Result<u64> {
    Ok(cluster(endpoint).await?.header.context("a header")?.cluster_id)
}

/// A group of which nobody has written down whose key is whose, as after an upgrade: its members are started anew one after the other, and then each is its key.
async fn one_by_one() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let ours = Authority::new(&dir, "ours")?;
    for name in ["a", "b", "c", "new"] {
        ours.issue(&dir, name, &["skiff-store"])?;
    }
    let mut plans = Plan::together(&dir, &["a", "b", "c"], &[])?;
    for (plan, name) in plans.iter_mut().zip(["a", "b", "c"]) {
        plan.more.extend(tls(&dir, &ours, name));
    }
    let mut servers = start_all(&plans).await?;
    ctl(servers[0].endpoint(), &["put", "k", "0"]).await?;
    for (at, plan) in plans.iter_mut().enumerate() {
        servers.remove(0).terminate().await?;
        plan.more.push("--peer-own-keys".into());
        let again = plan.start().await?;
        ctl(again.endpoint(), &["put", "k", &(at + 1).to_string()]).await?;
        servers.push(again);
    }
    for server in &servers {
        until("an unknown key is nobody's", || async {
            let mut unknown = peer_client(&dir, &ours, "new", &server.plan.peer)?;
            Ok(unknown.leases(pb::LeasesRequest::default()).await.is_err())
        })
        .await?;
        holds(&ctl(server.endpoint(), &["get", "k"]).await?, &["3"])?;
    }
    Ok(())
}
