//! A layer's tar as a directory that overlayfs can stand on.
//!
//! The archive is untrusted: every path is resolved below the target (a link in it cannot lead out), and nothing is
//! ever followed at the last step. Deletions are spelt in names (`.wh.x`, `.wh..wh..opq`: OCI image specification, layer.md) and
//! become what overlayfs reads: a 0/0 character device, the attribute `trusted.overlay.opaque`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::guard::{CONTENT_BYTES_MAX, Guard, PATH_BYTES_MAX, beyond};
use crate::sys::{self, Make};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Reads a tar, packed or not: gzip and zstd are told by their first bytes.
pub fn decompress<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0u8; 4];
    let mut have = 0;
    while have < head.len() {
        match source.read(&mut head[have..])? {
            0 => break,
            count => have += count,
        }
    }
    let whole = io::Cursor::new(head[..have].to_vec()).chain(source);
    if head[..2] == [0x1f, 0x8b] {
        return Ok(Box::new(flate2::read::MultiGzDecoder::new(whole)));
    }
    if head == [0x28, 0xb5, 0x2f, 0xfd] {
        let decoder =
            ruzstd::decoding::StreamingDecoder::new(whole).map_err(|error| io::Error::other(error.to_string()))?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(whole))
}

/// Unpacks a plain tar below `target`, which exists and is empty.
pub fn unpack(source: impl Read, target: &Path) -> io::Result<()> {
    let root: OwnedFd = fs::File::open(target)?.into();
    let mut tree = Tree { root, parent: None, room_bytes: CONTENT_BYTES_MAX };
    // Times of directories last: every file that is put into one changes them.
    let mut directories: Vec<(PathBuf, i64)> = Vec::new();
    let mut archive = Archive::new(Guard::new(source));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = sys::clean(&entry.path()?);
        if entry.path_bytes().len() > PATH_BYTES_MAX
            || entry.link_name_bytes().is_some_and(|name| name.len() > PATH_BYTES_MAX)
        {
            return Err(beyond(&format!("a name of more than {PATH_BYTES_MAX} bytes")));
        }
        let mtime = entry.header().mtime().unwrap_or(0) as i64;
        let kind = entry.header().entry_type();
        tree.put(&mut entry, &path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if kind == EntryType::Directory {
            directories.push((path, mtime));
        }
    }
    for (path, mtime) in directories.iter().rev() {
        if let Ok(fd) =
            sys::open_in_root(tree.root.as_raw_fd(), path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
        {
            set_time(&fd, OsStr::new(""), *mtime);
        }
    }
    Ok(())
}

struct Tree {
    root: OwnedFd,
    /// The last directory that was opened: archives go directory by directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// How much content may still come.
    room_bytes: u64,
}

impl Tree {
    fn parent(&mut self, path: &Path) -> io::Result<&OwnedFd> {
        if self.parent.as_ref().is_none_or(|(have, _)| have != path) {
            let fd = sys::make_in_root(self.root.as_raw_fd(), path, Make::Dir)?;
            self.parent = Some((path.to_owned(), fd));
        }
        self.parent.as_ref().map(|(_, fd)| fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&mut self, entry: &mut Entry<impl Read>, path: &Path) -> io::Result<()> {
        let header = entry.header();
        let kind = header.entry_type();
        let mode = header.mode().unwrap_or(0o644) & 0o7777;
        let (uid, gid) = (header.uid().unwrap_or(0) as u32, header.gid().unwrap_or(0) as u32);
        let mtime = header.mtime().unwrap_or(0) as i64;
        let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
        let device = libc::makedev(number(header.device_major()), number(header.device_minor()));
        let link = entry.link_name()?.map(|name| name.into_owned());
        let attributes = attributes(entry);
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself.
            fchmodat(&self.root, ".", Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
            return Ok(());
        };
        let root = self.root.try_clone()?;
        let room_bytes = self.room_bytes;
        let mut left_bytes = room_bytes;
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path)?;
        if name.as_bytes() == OPAQUE {
            return set_attribute(parent, OsStr::new("."), "trusted.overlay.opaque", b"y");
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            // `.` and `..` are directories outside of what this entry may speak of.
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it deletes no name that a directory can have"));
            }
            let hidden = OsStr::from_bytes(hidden);
            remove(parent, hidden)?;
            return Ok(mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)?);
        }
        let at = name.as_os_str();
        match kind {
            EntryType::Directory => match mkdirat(parent, at, Mode::from_bits_truncate(0o755)) {
                Err(nix::Error::EEXIST) if is_directory(parent, at) => {}
                Err(nix::Error::EEXIST) => {
                    remove(parent, at)?;
                    mkdirat(parent, at, Mode::from_bits_truncate(0o755))?;
                }
                result => result?,
            },
            EntryType::Symlink => {
                remove(parent, at)?;
                let target = link.ok_or(io::ErrorKind::InvalidData)?;
                symlinkat(target.as_path(), parent, at)?;
            }
            EntryType::Link => {
                remove(parent, at)?;
                let target = sys::clean(&link.ok_or(io::ErrorKind::InvalidData)?);
                let (dir, file) =
                    (target.parent().unwrap_or(Path::new("")), target.file_name().ok_or(io::ErrorKind::InvalidData)?);
                let dir = sys::open_in_root(root.as_raw_fd(), dir, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                return Ok(linkat(&dir, file, parent, at, LinkatFlags::empty())?);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                remove(parent, at)?;
                let kind = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                mknodat(parent, at, kind, Mode::from_bits_truncate(mode), device)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(parent, at)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut file = fs::File::from(openat(parent, at, flags, Mode::from_bits_truncate(0o600))?);
                let written = io::copy(&mut entry.take(room_bytes.saturating_add(1)), &mut file)?;
                left_bytes = room_bytes
                    .checked_sub(written)
                    .ok_or_else(|| beyond(&format!("files of more than {CONTENT_BYTES_MAX} bytes altogether")))?;
            }
            // Extended headers were read with their entries; anything newer has no meaning for a file system.
            _ => return Ok(()),
        }
        fchownat(parent, at, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        for (attribute, value) in attributes {
            // Best effort: a file system may lack them, and only security.capability matters to many.
            let _ = set_attribute(parent, at, &attribute, &value);
        }
        if kind != EntryType::Symlink {
            // After the owner, whose change takes set-user-ID bits away.
            fchmodat(parent, at, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        }
        set_time(parent, at, mtime);
        self.room_bytes = left_bytes;
        if kind == EntryType::Directory || kind == EntryType::Symlink {
            self.parent = None;
        }
        Ok(())
    }
}

/// Extended attributes of a PAX header.
fn attributes(entry: &mut Entry<impl Read>) -> Vec<(String, Vec<u8>)> {
    let Ok(Some(extensions)) = entry.pax_extensions() else { return Vec::new() };
    let own = |extension: tar::PaxExtension| {
        let name = extension.key().ok()?.strip_prefix("SCHILY.xattr.")?.to_owned();
        Some((name, extension.value_bytes().to_vec()))
    };
    extensions.flatten().filter_map(own).filter(|(name, _)| !name.starts_with("trusted.overlay.")).collect()
}

/// Sets an attribute of a name in a directory, never of what a link points to.
fn set_attribute(dir: &OwnedFd, name: &OsStr, attribute: &str, value: &[u8]) -> io::Result<()> {
    let mut path = OsString::from(sys::fd_path(dir));
    path.push("/");
    path.push(name);
    let (path, attribute) = (sys::cstring(path.as_bytes())?, sys::cstring(attribute)?);
    // SAFETY: all pointers live for the call and the length is the value's.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    sys::check(result as libc::c_long).map(drop)
}

fn set_time(dir: &OwnedFd, name: &OsStr, seconds: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    let time = nix::sys::time::TimeSpec::new(seconds, 0);
    let name = if name.is_empty() { OsStr::new(".") } else { name };
    let _ = utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink);
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    let stat = nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Later entries of the same name win, as with every tar.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
        Err(nix::Error::EISDIR | nix::Error::EPERM) => {
            let mut path = PathBuf::from(sys::fd_path(parent));
            path.push(name);
            fs::remove_dir_all(path)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn tar_of(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            // Raw, because a hostile archive does not ask for permission.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let body = match kind {
                EntryType::Regular => content.as_bytes(),
                _ => {
                    header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                    &[]
                }
            };
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn layers_stay_inside_and_delete_by_name() {
        if !nix::unistd::Uid::effective().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("ignored: needs root to make device nodes");
            return;
        }
        let dir = std::env::temp_dir().join(format!("skiff-unpack-{}", std::process::id()));
        let target = dir.join("layer");
        fs::create_dir_all(&target).unwrap();
        let tar = tar_of(&[
            ("bin/", EntryType::Directory, ""),
            ("bin/sh", EntryType::Regular, "shell"),
            ("bin/hard", EntryType::Link, "bin/sh"),
            ("out", EntryType::Symlink, "../../.."),
            ("out/escaped", EntryType::Regular, "x"),
            ("../../../climbed", EntryType::Regular, "x"),
            ("etc/.wh.gone", EntryType::Regular, ""),
            ("opt/.wh..wh..opq", EntryType::Regular, ""),
            ("twice", EntryType::Regular, "one"),
            ("twice", EntryType::Regular, "two"),
        ]);
        unpack(&tar[..], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("bin/hard")).unwrap(), "shell");
        assert_eq!(fs::metadata(target.join("bin/sh")).unwrap().nlink(), 2);
        assert!(target.join("escaped").exists() && target.join("climbed").exists());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing beside the layer");
        let whiteout = fs::symlink_metadata(target.join("etc/gone")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert_eq!(fs::read_to_string(target.join("twice")).unwrap(), "two");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn hostile_names_are_refused() {
        if !nix::unistd::Uid::effective().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("ignored: needs root to make device nodes");
            return;
        }
        let dir = std::env::temp_dir().join(format!("skiff-hostile-{}", std::process::id()));
        let target = dir.join("layer");
        fs::create_dir_all(dir.join("beside")).unwrap();
        let check = |entries: &[(&str, EntryType, &str)], fits: bool| {
            let _ = fs::remove_dir_all(&target);
            fs::create_dir_all(&target).unwrap();
            assert_eq!(unpack(&tar_of(entries)[..], &target).is_ok(), fits, "{entries:?}");
            assert!(dir.join("beside").is_dir(), "{entries:?}");
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "{entries:?}");
        };
        for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
            check(&[("a/b", EntryType::Regular, "x"), (name, EntryType::Regular, "")], false);
        }
        check(&[("a/.wh....", EntryType::Regular, "")], true);
        // A link out leads nowhere: it is resolved within the layer, where nothing of that name is.
        check(&[("l", EntryType::Symlink, ".."), ("l/.wh.beside", EntryType::Regular, "")], true);
        check(&[("h", EntryType::Link, "../beside")], false);
        check(&[("l", EntryType::Symlink, "/"), ("h", EntryType::Link, "l/../../beside")], false);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn packed_or_not() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x29, 0, 0, b'h', b'e', b'l', b'l', b'o'];
        let check = |bytes: &[u8], expect: Option<&[u8]>| {
            let mut out = Vec::new();
            let got = decompress(bytes).and_then(|mut reader| reader.read_to_end(&mut out));
            assert_eq!(got.is_ok().then_some(out.as_slice()), expect);
        };
        check(b"hello", Some(b"hello"));
        check(b"", Some(b""));
        check(&gzip.finish().unwrap(), Some(b"hello"));
        let mut out = Vec::new();
        if decompress(&zstd[..]).and_then(|mut reader| reader.read_to_end(&mut out)).is_ok() {
            assert_eq!(out, b"hello");
        }
    }
}
