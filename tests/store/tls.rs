//! TLS towards clients and between members: the right certificate gets in, the wrong one hears why, and so does the server's log.

use crate::certificates::Authority;
use crate::support::*;
use anyhow::ensure;

pub const TESTS: &[Test] = &[
    ("clients prove themselves by certificate", || Box::pin(clients())),
    ("members prove themselves by certificate", || Box::pin(members())),
    ("only members speak as members", || Box::pin(members_only())),
    ("who is silent keeps no member out", || Box::pin(silent())),
    ("changed files of certificates are taken up", || Box::pin(changed_files())),
    ("beyond loopback it wants certificates", || Box::pin(beyond_loopback())),
];

async fn clients() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let (ours, theirs) = (Authority::new(&dir, "ours")?, Authority::new(&dir, "theirs")?);
    ours.issue(&dir, "server", &["127.0.0.1", "localhost"])?;
    ours.issue(&dir, "alice", &[])?;
    theirs.issue(&dir, "mallory", &[])?;
    let path = |name: &str| dir.arg(name);
    let (certificate, key, ca) = (path("server.crt"), path("server.key"), ours.file(&dir));
    let more = ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &ca];
    let plan = Plan::new(&dir, "one", &more)?;
    let server = plan.spawn()?;
    let url = format!("https://{}", plan.client);
    let with = |ca: &str, name: &str| {
        [
            format!("--cacert={ca}"),
            format!("--cert={}", path(&format!("{name}.crt"))),
            format!("--key={}", path(&format!("{name}.key"))),
        ]
    };
    let alice = with(&ca, "alice");
    let alice: Vec<&str> = alice.iter().map(String::as_str).collect();
    until("it serves", || async { Ok(ctl(&url, &[&alice[..], &["endpoint", "health"]].concat()).await.is_ok()) })
        .await?;
    ctl(&url, &[&alice[..], &["put", "a", "1"]].concat()).await?;
    // By name as by address, and without the scheme, as etcdctl allows.
    let by_name = format!("https://localhost:{}", plan.client.rsplit(':').next().unwrap_or_default());
    holds(&ctl(&by_name, &[&alice[..], &["get", "a"]].concat()).await?, &["a\n1"])?;
    holds(&ctl(&plan.client, &[&alice[..], &["get", "a"]].concat()).await?, &["a\n1"])?;
    holds(&ctl(&url, &[&alice[..], &["endpoint", "status", "--cluster"]].concat()).await?, &[&url])?;
    // A certificate of another authority, none, no TLS at all: refused.
    let mallory = with(&ca, "mallory");
    let mallory: Vec<&str> = mallory.iter().map(String::as_str).collect();
    let quick = ["--dial-timeout=2s", "--command-timeout=2s", "get", "a"];
    ctl_fails(&url, &[&mallory[..], &quick].concat()).await?;
    ctl_fails(&url, &[&[alice[0]], &quick[..]].concat()).await?;
    ctl_fails(&format!("http://{}", plan.client), &quick).await?;
    // A server that the client does not trust.
    let astray = with(&theirs.file(&dir), "alice");
    let astray: Vec<&str> = astray.iter().map(String::as_str).collect();
    ctl_fails(&url, &[&astray[..], &quick].concat()).await?;
    until("the log says why", || async {
        let said = server.said();
        Ok(said.contains("the TLS handshake with the client at 127.0.0.1:")
            && said.contains("UnknownIssuer")
            && said.contains("peer sent no certificates"))
    })
    .await?;
    // Snapshots by the same certificates.
    let file = path("saved.db");
    let save = |ca: &str, name: &str| {
        let (certificate, key) = (path(&format!("{name}.crt")), path(&format!("{name}.key")));
        ["snapshot", "save", &file, "--endpoint", &url, "--cacert", ca, "--cert", &certificate, "--key", &key]
            .map(str::to_owned)
    };
    let args = save(&ca, "alice");
    holds(&store(&args.iter().map(String::as_str).collect::<Vec<_>>()).await?, &["saved 1 keys"])?;
    let args = save(&theirs.file(&dir), "alice");
    holds(&store_fails(&args.iter().map(String::as_str).collect::<Vec<_>>()).await?, &[&url, "UnknownIssuer"])?;
    let args = save(&ca, "mallory");
    holds(&store_fails(&args.iter().map(String::as_str).collect::<Vec<_>>()).await?, &[&url, "its log says why"])?;
    server.terminate().await?;
    Ok(())
}

