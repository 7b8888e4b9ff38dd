//! The agent's end of the fleet protocol: it dials, and what is lost is dialled again.
//!
//! The state stream is with one server at a time, the next one when that ends. Heartbeats go to every server on a connection of their own, and every
//! server may ask for streams. Reports are levels: the newest status of each pod is kept, and told again to a new server.

use super::enrol::{self, Enrolled, remember_servers};
use super::machine::Machine;
use super::removed::{Refusals, Removed, Step};
use super::tables::Tables;
use super::wire;
use crate::supervise;
use skiff_identity::{Own, Token, Trust};
use skiff_pods::Report;
use skiff_proto::fleet as pb;
use skiff_proto::fleet::from_agent::Message as Up;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const BEAT_EVERY: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_millis(100);
/// A renewal that failed is tried again after this; and it is looked at least so often whether one is due, whatever happens to the clock.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
const RENEW_LOOK: Duration = Duration::from_secs(3600);
/// The node's own conditions are told anew this often.
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// A stream on which nothing can be sent for this long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be told: levels by pod, and news in order.
#[derive(Default)]
struct Outbox {
    statuses: BTreeMap<String, pb::PodStatus>,
    dirty: BTreeSet<String>,
    gone: BTreeMap<String, pb::PodGone>,
    news: Vec<Up>,
}

struct Inner {
    dir: PathBuf,
    trust: Trust,
    own: Own,
    /// The hash of the authority that issues now; empty until a server has said it.
    issuer: watch::Sender<String>,
    /// Goes up when connections are to be made anew: what they were made with is of an authority that goes.
    redial: watch::Sender<u64>,
    servers: watch::Sender<Vec<String>>,
    machine: Machine,
    ready: AtomicBool,
    welcome: watch::Sender<Option<pb::Welcome>>,
    tables: watch::Sender<Arc<Tables>>,
    outbox: Mutex<Outbox>,
    wake: Notify,
    applied: AtomicU64,
    beat_now: watch::Sender<u64>,
    tokens: Mutex<HashMap<u64, oneshot::Sender<Result<String, String>>>>,
    next_token: AtomicU64,
    calls: mpsc::Sender<(Channel, pb::Call)>,
    calls_out: Mutex<Option<mpsc::Receiver<(Channel, pb::Call)>>>,
    stopping: AtomicBool,
    /// Servers, one after the other, that knew less than this node does.
    behind: AtomicUsize,
    refusals: Mutex<Refusals>,
}

