//! The handle that the rest of the process holds: requests in, answers out, whoever leads.
//!
//! A write goes to the leader, wherever that is, and is answered once *this* member has applied it; so a read that follows on the
//! same member sees it. While the leader is being replaced, the same command is sent again: the machine applies it once.

use crate::claim::Claim;
use crate::clock::BootClock;
use crate::command::{Command, Kind, Proposal};
use crate::config::{Config, Data, Limits};
use crate::disk::{Disk, MemoryDisk, RealDisk};
use crate::driver::{self, Counters, Outbox, Shared, Wake, lock};
use crate::error::{Error, WatchError};
use crate::hub::{CatchUp, Feed, Hub, Watcher};
use crate::keeper;
use crate::kv::sweep::Hasher;
use crate::log::Log;
use crate::machine::Machine;
use crate::membership;
use crate::peer::PeerService;
use crate::peer_tls::PeerTls;
use crate::raftlog::RaftLog;
use crate::reconfigure;
use crate::replica::{Input, Progress, Replica, Timing, foremost};
use crate::role::Keys;
use crate::sizes::Sizes;
use crate::snapshot;
use crate::transport::{self, Transport};
use crate::types::*;
use anyhow::Context as _;
use bytes::Bytes;
use rand::RngExt as _;
use skiff_proto::store as pb;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

const TICK: Duration = Duration::from_millis(25);
/// How often a member stands for election after a leader's connection ended.
const STAND_AGAIN: u64 = 5;
/// Heartbeats every 100 ms; an election after 500 to 1000 ms of silence.
const TIMING: Timing = Timing { heartbeat_ticks: 4, election_ticks: 20 };
/// A request that has not been answered by then fails; whether it happened is not known.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const READ_ATTEMPT: Duration = Duration::from_millis(300);
/// Writes under way at once from this process; more wait.
const WRITES_MAX: usize = 4096;
/// The log's limit on a command; servers in front of the store may set a lower one.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// How a member whose connection closed is asked whether it is there still.
const DIALS: usize = 8;
const DIAL_MAX: Duration = Duration::from_millis(200);
const DIAL_AGAIN: Duration = Duration::from_millis(10);
/// Keys looked at under one lock when a whole store is digested.
const KEYS_A_LOOK: usize = 2000;

