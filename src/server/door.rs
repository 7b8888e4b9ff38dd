//! The door for gRPC: who may knock with what, before a byte of the message is read.
//!
//! Without a certificate there is one thing to ask, to join, and that is a small message. Everything else needs a node's certificate (its name goes
//! with the request), an administrator's or a server's. Who asks to join is known by nothing yet, so what all of them hold together has an end, in
//! number and in time.

use super::{nodes, standing};
use axum::body::Body;
use http::{Request, Response};
use skiff_apiserver::{GrpcService, PeerCertificate};
use skiff_fleet::{FleetService, NodeName, Trusted};
use skiff_identity::Trust;
use skiff_proto::fleet::fleet_server::FleetServer;
use skiff_store::Store;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::Service as _;

/// The call that needs no certificate.
const JOIN: &str = "/skiff.fleet.v1.Fleet/Join";
/// A token, a name, a signing request, an address: with a certificate of any key that is in use, well below this.
const JOIN_BYTES_MAX: usize = 64 << 10;
/// Who asks to join may take this long, until the answer is made: a message that does not come must not be waited for.
const JOIN_MAX: Duration = Duration::from_secs(10);
/// How many may ask to join at once. Whoever comes then is told to come again, as agents do.
const JOINS_MAX: usize = 64;
/// What is told to a node at once is as large as what runs on it and the Services of the cluster.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Serves `fleet` to whoever may.
pub fn open(fleet: FleetService, members: Store, trust: Trust) -> GrpcService {
    let view = fleet.view.clone();
    let strangers = FleetServer::new(fleet.clone()).max_decoding_message_size(JOIN_BYTES_MAX);
    let known = FleetServer::new(fleet)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    Arc::new(move |mut request| {
        let certificate = request.extensions().get::<Option<PeerCertificate>>().cloned().flatten();
        let certificate = certificate.or_else(|| request.extensions().get::<PeerCertificate>().cloned());
        let standing = certificate.as_ref().map_or(Ok(()), |c| standing::check(&view, &members, &trust, &c.der));
        let is_known = certificate.is_some_and(|c| introduce(&mut request, &c.der));
        let (mut strangers, mut known, joins) = (strangers.clone(), known.clone(), joins.clone());
        Box::pin(async move {
            // Who was removed may join again, as anybody may, and by the same bounds.
            if request.uri().path() == JOIN {
                let answer = async { strangers.call(request).await.map(|response| response.map(Body::new)) };
                return bounded(&joins, JOIN_MAX, answer).await;
            }
            if let Err(why) = standing {
                return refused(&why);
            }
            if !is_known {
                return refused("this needs a node's certificate; join the cluster first");
            }
            match known.call(request).await {
                Ok(response) => response.map(Body::new),
                Err(never) => match never {},
            }
        })
    })
}

/// The answer to one who asks to join, if it has a place among `joins` and is made `within` this time. Nothing is waited for without a place: what was sent
/// already would be kept meanwhile.
async fn bounded(
    joins: &Semaphore,
    within: Duration,
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Response<Body> {
    let Ok(_place) = joins.try_acquire() else {
        return tonic::Status::resource_exhausted("too many ask to join at once; try again").into_http();
    };
    match tokio::time::timeout(within, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let why = format!(
                "joining took more than {within:?}: the request did not come whole, or the store has no leader; try again"
            );
            tonic::Status::deadline_exceeded(why).into_http()
        }
    }
}

/// Notes on the request whose certificate (DER) it came with; whether it is anybody's who may speak here.
fn introduce(request: &mut Request<Body>, der: &[u8]) -> bool {
    let name = nodes::name_in(der);
    let trusted = nodes::is_trusted(der);
    let known = name.is_some() || trusted;
    if let Some(name) = name {
        request.extensions_mut().insert(NodeName(name));
    }
    if trusted {
        request.extensions_mut().insert(Trusted);
    }
    known
}

fn refused(why: &str) -> Response<Body> {
    tonic::Status::unauthenticated(why).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn code(response: &Response<Body>) -> Code {
        tonic::Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn who_asks_to_join_holds_little_and_not_for_long() {
        let soon = Duration::from_millis(500);
        let joins = Arc::new(Semaphore::new(JOINS_MAX));
        // Requests that do not come whole.
        let held: Vec<_> = (0..JOINS_MAX)
            .map(|_| {
                let joins = joins.clone();
                tokio::spawn(async move { bounded(&joins, soon, std::future::pending()).await })
            })
            .collect();
        while joins.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let good = || async { Ok(Response::new(Body::empty())) };
        assert_eq!(
            code(&bounded(&joins, JOIN_MAX, good()).await),
            Code::ResourceExhausted,
            "at once, not after a wait"
        );
        for one in held {
            assert_eq!(code(&one.await.unwrap()), Code::DeadlineExceeded);
        }
        assert_eq!(code(&bounded(&joins, JOIN_MAX, good()).await), Code::Ok);
    }
}
