//! Listening on UDP and TCP. What the zone knows is answered at once, in the reading task; only questions for upstream become tasks, and of those
//! and of TCP connections there are bounded numbers.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{self, Reply};
use crate::shares::Shares;
use crate::upstream;
use crate::zone::Zone;

/// Questions waiting for upstream at once; beyond them a client is told to try later rather than left waiting.
const FORWARDS_MAX: usize = 512;
const CONNECTIONS_MAX: usize = 256;
/// Of these, what one client has at most: its neighbours' names are found while it floods.
const FORWARDS_OF_ONE_MAX: usize = 64;
const CONNECTIONS_OF_ONE_MAX: usize = 32;
/// Ports drawn before it is said that none is free.
const ANY_PORT_TRIES: usize = 16;
const IDLE: Duration = Duration::from_secs(10);

/// A running DNS server; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    _tasks: JoinSet<()>,
    addresses: Vec<SocketAddr>,
}

struct Shared {
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Vec<SocketAddr>,
    turn: AtomicUsize,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    forward_shares: Shares,
    connection_shares: Shares,
}

impl Server {
    /// Answers on each address, UDP and TCP, from the zone as it is at each question. With no upstreams other names get SERVFAIL at once.
    ///
    /// # Errors
    /// An address is not this machine's, or is taken.
    pub async fn start(
        listen: Vec<SocketAddr>,
        upstreams: Vec<SocketAddr>,
        zone: watch::Receiver<Arc<Zone>>,
    ) -> Result<Server> {
        let shared = Arc::new(Shared {
            zone,
            upstreams,
            turn: AtomicUsize::new(0),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            forward_shares: Shares::new(FORWARDS_OF_ONE_MAX),
            connection_shares: Shares::new(CONNECTIONS_OF_ONE_MAX),
        });
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for address in listen {
            let (udp, tcp) = bind(address).await?;
            addresses.push(udp.local_addr().context("find the DNS server's address")?);
            tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
            tasks.spawn(serve_tcp(tcp, shared.clone()));
        }
        Ok(Server { _tasks: tasks, addresses })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Sockets of both kinds at one address. Asked for any port (0), the same one for both.
async fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
    let mut tries = if address.port() == 0 { ANY_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let udp =
            UdpSocket::bind(address).await.with_context(|| format!("listen for DNS questions on {address} (UDP)"))?;
        let chosen = udp.local_addr().context("find the DNS server's address")?;
        match TcpListener::bind(chosen).await {
            Ok(tcp) => return Ok((udp, tcp)),
            // What is free for UDP may be in use for TCP.
            Err(error) if tries > 0 && error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("listen for DNS questions on {chosen} (TCP)")),
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            // An ICMP error of an earlier answer; the socket goes on.
            Err(error) => {
                tracing::debug!(%error, "a DNS client went away");
                continue;
            }
        };
        let question = &buffer[..length];
        match shared.decide(question) {
            Reply::Ignore => {}
            Reply::Answer(message) => {
                if let Some(bytes) = answer::encode(&message, Some(answer::udp_bytes(question))) {
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
            reply => {
                let (socket, shared, question) = (socket.clone(), shared.clone(), question.to_vec());
                tokio::spawn(async move {
                    if let Some(bytes) = shared.finish(reply, &question, from.ip(), false).await {
                        let _ = socket.send_to(&bytes, from).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok(permit) = shared.connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                // Dropped at once: whoever has so many open already can wait for one of them.
                let Some(share) = shared.connection_shares.take(from.ip()) else { continue };
                let shared = shared.clone();
                tokio::spawn(async move {
                    converse(stream, from.ip(), &shared).await;
                    drop((permit, share));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, from: IpAddr, shared: &Shared) {
    while let Ok(Ok(question)) = timeout(IDLE, upstream::read_framed(&mut stream)).await {
        let bytes = match shared.decide(&question) {
            Reply::Ignore => return,
            Reply::Answer(message) => answer::encode(&message, None),
            reply => shared.finish(reply, &question, from, true).await,
        };
        let Some(bytes) = bytes else { return };
        if !matches!(timeout(IDLE, upstream::write_framed(&mut stream, &bytes)).await, Ok(Ok(()))) {
            return;
        }
    }
}

impl Shared {
    fn decide(&self, question: &[u8]) -> Reply {
        let zone = self.zone.borrow().clone();
        answer::answer(&zone, question, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// What needs upstream.
    async fn finish(&self, reply: Reply, question: &[u8], from: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let most = (!tcp).then(|| answer::udp_bytes(question));
        let fail = || answer::encode(&answer::failure(question, ResponseCode::ServFail)?, most);
        let Some(_share) = self.forward_shares.take(from) else { return fail() };
        let Ok(_permit) = self.forwards.try_acquire() else { return fail() };
        match reply {
            Reply::Forward => match upstream::ask(&self.upstreams, question, tcp).await {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    tracing::debug!(%error, "a DNS question found no answer upstream");
                    fail()
                }
            },
            Reply::Chase { mut so_far, target, kind } => match self.chase(target, kind).await {
                Some(found) => {
                    so_far.metadata.response_code = found.metadata.response_code;
                    so_far.add_answers(found.answers);
                    answer::encode(&so_far, most)
                }
                None => fail(),
            },
            Reply::Answer(message) => answer::encode(&message, most),
            Reply::Ignore => None,
        }
    }

    /// The end of an alias that leads out of the cluster: the pods' resolvers do not follow it themselves.
    async fn chase(&self, target: Name, kind: RecordType) -> Option<Message> {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(target, kind));
        let bytes = question.to_vec().ok()?;
        let answer = upstream::ask(&self.upstreams, &bytes, false).await.ok()?;
        Message::from_vec(&answer).ok()
    }
}
