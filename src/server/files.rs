//! A server's data directory: the authority, the token key, and the store's folder.

use anyhow::Context as _;
use skiff_identity::{Ca, Pair};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The peers that a joining server was told.
const PEERS: &str = "peers.json";

/// Where a server keeps what must survive it.
#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn new(data_dir: PathBuf) -> anyhow::Result<Files> {
        let dir = data_dir.join("server");
        std::fs::create_dir_all(&dir).with_context(|| format!("making the data directory {}", dir.display()))?;
        Ok(Files { dir })
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Whether this directory belongs to a cluster already.
    pub fn has_cluster(&self) -> bool {
        self.dir.join("ca.key").exists()
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes a file that only root may read, whole or not at all.
    pub fn write_secret(&self, name: &str, content: &str) -> anyhow::Result<()> {
        let (path, unfinished) = (self.dir.join(name), self.dir.join(format!(".{name}.tmp")));
        let write = || -> std::io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    pub fn ca(&self) -> anyhow::Result<Pair> {
        Ok(Pair { certificate: self.read("ca.crt")?, key: self.read("ca.key")? })
    }

    /// The key that signs service account tokens (PKCS#8 PEM).
    pub fn token_key(&self) -> anyhow::Result<String> {
        self.read("token.key")
    }

    /// Founds a cluster: its authority and its token key. `ca` may have been made beforehand.
    pub fn found(&self) -> anyhow::Result<()> {
        let token_key = skiff_identity::request(None)?.0;
        self.keep(Ca::generate()?.pair(), &token_key)
    }

    /// Keeps a cluster's keys; the authority's key last, because it says that the rest is there.
    pub fn keep(&self, ca: &Pair, token_key: &str) -> anyhow::Result<()> {
        self.write_secret("token.key", token_key)?;
        self.write_secret("ca.crt", &ca.certificate)?;
        self.write_secret("ca.key", &ca.key)
    }

    /// Where the store's members listened when this server joined; None for a founder.
    pub fn peers(&self) -> anyhow::Result<Option<Vec<String>>> {
        if !self.dir.join(PEERS).exists() {
            return Ok(None);
        }
        let text = self.read(PEERS)?;
        serde_json::from_str(&text).map(Some).with_context(|| format!("{} in {}", PEERS, self.dir.display()))
    }

    pub fn remember_peers(&self, peers: &[String]) -> anyhow::Result<()> {
        self.write_secret(PEERS, &serde_json::to_string(peers)?)
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }
}