/// A member of the replicated store. Cheap to clone; the member stops when [`Store::stop`] is called.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    transport: Transport,
    limits: Limits,
    sequence: AtomicU64,
    exports: AtomicU64,
    writes: Semaphore,
    reads: mpsc::Sender<oneshot::Sender<Result<u64, Error>>>,
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
        Store::open(config, None).await
    }

    /// As [`Store::start`], on a disk that may have faults.
    #[cfg(feature = "simulation")]
    pub async fn start_on(disk: Arc<dyn Disk>, config: Config) -> anyhow::Result<Store> {
        Store::open(config, Some(disk)).await
    }

    async fn open(config: Config, disk: Option<Arc<dyn Disk>>) -> anyhow::Result<Store> {
        let disk: Arc<dyn Disk> = match (disk, &config.dir) {
            (Some(disk), _) => disk,
            (None, Some(dir)) => Arc::new(
                RealDisk::new(dir.clone()).with_context(|| format!("opening the data directory {}", dir.display()))?,
            ),
            (None, None) => Arc::new(MemoryDisk::default()),
        };
        let claim = match &config.dir {
            Some(dir) => Some(Claim::take(dir).await?),
            None => None,
        };
        snapshot::sweep_unfinished(&*disk)?;
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
        found.check_joins(machine.index).context("opening the store's log")?;
        snapshot::tidy(&*disk, &Default::default())?;
        let (index, revision, compacted) = (machine.index, machine.kv.revision(), machine.kv.compacted());
        let id = data.member.id;
        let replica =
            Replica::new(id, RaftLog::new(metadata, found.hard_state, found.entries), TIMING, Sizes::default())
                .with_context(|| format!("starting member {id:x}"))?;
        let (inbox, wakes) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            id,
            cluster_id: data.cluster_id,
            machine: RwLock::new(machine),
            hub: Hub::default(),
            disk,
            clock: Arc::new(BootClock),
            inbox,
            leadership: watch::Sender::new(Leadership { this: id, ..Default::default() }),
            applied: watch::Sender::new((index, revision)),
            applied_index: AtomicU64::new(index),
            committed_index: AtomicU64::new(index),
            lease_until: AtomicU64::new(0),
            swept: watch::Sender::new(compacted),
            lessor: Mutex::default(),
            lessor_changed: Notify::new(),
            failure: watch::Sender::new(None),
            failed: Default::default(),
            pending: Mutex::default(),
            pending_changed: Notify::new(),
            reads: Mutex::default(),
            disk_full: AtomicBool::new(false),
            read_numbers: AtomicU64::new(Shared::first_read(rand::rng().random())),
            origin: rand::rng().random(),
            sizes: Sizes::default(),
            incoming: Mutex::default(),
            sending: Default::default(),
            counters: Counters::default(),
        });
        lock(&shared.pending).answer_on(tokio::runtime::Handle::current());
        let bound = config.tls.as_ref().is_some_and(|tls| tls.bound_key().is_some());
        let transport = Transport::new(config.tls.clone(), seeds);
        transport.attach(&shared);
        let outbox: Arc<dyn Outbox> = Arc::new(transport.clone());
        driver::start(shared.clone(), replica, log, wakes, outbox, TICK, claim)
            .context("starting the store's threads")?;
        let (reads, read_queue) = mpsc::channel(4096);
        let inner = Inner {
            shared: shared.clone(),
            transport,
            limits: config.limits,
            sequence: AtomicU64::new(0),
            exports: AtomicU64::new(0),
            writes: Semaphore::new(WRITES_MAX),
            reads,
            stopped: watch::Sender::new(false),
        };
        let store = Store { inner: Arc::new(inner) };
        tokio::spawn(answer_reads(shared.clone(), read_queue));
        tokio::spawn(transport::carry(shared, store.inner.transport.clone(), store.stopped()));
        if let Some(listener) = config.listener {
            store.serve_peers(listener, config.tls)?;
        }
        tokio::spawn(reconfigure::lead(store.clone()));
        tokio::spawn(membership::leave_when_removed(store.clone()));
        tokio::spawn(keeper::count_leases(store.clone()));
        tokio::spawn(keeper::keep_small(store.clone()));
        tokio::spawn(keeper::leave_office_when_full(store.clone()));
        tokio::spawn(membership::announce(store.clone(), data.member, bound));
        Ok(store)
    }

    fn serve_peers(&self, listener: std::net::TcpListener, tls: Option<PeerTls>) -> anyhow::Result<()> {
        use crate::role::MembersOnly;
        use tonic::service::interceptor::InterceptedService;
        use tonic::transport::Server;
        let mut server = Server::builder().tcp_nodelay(true);
        let members_only = MembersOnly::new(tls.clone());
        listener.set_nonblocking(true)?;
        let incoming = tokio::net::TcpListener::from_std(listener)?;
        let service = pb::peer_server::PeerServer::new(PeerService::new(self.clone()))
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let service = InterceptedService::new(service, members_only);
        let mut stopped = self.inner.stopped.subscribe();
        tokio::spawn(async move {
            let stop = async move {
                let _ = stopped.wait_for(|s| *s).await;
            };
            let serving = server.add_service(service);
            let ended = match tls {
                Some(tls) => serving.serve_with_incoming_shutdown(tls.accept(incoming), stop).await,
                None => {
                    let incoming = tonic::transport::server::TcpIncoming::from(incoming).with_nodelay(Some(true));
                    serving.serve_with_incoming_shutdown(incoming, stop).await
                }
            };
            if let Err(e) = ended {
                tracing::error!("the peers' listener ended: {e}");
            }
        });
        Ok(())
    }

    /// Stops this member. A leader hands over first where it can, so that nobody waits for an election.
    pub async fn stop(&self) {
        let progress = self.progress().await;
        let leads = self.leadership().borrow().is_leader();
        let heir = foremost(&progress, |m| m.votes && m.id != self.id());
        if let (true, Some(heir)) = (leads, heir) {
            self.shared().input(Input::TransferTo(heir));
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

    pub(crate) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    pub(crate) fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// True once [`Store::stop`] was called.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.inner.stopped.subscribe()
    }

    /// This member's id.
    pub fn id(&self) -> MemberId {
        self.shared().id
    }

    pub fn cluster_id(&self) -> u64 {
        self.shared().cluster_id
    }

    /// Whether a certificate of this key (its hash) is a member's, as far as this member knows; else why not. For groups in which each member has a key of
    /// its own ([`PeerTls::with_own_keys`]).
    pub fn check_key(&self, hash: &str) -> Result<(), String> {
        let machine = self.shared().look();
        Keys { members: &machine.members, removed: &machine.removed_keys }.may_speak(hash)
    }

    /// Who leads, as this member knows it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared().leadership.subscribe()
    }

    /// The term as this member knows it, without subscribing.
    pub fn term(&self) -> Term {
        self.shared().leadership.borrow().term
    }

    /// Why the replica stopped; None while it runs.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared().failure.subscribe()
    }

    /// The revision applied here.
    pub fn revision(&self) -> Revision {
        self.shared().applied.borrow().1
    }

    /// How this member is doing.
    pub fn status(&self) -> Status {
        let shared = self.shared();
        let machine = shared.look();
        Status {
            leadership: shared.leadership.borrow().clone(),
            committed_index: shared.committed_index.load(Ordering::Acquire),
            applied_index: machine.index,
            revision: machine.kv.revision(),
            compacted: machine.kv.compacted(),
            size_bytes: machine.kv.size(),
            quota_bytes: self.inner.limits.quota_bytes,
            learner: machine.conf_state.learners.contains(&shared.id),
            alarms: machine.alarms.iter().copied().collect(),
        }
    }

    /// Reads keys. Linearizable unless the request says `serializable`.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        if request.serializable {
            return self.shared().look().kv.range(&request);
        }
        self.linearizable(|machine| machine.kv.range(&request)).await?
    }

    /// Looks at the state once it covers every write that was acknowledged before this call, wherever.
    pub(crate) async fn linearizable<T>(&self, look: impl Fn(&Machine) -> T) -> Result<T, Error> {
        let shared = self.shared();
        // Under a lease nobody else can have acknowledged anything that this member has not seen committed.
        if shared.has_lease() {
            let committed = shared.committed_index.load(Ordering::Acquire);
            self.wait_index(committed).await?;
            let seen = look(&shared.look());
            // The look may have taken longer than the lease lasted.
            if shared.has_lease() {
                return Ok(seen);
            }
        }
        let index = self.read_index().await?;
        self.wait_index(index).await?;
        Ok(look(&shared.look()))
    }

    /// Returns once this member has seen every write that was acknowledged before the call.
    pub async fn barrier(&self) -> Result<(), Error> {
        self.linearizable(|_| ()).await
    }

    /// Begins a watch.
    pub async fn watch(&self, request: WatchRequest) -> Result<Watcher, WatchError> {
        if self.shared().failure.borrow().is_some() || *self.inner.stopped.borrow() {
            return Err(WatchError::Stopped);
        }
        let machine = self.shared().look();
        self.shared().hub.register(request, &machine.kv, self.shared().applied.subscribe())
    }

    /// A feed for many watches; see [`Store::catch_up`] for how they begin.
    pub fn feed(&self) -> Result<Feed, WatchError> {
        if self.shared().failure.borrow().is_some() || *self.inner.stopped.borrow() {
            return Err(WatchError::Stopped);
        }
        Ok(self.shared().hub.feed(self.shared().applied.subscribe()))
    }

    /// Up to about `events_max` events of a range from revision `from` on. Once that is all there is, the range has joined the feed.
    pub fn catch_up(
        &self,
        feed: &Feed,
        range: &KeyRange,
        from: Revision,
        events_max: usize,
    ) -> Result<CatchUp, WatchError> {
        feed.catch_up(&self.shared().look().kv, range, from, events_max)
    }

    /// Carries out a transaction, wherever the leader is. After [`Error::Unknown`] it may or may not have happened.
    pub async fn txn(&self, mut txn: Txn) -> Result<TxnResponse, Error> {
        if txn.fence.is_none() && txn.is_read_only() {
            return self.linearizable(|machine| machine.kv.read_txn(&txn)).await?;
        }
        let fence = txn.fence.take().unwrap_or(0);
        if txn.may_put() {
            self.check_disk()?;
            if self.inner.limits.quota_bytes > 0 {
                self.check_room(&txn).await?;
            }
        }
        self.submit(fence, Kind::Txn(txn)).await
    }

    /// Drops history before `revision`. With `physical`, waits until its memory is free again.
    pub async fn compact(&self, revision: Revision, physical: bool) -> Result<(), Error> {
        self.submit(0, Kind::Compact(revision)).await?;
        if physical {
            let mut swept = self.shared().swept.subscribe();
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, swept.wait_for(|at| *at >= revision)).await;
        }
        Ok(())
    }

    /// Raises or ends an alarm.
    pub async fn alarm(&self, alarm: Alarm, raise: bool) -> Result<(), Error> {
        self.submit(0, Kind::Alarm { alarm, raise }).await.map(|_| ())
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.shared().look().alarms.iter().copied().collect()
    }

    /// A digest of what is readable at `revision` (0 = the latest): (digest, compacted revision, revision). Members that agree
    /// on both revisions have the same.
    pub async fn hash_kv(&self, revision: Revision) -> Result<(u32, Revision, Revision), Error> {
        let (compacted, at) = {
            let mut machine = self.shared().machine.write().unwrap_or_else(|e| e.into_inner());
            let current = machine.kv.revision();
            if revision > current {
                return Err(Error::Future { asked: revision, current });
            }
            let (compacted, at) = (machine.kv.compacted(), if revision == 0 { current } else { revision });
            if at < compacted {
                return Err(Error::Compacted { asked: at, oldest: compacted });
            }
            machine.kv.pin();
            (compacted, at)
        };
        let shared = self.shared().clone();
        let digest = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::new(compacted, at);
            let mut after: Option<Bytes> = None;
            loop {
                let (pairs, last) = shared.look().kv.chunk_after(after.as_ref(), KEYS_A_LOOK, at);
                pairs.iter().for_each(|pair| hasher.feed(pair));
                match last {
                    Some(key) => after = Some(key),
                    None => break hasher.finish(),
                }
            }
        });
        let digest = digest.await;
        self.shared().machine.write().unwrap_or_else(|e| e.into_inner()).kv.unpin();
        digest.map(|digest| (digest, compacted, at)).map_err(|e| Error::Failed(e.to_string()))
    }

    /// A snapshot of the state as it is now, as a stream of chunks; `(bytes that are left after it, chunk)`.
    pub async fn export(&self) -> Result<mpsc::Receiver<std::io::Result<(u64, Bytes)>>, Error> {
        let shared = self.shared().clone();
        let name = format!("tmp-export-{}", self.inner.exports.fetch_add(1, Ordering::Relaxed));
        let (chunks, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let written = snapshot::export(&*shared.disk, &shared.machine, shared.cluster_id, &name)
                .and_then(|()| crate::offline::stream(&*shared.disk, &name, &chunks));
            if let Err(e) = written {
                let _ = chunks.blocking_send(Err(e));
            }
            let _ = shared.disk.remove(&name);
        });
        Ok(receiver)
    }

    /// Waits until this member has applied `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        self.wait_applied(|(_, applied)| *applied >= revision).await
    }

    pub(crate) async fn wait_index(&self, index: u64) -> Result<(), Error> {
        if self.shared().has_applied(index) {
            return Ok(());
        }
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

    pub(crate) async fn submit(&self, fence: Term, kind: Kind) -> Result<TxnResponse, Error> {
        let shared = self.shared();
        if shared.failed.load(Ordering::Acquire) {
            return Err(Error::Failed(shared.failure.borrow().clone().unwrap_or_default()));
        }
        let _slot = self.inner.writes.acquire().await.map_err(|_| Error::Stopped)?;
        let sequence = self.inner.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let proposal = Arc::new(Proposal::new(Command { origin: shared.origin, sequence, fence, kind }));
        let size = proposal.encoded.len();
        if size > REQUEST_BYTES_MAX {
            return Err(Error::TooLarge { size, limit: REQUEST_BYTES_MAX });
        }
        shared.counters.proposals.fetch_add(1, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        let now = shared.clock.now_ms();
        let deadline = now + REQUEST_TIMEOUT.as_millis() as u64;
        let leads = {
            let leadership = shared.leadership.borrow();
            if fence != 0 && leadership.term > fence {
                return Err(Error::Fenced { fence, term: leadership.term });
            }
            leadership.is_leader()
        };
        lock(&shared.pending).add(proposal.clone(), answer, now, deadline, leads);
        if leads {
            let _ = shared.inbox.send(Wake::Propose(proposal));
        } else {
            shared.pending_changed.notify_one();
        }
        // Whoever fails drains the pending commands first; one that came after that is told here.
        if shared.failed.load(Ordering::Acquire) {
            return Err(Error::Failed(shared.failure.borrow().clone().unwrap_or_default()));
        }
        outcome.await.unwrap_or(Err(Error::Stopped))
    }

    pub(crate) async fn progress(&self) -> Vec<Progress> {
        let (answer, progress) = oneshot::channel();
        let _ = self.shared().inbox.send(Wake::Progress(answer));
        progress.await.unwrap_or_default()
    }

    /// A peer's stream ended. If that peer led and nobody listens at its address any more, its process is dead: stand for
    /// election, one member a little after the other. A connection that was merely cut proves nothing: that leader may hold a lease still.
    pub(crate) fn peer_closed(&self, id: MemberId) {
        if *self.inner.stopped.borrow() || self.shared().leadership.borrow().leader != Some(id) {
            return;
        }
        let members = self.members();
        let Some(addr) = members.iter().find(|m| m.id == id).map(|m| m.peer_addr.clone()) else { return };
        // In turn, so that they do not split the votes; the first may lack entries, then the next stands soon after.
        let turn = members.iter().filter(|m| m.id != id && !m.learner && m.id < self.id()).count() as u64;
        let shared = self.shared().clone();
        tokio::spawn(async move {
            if !is_refused(&addr).await {
                return;
            }
            shared.input(Input::Closed(id));
            // Two that stand at the same moment split the votes: they stand again, apart anew, rather than wait for the silence to be long enough.
            for round in 0..STAND_AGAIN {
                let apart = match round {
                    0 => turn * 40 + rand::rng().random_range(2..12),
                    _ => rand::rng().random_range(65..120),
                };
                tokio::time::sleep(Duration::from_millis(apart)).await;
                if shared.leadership.borrow().leader.is_some_and(|leader| leader != id) {
                    return;
                }
                shared.input(Input::Campaign);
            }
        });
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let shared = self.shared();
        let machine = shared.look();
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
        line("gauge", "skiff_store_watchers", "Running watches.", shared.hub.watches() as u64);
        line("gauge", "skiff_store_is_leader", "1 while this member leads.", leadership.is_leader() as u64);
        line("gauge", "skiff_store_has_leader", "1 while a leader is known.", leadership.leader.is_some() as u64);
        line("gauge", "skiff_store_alarms", "Alarms that are raised.", machine.alarms.len() as u64);
        line("gauge", "skiff_store_leases", "Leases that have not ended.", machine.kv.leases().count() as u64);
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
        line(
            "counter",
            "skiff_store_snapshots_sent_total",
            "Snapshots that another member has taken from here.",
            count(&shared.counters.snapshots_sent),
        );
        line(
            "counter",
            "skiff_store_snapshots_broken_total",
            "Times that sending a snapshot to another member failed; it goes on later.",
            count(&shared.counters.snapshots_broken),
        );
        line(
            "counter",
            "skiff_store_snapshot_sent_bytes_total",
            "Bytes of snapshots sent to other members.",
            count(&shared.counters.snapshot_sent_bytes),
        );
        line(
            "counter",
            "skiff_store_snapshot_resumed_bytes_total",
            "Bytes of snapshots not sent again, because the other member had them from before.",
            count(&shared.counters.snapshot_resumed_bytes),
        );
        line(
            "counter",
            "skiff_store_snapshot_received_bytes_total",
            "Bytes of snapshots received from other members.",
            count(&shared.counters.snapshot_received_bytes),
        );
        text
    }
}

/// Whether nobody listens at an address. A process that is dying closes its connections and its listener one after the other, so it is
/// asked a few times.
async fn is_refused(addr: &str) -> bool {
    for _ in 0..DIALS {
        let dial = tokio::time::timeout(DIAL_MAX, tokio::net::TcpStream::connect(addr)).await;
        if matches!(dial, Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        tokio::time::sleep(DIAL_AGAIN).await;
    }
    false
}

/// Answers reads by ReadIndex, all that wait by one round. Raft drops the question silently while a new leader has not committed
/// in its term, so each attempt has a number of its own and is repeated.
async fn answer_reads(shared: Arc<Shared>, mut queue: mpsc::Receiver<oneshot::Sender<Result<u64, Error>>>) {
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
            let number = shared.next_read();
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
