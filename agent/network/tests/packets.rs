//! Packets between pods, nodes and services, in namespaces that each test makes: two nodes joined by a wire, pods on each, a stranger outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skiff_netlink::netns;
use skiff_netlink::route::{Address, End, Route, Rt};
use skiff_network::rules::{Choice, Endpoint, PortKey, ServicePort, ServiceState};
use skiff_network::{Config, HostPort, Network, Overlay, Peer, Protocol};

/// Whether this process may make namespaces; when not, says so, and in CI fails.
fn may_run(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} needs root");
        eprintln!("{name}: skipped, it needs root");
    }
    root
}

struct Node {
    namespace: File,
    network: Network,
    ip: Ipv4Addr,
    _state: StateDir,
}

struct StateDir(PathBuf);

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn state_dir(test: &str, node: u8) -> PathBuf {
    std::env::temp_dir().join(format!("skiff-network-{}-{test}-{node}", std::process::id()))
}

fn config(test: &str, n: u8, overlay: Overlay) -> Config {
    Config {
        node: format!("n{n}"),
        pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        node_ip: Ipv4Addr::new(172, 31, 9, n),
        mtu: None,
        dns_ip: Some(Ipv4Addr::new(10, 43, 0, 10)),
        state_dir: state_dir(test, n),
        overlay,
    }
}

/// Two nodes on one wire, each knowing the other.
async fn two_nodes(test: &str, overlay: Overlay) -> [Node; 2] {
    let spaces = [netns::create().unwrap(), netns::create().unwrap()];
    netns::inside_file(&spaces[0], || {
        let one = End { name: "up0", mac: None, namespace: None };
        let other = End { name: "up0", mac: None, namespace: Some(spaces[1].as_fd()) };
        Rt::open().unwrap().add_veth(one, other, 1500, "").unwrap();
    })
    .unwrap();
    let mut nodes = Vec::new();
    for (n, namespace) in (1u8..).zip(spaces) {
        let ip = Ipv4Addr::new(172, 31, 9, n);
        let config = config(test, n, overlay);
        let network = netns::inside_file(&namespace, || {
            let mut rt = Rt::open().unwrap();
            let index = rt.link("up0").unwrap().unwrap().index;
            rt.set_up(index).unwrap();
            rt.add_address(Address { index, ip, prefix: 24, scope: 0 }).unwrap();
            Network::start(config).unwrap()
        })
        .unwrap();
        nodes.push(Node { namespace, network, ip, _state: StateDir(state_dir(test, n)) });
    }
    let peers: Vec<_> = (1u8..=2)
        .map(|n| Peer {
            name: format!("n{n}"),
            node_ip: Ipv4Addr::new(172, 31, 9, n),
            pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(),
        })
        .collect();
    for node in &nodes {
        node.network.set_nodes(peers.clone()).await.unwrap();
    }
    nodes.try_into().unwrap_or_else(|_| panic!("two nodes"))
}

struct TestPod {
    namespace: Arc<File>,
    ip: Ipv4Addr,
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

async fn pod(node: &Node, uid: &str, host_ports: Vec<HostPort>) -> TestPod {
    let namespace = netns::create().unwrap();
    let ip = node.network.attach(uid, &path_of(&namespace), host_ports).await.unwrap();
    TestPod { namespace: Arc::new(namespace), ip }
}

/// A server that answers each connection with its name and whom it sees, until the process ends.
fn serve(namespace: &File, port: u16, name: &str) {
    let listener = netns::inside_file(namespace, || TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let peer = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{name} {peer}");
        }
    });
}

fn ask(namespace: &File, to: (Ipv4Addr, u16)) -> std::io::Result<String> {
    netns::inside_file(namespace, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .unwrap()
}

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 50);

fn service(endpoints: &[Ipv4Addr], protocol: Protocol, node_port: Option<u16>, sticky: bool) -> ServiceState {
    let choice =
        Choice { endpoints: endpoints.iter().map(|ip| Endpoint { ip: *ip, port: 8080 }).collect(), elsewhere: false };
    let key = PortKey { namespace: "default".into(), service: "web".into(), protocol, port: 80 };
    let port = ServicePort {
        cluster_ips: vec![SERVICE],
        node_port,
        sticky,
        inside: choice.clone(),
        outside: choice,
        ..ServicePort::default()
    };
    ServiceState { ports: BTreeMap::from([(key, port)]) }
}

