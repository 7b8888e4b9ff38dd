//! One connection, from its handshake to its end: how much may be under way on it, and what ends it. Both depend on who is at the other end, as far as the
//! certificate says it: whoever reaches the port can open connections by the thousand.

use crate::auth::authenticate::user_of_certificate;
use crate::auth::user::{SERVERS, UserInfo};
use crate::budget::Connection;
use crate::gate::{Counted, Pass};
use crate::server::{ApiServer, PeerCertificate, PeerSource};
use crate::under_way::UnderWay;
use axum::body::Body;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What the head of a request may fill over HTTP/1; HTTP/2 has 16 KiB.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// How often somebody silent is asked whether they are there (HTTP/2).
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a connection stays open whose certificate is good no longer: whoever holds it is told why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What may be under way on one connection over HTTP/2, in requests and in bytes that were sent and not read yet. Those bytes are kept outside of the memory that
/// requests have together ([`crate::budget`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    streams: u32,
    stream_bytes: u32,
    connection_bytes: u32,
}

/// Agents and servers: logs, execs and forwarded ports of a whole node come on a few connections, and one that is not read must not stop the others. So the
/// connection has room for all of them when they are full.
const OF_MACHINES: Windows = Windows { streams: 4096, stream_bytes: 256 << 10, connection_bytes: 1 << 30 };
/// People and programs with a certificate. A body that waits for memory waits for seconds, so a connection that is full of them goes on soon.
const OF_USERS: Windows = Windows { streams: 250, stream_bytes: 256 << 10, connection_bytes: 16 << 20 };
/// Tokens come with the requests: until then it is anybody. Upstream's number of streams.
const OF_STRANGERS: Windows = Windows { streams: 100, stream_bytes: 64 << 10, connection_bytes: 4 << 20 };

impl Windows {
    /// `user` is that of the certificate, if one can be read from it.
    fn of(certificate: Option<&PeerCertificate>, user: Option<&UserInfo>) -> Windows {
        match user {
            Some(user) if user.node().is_some() || user.is_in(SERVERS) => OF_MACHINES,
            _ if certificate.is_some() => OF_USERS,
            _ => OF_STRANGERS,
        }
    }
}

impl ApiServer {
    /// The handshake, then the connection, which has its place as long as `pass` lives.
    pub(crate) async fn welcome(
        &self,
        stream: tokio::net::TcpStream,
        mut pass: Pass,
        acceptor: Option<TlsAcceptor>,
        address: String,
        shutdown: CancellationToken,
    ) {
        let source = pass.source();
        let Some(acceptor) = acceptor else {
            // Nobody can show a certificate, so no place is kept for those who do.
            if pass.shaken(true) {
                self.connection(Counted::new(stream, pass), source, None, address, shutdown).await;
            }
            return;
        };
        match tokio::time::timeout(self.bounds().handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let peer = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
                let peer = peer.map(|c| PeerCertificate { der: c.to_vec() });
                if pass.shaken(peer.is_some()) {
                    self.connection(Counted::new(stream, pass), source, peer, address, shutdown).await;
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn connection<S>(
        &self,
        stream: S,
        source: PeerSource,
        peer: Option<PeerCertificate>,
        address: String,
        shutdown: CancellationToken,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let user = peer.as_ref().and_then(|p| user_of_certificate(&p.der));
        let asked = AtomicBool::new(false);
        let under_way = UnderWay::default();
        let (first_request, idle) = (self.bounds().first_request, self.bounds().idle);
        let end = Connection::default();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let this = under_way.begin();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(end.clone());
            request.extensions_mut().insert(source);
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            let (server, user, address) = (self.clone(), user.clone(), address.clone());
            async move { Ok::<_, Infallible>(this.until_told(server.handle(request, user.as_ref(), &address).await)) }
        });
        let windows = Windows::of(peer.as_ref(), user.as_ref());
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .max_concurrent_streams(windows.streams)
            .initial_stream_window_size(windows.stream_bytes)
            .initial_connection_window_size(windows.connection_bytes)
            .keep_alive_interval(Some(PING_EVERY))
            .timer(TokioTimer::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Some(first_request))
            .max_buf_size(HEADERS_BYTES_MAX);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // A connection over which nothing was asked yet may not wait for ever: neither version's time-outs have begun then.
        let silent = async {
            tokio::time::sleep(first_request).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let revoked = self.revoked(peer.as_ref());
        tokio::pin!(silent, revoked);
        let mut leaving = false;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = &mut silent => {
                    tracing::debug!("a connection asked nothing in time");
                    return;
                }
                () = end.0.cancelled() => return,
                () = &mut revoked => {
                    tracing::info!("a connection was ended: its certificate is good no longer");
                    return;
                }
                // Told first, so that no request is lost that is on its way; who does not go then is not waited for twice.
                () = under_way.idle(idle), if peer.is_none() => {
                    tracing::debug!(leaving, "a connection ends: nothing was asked over it for long");
                    if leaving {
                        return;
                    }
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await;
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// Returns when the certificate of an open connection is good no longer, and what is under way by it had the time to say so.
    async fn revoked(&self, peer: Option<&PeerCertificate>) {
        if let (Some(peer), Some(check)) = (peer, &self.state.config.certificates) {
            let mut moments = check.moments.clone();
            moments.mark_unchanged();
            while moments.changed().await.is_ok() {
                if self.is_good(Some(peer)).is_err() {
                    return tokio::time::sleep(LAST_WORDS).await;
                }
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_windows_are_for_machines() {
        let certificate = PeerCertificate { der: Vec::new() };
        let check = |name: &str, group: &str, expect: Windows| {
            let user = UserInfo::new(name, [group]);
            assert_eq!(Windows::of(Some(&certificate), Some(&user)), expect, "{name} in {group}");
        };
        check("system:node:a", "system:nodes", OF_MACHINES);
        check("system:skiff-server:a", "system:skiff-servers", OF_MACHINES);
        check("system:node:a", "devs", OF_USERS);
        check("ann", "system:nodes", OF_USERS);
        check("root", "system:masters", OF_USERS);
        assert_eq!(Windows::of(Some(&certificate), None), OF_USERS);
        assert_eq!(Windows::of(None, None), OF_STRANGERS);
    }
}
