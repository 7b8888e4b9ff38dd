//! Directories and files that are nobody's but the owner's: unpacked images hold set-user-ID programs, records hold pods'
//! environments.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What others may do with a directory.
const OTHERS: u32 = 0o077;

/// Makes a directory (mode 0700) and those above it that are missing. One that is there and open to others is closed, with a
/// warning: an older version made it so.
///
/// # Errors
/// It cannot be made or changed, or it is not a directory.
pub fn dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.mode();
    if mode & OTHERS != 0 {
        tracing::warn!(
            dir = %path.display(), mode = format!("{:o}", mode & 0o7777),
            "the directory was open to other users of this machine; it is closed now"
        );
        fs::set_permissions(path, PermissionsExt::from_mode(mode & 0o700))?;
    }
    Ok(())
}

/// Writes a file that is new or replaced, with mode 0600.
///
/// # Errors
/// As with [`fs::write`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // One that was there keeps its mode otherwise.
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_when_made_and_when_found() {
        let base = std::env::temp_dir().join(format!("skiff-private-{}", std::process::id()));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let deep = base.join("a/b");
        dir(&deep).unwrap();
        assert_eq!((mode(&deep), mode(&base.join("a"))), (0o700, 0o700));
        fs::set_permissions(&deep, PermissionsExt::from_mode(0o2755)).unwrap();
        dir(&deep).unwrap();
        assert_eq!(mode(&deep), 0o700);
        let file = deep.join("f");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        write(&file, b"new").unwrap();
        assert_eq!((mode(&file), fs::read_to_string(&file).unwrap().as_str()), (0o600, "new"));
        assert!(dir(&file).is_err());
        fs::remove_dir_all(base).unwrap();
    }
}
