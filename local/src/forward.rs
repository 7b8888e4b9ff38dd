//! 127.0.0.1:PORT in the root namespace leads to the API of a live server, whichever that is at the moment.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skiff_netlink::netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::plan::API_PORT;

/// A live server on this machine answers within microseconds.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// The kernel connects clients to a stopped server all the same; one that does not answer the first words for so long is passed over while there is another.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A client's first words, kept until a server has answered them: a TLS hello is far shorter.
const HELLO_BYTES_MAX: usize = 64 << 10;

/// The servers that run and are not cut off, by name.
pub type Live = BTreeMap<String, Ipv4Addr>;

/// Accepts until the task is dropped. Each connection ends when its server leaves the set of live ones: its client should dial again at once,
/// not wait for packets that no longer come.
pub async fn serve(listener: TcpListener, switch: Arc<File>, live: watch::Receiver<Live>) {
    let answered = Arc::new(Mutex::new(String::new()));
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(carry(client, switch.clone(), live.clone(), answered.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: give connections a moment to end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// `answered` names the server that answered last; it is asked first.
async fn carry(
    mut client: TcpStream,
    switch: Arc<File>,
    mut live: watch::Receiver<Live>,
    answered: Arc<Mutex<String>>,
) {
    let mut candidates: Vec<_> = live.borrow_and_update().clone().into_iter().collect();
    {
        let last = answered.lock().unwrap_or_else(PoisonError::into_inner);
        candidates.sort_by_key(|(name, _)| *name != *last);
    }
    let _ = client.set_nodelay(true);
    let mut hello = Vec::new();
    let count = candidates.len();
    for (n, (name, address)) in candidates.into_iter().enumerate() {
        let Ok(mut server) = dial(&switch, address).await else { continue };
        let _ = server.set_nodelay(true);
        let left = async {
            while live.borrow_and_update().contains_key(&name) {
                if live.changed().await.is_err() {
                    return;
                }
            }
        };
        let is_last = n + 1 == count;
        tokio::pin!(left);
        let met = tokio::select! {
            met = meet(&mut client, &mut server, &mut hello, is_last) => met,
            () = &mut left => Met::Silence,
        };
        match met {
            Met::Silence => continue,
            Met::ClientLeft => return,
            Met::Answer => {}
        }
        answered.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&name);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            () = left => {}
        }
        return;
    }
}

/// How the first words between a client and a server went.
enum Met {
    /// The server said something, which the client has.
    Answer,
    /// The server ended the connection, or did not answer in time; nothing of it reached the client.
    Silence,
    ClientLeft,
}

/// Carries a client's first words to a server until that answers. What the client says is added to `hello`, for the next server in case this one does not.
async fn meet(client: &mut TcpStream, server: &mut TcpStream, hello: &mut Vec<u8>, is_last: bool) -> Met {
    let (mut from_client, mut from_server) = ([0; 4096], [0; 4096]);
    let within = |hello: &[u8]| (!is_last && !hello.is_empty()).then(|| Instant::now() + ANSWER_WITHIN);
    if server.write_all(hello).await.is_err() {
        return Met::Silence;
    }
    let mut deadline = within(hello);
    loop {
        tokio::select! {
            read = server.read(&mut from_server) => match read {
                Ok(count) if count > 0 => return match client.write_all(&from_server[..count]).await {
                    Ok(()) => Met::Answer,
                    Err(_) => Met::ClientLeft,
                },
                _ => return Met::Silence,
            },
            read = client.read(&mut from_client), if hello.len() < HELLO_BYTES_MAX => match read {
                Ok(count) if count > 0 => {
                    hello.extend_from_slice(&from_client[..count]);
                    if server.write_all(&from_client[..count]).await.is_err() {
                        return Met::Silence;
                    }
                    deadline = deadline.or_else(|| within(hello));
                }
                _ => return Met::ClientLeft,
            },
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return Met::Silence,
        }
    }
}

async fn dial(switch: &Arc<File>, address: Ipv4Addr) -> std::io::Result<TcpStream> {
    let switch = switch.clone();
    // A socket belongs to the namespace it was made in, wherever it is used later.
    let made = tokio::task::spawn_blocking(move || netns::inside_file(&switch, TcpSocket::new_v4)).await;
    let socket = made.map_err(std::io::Error::other)?.map_err(std::io::Error::other)??;
    timeout(CONNECT_WITHIN, socket.connect(SocketAddr::from((address, API_PORT)))).await?
}
