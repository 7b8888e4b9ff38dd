//! The demo's image, made on the spot: this very binary, its loader and the libraries it maps, as an archive.

use anyhow::Context as _;
use skiff_runtime::{ImageBuilder, ImageConfig, ImageStore};
use std::path::Path;

/// The name under which the cluster knows it.
pub const NAME: &str = "skiff.local/demo:latest";

/// Writes the image's archive to `path`; `scratch` is a folder for the work.
pub fn write_archive(path: &Path, scratch: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("finding this binary")?;
    let store = ImageStore::open(scratch, &[])?;
    let config = ImageConfig { entrypoint: vec!["/skiff".into()], ..Default::default() };
    ImageBuilder::from_host_binaries(&[(&own, "/skiff")])?
        // Lookups by name go through the C library, which reads these.
        .file("/etc/nsswitch.conf", "hosts: files dns\n", 0o644)
        .dir("/tmp", 0o1777)
        .config(config)
        .build(&store, NAME)?;
    let file = std::fs::File::create(path).with_context(|| format!("making {}", path.display()))?;
    store.export(NAME, std::io::BufWriter::new(file))?;
    Ok(())
}

/// Makes the image and hands it to the cluster.
pub async fn hand_in(api: &crate::client::Api) -> anyhow::Result<()> {
    let scratch = std::env::temp_dir().join(format!("skiff-image-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let archive = scratch.join("image.tar");
    let (at, work) = (archive.clone(), scratch.join("store"));
    let made = tokio::task::spawn_blocking(move || write_archive(&at, &work)).await?;
    let handed = match made {
        Ok(()) => api.put_image(&archive).await.map(drop),
        Err(e) => Err(e),
    };
    let _ = std::fs::remove_dir_all(&scratch);
    handed
}
