//! The door for gRPC: who may knock with what, before a byte of the message is read.
//!
//! Without a certificate there is one thing to ask, to join, and that is a small message. Everything else needs a node's certificate (its name goes
//! with the request), an administrator's or a server's. Who asks to join is known by nothing yet, so what all of them hold together has an end, in
//! number and in time.

use super::joins::Joins;
use super::{nodes, standing};
use axum::body::Body;
use http::{Request, Response};
use skiff_apiserver::{GrpcService, PeerCertificate, PeerSource};
use skiff_fleet::{FleetService, NodeName, Trusted};
use skiff_identity::Trust;
use skiff_proto::fleet::fleet_server::FleetServer;
use skiff_store::Store;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tower::Service as _;

/// The call that needs no certificate.
const JOIN: &str = "/skiff.fleet.v1.Fleet/Join";
/// A token, a name, a signing request, an address: with a certificate of any key that is in use, well below this.
const JOIN_BYTES_MAX: usize = 64 << 10;
/// What is told to a node at once is as large as what runs on it and the Services of the cluster.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Serves `fleet` to whoever may.
pub fn open(fleet: FleetService, members: Store, trust: Trust) -> GrpcService {
    let view = fleet.view.clone();
    let strangers = FleetServer::new(fleet.clone()).max_decoding_message_size(JOIN_BYTES_MAX);
    let known = FleetServer::new(fleet)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let joins = Joins::default();
    Arc::new(move |mut request| {
        let certificate = request.extensions().get::<Option<PeerCertificate>>().cloned().flatten();
        let certificate = certificate.or_else(|| request.extensions().get::<PeerCertificate>().cloned());
        let standing = certificate.as_ref().map_or(Ok(()), |c| standing::check(&view, &members, &trust, &c.der));
        let is_known = certificate.is_some_and(|c| introduce(&mut request, &c.der));
        let from = request.extensions().get::<PeerSource>();
        let from = from.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |source| source.0);
        let (mut strangers, mut known, joins) = (strangers.clone(), known.clone(), joins.clone());
        Box::pin(async move {
            // Who was removed may join again, as anybody may, and by the same bounds.
            if request.uri().path() == JOIN {
                let answer = async { strangers.call(request).await.map(|response| response.map(Body::new)) };
                return joins.bounded(from, answer).await;
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
