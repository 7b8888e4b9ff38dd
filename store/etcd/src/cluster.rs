//! The Cluster service, and what it has no call for: many changes at once.
//!
//! A member that is added as a voter is in the list at once, and its vote counts from when it has caught up: a member that never
//! starts cannot cost the group its majority.

use crate::api::Api;
use crate::error;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::{Error, Member, MemberChange};
use tonic::{Request, Response, Status};

/// An address for peers from etcd's URLs; the store's peers have one each.
fn address(urls: &[String]) -> Result<String, Status> {
    let first = urls.first().ok_or_else(error::bad_urls)?;
    let rest = first.strip_prefix("http://").or_else(|| first.strip_prefix("https://")).ok_or_else(error::bad_urls)?;
    let rest = rest.trim_end_matches('/');
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(rest.to_owned()),
        _ => Err(error::bad_urls()),
    }
}

fn member(m: &Member) -> pb::Member {
    let urls = |text: &str| -> Vec<String> {
        let all = text.split(',').filter(|t| !t.is_empty());
        all.map(|t| if t.contains("://") { t.to_owned() } else { format!("http://{t}") }).collect()
    };
    pb::Member {
        id: m.id,
        name: m.name.clone(),
        peer_urls: urls(&m.peer_addr),
        client_urls: if m.name.is_empty() { Vec::new() } else { urls(&m.client_addr) },
        is_learner: m.learner,
    }
}

impl Api {
    fn member_list(&self) -> Vec<pb::Member> {
        self.store.members().iter().map(member).collect()
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Api {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let request = request.into_inner();
        let id = skiff_store::new_id();
        let new = Member {
            id,
            name: String::new(),
            peer_addr: address(&request.peer_urls)?,
            client_addr: String::new(),
            learner: request.is_learner,
            key_hash: String::new(),
        };
        self.store.change_members(MemberChange::Add(new)).await.map_err(error::status)?;
        let members = self.member_list();
        let member = members.iter().find(|m| m.id == id).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: self.header(), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.store.change_members(MemberChange::Remove(request.into_inner().id)).await.map_err(error::status)?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members: self.member_list() }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let new = Member {
            id: request.id,
            name: String::new(),
            peer_addr: address(&request.peer_urls)?,
            client_addr: String::new(),
            learner: false,
            key_hash: String::new(),
        };
        self.store.change_members(MemberChange::Update(new)).await.map_err(error::status)?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members: self.member_list() }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.store.barrier().await.map_err(error::status)?;
        }
        Ok(Response::new(pb::MemberListResponse { header: self.header(), members: Api::member_list(self) }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.store.change_members(MemberChange::Promote(request.into_inner().id)).await.map_err(error::status)?;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members: self.member_list() }))
    }
}

#[tonic::async_trait]
impl skiff_proto::store::members_server::Members for Api {
    async fn set_voters(
        &self,
        request: Request<skiff_proto::store::Voters>,
    ) -> Result<Response<skiff_proto::store::Empty>, Status> {
        let changed = self.store.change_members(MemberChange::Voters(request.into_inner().ids)).await;
        changed.map_err(|e| match e {
            // Etcd's words for these are fixed, and say less.
            Error::Member { id: 0, problem, .. } => Status::failed_precondition(problem),
            Error::Member { id, problem, .. } => Status::failed_precondition(format!("member {id:x}: {problem}")),
            other => error::status(other),
        })?;
        Ok(Response::new(skiff_proto::store::Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_urls() {
        let check = |url: &str, expect: Option<&str>| {
            assert_eq!(address(&[url.to_owned()]).ok().as_deref(), expect, "{url}");
        };
        check("http://10.0.0.1:2380", Some("10.0.0.1:2380"));
        check("https://db-1:2380/", Some("db-1:2380"));
        check("10.0.0.1:2380", None);
        check("http://10.0.0.1", None);
        check("unix://x:1", None);
        assert!(address(&[]).is_err());
    }
}
