//! The handle that the rest of the process holds: requests in, answers out, whoever leads.
//!
//! A write goes to the leader, wherever that is, and is answered once *this* member has applied it; so a read that follows on the
//! same member sees it. While the leader is being replaced, the same command is sent again: the machine applies it once.

use crate::command::txn_to_pb;
use crate::config::{Config, Data};
use crate::disk::{Disk, MemoryDisk, RealDisk};
use crate::driver::{self, Counters, Outbox, Shared, Wake, command};
use crate::error::{Error, WatchError};
use crate::hub::Hub;
use crate::hub::Watcher;
use crate::log::Log;
use crate::machine::Machine;
use crate::membership;
use crate::peer::PeerService;
use crate::raftlog::RaftLog;
use crate::replica::{Input, Replica, Timing};
use crate::snapshot;
use crate::transport::{self, Transport};
use crate::types::*;
use anyhow::Context as _;
use rand::RngExt as _;
use skiff_proto::store as pb;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

const TICK: Duration = Duration::from_millis(25);
/// Heartbeats every 100 ms; an election after 500 to 1000 ms of silence.
const TIMING: Timing = Timing { heartbeat_ticks: 4, election_ticks: 20 };
/// A request that has not been answered by then fails; whether it happened is not known.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an attempt waits before the same command is sent again.
const ATTEMPT: Duration = Duration::from_millis(1500);
const READ_ATTEMPT: Duration = Duration::from_millis(300);
/// Writes under way at once from this process; more wait.
const WRITES_MAX: usize = 1024;
/// etcd's default limit on a request.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// A member of the replicated store. Cheap to clone; the member stops when [`Store::stop`] is called.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    transport: Transport,
    sequence: AtomicU64,
    writes: Semaphore,
    reads: mpsc::Sender<oneshot::Sender<Result<u64, Error>>>,
    receiving: tokio::sync::Mutex<()>,
    stopped: watch::Sender<bool>,
}

impl Store {
    /// One member, nothing on disk, no network: for tests.
    pub async fn in_memory() -> Store {
        Store::start(Config::default())
            .await
            .unwrap_or_else(|e| panic!("a store in memory cannot fail to start: {e:#}"))
    }