fn tally(namespace: &File, to: (Ipv4Addr, u16), times: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..times {
        let answer = ask(namespace, to).unwrap();
        *seen.entry(answer.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    seen
}

async fn pods_and_services(test: &str, overlay: Overlay) {
    let [one, two] = two_nodes(test, overlay).await;
    let a = pod(&one, "pod-a", vec![]).await;
    let b = pod(&one, "pod-b", vec![]).await;
    let c = pod(&two, "pod-c", vec![]).await;
    for (pod, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        serve(&pod.namespace, 8080, name);
    }
    // Pods see one another by their own addresses, on one node and across two; nodes reach pods.
    assert_eq!(ask(&a.namespace, (b.ip, 8080)).unwrap(), format!("b {}", a.ip));
    assert_eq!(ask(&a.namespace, (c.ip, 8080)).unwrap(), format!("c {}", a.ip));
    assert_eq!(ask(&c.namespace, (a.ip, 8080)).unwrap(), format!("a {}", c.ip));
    assert!(ask(&one.namespace, (a.ip, 8080)).unwrap().starts_with("a "));
    assert!(ask(&one.namespace, (c.ip, 8080)).unwrap().starts_with("c "));
    // A pod address that nobody has is refused at once.
    let start = Instant::now();
    ask(&a.namespace, (Ipv4Addr::new(10, 42, 1, 200), 8080)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));

    // No service yet: refused. No endpoints: refused. With endpoints: balanced, from pods of both nodes and from the node itself.
    let refused = |from: &File| assert_eq!(ask(from, (SERVICE, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    refused(&a.namespace);
    refused(&one.namespace);
    for node in [&one, &two] {
        node.network.set_services(service(&[], Protocol::Tcp, None, false)).await.unwrap();
    }
    refused(&a.namespace);
    refused(&one.namespace);
    let all = [a.ip, b.ip, c.ip];
    for node in [&one, &two] {
        node.network.set_services(service(&all, Protocol::Tcp, Some(30080), false)).await.unwrap();
    }
    for from in [&a.namespace, &c.namespace] {
        let seen = tally(from, (SERVICE, 80), 60);
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
    assert_eq!(tally(&one.namespace, (SERVICE, 80), 60).len(), 3);
    // The node port of either node leads to all pods; a stranger would come from the wire.
    assert_eq!(tally(&two.namespace, (one.ip, 30080), 60).len(), 3);
    assert_eq!(tally(&one.namespace, (one.ip, 30080), 60).len(), 3);
    assert_eq!(tally(&a.namespace, (two.ip, 30080), 60).len(), 3);

    // Alone behind its service, a pod meets itself, as coming from the node.
    one.network.set_services(service(&[a.ip], Protocol::Tcp, Some(30080), false)).await.unwrap();
    assert_eq!(ask(&a.namespace, (SERVICE, 80)).unwrap(), format!("a {}", one.ip));
    assert_eq!(ask(&b.namespace, (SERVICE, 80)).unwrap(), format!("a {}", b.ip));
    // Sticky: always the same.
    one.network.set_services(service(&all, Protocol::Tcp, None, true)).await.unwrap();
    assert_eq!(tally(&a.namespace, (SERVICE, 80), 20).len(), 1);
    assert!(ask(&two.namespace, (one.ip, 30080)).is_err(), "the node port is gone");
    // Gone again: refused.
    one.network.set_services(ServiceState::default()).await.unwrap();
    refused(&a.namespace);

    for node in [&one, &two] {
        node.network.teardown().await.unwrap();
        netns::inside_file(&node.namespace, || {
            let mut rt = Rt::open().unwrap();
            let names: Vec<_> =
                rt.links().unwrap().into_iter().map(|link| link.name).filter(|name| name.starts_with("sk")).collect();
            assert_eq!(names, Vec::<String>::new());
            assert_eq!(rt.routes().unwrap().into_iter().filter(|route| route.protocol == 83).count(), 0);
        })
        .unwrap();
    }
}

#[tokio::test]
async fn pods_and_services_by_routes() {
    if may_run("pods_and_services_by_routes") {
        pods_and_services("routes", Overlay::Auto).await;
    }
}

#[tokio::test]
async fn pods_and_services_by_vxlan() {
    if may_run("pods_and_services_by_vxlan") {
        pods_and_services("vxlan", Overlay::Vxlan).await;
    }
}

#[tokio::test]
async fn a_restart_finds_pods_and_rules() {
    if !may_run("a_restart_finds_pods_and_rules") {
        return;
    }
    let [one, two] = two_nodes("restart", Overlay::Auto).await;
    let port = HostPort { host_ip: None, host_port: 8081, container_port: 8080, protocol: Protocol::Tcp };
    let a = pod(&one, "pod-a", vec![port.clone()]).await;
    serve(&a.namespace, 8080, "a");
    one.network.set_services(service(&[a.ip], Protocol::Tcp, None, false)).await.unwrap();
    assert_eq!(ask(&two.namespace, (one.ip, 8081)).unwrap(), format!("a {}", two.ip));

    let again =
        netns::inside_file(&one.namespace, || Network::start(config("restart", 1, Overlay::Auto)).unwrap()).unwrap();
    assert_eq!(again.pods().into_iter().map(|pod| (pod.uid, pod.ip)).collect::<Vec<_>>(), [("pod-a".to_owned(), a.ip)]);
    // What the first process programmed goes on; the second adds to it and replaces it without a gap.
    assert!(ask(&one.namespace, (SERVICE, 80)).unwrap().starts_with("a "));
    assert_eq!(again.attach("pod-a", &path_of(&a.namespace), vec![port]).await.unwrap(), a.ip);
    let b = TestPod { namespace: Arc::new(netns::create().unwrap()), ip: a.ip };
    let b_ip = again.attach("pod-b", &path_of(&b.namespace), vec![]).await.unwrap();
    assert_ne!(b_ip, a.ip);
    again.set_services(service(&[a.ip], Protocol::Tcp, None, false)).await.unwrap();
    assert_eq!(ask(&b.namespace, (SERVICE, 80)).unwrap(), format!("a {b_ip}"));
    assert!(ask(&two.namespace, (one.ip, 8081)).unwrap().starts_with("a "));
    again.detach("pod-a").await.unwrap();
    again.detach("pod-a").await.unwrap();
    assert!(ask(&two.namespace, (one.ip, 8081)).is_err());
    assert_eq!(again.pods().len(), 1);
    again.teardown().await.unwrap();
}

#[tokio::test]
async fn what_leaves_the_cluster_is_masqueraded() {
    if !may_run("what_leaves_the_cluster_is_masqueraded") {
        return;
    }
    let [one, two] = two_nodes("masquerade", Overlay::Auto).await;
    let a = pod(&one, "pod-a", vec![]).await;
    // A stranger beyond node two, which knows nothing of pods: reached by an address of its own.
    let outside = Ipv4Addr::new(203, 0, 113, 7);
    netns::inside_file(&two.namespace, || {
        let mut rt = Rt::open().unwrap();
        let lo = rt.link("lo").unwrap().unwrap().index;
        rt.add_address(Address { index: lo, ip: outside, prefix: 32, scope: 0 }).unwrap();
    })
    .unwrap();
    netns::inside_file(&one.namespace, || {
        let mut rt = Rt::open().unwrap();
        let up = rt.link("up0").unwrap().unwrap().index;
        rt.add_route(&Route { via: Some(two.ip), ..Route::direct(skiff_network::Cidr::around(outside, 32), up, 4) })
            .unwrap();
    })
    .unwrap();
    serve(&two.namespace, 9000, "outside");
    assert_eq!(ask(&a.namespace, (outside, 9000)).unwrap(), format!("outside {}", one.ip));
    for node in [&one, &two] {
        node.network.teardown().await.unwrap();
    }
}

/// Connects from a port that the caller chooses, as a client does that comes round to a port again.
fn ask_from(namespace: &File, port: u16, to: (Ipv4Addr, u16)) -> std::io::Result<String> {
    use nix::sys::socket::*;
    netns::inside_file(namespace, || {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(0, 300_000))?;
        // Closed by a reset, so that the port is free at once.
        setsockopt(&socket, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
        let [a, b, c, d] = to.0.octets();
        connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, to.1))?;
        let mut text = String::new();
        TcpStream::from(socket).read_to_string(&mut text)?;
        Ok(text)
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_port_that_was_used_towards_a_dead_endpoint_is_good_again() {
    if !may_run("a_port_that_was_used_towards_a_dead_endpoint_is_good_again") {
        return;
    }
    let [one, two] = two_nodes("reuse", Overlay::Auto).await;
    let (a, b) = (pod(&one, "pod-a", vec![]).await, pod(&one, "pod-b", vec![]).await);
    serve(&b.namespace, 8080, "b");
    let nobody = Ipv4Addr::new(10, 42, 2, 99);
    one.network.set_services(service(&[nobody], Protocol::Tcp, None, false)).await.unwrap();
    ask_from(&a.namespace, 40_000, (SERVICE, 80)).unwrap_err();
    one.network.set_services(service(&[b.ip], Protocol::Tcp, None, false)).await.unwrap();
    let begun = Instant::now();
    let answer = loop {
        match ask_from(&a.namespace, 40_000, (SERVICE, 80)) {
            Ok(answer) => break answer,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(5), "{e}"),
        }
    };
    assert!(answer.starts_with("b "), "{answer}");
    for node in [&one, &two] {
        node.network.teardown().await.unwrap();
    }
}

#[tokio::test]
async fn udp_follows_its_endpoints_and_dns_stays_here() {
    if !may_run("udp_follows_its_endpoints_and_dns_stays_here") {
        return;
    }
    let [one, two] = two_nodes("udp", Overlay::Auto).await;
    let (a, b, c) =
        (pod(&one, "pod-a", vec![]).await, pod(&one, "pod-b", vec![]).await, pod(&one, "pod-c", vec![]).await);
    let echo = |namespace: &File, at: (Ipv4Addr, u16), name: &'static str| {
        let socket = netns::inside_file(namespace, || UdpSocket::bind(at).unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    };
    echo(&b.namespace, (b.ip, 8080), "b");
    echo(&c.namespace, (c.ip, 8080), "c");
    let client = netns::inside_file(&a.namespace, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let say = |to: (Ipv4Addr, u16)| {
        let mut buffer = [0; 64];
        client.send_to(b"x", SocketAddr::from(to)).unwrap();
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(from, SocketAddr::from(to), "the answer comes from whom was asked");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    one.network.set_services(service(&[b.ip], Protocol::Udp, None, false)).await.unwrap();
    assert_eq!(say((SERVICE, 80)), "b");
    one.network.set_services(service(&[c.ip], Protocol::Udp, None, false)).await.unwrap();
    assert_eq!(say((SERVICE, 80)), "c", "the flow to the old endpoint is forgotten");
    let dns = Ipv4Addr::new(10, 43, 0, 10);
    echo(&one.namespace, (dns, 53), "dns");
    assert_eq!(say((dns, 53)), "dns");
    // Also as a Service (kube-dns) that has no endpoints, for which others are refused.
    let mut named = service(&[c.ip], Protocol::Udp, None, false);
    let key =
        PortKey { namespace: "kube-system".into(), service: "kube-dns".into(), protocol: Protocol::Udp, port: 53 };
    named.ports.insert(key, ServicePort { cluster_ips: vec![dns], ..Default::default() });
    one.network.set_services(named).await.unwrap();
    assert_eq!((say((dns, 53)), say((SERVICE, 80))), ("dns".to_owned(), "c".to_owned()));
    for node in [&one, &two] {
        node.network.teardown().await.unwrap();
    }
}
