//! The disk as the store sees it: a folder of files that are appended to, synced, read whole, and removed.
//!
//! It is a parameter so that a simulation can tear, flip and stall it; [`RealDisk`] is the one that machines have, [`MemoryDisk`]
//! is for a store that need not survive.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A file that is larger is made smaller step by step before it is removed.
const SHRINK_FROM_BYTES: u64 = 32 << 20;
const SHRINK_STEP_BYTES: u64 = 8 << 20;

/// A folder of files. Names are plain file names. Appended bytes are safe only after `sync`.
pub trait Disk: Send + Sync + 'static {
    fn list(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    fn open_read(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;
    /// The same, from a byte on.
    fn open_read_at(&self, name: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut file = self.open_read(name)?;
        io::copy(&mut file.by_ref().take(offset), &mut io::sink())?;
        Ok(file)
    }
    /// Bytes in the file.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Appends; makes the file if it is not there (and then syncs the folder, so that the name is safe too).
    fn append(&self, name: &str, data: &[u8]) -> io::Result<()>;
    /// Makes a file of this many zeros, safe on the medium when this returns: writes into it change no metadata, so syncing them
    /// waits for no journal.
    fn make_zeroed(&self, name: &str, len: usize) -> io::Result<()>;
    /// Writes over what is there; the file grows if need be.
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Data of the file to the medium. An error is final: nobody knows what was written, so it is never tried again.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Has the data of the file written out, without the word that it is safe: a later sync of all of it then waits little, and those of other
    /// files wait for no large write. An error is as final as one of `sync`.
    fn write_out(&self, name: &str) -> io::Result<()> {
        self.sync(name)
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// Makes a large file small before it is removed: a file system that tells the device at once what it may forget (mount option `discard`)
/// would otherwise hold up the log's syncs for as long as that takes, tens of milliseconds for a snapshot. If it cannot, the removal says why.
fn shrink(path: &Path) {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
    let mut left = file.metadata().map_or(0, |m| m.len());
    while left > SHRINK_FROM_BYTES {
        left -= SHRINK_STEP_BYTES;
        if file.set_len(left).and_then(|()| file.sync_all()).is_err() {
            return;
        }
    }
}

/// An error that says what was tried on which file; of the same kind.
fn explain(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()))
}

/// Files in a directory.
pub struct RealDisk {
    dir: PathBuf,
    /// Open to be appended to, and to be written over.
    open: Mutex<HashMap<String, Arc<File>>>,
    writable: Mutex<HashMap<String, Arc<File>>>,
}

impl RealDisk {
    /// Uses `dir`, which is made if it is not there.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(RealDisk { dir, open: Mutex::default(), writable: Mutex::default() })
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let path = self.dir.join(name);
        let new = !path.exists();
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = Arc::new(file.map_err(explain("opening", &path))?);
        if new {
            self.sync_dir()?;
        }
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn fill_with_zeros(&self, name: &str, len: usize) -> io::Result<()> {
        let path = self.dir.join(name);
        let file = File::create(&path).map_err(explain("making", &path))?;
        let zeros = vec![0; (1 << 20).min(len)];
        let mut left = len;
        while left > 0 {
            let part = left.min(zeros.len());
            (&file).write_all(&zeros[..part]).map_err(explain("taking room for", &path))?;
            // A little at a time: a large sync would hold up those of the log.
            file.sync_data().map_err(explain("syncing", &path))?;
            left -= part;
        }
        file.sync_all().map_err(explain("syncing", &path))?;
        self.sync_dir()
    }

    fn forget(&self, name: &str) {
        self.open.lock().unwrap_or_else(|e| e.into_inner()).remove(name);
        self.writable.lock().unwrap_or_else(|e| e.into_inner()).remove(name);
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.dir.join(name))
    }
    fn open_read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::BufReader::with_capacity(256 << 10, File::open(self.dir.join(name))?)))
    }
    fn open_read_at(&self, name: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(self.dir.join(name))?;
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(Box::new(io::BufReader::with_capacity(256 << 10, file)))
    }
    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.dir.join(name))?.len())
    }
    fn append(&self, name: &str, data: &[u8]) -> io::Result<()> {
        (&*self.file(name)?).write_all(data).map_err(explain("appending to", &self.dir.join(name)))
    }
    fn make_zeroed(&self, name: &str, len: usize) -> io::Result<()> {
        self.remove(name)?;
        // On a full disk, a part of it would take the room that others need.
        self.fill_with_zeros(name, len).inspect_err(|_| drop(self.remove(name)))
    }
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        let file = {
            let mut writable = self.writable.lock().unwrap_or_else(|e| e.into_inner());
            match writable.get(name) {
                Some(file) => file.clone(),
                None => {
                    let file = Arc::new(OpenOptions::new().write(true).open(&path).map_err(explain("opening", &path))?);
                    writable.insert(name.to_owned(), file.clone());
                    file
                }
            }
        };
        file.write_all_at(data, offset).map_err(explain("writing", &path))
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        let writable = self.writable.lock().unwrap_or_else(|e| e.into_inner()).get(name).cloned();
        match writable {
            Some(file) => file.sync_data(),
            None => self.file(name)?.sync_data(),
        }
        .map_err(explain("syncing", &self.dir.join(name)))
    }
    fn write_out(&self, name: &str) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let file = self.file(name)?;
        let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: sync_file_range(2) takes an open file and three numbers; 0 and 0 mean the whole file.
        match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, how) } {
            0 => Ok(()),
            _ => Err(explain("writing out", &self.dir.join(name))(io::Error::last_os_error())),
        }
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.set_len(len)?;
        file.sync_all()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        let (from, to) = (self.dir.join(from), self.dir.join(to));
        std::fs::rename(&from, &to).map_err(explain("renaming", &from))?;
        self.sync_dir()
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(name);
        shrink(&self.dir.join(name));
        match std::fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Files in memory: gone with the process.
#[derive(Default, Clone)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl MemoryDisk {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        f(&mut self.files.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|files| files.keys().cloned().collect()))
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.with(|files| files.get(name).cloned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn open_read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.read(name)?)))
    }
    fn size(&self, name: &str) -> io::Result<u64> {
        self.with(|files| files.get(name).map(|f| f.len() as u64)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn append(&self, name: &str, data: &[u8]) -> io::Result<()> {
        self.with(|files| files.entry(name.to_owned()).or_default().extend_from_slice(data));
        Ok(())
    }
    fn make_zeroed(&self, name: &str, len: usize) -> io::Result<()> {
        self.with(|files| files.insert(name.to_owned(), vec![0; len]));
        Ok(())
    }
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|files| {
            let file = files.entry(name.to_owned()).or_default();
            let (from, to) = (offset as usize, offset as usize + data.len());
            if file.len() < to {
                file.resize(to, 0);
            }
            file[from..to].copy_from_slice(data);
        });
        Ok(())
    }
    fn sync(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        self.with(|files| files.entry(name.to_owned()).or_default().truncate(len as usize));
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|files| {
            let data = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            files.insert(to.to_owned(), data);
            Ok(())
        })
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|files| files.remove(name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_which_file_and_stays_of_its_kind() {
        let dir = std::env::temp_dir().join(format!("skiff-disk-{}", std::process::id()));
        let disk = RealDisk::new(dir.clone()).unwrap();
        let error = disk.write_at("log-1", 0, b"x").unwrap_err();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(&dir.join("log-1").display().to_string()), "{error}");
        let full = explain("writing", Path::new("/data/log-1"))(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(full.to_string(), "writing /data/log-1: No space left on device (os error 28)");
    }
}
