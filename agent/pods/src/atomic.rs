//! A directory whose files change all at once, or not at all.
//!
//! The files are in a directory with a hidden name; `..data` is a link to it, and every visible name is a link through
//! `..data`. Exchanging that one link by rename exchanges all files. Programs that watch ConfigMaps rely on these names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";

/// Path below the volume, to bytes and permission bits.
pub type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// Makes the directory hold exactly these files. True when something changed.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    if dir.join(DATA).exists() && current(dir)? == *files {
        return Ok(false);
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    let name = fresh(dir);
    let new = dir.join(&name);
    fs::create_dir(&new)?;
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755))?;
    for (path, (bytes, mode)) in files {
        let place = new.join(clean(path));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&place, bytes)?;
        // A group that shares the volume may read it.
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        if let Some(group) = group {
            chown(&place, None, Some(group))?;
        }
        fs::set_permissions(&place, PermissionsExt::from_mode(mode & 0o777))?;
    }
    let link = dir.join("..data_tmp");
    let _ = fs::remove_file(&link);
    symlink(&name, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    names(dir, files)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

/// The visible names: links for first path parts that exist, none for those that do not any more.
fn names(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<PathBuf> = files
        .keys()
        .filter_map(|path| clean(path).components().next().map(|part| PathBuf::from(part.as_os_str())))
        .collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = PathBuf::from(entry.file_name());
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn fresh(dir: &Path) -> String {
    (0u64..)
        .map(|number| format!("..{number}"))
        .find(|name| fs::symlink_metadata(dir.join(name)).is_err())
        .unwrap_or_default()
}

fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

fn current(dir: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    // Not canonicalized: the way to a volume in memory leads through a link of /proc, which only the kernel can follow.
    let base = dir.join(fs::read_link(dir.join(DATA))?);
    let mut todo = vec![base.clone()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next)?.flatten() {
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                todo.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(&base) {
                files.insert(
                    path.to_string_lossy().into_owned(),
                    (fs::read(entry.path())?, metadata.permissions().mode() & 0o777),
                );
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_at_once() {
        let dir = std::env::temp_dir().join(format!("skiff-atomic-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let files = |pairs: &[(&str, &str)]| -> Files {
            pairs.iter().map(|(path, text)| (path.to_string(), (text.as_bytes().to_vec(), 0o644))).collect()
        };
        assert!(write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        let open = fs::File::open(dir.join("a")).unwrap();
        assert!(!write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap(), "nothing changed");
        assert!(write(&dir, &files(&[("a", "3"), ("../../e", "4")]), None).unwrap());
        assert_eq!(io::read_to_string(open).unwrap(), "1", "an open file stays");
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert_eq!(fs::read_to_string(dir.join("e")).unwrap(), "4");
        assert!(!dir.join("d").exists());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "..data, its directory, a, e");
        fs::remove_dir_all(dir).unwrap();
    }
}