/// The link. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Link {
    /// `token`: with which this node joins again if the cluster does not know it.
    pub fn start(
        dir: PathBuf,
        enrolled: Enrolled,
        machine: Machine,
        token: Option<Token>,
    ) -> Result<Link, skiff_identity::Error> {
        let (calls, calls_out) = mpsc::channel(64);
        let inner = Inner {
            dir,
            trust: Trust::new(&enrolled.ca)?,
            own: Own::new(enrolled.own)?,
            issuer: watch::Sender::new(String::new()),
            redial: watch::Sender::new(0),
            servers: watch::Sender::new(enrolled.servers),
            machine,
            ready: AtomicBool::new(false),
            welcome: watch::Sender::new(None),
            tables: watch::Sender::new(Arc::default()),
            outbox: Mutex::default(),
            wake: Notify::new(),
            applied: AtomicU64::new(0),
            beat_now: watch::Sender::new(0),
            tokens: Mutex::default(),
            next_token: AtomicU64::new(1),
            calls,
            calls_out: Mutex::new(Some(calls_out)),
            stopping: AtomicBool::new(false),
            behind: AtomicUsize::new(0),
            refusals: Mutex::new(Refusals::new(token)),
        };
        let link = Link { inner: Arc::new(inner) };
        let (session, servers) = (link.clone(), link.clone());
        tokio::spawn(supervise::forever("session", move || session.clone().hold_session()));
        tokio::spawn(supervise::forever("servers", move || servers.clone().hold_every_server()));
        let renewing = link.clone();
        tokio::spawn(supervise::forever("certificate", move || renewing.clone().renew()));
        Ok(link)
    }

    /// What the cluster is like: from the first server that answers, or, after a restart, from what was kept.
    pub async fn welcome(&self, dir: &Path) -> anyhow::Result<pb::Welcome> {
        let path = dir.join("welcome.pb");
        if let Ok(kept) = std::fs::read(&path)
            && let Ok(welcome) = <pb::Welcome as prost::Message>::decode(&kept[..])
        {
            return Ok(welcome);
        }
        let mut answer = self.inner.welcome.subscribe();
        let welcome = answer.wait_for(Option::is_some).await?.clone().unwrap_or_default();
        skiff_runtime::private::write(&path, &prost::Message::encode_to_vec(&welcome))?;
        Ok(welcome)
    }

    /// What the servers told.
    pub fn tables(&self) -> watch::Receiver<Arc<Tables>> {
        self.inner.tables.subscribe()
    }

    /// The node is wired up.
    pub fn ready(&self) {
        self.inner.ready.store(true, Ordering::Release);
        self.tell_node_status();
    }

    /// The node's rules and names reflect everything up to `revision`; the servers hear it at once.
    pub fn set_applied(&self, revision: u64) {
        if self.inner.applied.swap(revision, Ordering::AcqRel) != revision {
            self.inner.beat_now.send_modify(|n| *n += 1);
        }
    }

    /// Says that the silence which follows is on purpose.
    pub async fn goodbye(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.beat_now.send_modify(|n| *n += 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Addresses of all servers.
    pub fn servers(&self) -> Vec<String> {
        self.inner.servers.borrow().clone()
    }

    pub fn channel(&self, addr: &str) -> anyhow::Result<Channel> {
        wire::trusting(addr, &self.inner.trust, Some(&self.inner.own))
    }

    /// The calls that servers make, with the connection that the answer belongs on. To be taken once.
    pub fn take_calls(&self) -> Option<mpsc::Receiver<(Channel, pb::Call)>> {
        lock(&self.inner.calls_out).take()
    }

    fn tell(&self, message: Up) {
        let mut outbox = lock(&self.inner.outbox);
        // News that nobody takes for long is dropped, oldest first.
        if outbox.news.len() >= 1000 {
            outbox.news.remove(0);
        }
        outbox.news.push(message);
        drop(outbox);
        self.inner.wake.notify_one();
    }

    fn tell_node_status(&self) {
        let status = self.inner.machine.status(self.inner.ready.load(Ordering::Acquire));
        self.tell(Up::NodeStatus(pb::NodeStatus { status_json: status.to_string().into() }));
    }

    /// Takes the pods' reports.
    pub async fn report(self, mut reports: mpsc::Receiver<Report>) {
        while let Some(report) = reports.recv().await {
            match report {
                Report::PodStatus { namespace, name, uid, status } => {
                    let status_json = serde_json::to_vec(&*status).unwrap_or_default().into();
                    let mut outbox = lock(&self.inner.outbox);
                    outbox.dirty.insert(uid.clone());
                    outbox.statuses.insert(uid.clone(), pb::PodStatus { namespace, name, uid, status_json });
                }
                Report::PodGone { namespace, name, uid } => {
                    let mut outbox = lock(&self.inner.outbox);
                    outbox.gone.insert(uid.clone(), pb::PodGone { namespace, name, uid });
                }
                Report::Event(e) => self.tell(Up::Event(pb::Event {
                    namespace: e.namespace,
                    pod: e.name,
                    uid: e.uid,
                    r#type: if e.warning { "Warning" } else { "Normal" }.into(),
                    reason: e.reason,
                    message: e.message,
                    field_path: e.field_path,
                    name: e.series,
                    count: e.count,
                    first_unix_ms: i64::try_from(e.first_ms).unwrap_or(i64::MAX),
                    last_unix_ms: i64::try_from(e.last_ms).unwrap_or(i64::MAX),
                })),
            }
            self.inner.wake.notify_one();
        }
    }

    /// A token for a pod, from whichever server the session is with.
    pub async fn token(&self, mut request: pb::TokenRequest) -> Result<String, String> {
        let id = self.inner.next_token.fetch_add(1, Ordering::Relaxed);
        request.id = id;
        let (answer, token) = oneshot::channel();
        lock(&self.inner.tokens).insert(id, answer);
        self.tell(Up::Token(request));
        let result = tokio::time::timeout(Duration::from_secs(10), token).await;
        lock(&self.inner.tokens).remove(&id);
        match result {
            Ok(Ok(result)) => result,
            _ => Err("no server gave a token within 10 s".into()),
        }
    }

    /// One session after the other, with the next server each time.
    async fn hold_session(self) {
        let mut turn = 0;
        loop {
            let servers = self.servers();
            let addr = servers[turn % servers.len()].clone();
            turn += 1;
            match self.session(&addr).await {
                Ok(()) => tracing::debug!(addr, "the session ended"),
                Err(e) => {
                    tracing::debug!(addr, "no session: {e:#}");
                    if e.downcast_ref::<Removed>().is_some() {
                        self.was_refused(&addr, &e).await;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether this node's certificate is of another authority than the one that issues now.
    fn is_of_another_authority(&self) -> bool {
        let wanted = self.inner.issuer.borrow();
        !wanted.is_empty() && skiff_identity::issuer_hash(&self.inner.own.pair().certificate).as_ref() != Some(&*wanted)
    }

    /// Has this node's certificate made anew at half of its life, and when another authority issues, by whichever server answers. One that has ended already does not
    /// matter: the key counts.
    async fn renew(self) {
        let mut issuer = self.inner.issuer.subscribe();
        loop {
            let another = self.is_of_another_authority();
            let due_in = if another { RENEW_AGAIN } else { self.inner.own.pair().renewal_in() };
            tokio::select! {
                () = tokio::time::sleep(due_in.clamp(RENEW_AGAIN, RENEW_LOOK)) => {}
                _ = issuer.changed() => {}
            }
            let another = self.is_of_another_authority();
            if !another && !self.inner.own.pair().renewal_due() {
                continue;
            }
            for addr in self.servers() {
                let (dir, node) = (&self.inner.dir, self.inner.machine.name());
                let renewed = enrol::renew(dir, node, &addr, &self.inner.trust).await;
                match renewed.and_then(|pair| Ok(self.inner.own.replace(pair)?)) {
                    Ok(()) => {
                        tracing::info!("this node's certificate was renewed");
                        if another {
                            self.inner.redial.send_modify(|n| *n += 1);
                        }
                        break;
                    }
                    Err(e) => tracing::warn!("this node's certificate could not be renewed, trying again: {e:#}"),
                }
            }
        }
    }

    /// A server does not know this node.
    async fn was_refused(&self, addr: &str, why: &anyhow::Error) {
        let step = lock(&self.inner.refusals).refused(Instant::now());
        match step {
            Step::Nothing => {}
            Step::Tell => tracing::error!("{why:#}"),
            Step::Join(token) => {
                match enrol::join_again(&self.inner.dir, self.inner.machine.name(), addr, &token).await {
                    Ok(()) => {
                        tracing::info!("this node was removed from the cluster, and has joined again with its token")
                    }
                    Err(e) => tracing::error!("{why:#}; joining again with the token: {e:#}"),
                }
            }
        }
    }

    async fn session(&self, addr: &str) -> anyhow::Result<()> {
        let inner = &self.inner;
        let mut redial = inner.redial.subscribe();
        let (send, outgoing) = mpsc::channel(64);
        let object = inner.machine.object(inner.ready.load(Ordering::Acquire));
        let node = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let all_behind = inner.behind.load(Ordering::Relaxed) >= 2 * self.servers().len();
        let revision = if all_behind { 0 } else { inner.tables.borrow().revision };
        let register = pb::Register { node, node_json: object.to_string().into(), boot_id: String::new(), revision };
        send.send(pb::FromAgent { message: Some(Up::Register(register)) }).await?;
        let mut client = wire::client(self.channel(addr)?);
        let ended = |status: &tonic::Status| match status.code() {
            tonic::Code::Unauthenticated => Removed(status.message().to_owned()).into(),
            _ => wire::explain(addr, status),
        };
        let answer = client.session(ReceiverStream::new(outgoing)).await.map_err(|s| ended(&s))?;
        let mut incoming = answer.into_inner();
        {
            // A new server knows nothing of what the last one was told.
            let mut outbox = lock(&inner.outbox);
            outbox.dirty = outbox.statuses.keys().cloned().collect();
        }
        inner.wake.notify_one();
        let tell = self.clone().tell_all(send);
        let hear = async {
            loop {
                match incoming.message().await {
                    Ok(Some(message)) => {
                        inner.behind.store(0, Ordering::Relaxed);
                        self.hear(message);
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => {
                        if status.code() == tonic::Code::OutOfRange {
                            inner.behind.fetch_add(1, Ordering::Relaxed);
                        }
                        return Err(ended(&status));
                    }
                }
            }
        };
        tokio::select! {
            result = hear => result,
            result = tell => result,
            _ = redial.changed() => Ok(()),
        }
    }

    fn hear(&self, message: pb::ToAgent) {
        use pb::to_agent::Message;
        match message.message {
            Some(Message::Welcome(welcome)) => {
                if !welcome.servers.is_empty() && *self.inner.servers.borrow() != welcome.servers {
                    if let Err(e) = remember_servers(&self.inner.dir, &welcome.servers) {
                        tracing::warn!("the servers' addresses could not be kept: {e:#}");
                    }
                    self.inner.servers.send_replace(welcome.servers.clone());
                }
                self.hear_authority(&welcome);
                lock(&self.inner.refusals).taken_in();
                self.inner.welcome.send_replace(Some(welcome));
            }
            Some(Message::Objects(objects)) => self.hear_objects(objects),
            Some(Message::Token(answer)) => {
                if let Some(waiter) = lock(&self.inner.tokens).remove(&answer.id) {
                    let result = if answer.error.is_empty() { Ok(answer.token) } else { Err(answer.error) };
                    let _ = waiter.send(result);
                }
            }
            Some(Message::Refused(refused)) => tracing::error!("the server refuses this node: {}", refused.reason),
            None => {}
        }
    }

    /// Whom this node is to trust, and who issues.
    fn hear_authority(&self, welcome: &pb::Welcome) {
        let inner = &self.inner;
        if !welcome.ca.is_empty() && welcome.ca != inner.trust.pem() {
            match enrol::trust(&inner.dir, &inner.trust, &welcome.ca) {
                Ok(()) => tracing::info!(
                    "the cluster's authority is being exchanged: this node trusts what the servers trust"
                ),
                Err(e) => tracing::error!("this node cannot take up whom the servers trust: {e:#}"),
            }
        }
        inner.issuer.send_if_modified(|issuer| {
            let changed = *issuer != welcome.issuer;
            issuer.clone_from(&welcome.issuer);
            changed
        });
    }

    fn hear_objects(&self, objects: pb::Objects) {
        let mut tables = (**self.inner.tables.borrow()).clone();
        tables.apply(&objects.objects, objects.revision, objects.snapshot);
        let mut outbox = lock(&self.inner.outbox);
        // Levels of pods that are no more.
        let known: BTreeSet<_> = tables.pods.values().filter_map(|p| p.metadata.uid.clone()).collect();
        outbox.statuses.retain(|uid, _| known.contains(uid));
        outbox.gone.retain(|uid, _| known.contains(uid));
        // While this node was silent, the control plane spoke for it: its own word takes that place.
        let spoken_for = |p: &k8s_openapi::api::core::v1::Pod| {
            let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.reason.as_deref() == Some("NodeLost"))
        };
        for object in objects.objects.iter().filter(|o| o.resource == "pods") {
            let pod = tables.pods.get(&(object.namespace.clone(), object.name.clone()));
            if pod.is_some_and(|p| spoken_for(p)) {
                outbox.dirty.insert(object.uid.clone());
            }
        }
        drop(outbox);
        let own = objects.objects.iter().filter(|o| o.resource == "nodes");
        let unknown = own.into_iter().filter_map(|o| tables.nodes.get(&(String::new(), o.name.clone()))).any(|n| {
            let mine = n.metadata.name.as_deref() == self.inner.machine.object(true)["metadata"]["name"].as_str();
            mine && n
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "Unknown")
        });
        self.inner.tables.send_replace(Arc::new(tables));
        if unknown {
            self.tell_node_status();
        }
        self.inner.wake.notify_one();
    }

    /// Tells a server everything that is to be told, as long as the session lasts.
    async fn tell_all(self, send: mpsc::Sender<pb::FromAgent>) -> anyhow::Result<()> {
        let mut told_gone: BTreeSet<String> = BTreeSet::new();
        loop {
            let messages = {
                let mut outbox = lock(&self.inner.outbox);
                let mut messages = std::mem::take(&mut outbox.news);
                for uid in std::mem::take(&mut outbox.dirty) {
                    messages.extend(outbox.statuses.get(&uid).cloned().map(Up::PodStatus));
                }
                for (uid, gone) in &outbox.gone {
                    if told_gone.insert(uid.clone()) {
                        messages.push(Up::PodGone(gone.clone()));
                    }
                }
                messages
            };
            for message in messages {
                let message = pb::FromAgent { message: Some(message) };
                tokio::time::timeout(SEND_TIMEOUT, send.send(message)).await??;
            }
            tokio::select! {
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(STATUS_EVERY) => self.tell_node_status(),
            }
        }
    }

    /// A task for every server: heartbeats, and calls.
    async fn hold_every_server(self) {
        let mut servers = self.inner.servers.subscribe();
        let mut held: BTreeMap<String, tokio::task::JoinSet<()>> = BTreeMap::new();
        loop {
            let now = servers.borrow_and_update().clone();
            held.retain(|addr, _| now.contains(addr));
            for addr in now {
                held.entry(addr.clone()).or_insert_with(|| {
                    let mut tasks = tokio::task::JoinSet::new();
                    let (beats, calls, to) = (self.clone(), self.clone(), addr.clone());
                    tasks.spawn(supervise::forever("heartbeat", move || beats.clone().beat(to.clone())));
                    tasks.spawn(supervise::forever("calls", move || calls.clone().listen_for_calls(addr.clone())));
                    tasks
                });
            }
            if servers.changed().await.is_err() {
                return;
            }
        }
    }

    async fn beat(self, addr: String) {
        let mut redial = self.inner.redial.subscribe();
        loop {
            redial.borrow_and_update();
            let shown = self.inner.own.pair().certificate;
            if let Ok(channel) = self.channel(&addr) {
                let (send, beats) = mpsc::channel(4);
                let stream = async {
                    let mut answers = wire::client(channel).heartbeat(ReceiverStream::new(beats)).await?.into_inner();
                    while answers.message().await?.is_some() {}
                    Ok::<_, tonic::Status>(())
                };
                let pump = async {
                    let mut now = self.inner.beat_now.subscribe();
                    let mut sequence = 0;
                    loop {
                        sequence += 1;
                        let beat = pb::Beat {
                            node: String::new(),
                            sequence,
                            shutting_down: self.inner.stopping.load(Ordering::Acquire),
                            applied: self.inner.applied.load(Ordering::Acquire),
                            stance: skiff_identity::stance(&self.inner.trust.pem(), &shown),
                        };
                        if send.send(beat).await.is_err() {
                            return;
                        }
                        tokio::select! {
                            _ = now.changed() => {}
                            () = tokio::time::sleep(BEAT_EVERY) => {}
                        }
                    }
                };
                tokio::select! { _ = stream => {}, () = pump => {}, _ = redial.changed() => {} }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn listen_for_calls(self, addr: String) {
        let mut redial = self.inner.redial.subscribe();
        loop {
            redial.borrow_and_update();
            if let Ok(channel) = self.channel(&addr)
                && let Ok(calls) = wire::client(channel.clone()).calls(pb::Hello::default()).await
            {
                let mut calls = calls.into_inner();
                // What was opened on the connection stays open when it is made anew.
                while let Ok(Some(call)) =
                    tokio::select! { call = calls.message() => call, _ = redial.changed() => Ok(None) }
                {
                    if self.inner.calls.send((channel.clone(), call)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
