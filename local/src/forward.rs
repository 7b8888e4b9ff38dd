//! 127.0.0.1:PORT in the root namespace leads to the API of a live server, whichever that is at the moment.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use skiff_netlink::netns;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::plan::API_PORT;

/// A live server on this machine answers within microseconds.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// The servers that run and are not cut off, by name.
pub type Live = BTreeMap<String, Ipv4Addr>;

/// Accepts until the task is dropped. Each connection ends when its server leaves the set of live ones: its client should dial again at once,
/// not wait for packets that no longer come.
pub async fn serve(listener: TcpListener, switch: Arc<File>, live: watch::Receiver<Live>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(carry(client, switch.clone(), live.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: give connections a moment to end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn carry(mut client: TcpStream, switch: Arc<File>, mut live: watch::Receiver<Live>) {
    let candidates = live.borrow_and_update().clone();
    for (name, address) in candidates {
        let Ok(mut server) = dial(&switch, address).await else { continue };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let left = async {
            while live.borrow_and_update().contains_key(&name) {
                if live.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            () = left => {}
        }
        return;
    }
}

async fn dial(switch: &Arc<File>, address: Ipv4Addr) -> std::io::Result<TcpStream> {
    let switch = switch.clone();
    // A socket belongs to the namespace it was made in, wherever it is used later.
    let made = tokio::task::spawn_blocking(move || netns::inside_file(&switch, TcpSocket::new_v4)).await;
    let socket = made.map_err(std::io::Error::other)?.map_err(std::io::Error::other)??;
    timeout(CONNECT_WITHIN, socket.connect(SocketAddr::from((address, API_PORT)))).await?
}
