//! A small disk for each member: an ext4 file system in a file, which a test can fill and freeze without harm to anything else.
//!
//! The mounts are in this process' own mount namespace and the files are unlinked once they are mounted, so nothing is left of
//! them when the processes are gone, however those ended.

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Room for the log's segments (16 MiB each) and snapshots of a round; what is not written takes none.
const DISK_BYTES: u64 = 1 << 30;
const METADATA_BYTES: u64 = 8 << 20;
/// The word for [`freeze_main`] on the command line.
pub const FREEZE: &str = "freeze-disk";

/// Gives this process mounts of its own. Before any thread is started.
pub fn own_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making the mounts private")
}

/// A mounted disk.
pub struct Disk {
    pub path: PathBuf,
}

impl Disk {
    pub fn new(path: PathBuf) -> anyhow::Result<Disk> {
        let image = path.with_extension("img");
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        File::create(&image)?.set_len(DISK_BYTES)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-J", "size=4"]).arg(&image))?;
        // With -o loop the device goes when the file system is unmounted.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path))?;
        std::fs::remove_file(&image)?;
        Ok(Disk { path })
    }

    /// Takes all the room there is.
    pub fn fill(&self) -> anyhow::Result<()> {
        let file = File::options().create(true).append(true).open(self.filler())?;
        let free = nix::sys::statvfs::statvfs(&self.path)?;
        // Not all: the file system needs some blocks to say where these are.
        let free = (free.blocks_available() * free.fragment_size()).saturating_sub(METADATA_BYTES);
        // SAFETY: a plain system call on a descriptor that is open. Where it fails, writing does the rest.
        unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, i64::try_from(free)?) };
        for bytes in [1 << 20, 4096, 1] {
            let chunk = vec![1u8; bytes];
            while (&file).write_all(&chunk).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    pub fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("removing what filled the disk"),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Nothing is written for a while: writers wait in the kernel. A process of its own does it, so that the disk thaws
    /// whatever happens here.
    pub fn freeze(&self, time: Duration) -> anyhow::Result<Child> {
        let own = std::env::current_exe()?;
        let millis = time.as_millis().to_string();
        Command::new(own).arg(FREEZE).arg(&self.path).arg(millis).spawn().context("starting what freezes a disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Members have a view of their own of the mount; it ends with them.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// The process that freezes a disk: freezes it, waits, thaws it.
pub fn freeze_main(path: &Path, millis: u64) -> anyhow::Result<()> {
    let dir = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let call = |request| {
        // SAFETY: ioctls that take no argument they would write to, on a descriptor that is open.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), request as _, 0) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    match call(FIFREEZE) {
        // It is frozen already, by one that began a little late; that one thaws it.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
        frozen => frozen.with_context(|| format!("freezing {}", path.display()))?,
    }
    std::thread::sleep(Duration::from_millis(millis));
    call(FITHAW).with_context(|| format!("thawing {}", path.display()))
}
