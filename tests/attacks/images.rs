//! Whoever makes an archive that somebody else hands to the cluster: names in it that lead elsewhere.

use crate::local::{Local, text};
use anyhow::ensure;
use serde_json::json;
use sha2::Digest as _;

fn hex(data: &[u8]) -> String {
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar whose entries have exactly these names, whatever they lead to. A link's target stands in place of its content.
fn tar_of(entries: &[(&str, tar::EntryType, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        // The library refuses such names, so they are written as bytes.
        let raw = header.as_old_mut();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        if is_link {
            raw.linkname[..content.len()].copy_from_slice(content);
        }
        header.set_cksum();
        archive.append(&header, if is_link { &[][..] } else { content })?;
    }
    Ok(archive.into_inner()?)
}

pub fn hostile_names(local: &Local) -> anyhow::Result<()> {
    use tar::EntryType::{Link, Regular, Symlink};
    let mark = format!("skiff-escaped-{}", std::process::id());
    let up = format!("{}{mark}", "../".repeat(12));
    let up_tmp = format!("{}tmp/{mark}", "../".repeat(12));
    let absolute = format!("/tmp/{mark}");
    let config = |layer: &[u8]| {
        json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(layer))]}}).to_string()
    };
    let layer = |entries: &[(&str, tar::EntryType, &[u8])]| tar_of(entries);
    let good = layer(&[("bin", Regular, b"x")])?;
    let in_link = format!("l/{mark}");
    let whole = |config_name: &str, layer_name: &str, tag: &str, layer: &[u8]| -> anyhow::Result<Vec<u8>> {
        let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": [layer_name]}]).to_string();
        tar_of(&[
            (config_name, Regular, config(layer).as_bytes()),
            (layer_name, Regular, layer),
            ("manifest.json", Regular, manifest.as_bytes()),
        ])
    };
    let plain = |layer: &[u8]| whole("c.json", "l/layer.tar", "hostile.local/x:1", layer);
    let shadow = std::fs::read("/etc/passwd")?;
    let archives: Vec<(&str, Vec<u8>)> = vec![
        ("a layer's file above the root", plain(&layer(&[(&up_tmp, Regular, b"x")])?)?),
        ("a layer's file by an absolute name", plain(&layer(&[(&absolute, Regular, b"x")])?)?),
        ("a layer's file through its own link", plain(&layer(&[("l", Symlink, b"/tmp"), (&in_link, Regular, b"x")])?)?),
        ("a layer's hard link to the host", plain(&layer(&[("h", Link, b"/etc/passwd")])?)?),
        ("a layer's hard link above the root", plain(&layer(&[("h", Link, "../".repeat(12).as_bytes()), ("p", Link, b"../../../../../../../../etc/passwd")])?)?),
        ("a whiteout of a folder above", plain(&layer(&[(".wh...", Regular, b""), (".wh..", Regular, b""), ("d/.wh..", Regular, b"")])?)?),
        ("an entry of the archive above its folder", whole("c.json", &up, "hostile.local/x:1", &good)?),
        ("a configuration by an absolute name", whole(&absolute, "l/layer.tar", "hostile.local/x:1", &good)?),
        ("a tag that is a path", whole("c.json", "l/layer.tar", "../../../../tmp/x:1", &good)?),
        ("a layer that is a file of the host", tar_of(&[
            ("c.json", Regular, config(&shadow).as_bytes()),
            ("l", Symlink, b"/etc/passwd"),
            ("manifest.json", Regular, json!([{"Config": "c.json", "RepoTags": ["hostile.local/x:1"], "Layers": ["l"]}]).to_string().as_bytes()),
        ])?),
        ("a digest that is a path", tar_of(&[
            ("oci-layout", Regular, br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", Regular, json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": "sha256:../../../../../../etc/passwd", "size": 10, "annotations": {"org.opencontainers.image.ref.name": "hostile.local/x:1"}}]}).to_string().as_bytes()),
        ])?),
    ];
    for (what, archive) in archives {
        let file = local.file("hostile.tar", archive)?;
        let output = local.skiff(&["image", "import", &file])?;
        // Refused, or taken with its names inside: both are good. What must not be is a trace outside.
        let (taken, complaint) = (output.status.success(), text(&output.stderr));
        ensure!(taken || !complaint.trim().is_empty(), "{what}: refused without a word");
        for place in ["/tmp", "/", "/etc", "/var/lib", "/root"] {
            ensure!(!std::path::Path::new(place).join(&mark).exists(), "{what}: {place}/{mark} was written");
        }
        if taken {
            local.run(&["image", "rm", "hostile.local/x:1"])?;
        }
        std::fs::remove_file(&file)?;
    }
    let passwd = std::fs::metadata("/etc/passwd")?;
    ensure!(std::os::unix::fs::MetadataExt::nlink(&passwd) == 1, "/etc/passwd was linked into an image");
    ensure!(std::fs::read("/etc/passwd")? == shadow, "/etc/passwd was changed");
    // The server lives, and takes what is good.
    local.run(&["image", "ls"]).map(drop)
}
