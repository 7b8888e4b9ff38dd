//! Replays the recordings of a real control plane: API server, controllers and scheduler, no kubelet.
//!
//! The corpus and the rules are those of the API server's own replay (`controller/apiserver/tests/golden.rs`), and so are the
//! variables; `SKIFF_GOLDEN` names the folder. Here the controllers and the scheduler of this package run beside the server.

#[path = "../controller/apiserver/tests/golden/corpus.rs"]
mod corpus;
#[path = "../controller/apiserver/tests/golden/replay.rs"]
mod replay;
#[path = "../controller/apiserver/tests/golden/score.rs"]
mod score;
#[path = "../controller/apiserver/tests/golden/unify.rs"]
mod unify;

use skiff_apiserver::node::NoNodes;
use skiff_apiserver::{ApiServer, Config, TokenSigner};
use skiff_reconcile::Settings;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of all steps, the least that must be answered as recorded, in percent.
const EXPECTED_PERCENT: usize = 75;
const TOKENS: &str = "golden-admin,admin,admin-uid,\"system:masters\"\n\
                      golden-alice,alice,alice-uid,\"devs\"\n\
                      golden-bob,bob,bob-uid\n";

#[test]
fn recorded_control_plane() {
    let Some(folder) = std::env::var_os("SKIFF_GOLDEN").map(PathBuf::from).filter(|f| f.is_dir()) else {
        println!("ignored: SKIFF_GOLDEN does not name the folder of the corpus");
        return;
    };
    unify::check_binding();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (good, all) = runtime.block_on(run(&folder)).expect("the replay");
    let whole = std::env::var_os("SKIFF_GOLDEN_ONLY").is_none();
    assert!(!whole || good * 100 >= all * EXPECTED_PERCENT, "{good} of {all} steps as recorded");
}

async fn run(folder: &Path) -> anyhow::Result<(usize, usize)> {
    let address = start().await?;
    let (steps, scenarios) = score::score(address, folder, "controllers").await?;
    println!("{} of {} scenarios passed whole", scenarios.0.len(), scenarios.1.len());
    Ok(steps)
}

/// A whole control plane on an empty store.
async fn start() -> anyhow::Result<SocketAddr> {
    let tokens = std::env::temp_dir().join(format!("skiff-golden-controllers-{}.csv", std::process::id()));
    std::fs::write(&tokens, TOKENS)?;
    let mut config = Config::new(Arc::new(TokenSigner::generate("https://kubernetes.default.svc")));
    config.token_file = Some(tokens.clone());
    config.service_cidr = "10.96.0.0/16".parse().map_err(anyhow::Error::msg)?;
    config.ca_pem = "".into();
    let server = ApiServer::new(config, skiff_store::Store::in_memory().await, Arc::new(NoNodes));
    std::fs::remove_file(&tokens)?;
    let server = server?;
    server.ready().await;
    let settings = Settings {
        ca: "".into(),
        eviction_grace_ms: 1500,
        event_ttl_seconds: 3600,
        // Too narrow to give nodes a part of: the recorded controllers gave none.
        cluster_cidr: (Ipv4Addr::new(10, 42, 0, 0), 25),
    };
    tokio::spawn(skiff::server::run_without_agents(server.clone(), settings));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { server.serve(listener, None, Default::default()).await });
    Ok(address)
}
