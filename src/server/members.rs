//! The servers of the cluster, for an administrator: who they are, and taking one out for good.
//!
//! A server that was taken out is nobody from then on: the others know its key as a removed one (see the store's `role`). It has had the authority's key, though, so
//! where it may be in wrong hands the authority is exchanged, too.

use skiff_fleet::UpstreamError;
use skiff_proto::fleet as pb;
use skiff_store::{Error, Member, MemberChange, MemberId, Store};

fn failed(error: Error) -> UpstreamError {
    match error {
        Error::Member { problem, .. } => UpstreamError::Refused(problem),
        other => UpstreamError::Unavailable(other.to_string()),
    }
}

pub async fn list(store: &Store) -> Result<pb::MemberList, UpstreamError> {
    store.barrier().await.map_err(failed)?;
    let leader = store.leadership().borrow().leader;
    let mut members: Vec<_> = store.members().iter().map(|m| record(m, leader)).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pb::MemberList { members })
}

fn record(member: &Member, leader: Option<MemberId>) -> pb::Member {
    let role = match member.learner {
        true => "learner",
        false if Some(member.id) == leader => "leader",
        false => "voter",
    };
    pb::Member { id: member.id, name: member.name.clone(), api_addr: member.client_addr.clone(), role: role.into() }
}

pub async fn remove(store: &Store, name: &str) -> Result<pb::MemberList, UpstreamError> {
    store.barrier().await.map_err(failed)?;
    let id = find(&store.members(), name).map_err(UpstreamError::Refused)?;
    store.change_members(MemberChange::Remove(id)).await.map_err(failed)?;
    tracing::info!(server = name, "a server was removed from the cluster");
    list(store).await
}

/// The server of this name or id.
fn find(members: &[Member], name: &str) -> Result<MemberId, String> {
    let found = members.iter().find(|m| m.name == name || format!("{:x}", m.id) == name);
    found.map(|m| m.id).ok_or_else(|| {
        let mut names: Vec<_> = members.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        format!("the cluster has no server {name:?}; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_by_name_or_id() {
        let member = |id, name: &str| Member { id, name: name.into(), ..Default::default() };
        let members = [member(0xa1, "s1"), member(0xb2, "s2")];
        assert_eq!(find(&members, "s2"), Ok(0xb2));
        assert_eq!(find(&members, "a1"), Ok(0xa1));
        let missing = find(&members, "s9").unwrap_err();
        assert!(missing.contains("s1, s2"), "{missing}");
    }
}
