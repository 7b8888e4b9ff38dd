//! `skiff store members`: who belongs to the group, and which of them vote from now on.

use super::member::MemberArgs;
use anyhow::bail;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use skiff_proto::store::Voters;
use skiff_proto::store::members_client::MembersClient;
use tonic::transport::Channel;

/// Show the members of the group; with --vote, change all at once which of them there are and vote
///
/// A member is added with `skiff store serve --join` or `etcdctl member add`. To replace one: add the new one as a learner
/// (`etcdctl member add NAME --learner --peer-urls=...`), start it, and name it here in the old one's place. The old one keeps its vote
/// until the new one has it.
#[derive(clap::Args)]
pub struct MembersArgs {
    #[command(flatten)]
    member: MemberArgs,
    /// From now on exactly these members vote; learners among them are promoted, and voters that are not among them removed, in one step
    #[arg(long, value_name = "NAME_OR_ID,...", value_delimiter = ',')]
    vote: Vec<String>,
}

pub async fn run(args: MembersArgs) -> anyhow::Result<()> {
    let channel = args.member.connect().await?;
    let members = list(&args, channel.clone()).await?;
    if args.vote.is_empty() {
        return show(&args, channel, members).await;
    }
    let ids = args.vote.iter().map(|name| find(&members, name)).collect::<Result<_, _>>()?;
    let mut client = MembersClient::new(channel.clone());
    client.set_voters(Voters { ids }).await.map_err(|e| args.member.failed("changing the members at", &e))?;
    let members = list(&args, channel.clone()).await?;
    show(&args, channel, members).await
}

async fn list(args: &MembersArgs, channel: Channel) -> anyhow::Result<Vec<pb::Member>> {
    let request = pb::MemberListRequest { linearizable: true };
    let answer = ClusterClient::new(channel).member_list(request).await;
    Ok(answer.map_err(|e| args.member.failed("asking for the members at", &e))?.into_inner().members)
}

/// A member by its name or its id in hexadecimal.
fn find(members: &[pb::Member], text: &str) -> anyhow::Result<u64> {
    let is = |m: &&pb::Member| m.name == text || format!("{:x}", m.id) == text;
    let mut found = members.iter().filter(is);
    match (found.next(), found.next()) {
        (Some(member), None) => Ok(member.id),
        (Some(_), Some(_)) => bail!("more than one member is called {text:?}: give its id"),
        (None, _) => {
            let names: Vec<_> = members.iter().map(|m| format!("{} ({:x})", m.name, m.id)).collect();
            bail!("no member is called {text:?}; there are {}", names.join(", "))
        }
    }
}

async fn show(args: &MembersArgs, channel: Channel, members: Vec<pb::Member>) -> anyhow::Result<()> {
    let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await;
    let status = status.map_err(|e| args.member.failed("asking for the state of", &e))?.into_inner();
    let width = members.iter().map(|m| m.name.len()).max().unwrap_or(0).max(4);
    println!("{:<16}  {:<width$}  ROLE      PEER                   CLIENT", "ID", "NAME");
    for m in members {
        let role = match m.is_learner {
            true => "learner",
            false if m.id == status.leader => "leader",
            false => "voter",
        };
        let first = |urls: &[String]| urls.first().cloned().unwrap_or_else(|| "-".into());
        let (peer, client) = (first(&m.peer_urls), first(&m.client_urls));
        println!("{:<16}  {:<width$}  {role:<8}  {peer:<21}  {client}", format!("{:x}", m.id), m.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_by_name_or_id() {
        let member = |id, name: &str| pb::Member { id, name: name.into(), ..Default::default() };
        let members = [member(0xa1, "one"), member(0xb2, "two"), member(0xc3, "two")];
        let check = |text: &str, expect: Option<u64>| assert_eq!(find(&members, text).ok(), expect, "{text}");
        check("one", Some(0xa1));
        check("b2", Some(0xb2));
        check("two", None);
        check("three", None);
        check("", None);
    }
}
