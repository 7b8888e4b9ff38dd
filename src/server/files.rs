//! A server's data directory: the authority, the token key, and the store's folder.

use anyhow::Context as _;
use skiff_identity::sealing::SealingKeys;
use skiff_identity::{Ca, Pair};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The peers that a joining server was told.
const PEERS: &str = "peers.json";
/// The keys that seal Secrets, beside the authority's.
const SEALING_KEYS: &str = "sealing.keys";

/// Hashes of authorities that were this cluster's, a line each.
const FORMER: &str = "ca.former";

fn hashes(pem: &str) -> Result<Vec<String>, skiff_identity::Error> {
    skiff_identity::each(pem).iter().map(|one| skiff_identity::hash(one)).collect()
}

/// Where a server keeps what must survive it.
#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
    /// Held while a file is written: several tasks write the same ones, under the same unfinished name.
    writing: Arc<Mutex<()>>,
}

/// As deep as a server's directory goes (images have the deepest), and more.
const DEPTH_MAX: u32 = 16;

/// Makes the directory, or closes what an older version left open in it to other users of this machine: it holds the authority's key and every Secret.
fn close(dir: &Path, depth: u32) -> std::io::Result<()> {
    skiff_runtime::private::dir(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (path, meta) = (entry.path(), entry.metadata()?);
        if meta.is_dir() && depth < DEPTH_MAX {
            close(&path, depth + 1)?;
        } else if meta.is_file() && meta.mode() & 0o077 != 0 {
            tracing::warn!(file = %path.display(), "the file was open to other users of this machine; it is closed now");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(meta.mode() & 0o700))?;
        }
    }
    Ok(())
}

impl Files {
    pub fn new(data_dir: PathBuf) -> anyhow::Result<Files> {
        let dir = data_dir.join("server");
        close(&dir, 0)
            .with_context(|| format!("making the data directory {}, closed to other users", dir.display()))?;
        Ok(Files { dir, writing: Arc::default() })
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

    /// Writes a file that only root may read, whole or not at all. It is on the disk under its name when this returns.
    pub fn write_secret(&self, name: &str, content: &str) -> anyhow::Result<()> {
        let (path, unfinished) = (self.dir.join(name), self.dir.join(format!(".{name}.tmp")));
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let write = || -> std::io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            // The name is the directory's: without this a crash of the machine may bring the old file back, after others have acted upon the new one.
            std::fs::File::open(&self.dir)?.sync_all()
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

    /// The keys that seal Secrets in the store; none where a cluster has none yet.
    pub fn sealing_keys(&self) -> anyhow::Result<SealingKeys> {
        if !self.dir.join(SEALING_KEYS).exists() {
            return Ok(SealingKeys::default());
        }
        let keys = SealingKeys::parse(&self.read(SEALING_KEYS)?);
        keys.with_context(|| {
            format!("reading {}; take the file from another server or a backup", self.dir.join(SEALING_KEYS).display())
        })
    }

    pub fn keep_sealing_keys(&self, keys: &SealingKeys) -> anyhow::Result<()> {
        self.write_secret(SEALING_KEYS, &keys.text())
    }

    /// This server's own key, by which the other servers know it (PKCS#8 PEM). It is made at the first start, and stays.
    pub fn server_key(&self) -> anyhow::Result<String> {
        const NAME: &str = "server.key";
        if !self.dir.join(NAME).exists() {
            self.write_secret(NAME, &skiff_identity::request(None)?.0)?;
        }
        self.read(NAME)
    }

    /// Founds a cluster: its authority, its token key, and the key that seals its Secrets.
    pub fn found(&self) -> anyhow::Result<()> {
        let token_key = skiff_identity::request(None)?.0;
        self.keep_sealing_keys(&SealingKeys::generate()?)?;
        self.keep(Ca::generate()?.pair(), &token_key)
    }

    /// Keeps a cluster's keys; the authority's key last, because it says that the rest is there.
    pub fn keep(&self, ca: &Pair, token_key: &str) -> anyhow::Result<()> {
        self.write_secret("token.key", token_key)?;
        self.write_secret("ca.crt", &ca.certificate)?;
        self.write_secret("ca.key", &ca.key)
    }

    /// Puts another authority in the place of the one that is kept, or beside it. The hashes of those that go are kept: a token may name one.
    pub fn replace_ca(&self, pair: &Pair) -> anyhow::Result<()> {
        let (mut former, now) = (self.former_hashes()?, hashes(&pair.certificate)?);
        let go: Vec<_> = hashes(&self.ca()?.certificate)?.into_iter().filter(|h| !now.contains(h)).collect();
        former.extend(go.into_iter().filter(|h| !former.contains(h)).collect::<Vec<_>>());
        self.write_secret(FORMER, &former.join("\n"))?;
        self.write_secret("ca.crt", &pair.certificate)?;
        self.write_secret("ca.key", &pair.key)
    }

    fn former_hashes(&self) -> anyhow::Result<Vec<String>> {
        match self.dir.join(FORMER).exists() {
            true => Ok(self.read(FORMER)?.lines().map(str::to_owned).collect()),
            false => Ok(Vec::new()),
        }
    }

    /// Whether the authority with this hash is this cluster's, or was.
    pub fn knows_authority(&self, hash: &str) -> anyhow::Result<bool> {
        Ok(hashes(&self.ca()?.certificate)?.iter().chain(&self.former_hashes()?).any(|h| h == hash))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What an older version left open is closed at the start, with all that is in it.
    #[test]
    fn a_directory_that_was_open_is_closed() {
        let base = std::env::temp_dir().join(format!("skiff-files-{}", std::process::id()));
        let deep = base.join("server/store/wal");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("1.log"), "every Secret").unwrap();
        for (path, mode) in [("server", 0o755), ("server/store", 0o755), ("server/store/wal/1.log", 0o644)] {
            std::fs::set_permissions(base.join(path), PermissionsExt::from_mode(mode)).unwrap();
        }
        Files::new(base.clone()).unwrap();
        for (path, mode) in
            [("server", 0o700), ("server/store", 0o700), ("server/store/wal", 0o700), ("server/store/wal/1.log", 0o600)]
        {
            assert_eq!(std::fs::metadata(base.join(path)).unwrap().mode() & 0o7777, mode, "{path}");
        }
        std::fs::remove_dir_all(base).unwrap();
    }

    /// Tasks that write the same file at once do not take each other's unfinished one away.
    #[test]
    fn a_file_may_be_written_by_several_at_once() {
        let base = std::env::temp_dir().join(format!("skiff-files-at-once-{}", std::process::id()));
        let files = Files::new(base.clone()).unwrap();
        std::thread::scope(|scope| {
            let writer = |content: &'static str| {
                let files = files.clone();
                move || (0..50).try_for_each(|_| files.write_secret("admin.kubeconfig", content))
            };
            let writers: Vec<_> =
                ["one", "another", "third", "fourth"].map(|content| scope.spawn(writer(content))).into();
            writers.into_iter().for_each(|w| w.join().unwrap().unwrap());
        });
        let left: Vec<_> = std::fs::read_dir(base.join("server"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, ["admin.kubeconfig"]);
        std::fs::remove_dir_all(base).unwrap();
    }
}