async fn members() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let (ours, theirs) = (Authority::new(&dir, "ours")?, Authority::new(&dir, "theirs")?);
    ours.issue(&dir, "peer", &["skiff-store"])?;
    ours.issue(&dir, "nameless", &["somebody"])?;
    theirs.issue(&dir, "stranger", &["skiff-store"])?;
    let certified = |name: &str| {
        let files = [dir.arg(&format!("{name}.crt")), dir.arg(&format!("{name}.key")), ours.file(&dir)];
        let [certificate, key, ca] = files;
        ["--peer-cert-file".into(), certificate, "--peer-key-file".into(), key, "--peer-trusted-ca-file".into(), ca]
    };
    let peer = certified("peer");
    let peer: Vec<&str> = peer.iter().map(String::as_str).collect();
    let servers = start_all(&Plan::together(&dir, &["a", "b", "c"], &peer)?).await?;
    ctl(servers[0].endpoint(), &["put", "a", "1"]).await?;
    holds(&ctl(servers[2].endpoint(), &["get", "a"]).await?, &["1"])?;
    let seed = &servers[0].plan.peer;
    let joined = Plan::new(&dir, "d", &[&peer[..], &["--join", seed]].concat())?.start().await?;
    holds(&ctl(joined.endpoint(), &["get", "a"]).await?, &["1"])?;
    // Of another authority; without TLS; met by one whose certificate carries another name and so cannot be told from a stranger. All are
    // tried at once: each goes on trying for half a minute.
    let nameless = certified("nameless");
    let nameless: Vec<&str> = nameless.iter().map(String::as_str).collect();
    let wrong = Plan::new(&dir, "wrong", &nameless)?.start().await?;
    let mut outside = Vec::new();
    for (name, more, seed, expected) in [
        ("stranger", certified("stranger").to_vec(), seed, "with certificates of one authority?"),
        ("plain", Vec::new(), seed, "do both sides use TLS for peers"),
        ("astray", certified("peer").to_vec(), &wrong.plan.peer, "not valid for name"),
    ] {
        let mut plan = Plan::new(&dir, name, &["--join", seed])?;
        plan.more.extend(more);
        outside.push((plan.spawn()?, seed, expected));
    }
    for (server, seed, expected) in &mut outside {
        ensure!(server.ends().await?.code() == Some(1));
        holds(&server.said(), &["could not join the store", seed, expected])?;
        // What it did not become leaves no trace that would keep it from trying again.
        ensure!(!server.plan.data.join("identity").exists());
    }
    ensure!(ctl(servers[0].endpoint(), &["member", "list"]).await?.lines().count() == 4);
    holds(&servers[0].said(), &["tls accept error", "UnknownIssuer"])?;
    Ok(())
}

/// A certificate of the members' authority that is not a member's: a node's, a person's. On every route of the peers' listener it is nobody.
async fn members_only() -> anyhow::Result<()> {
    use skiff_proto::store as pb;
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    let dir = Dir::new()?;
    let ours = Authority::new(&dir, "ours")?;
    for (name, sans) in
        [("peer", &["skiff-store"][..]), ("person", &[]), ("node", &["node.example"]), ("wild", &["*.example"])]
    {
        ours.issue(&dir, name, sans)?;
    }
    let (certificate, key, ca) = (dir.arg("peer.crt"), dir.arg("peer.key"), ours.file(&dir));
    let tls = ["--peer-cert-file", &certificate, "--peer-key-file", &key, "--peer-trusted-ca-file", &ca];
    let server = Plan::new(&dir, "one", &tls)?.start().await?;
    let client = |name: &str| -> anyhow::Result<_> {
        let read = |suffix: &str| std::fs::read(dir.arg(&format!("{name}.{suffix}")));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&ca)?))
            .identity(Identity::from_pem(read("crt")?, read("key")?))
            .domain_name("skiff-store");
        let channel = Endpoint::from_shared(format!("https://{}", server.plan.peer))?.tls_config(tls)?.connect_lazy();
        Ok(pb::peer_client::PeerClient::new(channel))
    };
    for name in ["person", "node", "wild"] {
        let mut client = client(name)?;
        let refusals = [
            ("messages", client.messages(tokio_stream::iter([pb::RaftMessages::default()])).await.err()),
            ("snapshot", client.snapshot(tokio_stream::iter([pb::SnapshotChunk::default()])).await.err()),
            ("forward", client.forward(pb::Forwarded::default()).await.err()),
            ("leases", client.leases(pb::LeasesRequest::default()).await.err()),
            ("change", client.change(pb::ChangeRequest::default()).await.err()),
            ("join", client.join(pb::JoinRequest::default()).await.err()),
        ];
        for (route, refused) in refusals {
            let code = refused.as_ref().map(tonic::Status::code);
            ensure!(code == Some(tonic::Code::PermissionDenied), "{route} as {name}: {refused:?}");
        }
    }
    // The member's own gets further: this answer is the store's.
    let there = client("peer")?.leases(pb::LeasesRequest::default()).await;
    ensure!(there.is_ok(), "{there:?}");
    Ok(())
}