    /// Opens (or makes) this member's data and runs it. With `config.join` and no data yet, it first asks the group to take it in.
    pub async fn start(config: Config) -> anyhow::Result<Store> {
        let disk: Arc<dyn Disk> = match &config.dir {
            Some(dir) => Arc::new(
                RealDisk::new(dir.clone()).with_context(|| format!("opening the data directory {}", dir.display()))?,
            ),
            None => Arc::new(MemoryDisk::default()),
        };
        let data = Data::open(&*disk, &config).await?;
        let seeds: HashMap<_, _> = data.seeds.iter().map(|m| (m.id, m.peer_addr.clone())).collect();
        let (log, found) = Log::open(disk.clone()).context("opening the store's log")?;
        if found.torn_bytes > 0 {
            tracing::warn!(
                "the log ended in a torn write of {} bytes (a crash while writing); it was cut off",
                found.torn_bytes
            );
        }
        let (machine, metadata) = match snapshot::newest(&*disk)? {
            Some(file) => {
                let (header, pairs) = snapshot::read(&*disk, &file)?;
                let metadata = snapshot::metadata(&header);
                (Machine::restore(header, pairs), metadata)
            }
            None => (Machine::new(), Default::default()),
        };
        snapshot::tidy(&*disk)?;
        let revision = machine.kv.revision();
        let (index, id) = (machine.index, data.member.id);
        let replica = Replica::new(id, RaftLog::new(metadata, found.hard_state, found.entries), TIMING)
            .with_context(|| format!("starting member {id:x}"))?;
        let (inbox, wakes) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            id,
            cluster_id: data.cluster_id,
            machine: RwLock::new(machine),
            hub: Hub::default(),
            disk,
            inbox,
            leadership: watch::Sender::new(Leadership { this: id, ..Default::default() }),
            applied: watch::Sender::new((index, revision)),
            failure: watch::Sender::new(None),
            waiters: Mutex::default(),
            refused: Mutex::default(),
            reads: Mutex::default(),
            origin: rand::rng().random(),
            counters: Counters::default(),
        });
        let transport = Transport::new(config.tls.clone(), seeds);
        transport.attach(&shared);
        let outbox: Arc<dyn Outbox> = Arc::new(transport.clone());
        driver::start(shared.clone(), replica, log, wakes, outbox, TICK).context("starting the store's threads")?;
        let (reads, read_queue) = mpsc::channel(4096);
        let inner = Inner {
            shared: shared.clone(),
            transport,
            sequence: AtomicU64::new(0),
            writes: Semaphore::new(WRITES_MAX),
            reads,
            receiving: tokio::sync::Mutex::default(),
            stopped: watch::Sender::new(false),
        };
        let store = Store { inner: Arc::new(inner) };
        tokio::spawn(answer_reads(shared, read_queue));
        if let Some(listener) = config.listener {
            store.serve_peers(listener, config.tls)?;
        }
        tokio::spawn(membership::lead(store.clone(), config.limits));
        tokio::spawn(membership::announce(store.clone(), data.member));
        Ok(store)
    }

    fn serve_peers(&self, listener: std::net::TcpListener, tls: Option<transport::PeerTls>) -> anyhow::Result<()> {
        use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
        let mut server = Server::builder().tcp_nodelay(true);
        if let Some(tls) = tls {
            let config = ServerTlsConfig::new()
                .identity(Identity::from_pem(&tls.certificate, &tls.key))
                .client_ca_root(Certificate::from_pem(&tls.ca));
            server = server.tls_config(config).context("the peers' TLS configuration")?;
        }
        listener.set_nonblocking(true)?;
        let incoming = tokio::net::TcpListener::from_std(listener)?;
        let service = pb::peer_server::PeerServer::new(PeerService::new(self.clone()))
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let mut stopped = self.inner.stopped.subscribe();
        tokio::spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(incoming).with_nodelay(Some(true));
            let stop = async move {
                let _ = stopped.wait_for(|s| *s).await;
            };
            if let Err(e) = server.add_service(service).serve_with_incoming_shutdown(incoming, stop).await {
                tracing::error!("the peers' listener ended: {e}");
            }
        });
        Ok(())
    }

    /// Stops this member. A leader hands over first where it can, so that nobody waits for an election.
    pub async fn stop(&self) {
        let progress = self.progress().await;
        let leads = self.leadership().borrow().is_leader();
        let heir =
            progress.iter().filter(|(id, _, voter)| *voter && *id != self.id()).max_by_key(|(_, matched, _)| *matched);
        if let (true, Some((heir, _, _))) = (leads, heir) {
            self.shared().input(Input::TransferTo(*heir));
            let mut leadership = self.leadership();
            let _ = tokio::time::timeout(Duration::from_secs(2), leadership.wait_for(|l| !l.is_leader())).await;
        }
        let _ = self.shared().inbox.send(Wake::Stop);
        self.inner.stopped.send_replace(true);
        self.shared().hub.close();
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) async fn receiving(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.receiving.lock().await
    }

    /// True once [`Store::stop`] was called.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.inner.stopped.subscribe()
    }

    /// This member's id.
    pub fn id(&self) -> MemberId {
        self.shared().id
    }

    pub fn cluster_id(&self) -> u64 {
        self.shared().cluster_id
    }

    /// Who leads, as this member knows it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared().leadership.subscribe()
    }

    /// Why the replica stopped; None while it runs.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared().failure.subscribe()
    }

    /// The members that the group has agreed on.
    pub fn members(&self) -> Vec<Member> {
        self.shared().machine.read().unwrap_or_else(|e| e.into_inner()).members.values().cloned().collect()
    }

    /// The revision applied here.
    pub fn revision(&self) -> Revision {
        self.shared().applied.borrow().1
    }

    /// Reads keys. Linearizable unless the request says `serializable`.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        if !request.serializable {
            let index = self.read_index().await?;
            self.wait_index(index).await?;
        }
        self.shared().machine.read().unwrap_or_else(|e| e.into_inner()).kv.range(&request)
    }

    /// Begins a watch.
    pub async fn watch(&self, request: WatchRequest) -> Result<Watcher, WatchError> {
        if self.shared().failure.borrow().is_some() || *self.inner.stopped.borrow() {
            return Err(WatchError::Stopped);
        }
        let machine = self.shared().machine.read().unwrap_or_else(|e| e.into_inner());
        self.shared().hub.register(request, &machine.kv, self.shared().applied.subscribe())
    }

    /// Carries out a transaction, wherever the leader is. After [`Error::Unknown`] it may or may not have happened.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let fence = txn.fence.unwrap_or(0);
        self.submit(fence, pb::command::Kind::Txn(txn_to_pb(&txn))).await
    }

    /// Drops history before `revision`.
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.submit(0, pb::command::Kind::Compact(revision)).await.map(|_| ())
    }

    /// Waits until this member has applied `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        self.wait_applied(|(_, applied)| *applied >= revision).await
    }

    async fn wait_index(&self, index: u64) -> Result<(), Error> {
        self.wait_applied(|(applied, _)| *applied >= index).await
    }

    async fn wait_applied(&self, reached: impl FnMut(&(u64, Revision)) -> bool) -> Result<(), Error> {
        let mut applied = self.shared().applied.subscribe();
        match tokio::time::timeout(REQUEST_TIMEOUT, applied.wait_for(reached)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::NoLeader),
        }
    }

    /// An index that covers every write acknowledged before this call.
    async fn read_index(&self) -> Result<u64, Error> {
        let (answer, index) = oneshot::channel();
        self.inner.reads.send(answer).await.map_err(|_| Error::Stopped)?;
        index.await.map_err(|_| Error::Stopped)?
    }

    pub(crate) async fn submit(&self, fence: Term, kind: pb::command::Kind) -> Result<TxnResponse, Error> {
        let _slot = self.inner.writes.acquire().await.map_err(|_| Error::Stopped)?;
        let shared = self.shared();
        if let Some(why) = &*shared.failure.borrow() {
            return Err(Error::Failed(why.clone()));
        }
        let sequence = self.inner.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let command = command(shared.origin, sequence, fence, kind);
        let size = prost::Message::encoded_len(&command);
        if size > REQUEST_BYTES_MAX {
            return Err(Error::TooLarge { size, limit: REQUEST_BYTES_MAX });
        }
        shared.counters.proposals.fetch_add(1, Ordering::Relaxed);
        let (waiter, mut outcome) = oneshot::channel();
        lock(&shared.waiters).insert(sequence, waiter);
        let deadline = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        let mut leadership = shared.leadership.subscribe();
        let mut sent = false;
        let result = loop {
            let leader = leadership.borrow_and_update().clone();
            // Leader-only work is not tried again under another leader.
            if fence != 0 && leader.term > fence {
                break Err(Error::Fenced { fence, term: leader.term });
            }
            let (refused, mut was_refused) = oneshot::channel();
            if leader.is_leader() {
                lock(&shared.refused).insert(sequence, refused);
                shared.input(Input::Propose(vec![command.clone()]));
                sent = true;
            } else if let Some(id) = leader.leader {
                sent |= self.forward(id, command.clone()).await;
            }
            let attempt_ends = (tokio::time::Instant::now() + ATTEMPT).min(deadline);
            let done = tokio::select! {
                outcome = &mut outcome => Some(outcome.unwrap_or(Err(Error::Stopped))),
                _ = leadership.changed() => None,
                Ok(()) = &mut was_refused => None,
                () = tokio::time::sleep_until(attempt_ends) => None,
            };
            lock(&shared.refused).remove(&sequence);
            if let Some(done) = done {
                break done;
            }
            if tokio::time::Instant::now() >= deadline {
                break Err(match sent {
                    true => Error::Unknown(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
                    false => Error::NoLeader,
                });
            }
            if leadership.borrow().leader.is_none() {
                let wait = tokio::time::timeout_at(deadline, leadership.wait_for(|l| l.leader.is_some()));
                let _ = wait.await;
                leadership.mark_changed();
            }
        };
        lock(&shared.waiters).remove(&sequence);
        result
    }

    /// Hands a command to the leader; whether it took it. The outcome comes through the log.
    async fn forward(&self, leader: MemberId, command: pb::Command) -> bool {
        let Some(channel) = self.inner.transport.channel_to(leader) else { return false };
        let call = async { transport::client(channel).forward(pb::Batch { commands: vec![command] }).await };
        match tokio::time::timeout(ATTEMPT, call).await {
            Ok(Ok(answer)) if answer.get_ref().accepted => true,
            // Not taken, or nobody knows: a little later there may be another leader.
            _ => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                false
            }
        }
    }

    pub(crate) async fn progress(&self) -> Vec<(MemberId, u64, bool)> {
        let (answer, progress) = oneshot::channel();
        let _ = self.shared().inbox.send(Wake::Progress(answer));
        progress.await.unwrap_or_default()
    }

    /// A peer's stream ended. If that peer led, it is most likely dead: stand for election, the members a little apart.
    pub(crate) fn peer_closed(&self, id: MemberId) {
        if *self.inner.stopped.borrow() {
            return;
        }
        let shared = self.shared().clone();
        let led = shared.leadership.borrow().leader == Some(id);
        shared.input(Input::Closed(id));
        if led {
            let apart = Duration::from_millis(rand::rng().random_range(5..60));
            tokio::spawn(async move {
                tokio::time::sleep(apart).await;
                let now = shared.leadership.borrow().clone();
                if now.leader.is_none() || now.leader == Some(id) {
                    shared.input(Input::Campaign);
                }
            });
        }
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let shared = self.shared();
        let machine = shared.machine.read().unwrap_or_else(|e| e.into_inner());
        let leadership = shared.leadership.borrow();
        let mut text = String::new();
        let mut line = |kind: &str, name: &str, help: &str, value: u64| {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
        };
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        line("gauge", "skiff_store_revision", "The revision applied here.", machine.kv.revision());
        line("gauge", "skiff_store_compacted_revision", "History before it is gone.", machine.kv.compacted());
        line("gauge", "skiff_store_bytes", "Keys and values of all versions.", machine.kv.size() as u64);
        line(
            "gauge",
            "skiff_store_keys",
            "Keys, deleted ones that are not compacted among them.",
            machine.kv.key_count() as u64,
        );
        line("gauge", "skiff_store_watchers", "Running watches.", shared.hub.len() as u64);
        line("gauge", "skiff_store_is_leader", "1 while this member leads.", leadership.is_leader() as u64);
        line("gauge", "skiff_store_term", "The Raft term.", leadership.term);
        line("gauge", "skiff_store_applied_index", "The last applied entry.", machine.index);
        line("counter", "skiff_store_proposals_total", "Writes asked for here.", count(&shared.counters.proposals));
        line("counter", "skiff_store_syncs_total", "Batches written to disk.", count(&shared.counters.syncs));
        line("counter", "skiff_store_entries_total", "Entries written to disk.", count(&shared.counters.entries));
        line(
            "counter",
            "skiff_store_elections_won_total",
            "Times this member became leader.",
            count(&shared.counters.elections),
        );
        text
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Answers reads by ReadIndex, all that wait by one round. Raft drops the question silently while a new leader has not committed
/// in its term, so each attempt has a number of its own and is repeated.
async fn answer_reads(shared: Arc<Shared>, mut queue: mpsc::Receiver<oneshot::Sender<Result<u64, Error>>>) {
    let mut number = 0;
    while let Some(first) = queue.recv().await {
        let mut waiting = vec![first];
        while let Ok(more) = queue.try_recv() {
            waiting.push(more);
        }
        let deadline = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        let mut leadership = shared.leadership.subscribe();
        let result = loop {
            if shared.failure.borrow().is_some() {
                break Err(Error::Stopped);
            }
            number += 1;
            let (answer, index) = oneshot::channel();
            lock(&shared.reads).insert(number, answer);
            leadership.borrow_and_update();
            shared.input(Input::ReadIndex(number));
            let attempt = tokio::select! {
                index = index => index.ok(),
                _ = leadership.changed() => None,
                () = tokio::time::sleep(READ_ATTEMPT) => None,
            };
            lock(&shared.reads).remove(&number);
            match attempt {
                Some(index) => break Ok(index),
                None if tokio::time::Instant::now() >= deadline => break Err(Error::NoLeader),
                None if leadership.borrow().leader.is_none() => {
                    let _ = tokio::time::timeout(READ_ATTEMPT, leadership.wait_for(|l| l.leader.is_some())).await;
                }
                None => {}
            }
        };
        for waiter in waiting {
            let _ = waiter.send(result.clone());
        }
    }
}
