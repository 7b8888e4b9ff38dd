//! `skiff store verify`: exit codes and words for data that is whole, torn, damaged, missing, or in use.

use crate::support::*;
use anyhow::ensure;
use std::path::Path;

pub const TESTS: &[Test] = &[("verify tells whole from torn from damaged", || Box::pin(verify()))];

/// A copy of a data directory.
fn copy(from: &Path, to: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.display().to_string())
}

/// Where what was written ends: segments are made of zeros.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1)
}

async fn verify() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let server = Plan::new(&dir, "one", &[])?.start().await?;
    for i in 0..30 {
        ctl(server.endpoint(), &["put", &format!("key{i}"), "a value of some length"]).await?;
    }
    let data = server.plan.data.display().to_string();
    holds(&store_fails(&["verify", &data]).await?, &["a member runs on the data directory", &data, "stop it first"])?;
    let plan = server.kill().await?;
    let said = store(&["verify", &data]).await?;
    holds(&said, &["revision   31", "every record is whole"])?;
    ensure!(said == store(&["verify", &data]).await?, "looking changes nothing");

    // Torn: the last record is cut in its midst. Told, and no failure; a member starts on it and is whole again.
    let torn = copy(&plan.data, &dir.sub("torn"))?;
    let log = file(&dir.sub("torn"), "log-")?;
    let mut bytes = std::fs::read(&log)?;
    let end = written(&bytes);
    bytes[end - 3..end].fill(0);
    std::fs::write(&log, &bytes)?;
    holds(&store(&["verify", &torn]).await?, &["torn ", "harmless", "every record is whole"])?;

    // A flipped bit in the log, whole records behind it: which file, which byte, what to do. A member refuses to start on it alike.
    let damaged = copy(&plan.data, &dir.sub("damaged"))?;
    let log = file(&dir.sub("damaged"), "log-")?;
    let mut bytes = std::fs::read(&log)?;
    let middle = written(&bytes) / 2;
    bytes[middle] ^= 16;
    std::fs::write(&log, &bytes)?;
    let name = log.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let expected = [damaged.as_str(), &name, "is damaged at byte", "let it join again, or restore a backup"];
    holds(&store_fails(&["verify", &damaged]).await?, &expected)?;
    holds(&store_fails(&["recover", &damaged, "--yes"]).await?, &expected)?;
    let mut on_it = Plan { data: dir.sub("damaged"), ..plan.clone() }.spawn()?;
    ensure!(on_it.ends().await?.code() == Some(1));
    holds(&on_it.said(), &expected[1..])?;

    // The same in the snapshot.
    let snapshot = copy(&plan.data, &dir.sub("snapshot"))?;
    let file_of_it = file(&dir.sub("snapshot"), "snap-")?;
    let mut bytes = std::fs::read(&file_of_it)?;
    bytes[12] ^= 1;
    std::fs::write(&file_of_it, &bytes)?;
    let expected = [snapshot.as_str(), "snap-", "is damaged", "byte", "let it join again, or restore a backup"];
    holds(&store_fails(&["verify", &snapshot]).await?, &expected)?;

    // Files that are gone.
    let gone = copy(&plan.data, &dir.sub("gone"))?;
    std::fs::remove_file(file(&dir.sub("gone"), "snap-")?)?;
    holds(&store_fails(&["verify", &gone]).await?, &[&gone, "there is no snapshot"])?;
    let empty = dir.arg("empty");
    std::fs::create_dir(&empty)?;
    holds(&store_fails(&["verify", &empty]).await?, &[&empty, "holds no member's data"])?;
    let none = dir.arg("none");
    holds(&store_fails(&["verify", &none]).await?, &[&none, "holds no member's data"])?;
    ensure!(!dir.sub("none").exists());

    // The first directory serves all of it still, and nobody else may begin on it meanwhile.
    let server = plan.start().await?;
    holds(&ctl(server.endpoint(), &["get", "key", "--prefix", "-w", "json"]).await?, &["\"count\":30"])?;
    let mut second = Plan { client: free()?, peer: free()?, ..plan.clone() }.spawn()?;
    ensure!(second.ends().await?.code() == Some(1));
    holds(&second.said(), &["a member runs on the data directory", &data])?;
    holds(&store_fails(&["recover", &data, "--yes"]).await?, &["a member runs on the data directory", &data])?;
    ctl(server.endpoint(), &["put", "still", "1"]).await?;
    Ok(())
}
