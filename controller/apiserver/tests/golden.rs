//! Replays recorded requests of a real Kubernetes API server against ours, and compares the answers.
//!
//! The corpus is not part of the repository: `SKIFF_GOLDEN` names its folder. Without it the test is ignored, with the
//! reason. The score is printed by topic and scenario; a scenario listed in `golden-passing.txt` must pass whole.
//!
//! `SKIFF_GOLDEN_ONLY=topic[/scenario]` replays a part, `SKIFF_GOLDEN_VERBOSE=1` prints what differs,
//! `SKIFF_GOLDEN_STRICT=1` counts managed fields everywhere, `SKIFF_GOLDEN_PROSE=1` compares the prose of table columns,
//! `SKIFF_GOLDEN_ACCEPT=1` writes the list of passing scenarios.

#[path = "golden/corpus.rs"]
mod corpus;
#[path = "golden/published.rs"]
mod published;
#[path = "golden/replay.rs"]
mod replay;
#[path = "golden/score.rs"]
mod score;
#[path = "golden/unify.rs"]
mod unify;

use libtest_mimic::{Arguments, Failed, Trial};
use skiff_apiserver::node::NoNodes;
use skiff_apiserver::{ApiServer, Config, TokenSigner};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOKENS: &str = "golden-admin,admin,admin-uid,\"system:masters\"\n\
                      golden-alice,alice,alice-uid,\"devs\"\n\
                      golden-bob,bob,bob-uid\n";

fn main() {
    let arguments = Arguments::from_args();
    let folder = std::env::var_os("SKIFF_GOLDEN").map(PathBuf::from);
    let reason = match &folder {
        None => Some("SKIFF_GOLDEN does not name the folder of the corpus"),
        Some(folder) if !folder.is_dir() => Some("the folder that SKIFF_GOLDEN names is not there"),
        Some(_) => None,
    };
    if let Some(reason) = reason {
        eprintln!("golden replay: ignored: {reason}");
    }
    let ignored = reason.is_some();
    let documents = folder.as_ref().and_then(|f| f.parent()).map(|f| f.join("openapi-v3")).filter(|f| f.is_dir());
    let undocumented = documents.is_none();
    let marks = Trial::test("published fields merge and are owned as upstream's", move || {
        published::compare(&documents.ok_or("no documents")?)
    });
    let replay =
        Trial::test("recorded requests are answered as recorded", move || replay_all(&folder.ok_or("no corpus")?));
    let unify = Trial::test("placeholders bind once", || {
        unify::check_binding();
        Ok(())
    });
    libtest_mimic::run(
        &arguments,
        vec![unify, marks.with_ignored_flag(undocumented), replay.with_ignored_flag(ignored)],
    )
    .exit();
}

/// Starts a server alone: no controllers, no scheduler, an empty store.
async fn start() -> anyhow::Result<SocketAddr> {
    let tokens = std::env::temp_dir().join(format!("skiff-golden-{}.csv", std::process::id()));
    std::fs::write(&tokens, TOKENS)?;
    let mut config = Config::new(Arc::new(TokenSigner::generate("https://kubernetes.default.svc")));
    config.token_file = Some(tokens.clone());
    config.service_cidr = "10.96.0.0/16".parse().map_err(anyhow::Error::msg)?;
    config.controllers = false;
    let server = ApiServer::new(config, skiff_store::Store::in_memory().await, Arc::new(NoNodes));
    std::fs::remove_file(&tokens)?;
    let server = server?;
    server.ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { server.serve(listener, None, Default::default()).await });
    Ok(address)
}

fn replay_all(folder: &Path) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let passed = runtime.block_on(async {
        let address = start().await?;
        anyhow::Ok(score::score(address, folder, "api").await?.1)
    })?;
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-passing.txt");
    if std::env::var_os("SKIFF_GOLDEN_ACCEPT").is_some() {
        let text: String = passed.0.iter().map(|name| format!("{name}\n")).collect();
        std::fs::write(&list, text)?;
        return Ok(());
    }
    let expected = std::fs::read_to_string(&list).unwrap_or_default();
    let lost: Vec<&str> = expected.lines().filter(|n| passed.1.contains(*n) && !passed.0.contains(*n)).collect();
    match lost.is_empty() {
        true => Ok(()),
        false => Err(format!("these scenarios passed before: {}", lost.join(", ")).into()),
    }
}
