//! One process at a data directory: two that write the same log would destroy it, and a check of files that are being written finds
//! damage that is none.
//!
//! The claim is a lock on a file in the directory. The kernel drops it with the process, however that ends, so nothing stale stays.

use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

const NAME: &str = "lock";
/// How long a start waits for a process that is just ending.
const WAIT_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Held for as long as the directory is used.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

impl Claim {
    /// Claims a directory that is there, to run a member on it; waits a little for one that is just stopping.
    pub async fn take(dir: &Path) -> anyhow::Result<Claim> {
        let deadline = tokio::time::Instant::now() + WAIT_MAX;
        let path = dir.join(NAME);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        while !lock(&file, dir)? {
            if tokio::time::Instant::now() >= deadline {
                bail!(taken(dir));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Claim { _file: file })
    }

    /// Claims a directory for as long as a command looks at it. None if no member ever ran there. Writes nothing.
    pub fn look(dir: &Path) -> anyhow::Result<Option<Claim>> {
        let path = dir.join(NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
        };
        match lock(&file, dir)? {
            true => Ok(Some(Claim { _file: file })),
            false => bail!(taken(dir)),
        }
    }
}

fn lock(file: &File, dir: &Path) -> anyhow::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("locking the data directory {}", dir.display())),
    }
}

fn taken(dir: &Path) -> String {
    format!(
        "a member runs on the data directory {} at the moment; stop it first, or give another directory",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_directory_is_claimed_once_at_a_time() {
        let dir = std::env::temp_dir().join(format!("skiff-claim-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(Claim::look(&dir).unwrap().is_none());
        let first = Claim::take(&dir).await.unwrap();
        let refused = Claim::take(&dir).await.unwrap_err().to_string();
        assert!(refused.contains("a member runs on the data directory"), "{refused}");
        assert!(Claim::look(&dir).is_err());
        drop(first);
        let looking = Claim::look(&dir).unwrap();
        assert!(looking.is_some() && Claim::look(&dir).is_err());
        drop(looking);
        Claim::take(&dir).await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
