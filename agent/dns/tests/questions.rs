//! Real questions over loopback sockets, to a server with and without another behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use skiff_dns::{Server, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

fn zone(domain: &str, service: &str, ip: &str) -> Arc<Zone> {
    let text = format!(r#"{{"metadata":{{"name":"{service}","namespace":"d"}},"spec":{{"clusterIP":"{ip}"}}}}"#);
    let away = r#"{"metadata":{"name":"away","namespace":"d"},"spec":{"type":"ExternalName","externalName":"far.d.svc.outside.test"}}"#;
    let services: Vec<_> =
        [text.as_str(), away].iter().map(|text| Arc::new(serde_json::from_str(text).unwrap())).collect();
    Arc::new(Zone::new(domain, &services, &[]))
}

fn loopback() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

async fn ask_udp(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let sent = question(name);
    socket.send_to(&sent, server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer[..2], sent[..2], "the answer has the question's id");
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask_tcp(server: SocketAddr, name: &str) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let sent = question(name);
    stream.write_u16(sent.len() as u16).await.unwrap();
    stream.write_all(&sent).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn the_zone_answers_and_the_rest_goes_upstream() {
    let (_keep, outside) = watch::channel(zone("outside.test", "far", "192.0.2.7"));
    let upstream = Server::start(loopback(), vec![], outside).await.unwrap();
    let (cluster, inside) = watch::channel(zone("cluster.local", "web", "10.43.0.9"));
    let server = Server::start(loopback(), upstream.addresses().to_vec(), inside).await.unwrap();
    let at = server.addresses()[0];
    assert_eq!(data(&ask_udp(at, "web.d.svc.cluster.local.").await), ["10.43.0.9"]);
    assert_eq!(data(&ask_tcp(at, "web.d.svc.cluster.local.").await), ["10.43.0.9"]);
    assert_eq!(data(&ask_udp(at, "far.d.svc.outside.test.").await), ["192.0.2.7"]);
    assert_eq!(data(&ask_tcp(at, "far.d.svc.outside.test.").await), ["192.0.2.7"]);
    assert_eq!(data(&ask_udp(at, "away.d.svc.cluster.local.").await), ["far.d.svc.outside.test.", "192.0.2.7"]);
    assert_eq!(ask_udp(at, "new.d.svc.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
    cluster.send(zone("cluster.local", "new", "10.43.0.10")).unwrap();
    assert_eq!(data(&ask_udp(at, "new.d.svc.cluster.local.").await), ["10.43.0.10"]);
}

#[tokio::test]
async fn with_nobody_upstream_the_answer_is_no_at_once() {
    let (_keep, zone) = watch::channel(zone("cluster.local", "web", "10.43.0.9"));
    let server = Server::start(loopback(), vec![], zone).await.unwrap();
    let start = Instant::now();
    assert_eq!(ask_udp(server.addresses()[0], "example.com.").await.metadata.response_code, ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_secs(1));
    let taken =
        Server::start(server.addresses().to_vec(), vec![], watch::channel(Arc::new(Zone::new("x", &[], &[]))).1).await;
    assert!(format!("{:#}", taken.unwrap_err()).contains("listen for DNS questions on 127.0.0.1"));
}

/// A client that floods a resolver which never answers leaves its neighbours their share.
#[tokio::test]
async fn one_client_does_not_take_all_of_upstream() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (_keep, zone) = watch::channel(zone("cluster.local", "web", "10.43.0.9"));
    let server = Server::start(loopback(), vec![silent.local_addr().unwrap()], zone).await.unwrap();
    let at = server.addresses()[0];
    let flood = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    for n in 0..600 {
        flood.send_to(&question(&format!("n{n}.example.com.")), at).await.unwrap();
    }
    // Once its share is used up it is told so; that is how we know that the flood has arrived.
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(5), flood.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::ServFail);
    let neighbour = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    neighbour.send_to(&question("neighbour.example.com."), at).await.unwrap();
    let forwarded = async {
        let mut buffer = [0; 4096];
        loop {
            let (length, _) = silent.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            if asked.queries[0].name().to_ascii() == "neighbour.example.com." {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), forwarded).await.expect("the neighbour's question is asked upstream");
}