/// Connections to the peers' port that never speak, from one address: members at others are heard at once, and the silent ones are sent away.
async fn silent() -> anyhow::Result<()> {
    use std::time::Duration;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpSocket;
    let dir = Dir::new()?;
    let ours = Authority::new(&dir, "ours")?;
    ours.issue(&dir, "peer", &["skiff-store"])?;
    let (certificate, key, ca) = (dir.arg("peer.crt"), dir.arg("peer.key"), ours.file(&dir));
    let tls = ["--peer-cert-file", &certificate, "--peer-key-file", &key, "--peer-trusted-ca-file", &ca];
    let server = Plan::new(&dir, "one", &tls)?.start().await?;
    let peer: std::net::SocketAddr = server.plan.peer.parse()?;
    let mut held = Vec::new();
    for _ in 0..600 {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.2:0".parse()?)?;
        held.push(socket.connect(peer).await?);
    }
    let mut client = peer_client(&dir, &ours, "peer", &server.plan.peer)?;
    let asking = client.leases(skiff_proto::store::LeasesRequest::default());
    // Less than the time that a silent one has.
    tokio::time::timeout(Duration::from_secs(2), asking).await.map_err(|_| anyhow::anyhow!("a member waits"))??;
    holds(&server.said(), &["from 127.0.0.2 are turned away"])?;
    let ends = async {
        for stream in &mut held {
            // A reset is an end, too.
            let _ = stream.read(&mut [0; 1]).await;
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, ends).await.map_err(|_| anyhow::anyhow!("the silent ones stay for ever"))?;
    server.terminate().await?;
    Ok(())
}

pub fn peer_client(
    dir: &Dir,
    authority: &Authority,
    name: &str,
    addr: &str,
) -> anyhow::Result<skiff_proto::store::peer_client::PeerClient<tonic::transport::Channel>> {
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    let read = |suffix: &str| std::fs::read(dir.arg(&format!("{name}.{suffix}")));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(authority.file(dir))?))
        .identity(Identity::from_pem(read("crt")?, read("key")?))
        .domain_name("skiff-store");
    let channel = Endpoint::from_shared(format!("https://{addr}"))?.tls_config(tls)?.connect_lazy();
    Ok(skiff_proto::store::peer_client::PeerClient::new(channel))
}

/// A certificate that is replaced on the disk is shown from then on, without a restart; one that makes no sense is told and left.
async fn changed_files() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let (ours, next) = (Authority::new(&dir, "ours")?, Authority::new(&dir, "next")?);
    ours.issue(&dir, "peer", &["skiff-store"])?;
    next.issue(&dir, "new", &["skiff-store"])?;
    let [certificate, key, ca] = ["peer.crt", "peer.key", "ours.crt"].map(|file| dir.arg(file));
    let tls = ["--peer-cert-file", &certificate, "--peer-key-file", &key, "--peer-trusted-ca-file", &ca];
    let server = Plan::new(&dir, "one", &tls)?.start().await?;
    let asks = |authority: &'static str| {
        let addr = server.plan.peer.clone();
        let dir = &dir;
        let of = if authority == "next" { &next } else { &ours };
        async move {
            peer_client(dir, of, "new", &addr)?
                .leases(skiff_proto::store::LeasesRequest::default())
                .await
                .map_err(anyhow::Error::from)
        }
    };
    ensure!(asks("ours").await.is_err(), "of another authority");
    std::fs::write(&certificate, "half of it")?;
    until("it says that this is no certificate", || async { Ok(server.said().contains("cannot be taken up")) }).await?;
    for (from, to) in [("new.crt", &certificate), ("new.key", &key), ("next.crt", &ca)] {
        std::fs::copy(dir.arg(from), to)?;
    }
    until("the other authority is taken", || async { Ok(asks("next").await.is_ok()) }).await?;
    server.terminate().await?;
    Ok(())
}

async fn beyond_loopback() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let port = |addr: String| addr.rsplit(':').next().unwrap_or_default().to_owned();
    let everywhere = || Ok::<_, anyhow::Error>(format!("0.0.0.0:{}", port(free()?)));
    for whose in ["clients", "peers"] {
        let mut plan = Plan::new(&dir, whose, &[])?;
        let addr = if whose == "clients" { &mut plan.client } else { &mut plan.peer };
        *addr = everywhere()?;
        let addr = addr.clone();
        let mut refused = plan.spawn()?;
        ensure!(refused.ends().await?.code() == Some(1));
        holds(
            &refused.said(),
            &[&addr, "is not on loopback", &format!("give certificates for {whose}, or --insecure")],
        )?;
        ensure!(!plan.data.exists(), "nothing was made");
    }
    // With --insecure it needs an address that others can dial.
    let mut plan = Plan::new(&dir, "insecure", &["--insecure"])?;
    let dialled = plan.peer.clone();
    plan.peer = format!("0.0.0.0:{}", port(dialled.clone()));
    let mut refused = plan.spawn()?;
    ensure!(refused.ends().await?.code() == Some(1));
    holds(&refused.said(), &[&plan.peer, "--advertise-peer"])?;
    plan.more.extend(["--advertise-peer".into(), dialled.clone()]);
    let server = plan.start().await?;
    holds(&ctl(server.endpoint(), &["member", "list"]).await?, &[&format!("http://{dialled}")])?;
    Ok(())
}
