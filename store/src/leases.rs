//! Leases, as users of the store have them.

use crate::command::Kind;
use crate::driver::{Shared, lock};
use crate::error::Error;
use crate::store::{REQUEST_TIMEOUT, Store};
use crate::transport;
use crate::types::*;
use bytes::Bytes;
use rand::RngExt as _;
use skiff_proto::store as pb;
use std::time::Duration;

const AGAIN: Duration = Duration::from_millis(100);

impl Store {
    /// Grants a lease of `ttl_s` seconds. An id of 0 lets the store choose one.
    pub async fn grant_lease(&self, id: LeaseId, ttl_s: i64) -> Result<Lease, Error> {
        loop {
            let chosen = if id != 0 { id } else { rand::rng().random_range(1..LeaseId::MAX) };
            let lease = Lease { id: chosen, ttl_s };
            match self.submit(0, Kind::LeaseGrant(lease)).await {
                Err(Error::LeaseExists(_)) if id == 0 => {}
                done => return done.map(|_| lease),
            }
        }
    }

    /// Ends a lease; its keys go with it, at one revision.
    pub async fn revoke_lease(&self, id: LeaseId) -> Result<TxnResponse, Error> {
        self.submit(0, Kind::LeaseRevoke(id)).await
    }

    /// The leases that have not ended.
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.linearizable(|machine| machine.kv.leases().collect()).await
    }

    /// The keys that hang on a lease.
    pub async fn lease_keys(&self, id: LeaseId) -> Result<Vec<Bytes>, Error> {
        self.linearizable(|machine| machine.kv.lease_keys(id)).await
    }

    /// Begins a lease's time anew.
    pub async fn keep_alive(&self, id: LeaseId) -> Result<LeaseTime, Error> {
        self.lease_times(id, true).await
    }

    /// How much of a lease's time is left.
    pub async fn time_to_live(&self, id: LeaseId) -> Result<LeaseTime, Error> {
        self.lease_times(id, false).await
    }

    /// The leader counts, so it is asked, wherever it is.
    async fn lease_times(&self, id: LeaseId, renew: bool) -> Result<LeaseTime, Error> {
        let deadline = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        let mut leadership = self.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            let answer = match now.leader {
                None => Err(Error::NoLeader),
                Some(leader) if leader == self.id() => self.lead_leases(&[id], renew).await,
                Some(leader) => self.forward_leases(leader, id, renew).await,
            };
            match answer {
                Err(Error::NoLeader | Error::NotLeader) if tokio::time::Instant::now() < deadline => {
                    let _ = tokio::time::timeout(AGAIN, leadership.changed()).await;
                }
                answer => return answer?.first().copied().flatten().ok_or(Error::LeaseNotFound(id)),
            }
        }
    }

    async fn forward_leases(
        &self,
        leader: MemberId,
        id: LeaseId,
        renew: bool,
    ) -> Result<Vec<Option<LeaseTime>>, Error> {
        let channel = self.transport().channel_to(leader).ok_or(Error::NoLeader)?;
        let answer = transport::client(channel).leases(pb::LeasesRequest { ids: vec![id], renew }).await;
        let answer = answer.map_err(|_| Error::NoLeader)?.into_inner();
        if answer.refused {
            return Err(Error::NotLeader);
        }
        let time =
            |t: pb::LeaseTime| (t.left_ms >= 0).then_some(LeaseTime { left_ms: t.left_ms, granted_s: t.granted_s });
        Ok(answer.times.into_iter().map(time).collect())
    }

    /// As the leader. What is renewed is answered only when it is certain that this member led at the time: another leader would
    /// have given every lease its full time when it took over, and could end it sooner than the caller believes.
    pub(crate) async fn lead_leases(&self, ids: &[LeaseId], renew: bool) -> Result<Vec<Option<LeaseTime>>, Error> {
        let shared = self.shared();
        let term = self.term();
        let times = shared.lease_times(term, ids, renew).ok_or(Error::NotLeader)?;
        self.barrier().await?;
        if shared.counts_for(term) { Ok(times) } else { Err(Error::NotLeader) }
    }
}

impl Shared {
    /// What leases have left, or have again; None if this member does not count for that term.
    pub fn lease_times(&self, term: Term, ids: &[LeaseId], renew: bool) -> Option<Vec<Option<LeaseTime>>> {
        let mut lessor = lock(&self.lessor);
        if lessor.term() != Some(term) {
            return None;
        }
        let now = self.clock.now_ms();
        Some(ids.iter().map(|id| if renew { lessor.renew(*id, now) } else { lessor.left(*id, now) }).collect())
    }

    /// Whether this member leads in that term and counts the leases' time.
    pub fn counts_for(&self, term: Term) -> bool {
        lock(&self.lessor).term() == Some(term) && self.leadership.borrow().is_leader()
    }
}
