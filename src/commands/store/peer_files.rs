//! The files by which a member proves itself to its peers, and what becomes of a change in them: it is taken up while the member runs.

use anyhow::Context as _;
use skiff_store::{PeerPem, PeerTls};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is looked whether the files have changed: three small files are read.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct PeerFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub fn pem(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

impl PeerFiles {
    pub fn read(&self) -> anyhow::Result<PeerPem> {
        Ok(PeerPem { ca: pem(&self.ca)?, certificate: pem(&self.certificate)?, key: pem(&self.key)? })
    }

    /// Takes up what changes in the files. A change that makes no sense is told once; it may be half written only.
    pub async fn follow(self, tls: PeerTls, mut current: PeerPem) {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let taken = self.read().and_then(|now| {
                if now == current {
                    return Ok(None);
                }
                tls.replace(&now)?;
                Ok(Some(now))
            });
            match taken {
                Ok(None) => told = None,
                Ok(Some(now)) => {
                    tracing::info!("the certificate for peers was taken anew from {}", self.certificate.display());
                    (current, told) = (now, None);
                }
                Err(e) => {
                    let problem = format!("{e:#}");
                    if told.as_ref() != Some(&problem) {
                        tracing::warn!(
                            "the certificate for peers has changed and cannot be taken up, trying again: {problem}"
                        );
                        told = Some(problem);
                    }
                }
            }
        }
    }
}
