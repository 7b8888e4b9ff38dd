//! What `store serve` says about options that cannot be meant.

use crate::support::*;
use anyhow::ensure;

pub const TESTS: &[Test] = &[("wrong options are told by name", || Box::pin(options()))];

async fn options() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let (taken, nobody, peer) = (free()?, free()?, free()?);
    let _listener = std::net::TcpListener::bind(&taken)?;
    let none = dir.arg("none.pem");
    let table: &[(&[&str], &[&str])] = &[
        (&["--listen-client", &taken], &["listening for clients at", &taken, "in use"]),
        (&["--listen-client", "127.0.0.1"], &["127.0.0.1", "write host:port"]),
        (&["--initial-cluster", "b=127.0.0.1:1"], &["is not in --initial-cluster", "--advertise-peer"]),
        (&["--initial-cluster", "127.0.0.1:1"], &["write name=host:port for each member"]),
        (&["--cert-file", &none, "--key-file", &none], &["reading", &none]),
    ];
    for (args, expected) in table {
        let mut all = vec!["serve", "--listen-client", &nobody, "--listen-peer", &peer, "--data-dir"];
        let data = dir.arg("data");
        all.push(&data);
        if args[0] == "--listen-client" {
            all.drain(1..3);
        }
        all.extend(*args);
        holds(&store_fails(&all).await?, expected)?;
        ensure!(!dir.sub("data").exists(), "{args:?} made a data directory");
    }
    Ok(())
}
